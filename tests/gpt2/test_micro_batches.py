"""How a step is cut: the same sequences, shared evenly by the processes, in micro-batches that fit."""

import dataclasses
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2 import micro_batches, preflight
from gpt2.model import GPT2
from lib.base.errors import UsageError
from lib.machine.device import Machine
from lib.machine.dist import Ranks
from tests.training import schema


def machine(size=1, kind="cpu"):
    """A machine of `size` ranks that agree with this one."""
    ranks = Ranks()
    ranks.size = size
    return Machine(torch.device(kind), torch.float32, kind, None, ranks)


def values(made):
    return made["BATCH_SIZE"], made["GRADIENT_ACCUMULATION"], made["AUTO_BATCH"]


@pytest.mark.parametrize(
    ("before", "ranks", "after"),
    [
        ((4, 8), 4, (4, 8)),
        ((12, 1), 1, (12, 1)),
        ((12, 1), 2, (6, 2)),
        ((4, 6), 4, (3, 8)),
        ((6, 4), 3, (4, 6)),
        ((1, 3), 2, (1, 3)),  # cannot be shared
    ],
)
def test_a_step_is_cut_so_that_ranks_can_share_it(tmp_path, before, ranks, after):
    made = schema(tmp_path, batch_size=before[0], gradient_accumulation=before[1])
    note = micro_batches.cut(made, machine(ranks))
    assert values(made) == (*after, False)
    words = "{} processes share a step evenly with BATCH_SIZE={} GRADIENT_ACCUMULATION={} in place of BATCH_SIZE={} "
    words += "GRADIENT_ACCUMULATION={}; this learns the same"
    assert note == ("" if before == after else words.format(ranks, *after, *before))


def test_a_step_that_cannot_be_shared_is_one_sentence(tmp_path):
    options = schema(tmp_path, batch_size=1, gradient_accumulation=3).bind(preflight.SharesOptions)
    preflight.check_shares(options, 3)
    with pytest.raises(UsageError) as caught:
        preflight.check_shares(options, 2)
    assert str(caught.value) == (
        "BATCH_SIZE=1 GRADIENT_ACCUMULATION=3: 2 processes cannot share a step evenly; set a multiple of 2, such as "
        "GRADIENT_ACCUMULATION=4, or start another number of processes"
    )


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 12))
def test_shares_are_even_and_micro_batches_never_grow(count, batch, ranks):
    total = count * batch
    if total % ranks == 0:
        new = micro_batches.shared(count, total, ranks) or count
        assert new % ranks == 0
        assert total % new == 0
        assert new >= count


@given(st.integers(1, 500), st.integers(1, 12), st.integers(0, 64))
def test_the_largest_that_fits_is_a_power_of_two_and_is_shared_evenly(share, ranks, room):
    total, asked = share * ranks, []

    def fits(size):
        asked.append(size)
        return size <= room

    found = micro_batches.largest(total, ranks, fits)
    assert found.bit_count() == 1
    assert (total // found) % ranks == 0
    assert found <= max(room, 1)
    assert 2 * found > room or share % (2 * found)
    assert asked == sorted(asked)


def test_a_job_that_comes_back_has_the_cut_of_its_run(tmp_path):
    schema(tmp_path, batch_size=3, gradient_accumulation=4).write(tmp_path / ".config")
    same = schema(tmp_path, batch_size=12, gradient_accumulation=1, auto_batch=True)
    micro_batches.follow(same, tmp_path)
    assert values(same) == (3, 4, False)
    other = schema(tmp_path, batch_size=12, gradient_accumulation=2)
    micro_batches.follow(other, tmp_path)
    assert values(other) == (12, 2, False)


def test_only_the_memory_of_a_cuda_gpu_is_tried_out(tmp_path):
    made = schema(tmp_path, batch_size=12, gradient_accumulation=1, auto_batch=True)
    assert micro_batches.cut(made, machine()) == (
        "AUTO_BATCH=y tries out only the memory of CUDA GPUs; BATCH_SIZE=12 GRADIENT_ACCUMULATION=1 stays"
    )
    assert values(made) == (12, 1, False)


@pytest.mark.parametrize(("free", "found"), [(0.5, 4), (0.05, 1)])
def test_the_largest_micro_batch_that_fits_is_recorded_as_if_it_had_been_given(tmp_path, monkeypatch, free, found):
    """A CPU with the messages of a GPU that has memory for four sequences."""
    made = schema(tmp_path, batch_size=3, gradient_accumulation=16, auto_batch=True, optimizer="muon")
    forward = GPT2.forward

    def limited(model, tokens, targets=None):
        if len(tokens) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, tokens, targets)

    monkeypatch.setattr(GPT2, "forward", limited)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 1e9, 1e9))
    seeming = types.SimpleNamespace(type="cuda")
    trial = micro_batches.trial
    monkeypatch.setattr(micro_batches, "trial", lambda schema, _: trial(schema, machine()))
    note = micro_batches.cut(made, dataclasses.replace(machine(2), device=seeming))
    assert values(made) == (found, 48 // found, False)
    assert note == f"AUTO_BATCH=y: BATCH_SIZE={found} GRADIENT_ACCUMULATION={48 // found} is the largest that fits"
    assert made.sources["BATCH_SIZE"] == "AUTO_BATCH=y"

"""What ranks do together: gradients are summed during the backward pass, and all wait for what the first one does."""

import contextlib
import copy
import datetime
import hashlib
import json
import os
import time

import pytest
import torch

from gpt2 import loop
from gpt2.session import Session
from lib.base.launch import Launch
from lib.machine import device, dist
from tests import forked
from tests.training import schema

STEPS, SAVED = 6, 3
PRUNED = {
    "pruning_method": "magnitude", "target_sparsity": 0.5, "pruning_warmup": 2, "pruning_end": 5, "warmup_steps": 0,
    "pruning_interval": 1, "dropout": 0, "batch_size": 1, "gradient_accumulation": 8, "max_iters": STEPS,
}  # fmt: skip


def digest(*tensors):
    """The SHA-256 of all these tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def rank(number, size, folder, dtype="float32"):
    """One of `size` ranks: trains, begins again from a step in the middle, and writes what came of both."""
    os.chdir(folder)
    torch.set_num_threads(1)
    dist._GRADIENT_BYTES = 8 << 10  # many buckets
    made = schema(folder, **PRUNED, sum_dtype=dtype)
    launch = Launch("torchrun", number, size, number, "", f"file://{folder}/{size}")
    machine = device.choose(made.bind(device.SystemOptions), launch)
    options = made.bind(loop.LoopOptions)
    losses, weights, masks, saved = [], [], [], {}

    def train(session, steps):
        training = session.training
        for step in steps:
            losses.append(loop.update(training, session.data, machine, options, step)[0].item())
            training.step = step
            weights.append(digest(*(p.detach() for p in training.model.parameters())))
            masks.append(digest(*(weight.mask for weight in training.pruner.weights)))
            if step == SAVED:
                saved.update(copy.deepcopy(training.state_dict()))

    with machine.ranks:
        train(Session(made, machine), range(1, STEPS + 1))
        again = Session(made, machine)
        again.training.load_state_dict(saved)
        train(again, range(SAVED + 1, STEPS + 1))
    (folder / f"{number}.json").write_text(json.dumps([losses, weights, masks]))


def start(target, arguments):
    """Call `target` in a process for each of the `arguments`, and return when all have ended well."""
    processes = [forked.process(target, *each) for each in arguments]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def ranks(folder, size, dtype="float32"):
    """What each of `size` ranks wrote: its losses, its weights and its masks after each step."""
    folder.mkdir()
    start(rank, [(number, size, folder, dtype) for number in range(size)])
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(size)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses, weights and masks of one process."""
    [found] = ranks(tmp_path_factory.mktemp("ranks") / "alone", 1)
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_as_one_process_and_go_on_bit_for_bit(alone, tmp_path, size):
    first, *others = ranks(tmp_path / "ranks", size)
    assert all(other == first for other in others)
    losses, weights, masks = first
    for found in first:
        assert found[STEPS:] == found[SAVED:STEPS]
    assert losses[:STEPS] == pytest.approx(alone[0][:STEPS], abs=1e-5)
    assert masks == alone[2]
    assert len(set(masks)) > 2
    assert weights != alone[1]  # sums in another order


def test_sums_in_bfloat16_are_the_same_on_all_ranks(alone, tmp_path):
    first, second = ranks(tmp_path / "ranks", 2, "bfloat16")
    assert first == second
    assert first[0][STEPS:] == first[0][SAVED:STEPS]
    assert first[0] == pytest.approx(alone[0], abs=0.02)
    assert first[0] != pytest.approx(alone[0], abs=1e-5)


def waiting(number, folder):
    """One of two ranks whose group gives up after a second: rank 0 works for longer, and the other waits."""
    second = datetime.timedelta(seconds=1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2, timeout=second
    )
    with dist.join(Launch("ray", number, 2, number, "", ""), torch.device("cpu")) as group:
        made = group.first(lambda: time.sleep(2.5) or "data")
    torch.distributed.destroy_process_group()
    (folder / f"{number}").write_text(made)


def test_others_wait_for_the_first_rank_longer_than_the_time_out_of_their_group(tmp_path):
    start(waiting, [(number, tmp_path) for number in range(2)])
    assert [(tmp_path / f"{number}").read_text() for number in range(2)] == ["data", "data"]


class Work:
    """A sum that is ready at once."""

    def wait(self):
        pass


@pytest.fixture
def layers(monkeypatch):
    """Three layers, each a bucket, and for each sum that was begun: its numbers, and the layers without gradients."""
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(3)))
    begun = []

    def all_reduce(tensor, async_op):
        begun.append((tensor.numel(), [n for n, layer in enumerate(model) if layer.weight.grad is None]))
        return Work()

    monkeypatch.setattr(dist, "_GRADIENT_BYTES", 64)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return model, begun


def test_sums_begin_while_the_backward_pass_goes_on(layers):
    model, begun = layers
    buckets = dist._Buckets(model, torch.float32, contextlib.nullcontext)
    loss = model(torch.ones(1, 4)).sum()
    with buckets:
        loss.backward()
    assert begun == [(16, [0, 1]), (16, [0]), (16, [])]
    buckets.finish()
    model(torch.ones(1, 4)).sum().backward()
    assert len(begun) == 3  # no hook is left


def test_a_parameter_without_a_gradient_is_an_error(layers):
    model, begun = layers
    buckets = dist._Buckets(model, torch.float32, contextlib.nullcontext)
    with buckets:
        model[1:](torch.ones(1, 4)).sum().backward()
    assert len(begun) == 2
    with pytest.raises(RuntimeError, match="a parameter has no gradient"):
        buckets.finish()


def test_buckets_have_a_least_size_and_the_last_parameters_come_first(monkeypatch):
    monkeypatch.setattr(dist, "_GRADIENT_BYTES", 100)
    parameters = [torch.zeros(size // 4) for size in (80, 300, 40, 60, 20, 88)]
    sizes = [[parameter.nbytes for parameter in bucket] for bucket in dist._cut(parameters)]
    assert sizes == [[88, 20], [60, 40], [300], [80]]

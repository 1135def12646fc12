"""What a run is said to take, beside what it then takes."""

import dataclasses
import re

import pytest
import torch

from gpt2 import footprint, loop
from gpt2.session import Session
from lib.machine import device
from lib.record import checkpoint
from tests import training
from tests.disk import disk
from tests.training import arguments

__all__ = ["disk"]  # fixtures


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "pruning_method": "movement", "pruning_interval": 3},
        {"optimizer": "muon", "pruning_method": "magnitude", "pruning_interval": 3},
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "adamwspam"},
        {"optimizer": "stablespam"},
    ],
)
def test_the_size_of_a_checkpoint_is_known_before_there_is_one(tmp_path, options):
    schema = training.schema(tmp_path, n_embd=64, max_iters=20, **options)
    session = Session(schema, device.choose(schema.bind(device.SystemOptions)))
    random = torch.get_rng_state()
    expected = footprint.checkpoint_bytes(session.training, schema.bind)
    assert torch.equal(torch.get_rng_state(), random)
    records, wanted = training.Records(), schema.bind(loop.LoopOptions)
    schedule = dataclasses.replace(session.schedule, max_iters=12)
    loop.train(session.training, session.data, session.machine, wanted, schedule, records, lambda: False)
    state = session.training.state_dict()
    path = checkpoint.save(tmp_path, 12, state, schema.bind(checkpoint.Keeping), {})
    assert path.stat().st_size <= checkpoint.size(state)
    assert expected == pytest.approx(path.stat().st_size, rel=0.15)


def test_a_run_without_room_for_a_checkpoint_does_not_begin(tmp_path, disk):
    disk("size=500k")
    output = training.train(tmp_path, *arguments(output_dir="disk"), code=1)
    wanted = r"step-000000040.pt: the checkpoint takes 0.\d MB, and 0.\d MB are free there; make room\n"
    assert re.search(rf"error: disk/run/checkpoints/{wanted}", output)
    assert "val loss" not in output


def test_a_run_with_room_for_some_says_so(tmp_path, disk):
    disk("size=1500k")
    output = training.train(tmp_path, *arguments(output_dir="disk", max_iters=5))
    assert re.search(
        r"note: disk/run/checkpoints: a checkpoint of this run takes 0.\d MB, and 1.\d MB are free: ", output
    )
    assert "too few for the 3 checkpoints that it can have at once; see CHECKPOINT_KEEP" in output

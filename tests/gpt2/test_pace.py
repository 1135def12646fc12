"""How long a run will take is measured before it begins, and leaves no trace in it."""

import pytest
import torch

from gpt2 import loop, pace
from gpt2.session import Session
from lib.machine import device
from lib.terminal import console
from tests.training import Records, arguments, losses, same, schema, train


def session(folder, **changes):
    made = schema(folder, **changes)
    return made, Session(made, device.choose(made.bind(device.SystemOptions)))


def left(session):
    return pace.seconds_left(session.training, session.data, session.machine, session.schedule, 10)


@pytest.mark.parametrize("method", ["none", "wanda", "movement"])
def test_measuring_changes_nothing(tmp_path, method):
    def record(measured):
        made, one = session(tmp_path, pruning_method=method, max_iters=12)
        if measured:
            before = one.training.state_dict()
            assert left(one) > 0
            assert same(one.training.state_dict(), before)
        records = Records()
        options = made.bind(loop.LoopOptions)
        loop.train(one.training, one.data, one.machine, options, one.schedule, records, lambda: False)
        return [(step, metrics["train_loss"]) for event, step, metrics in records if event == "train"]

    assert record(True) == record(False)


def test_the_parts_grow_to_the_whole_batch():
    assert list(pace._parts(12, 1024)) == [(1, 64), (1, 256), (1, 1024), (4, 1024), (12, 1024)]
    assert list(pace._parts(4, 32)) == [(1, 32), (4, 32)]
    assert list(pace._parts(1, 32)) == [(1, 32)]


def test_seconds_are_those_of_steps_and_evaluations(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "_seconds_per_token", lambda *_: 0.001)
    _, one = session(tmp_path)
    assert left(one) == pytest.approx(0.001 * (40 * 8 * 32 + 5 * 8 * 32 / 3))
    one.training.step = 20
    assert left(one) == pytest.approx(0.001 * (20 * 8 * 32 + 3 * 8 * 32 / 3))
    assert pace.words(left(one), one.training, one.schedule) == ", about 5 s here for the 20 that are left"
    one.training.step = 40
    assert left(one) is None


def test_too_little_memory_is_for_the_first_step_to_tell(tmp_path, monkeypatch):
    def short(*_):
        raise RuntimeError("can't allocate memory")

    _, one = session(tmp_path)
    monkeypatch.setattr(one.training.model, "forward", short)
    assert left(one) is None
    assert one.training.model.training


def test_a_long_run_on_a_cpu_gets_advice(tmp_path):
    _, one = session(tmp_path)
    assert pace.advice(3 * 3600, one.machine).startswith("that is long; Ctrl-C stops it")
    assert pace.advice(3 * 3600 - 1, one.machine) == pace.advice(None, one.machine) == ""
    cuda = device.Machine(torch.device("cuda"), torch.float32, "cuda", None)
    assert pace.advice(1e9, cuda) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (59.4, "59 s"),
        (99, "1:39"),
        (3661, "1:01:01"),
        (5e4, "14 hours"),
        (1e6, "12 days"),
        (2e8, "6 years"),
    ],
)
def test_what_is_known_roughly(seconds, words):
    assert console.roughly(seconds) == words


def test_a_start_without_a_configuration_says_what_it_trains_and_how_long(tmp_path):
    output = train(tmp_path, *arguments(max_iters=3, dataset_source="corpus.txt"))
    assert f"there is no .config in {tmp_path}: options that are not given have their defaults, so " in output
    assert "MODEL_NAME=custom and DATASET=files; a small model: --config " in output
    assert "training    3 steps of 256 tokens, about " in output
    assert list(losses(tmp_path / "runs/run")) == [1, 2, 3]

"""Determinism: what --deterministic promises, and what changes a result when it may."""

import os

import pytest
import torch

from gpt2 import loop
from gpt2.session import Session
from lib.base.errors import UserError
from lib.machine import device
from lib.record import journal
from tests.training import Records, schema


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """What is set for a whole process is what it was for the next test."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    torch.compiler.reset()


def train(folder, **changes):
    """What a run in this process records, but for what depends on the clock, and all that its checkpoint has."""
    made, records = schema(folder, **changes), Records()
    session = Session(made, device.choose(made.bind(device.SystemOptions)))
    options = made.bind(loop.LoopOptions)
    loop.train(session.training, session.data, session.machine, options, session.schedule, records, lambda: False)
    state = session.training.state_dict()
    tensors = [*state["model"].values(), *tensors_in(state["optimizer"]), state["random"]["cpu"]]
    return [(event, step, journal.lasting(metrics)) for event, step, metrics in records], tensors, session.machine


def tensors_in(state):
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list):
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(part)


def assert_same(one, other):
    assert one[0] == other[0]
    assert len(one[1]) == len(other[1]) > 10
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize(
    ("threads", "compiled"),
    [(1, {}), (2, {}), (2, {"compile": True, "max_iters": 10, "n_layer": 1})],
    ids=["1 thread", "2 threads", "2 threads, compiled"],
)
def test_two_runs_are_one(tmp_path, compiled, threads):
    one, other = (train(tmp_path, deterministic=True, threads=threads, **compiled) for _ in range(2))
    assert_same(one, other)
    used = one[2].use().words(reasons=False)  # which the journal's first event has
    assert used == f"cpu, float32, {'1 thread' if threads == 1 else '2 threads'}, deterministic"


def test_on_a_cpu_it_changes_no_result(tmp_path):
    assert_same(train(tmp_path, deterministic=True), train(tmp_path))


def test_torch_is_told_before_it_computes(tmp_path):
    asked, free = (schema(tmp_path, deterministic=value).bind(device.SystemOptions) for value in (True, False))
    device.choose(asked)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # read with cuBLAS's first product
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    device.choose(free)  # another run of this process, in a worker of Ray, say
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_setting_of_the_users_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    device.choose(schema(tmp_path, deterministic=True).bind(device.SystemOptions))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_what_has_no_deterministic_kernel_is_one_sentence(tmp_path):
    device.choose(schema(tmp_path, deterministic=True).bind(device.SystemOptions))
    with pytest.raises(UserError) as caught, device.errors_for_users():
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))  # one of those that a CPU has
    assert str(caught.value) == (
        "DETERMINISTIC=y: PyTorch has no deterministic kernel on this device for a part of this run (put_ does not "
        "have a deterministic implementation); use DETERMINISTIC=n"
    )

"""Checkpoints: written whole or not at all, read without running anything."""

import pickle
import resource
import subprocess
import sys

import pytest
import torch

from lib import checkpoint
from lib.checkpoint import CheckpointError


def test_what_is_saved_is_loaded(tmp_path):
    state = {"model": {"w": torch.arange(6.0).view(2, 3)}, "best_val_loss": 1.5, "random": checkpoint.random_state()}
    path = checkpoint.save(tmp_path, 40, state)
    assert path == tmp_path / "step-000000040.pt"
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert (loaded["step"], loaded["best_val_loss"], loaded["version"]) == (40, 1.5, 2)


def test_the_newest_two_are_kept(tmp_path):
    for step in (10, 20, 100, 30):
        checkpoint.save(tmp_path, step, {})
    assert [path.name for path in checkpoint.find(tmp_path)] == ["step-000000030.pt", "step-000000100.pt"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_random_numbers_continue_where_they_were(tmp_path):
    torch.manual_seed(3)
    torch.rand(5)
    path = checkpoint.save(tmp_path, 1, {"random": checkpoint.random_state()})
    expected = torch.rand(4)
    torch.manual_seed(99)
    checkpoint.restore_random_state(checkpoint.load(path)["random"])
    assert torch.equal(torch.rand(4), expected)


class Attack:
    def __reduce__(self):
        return print, ("this code must not run",)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "pickle", "not a dict"])
def test_a_damaged_or_foreign_file_is_one_sentence_and_runs_nothing(tmp_path, damage, capsys):
    path = checkpoint.save(tmp_path, 7, {"w": torch.zeros(1000)})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Attack()))
    elif damage == "not a dict":
        torch.save([1, 2], path)
    else:
        path.write_bytes(b"" if damage == "empty" else b"no checkpoint")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "this code must not run" not in capsys.readouterr().out


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_no_half_file(tmp_path):
    program = f"""
import resource, signal, sys
from pathlib import Path
import torch
from lib import checkpoint
folder = Path({str(tmp_path)!r})
checkpoint.save(folder, 1, {{"w": torch.zeros(10)}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(folder, 2, {{"w": torch.zeros(1_000_000)}})
except checkpoint.CheckpointError as error:
    print(error)
"""
    assert resource.RLIMIT_FSIZE  # the platform has the limit
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path}/step-000000002.pt: the checkpoint cannot be written (")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001.pt"]
    assert checkpoint.load(tmp_path / "step-000000001.pt")["step"] == 1

"""Checkpoints: written whole or not at all, read without running anything."""

import pickle
import resource
import subprocess
import sys
import threading

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


# ---- written by a thread ---------------------------------------------------------------------------------------------


def writer(folder, sync=bool, said=None):
    return checkpoint.Writer(folder, sync, ([] if said is None else said).append)


def test_what_changes_after_a_save_is_not_in_it(tmp_path):
    weight, moment, mask = torch.arange(6.0).view(2, 3), torch.ones(3, 2).T, torch.ones(4, dtype=torch.uint8)
    state = {"model": {"a": weight, "tied": weight}, "optimizer": {"state": {0: {"exp_avg": moment}}}, "masks": [mask]}
    state |= {"counters": {"skipped": 1}, "betas": (0.9, torch.tensor(0.5)), "flips": [3]}
    go = threading.Event()
    with writer(tmp_path) as saving:
        saving.thread.submit(go.wait)  # nothing is written before everything has changed
        saving.save(1, state)
        for tensor in (weight, moment, mask, state["betas"][1]):
            tensor.zero_()
        state["counters"]["skipped"], state["flips"][0], state["model"]["b"] = 2, 4, weight
        go.set()
    loaded = checkpoint.load(tmp_path / "step-000000001.pt")
    assert torch.equal(loaded["model"]["a"], torch.arange(6.0).view(2, 3))
    assert loaded["model"].keys() == {"a", "tied"}
    assert loaded["model"]["a"].data_ptr() == loaded["model"]["tied"].data_ptr()  # once in the file
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], torch.ones(2, 3))
    assert loaded["optimizer"]["state"][0]["exp_avg"].stride() == (1, 2)
    assert torch.equal(loaded["masks"][0], torch.ones(4, dtype=torch.uint8))
    assert (loaded["counters"], loaded["betas"], loaded["flips"]) == ({"skipped": 1}, (0.9, torch.tensor(0.5)), [3])


def test_a_save_waits_for_the_one_before_and_copies_into_its_tensors(tmp_path):
    weight, go = torch.zeros(3), threading.Event()
    with writer(tmp_path, sync=go.wait) as saving:
        saving.save(1, {"w": weight, "once": torch.ones(5)})
        [first] = [copy for copy in saving.copies.values() if copy.shape == (3,)]
        threading.Timer(0.1, go.set).start()
        saving.save(2, {"w": weight.add_(1)})
        assert go.is_set()
        assert (tmp_path / "step-000000001.pt").exists()
        [second] = saving.copies.values()  # what is no longer saved is no longer kept
    assert second is first
    values = [checkpoint.load(path)["w"].tolist() for path in checkpoint.find(tmp_path)]
    assert values == [[0, 0, 0], [1, 1, 1]]


def test_the_journal_is_safe_before_a_checkpoint_has_its_name(tmp_path):
    seen = []
    with writer(tmp_path, sync=lambda: seen.append([path.name for path in checkpoint.find(tmp_path)])) as saving:
        for step in (1, 2, 3):
            saving.save(step, {})
    assert seen == [[], ["step-000000001.pt"], ["step-000000001.pt", "step-000000002.pt"]]
    assert [path.name for path in checkpoint.find(tmp_path)] == ["step-000000002.pt", "step-000000003.pt"]


def test_after_one_that_could_not_be_written_the_next_is_written_at_once(tmp_path):
    folder, said = tmp_path / "later", []
    sentence = (
        f"{folder}/step-000000001.pt: the checkpoint cannot be written "
        f"([Errno 2] No such file or directory: '{folder}/step-000000001.pt.tmp'); free space"
    )
    with writer(folder, said=said) as saving:
        saving.save(1, {})
        with pytest.raises(CheckpointError) as caught:
            saving.wait()
        assert str(caught.value) == sentence
        with pytest.raises(CheckpointError, match=r"step-000000002.pt: the checkpoint cannot be written"):
            saving.save(2, {})
        assert said == [f"alert: {sentence}"]
        saving.save(3, {})
        with pytest.raises(CheckpointError, match=r"step-000000003.pt"):
            saving.wait()
        folder.mkdir()
        saving.save(4, {})
        assert [path.name for path in checkpoint.find(folder)] == ["step-000000004.pt"]


def test_one_that_could_not_be_written_is_raised_at_the_end(tmp_path):
    with pytest.raises(CheckpointError, match=r"step-000000001.pt: "), writer(tmp_path / "none") as saving:
        saving.save(1, {})


def test_what_could_not_be_written_hides_no_other_error(tmp_path):
    said = []
    with pytest.raises(ValueError, match="another"), writer(tmp_path / "none", said=said) as saving:
        saving.save(1, {})
        raise ValueError("another")
    assert len(said) == 1 and said[0].startswith(f"alert: {tmp_path}/none/step-000000001.pt: the checkpoint cannot be")
    with pytest.raises(CheckpointError), writer(tmp_path / "none", said=said) as saving:
        saving.save(1, {})
        saving.wait()
    assert len(said) == 1


def test_without_memory_for_a_copy_training_waits(tmp_path):
    program = f"""
import resource
from pathlib import Path
import torch
from lib import checkpoint
state = {{"w": torch.ones(50_000_000)}}
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 100_000_000,) * 2)
folder = Path({str(tmp_path)!r})
with checkpoint.Writer(folder, bool, print) as writer:
    for step in (1, 2):
        writer.save(step, state)
        print(checkpoint.name(step), (folder / checkpoint.name(step)).exists(), len(writer.copies))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    note, *saves = done.stdout.splitlines()
    assert note.startswith("note: no memory to copy the state (")
    assert note.endswith("); training waits for checkpoints")
    assert saves == ["step-000000001.pt True 0", "step-000000002.pt True 0"]
    assert checkpoint.load(tmp_path / "step-000000002.pt")["w"].sum() == 50_000_000


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    program = f"""
import time
from pathlib import Path
import torch
from lib import checkpoint
writer = checkpoint.Writer(Path({str(tmp_path)!r}), lambda: go or (print("written", flush=True), time.sleep(60)), print)
go = True
writer.save(1, {{"w": torch.zeros(1000)}})
writer.wait()
go = False
writer.save(2, {{"w": torch.ones(1000)}})
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"  # but not named
    process.kill()
    process.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001.pt", "step-000000002.pt.tmp"]
    [path] = checkpoint.find(tmp_path)
    assert torch.equal(checkpoint.load(path)["w"], torch.zeros(1000))
    with writer(tmp_path) as saving:
        saving.save(2, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001.pt", "step-000000002.pt"]

"""Checkpoints: written whole or not at all, read without running anything."""

import dataclasses
import pickle
import random
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from lib.base.errors import UsageError
from lib.machine import random_state
from lib.record import checkpoint, checkpoint_file
from lib.record.checkpoint import CheckpointError, Keeping
from tests import forked
from tests.disk import disk

__all__ = ["disk"]  # fixtures

CPU = torch.device("cpu")
TWO = Keeping(checkpoint_keep=2, checkpoint_best=False, checkpoint_at="")


def save(folder, step, state, **about):
    return checkpoint.save(folder, step, state, TWO, about)


def test_what_is_saved_is_loaded(tmp_path):
    state = {"model": {"w": torch.arange(6.0).view(2, 3)}, "best_val_loss": 1.5, "random": random_state.of(CPU)}
    path = save(tmp_path, 40, state)
    assert path == tmp_path / "step-000000040.pt"
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert (loaded["step"], loaded["best_val_loss"]) == (40, 1.5)


def test_the_newest_two_are_kept(tmp_path):
    for step in (10, 20, 100, 30):
        save(tmp_path, step, {})
    assert [path.name for path in checkpoint.find(tmp_path)] == ["step-000000030.pt", "step-000000100.pt"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_random_numbers_continue_where_they_were(tmp_path):
    torch.manual_seed(3)
    torch.rand(5)
    path = save(tmp_path, 1, {"random": random_state.of(CPU)})
    expected = torch.rand(4)
    torch.manual_seed(99)
    assert random_state.restore(checkpoint.load(path)["random"], CPU) == ""
    assert torch.equal(torch.rand(4), expected)


class Attack:
    def __reduce__(self):
        return print, ("this code must not run",)


@pytest.mark.parametrize("damage", ["garbage", "empty", "pickle", "not a dict"])
def test_a_damaged_or_foreign_file_is_one_sentence_and_runs_nothing(tmp_path, damage, capsys):
    path = save(tmp_path, 7, {"w": torch.zeros(1000)})
    if damage == "pickle":
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


def in_a_process(target, folder):
    """Call `target`, a function of this module, in a process of its own, which must end well."""
    process = forked.process(target, folder)
    process.join(300)
    assert process.exitcode == 0


def save_without_room(folder):
    save(folder, 1, {"w": torch.zeros(10)})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(checkpoint.CheckpointError) as caught:
        save(folder, 2, {"w": torch.zeros(1_000_000)})
    reason = "the checkpoint of 4.1 MB cannot be written (File too large); make room"
    assert str(caught.value) == f"{folder}/step-000000002.pt: {reason}"


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_no_half_file(tmp_path):
    in_a_process(save_without_room, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001.pt"]
    assert checkpoint.load(tmp_path / "step-000000001.pt")["step"] == 1


# ---- damage and mistakes ---------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(tmp_path):
    """Wherever it is: in a weight, in what torch.save wrote around it, in the header, in the checksum."""
    path = save(tmp_path, 7, {"model": {"w": torch.zeros(50)}})
    whole = path.read_bytes()
    places = random.Random(1).sample(range(len(whole)), 500) + list(range(len(whole) - 120, len(whole)))
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    path.write_bytes(whole)
    assert checkpoint.load(path)["step"] == 7


@pytest.mark.parametrize("length", [0, 1, 100, -1, -50, -90, -500])
def test_a_file_that_is_cut_off_is_found(tmp_path, length):
    path = save(tmp_path, 7, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"step-000000007.pt: the checkpoint is cut off or damaged at its end"):
        checkpoint.load(path)


def test_damage_is_found_before_anything_is_loaded(tmp_path, monkeypatch):
    path = save(tmp_path, 7, {"w": torch.zeros(1000)})
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    monkeypatch.setattr(torch, "load", lambda *args, **more: pytest.fail("it was loaded"))
    with pytest.raises(CheckpointError, match="is damaged: its content does not match its checksum"):
        checkpoint.load(path)


def test_a_pickle_with_a_right_checksum_runs_nothing(tmp_path, capsys):
    path = tmp_path / "step-000000001.pt"
    with path.open("wb") as file:
        sealer = checkpoint_file.Sealer(file)
        sealer.write(pickle.dumps(Attack()))
        sealer.seal({"step": 1, "best": {}, "values": {}, "sections": {}})
    with pytest.raises(CheckpointError, match=r"step-000000001.pt: the checkpoint cannot be read \("):
        checkpoint.load(path)
    assert "this code must not run" not in capsys.readouterr().out


def test_a_checkpoint_of_another_run_or_model_or_format_is_refused(tmp_path, monkeypatch):
    state = {"model": {"w": torch.zeros(2, 3)}}
    path = save(tmp_path, 1, state, run="one", run_id="1a", model="small")
    mine = {"run_id": "1a", "shapes": checkpoint.shapes(state["model"])}
    assert checkpoint.load(path, expected=mine)["step"] == 1
    with pytest.raises(CheckpointError, match="the checkpoint is of another run: 'one', 'small'"):
        checkpoint.load(path, expected=mine | {"run_id": "2b"})
    other = {"w": torch.zeros(3, 2)}
    with pytest.raises(CheckpointError, match="the checkpoint is of another model: 'one', 'small'"):
        checkpoint.load(path, expected=mine | {"shapes": checkpoint.shapes(other)})
    monkeypatch.setattr(checkpoint_file, "FORMAT", 4)
    with pytest.raises(CheckpointError, match="has format 3, and this Espalier reads 4; use the version that wrote it"):
        checkpoint.load(path)


def test_instead_of_a_damaged_one_the_newest_whole_one_is_offered_by_name(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    three = Keeping(checkpoint_keep=3, checkpoint_best=False, checkpoint_at="")
    paths = [checkpoint.save(folder / "checkpoints", step, {}, three, {}) for step in (1, 2, 3)]
    assert checkpoint.load_newest(folder)["step"] == 3
    paths[2].write_bytes(b"x")
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_newest(folder)
    assert str(caught.value).endswith(
        "or from another version of Espalier; to continue from step-000000001.pt, which is intact: "
        f"mkdir -p {folder}/damaged && mv {paths[1]} {paths[2]} {folder}/damaged && make resume RUN={folder}"
    )
    paths[0].unlink()
    with pytest.raises(CheckpointError, match="; no checkpoint is intact; to start again: mkdir -p "):
        checkpoint.load_newest(folder)
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint here, though rank 0 sees one; put OUTPUT_DIR where"):
        checkpoint.load_newest(folder)


def test_torch_alone_reads_a_checkpoint(tmp_path):
    """A model must be of use without Espalier, however many tensors its header tells of."""
    state = {"model": {f"h.{n}.weight": torch.full((3,), n) for n in range(600)}}
    loaded = torch.load(save(tmp_path, 1, state), weights_only=True)
    assert loaded["model"]["h.599.weight"].tolist() == [599, 599, 599]


def test_a_disk_without_room_is_known_beforehand(tmp_path, disk):
    folder = disk("size=1m")
    save(folder, 1, {"w": torch.zeros(10)})
    with pytest.raises(CheckpointError, match=r"step-000000002.pt: the checkpoint takes 4.1 MB, and 1.0 MB are free"):
        save(folder, 2, {"w": torch.zeros(1_000_000)})
    assert [path.name for path in folder.iterdir()] == ["step-000000001.pt"]


# ---- which are kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_number_that_is_nan_or_infinite_is_found_among_many(dtype):
    """Large numbers, whose squares are infinite, are finite."""
    large = torch.full((3, 1001), torch.finfo(dtype).max, dtype=dtype)
    others = [large, -large, torch.empty(0), torch.tensor(7), torch.ones(5)]
    assert checkpoint.is_finite(others)
    assert checkpoint.is_finite([])
    for number in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 500, 1000):
            one = torch.zeros(1001, dtype=dtype)
            one[place] = number
            assert not checkpoint.is_finite([*others, one])
            assert not checkpoint.is_finite([torch.ones(5), one])


def test_the_best_is_kept_beside_the_newest(tmp_path):
    keeping = Keeping(checkpoint_keep=1, checkpoint_best=True, checkpoint_at="")
    for step, best in ((10, 10), (20, 10), (30, 10), (40, 40), (50, 40)):
        checkpoint.save(tmp_path, step, {"best": {"step": best, "val_loss": 1.5}}, keeping, {})
    assert [path.name for path in checkpoint.find(tmp_path)] == ["step-000000040.pt", "step-000000050.pt"]


def test_a_checkpoint_is_chosen_by_what_it_is_called(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="this run has no checkpoint yet"):
        checkpoint_file.chosen(tmp_path, "newest")
    for step in (10, 20):
        save(tmp_path / "checkpoints", step, {"best": {"step": 10, "val_loss": 1.5}})
    names = {
        which: checkpoint_file.chosen(tmp_path, which).name for which in ("newest", "best", "10", "step-000000020.pt")
    }
    assert names == {
        "newest": "step-000000020.pt", "best": "step-000000010.pt", "10": "step-000000010.pt",
        "step-000000020.pt": "step-000000020.pt",
    }  # fmt: skip
    for which in ("30", "../10", "", "-10", "³"):
        with pytest.raises(UsageError, match="there is no checkpoint"):
            checkpoint_file.chosen(tmp_path, which)


# ---- written by a thread ---------------------------------------------------------------------------------------------


def writer(folder, sync=bool, said=None):
    return checkpoint.Writer(folder, TWO, {}, sync, ([] if said is None else said).append)


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
    sentence = f"{folder}/step-000000001.pt: the checkpoint of 0.1 MB cannot be written (No such file or directory)"
    with writer(folder, said=said) as saving:
        saving.save(1, {})
        with pytest.raises(CheckpointError) as caught:
            saving.wait()
        assert str(caught.value) == sentence
        with pytest.raises(CheckpointError, match=r"step-000000002.pt: the checkpoint of 0.1 MB cannot be written"):
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
    assert len(said) == 1 and said[0].startswith(f"alert: {tmp_path}/none/step-000000001.pt: the checkpoint of 0.1 MB")
    with pytest.raises(CheckpointError), writer(tmp_path / "none", said=said) as saving:
        saving.save(1, {})
        saving.wait()
    assert len(said) == 1


def save_without_memory(folder):
    state = {"w": torch.ones(50_000_000)}
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 100_000_000,) * 2)
    notes = []
    with checkpoint.Writer(folder, TWO, {}, bool, notes.append) as writer:
        for step in (1, 2):
            writer.save(step, state)
            assert (folder / checkpoint.name(step)).exists()
            assert len(writer.copies) == 0
    (note,) = notes
    assert note.startswith("note: no memory to copy the state (")
    assert note.endswith("); training waits for checkpoints")


def test_without_memory_for_a_copy_training_waits(tmp_path):
    in_a_process(save_without_memory, tmp_path)
    assert checkpoint.load(tmp_path / "step-000000002.pt")["w"].sum() == 50_000_000


def save_and_stay(folder):
    """Save twice; the second time it stays where the file is written and not yet named."""
    go = [True]
    writer = checkpoint.Writer(folder, TWO, {}, lambda: go or ((folder / "written").touch(), time.sleep(60)), print)
    writer.save(1, {"w": torch.zeros(1000)})
    writer.wait()
    go.clear()
    writer.save(2, {"w": torch.ones(1000)})
    time.sleep(60)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    process = forked.process(save_and_stay, tmp_path)
    while not (tmp_path / "written").exists():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    (tmp_path / "written").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001.pt", "step-000000002.pt.tmp"]
    [path] = checkpoint.find(tmp_path)
    assert torch.equal(checkpoint.load(path)["w"], torch.zeros(1000))
    with writer(tmp_path) as saving:
        saving.save(2, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001.pt", "step-000000002.pt"]


def test_steps_that_earlier_sessions_named_are_kept_too():
    keeping = dataclasses.replace(TWO, checkpoint_at="30").and_earlier(["10, 20", None, "", "10, 20"])
    assert keeping.checkpoint_at == "10, 20,30"
    found = [Path(checkpoint.name(step)) for step in (10, 15, 20, 30, 40, 50)]
    assert keeping.obsolete(found, 0) == [Path("step-000000015.pt")]

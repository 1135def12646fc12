"""Which checkpoint of TRL a run of fine-tuning goes on from, and what is told where there is none."""

import pytest

from gpt2 import train
from lib.base.errors import UserError
from lib.record import trl_checkpoints


@pytest.fixture
def made(tmp_path):
    for step in (5, 10, 100):
        (tmp_path / f"trl/checkpoint-{step}").mkdir(parents=True)
        (tmp_path / f"trl/checkpoint-{step}/optimizer.pt").write_bytes(b"1234")
    for step in (5, 10):
        trl_checkpoints.complete(tmp_path / f"trl/checkpoint-{step}", 7 * step, 0.5, 2)
    return tmp_path


def test_a_run_goes_on_from_the_newest_complete_one(made):
    found = trl_checkpoints.newest(made)
    assert found == made / "trl/checkpoint-10"
    assert trl_checkpoints.about(found) == {
        "step": 10, "tokens": 70, "seconds": 0.5, "ranks": 2, "bytes": {"optimizer.pt": 4},
    }  # fmt: skip


def test_a_file_that_was_cut_off_is_one_sentence(made):
    path = made / "trl/checkpoint-10/optimizer.pt"
    for damage, sentence in (
        (lambda: path.write_bytes(b"12"), "has 2 bytes in place of 4, so this checkpoint is damaged; move its folder"),
        (path.unlink, "is missing, so this checkpoint is damaged; move its folder away, and the run continues from"),
    ):
        damage()
        with pytest.raises(UserError) as error:
            trl_checkpoints.about(trl_checkpoints.newest(made))
        assert str(error.value).startswith(f"{path}: {sentence}")


def test_a_checkpoint_that_cannot_be_written_is_removed_and_told(made):
    told = str(trl_checkpoints.not_written(made, RuntimeError("unexpected pos 39680\nvs 39568")))
    assert told.startswith(f"{made}/trl/checkpoint-100: cannot be written (unexpected pos 39680 vs 39568; ")
    assert told.endswith(f" bytes were free there); make room, and continue with: make resume RUN={made}")
    assert sorted(path.name for path in (made / "trl").iterdir()) == ["checkpoint-10", "checkpoint-5"]
    assert trl_checkpoints.not_written(made, RuntimeError("another")) is None


def test_going_back_moves_newer_checkpoints_of_trl_away_too(made):
    assert trl_checkpoints.after(made, 5) == [made / "trl/checkpoint-10"]
    (made / "checkpoints").mkdir()
    for step in (5, 10):
        (made / f"checkpoints/step-{step:09}.pt").touch()
    with pytest.raises(UserError, match=r"mv \S+/checkpoints/step-000000010\.pt \S+/trl/checkpoint-10 \S+/newer && "):
        train._check_newest(made, "5")


def test_only_names_with_a_step_count(made):
    (made / "trl/checkpoint-copy").mkdir()
    (made / "trl/checkpoint-copy/complete.json").touch()
    assert [path.name for path in trl_checkpoints.checkpoints(made / "trl")] == ["checkpoint-5", "checkpoint-10"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tokens": 1, "seconds": 1}', '{"ranks": "2"}'])
def test_a_damaged_one_is_one_sentence(made, content):
    (made / "trl/checkpoint-10/complete.json").write_text(content)
    with pytest.raises(UserError, match=r"checkpoint-10/complete\.json: (cannot be read|is damaged): "):
        trl_checkpoints.about(trl_checkpoints.newest(made))


def test_a_run_whose_checkpoints_of_trl_are_gone_does_not_begin_anew(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert trl_checkpoints.newest(tmp_path) is None  # killed before the first
    (tmp_path / "checkpoints/step-000000005.pt").touch()
    with pytest.raises(UserError, match=r"/trl: is gone, and the run continues from the checkpoints there; restore it"):
        trl_checkpoints.newest(tmp_path)
    (tmp_path / "trl").mkdir()  # killed while the first was saved
    assert trl_checkpoints.newest(tmp_path) is None

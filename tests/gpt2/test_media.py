"""What a run keeps for trackers beside its metrics: samples at evaluations, pictures at the end, a checkpoint."""

import functools
import json

import pytest

from lib.base.errors import shown
from tests.training import arguments, losses, records, start, train


def media(run, *kinds):
    found = [(record["kind"], record["name"], record["step"], record["file"]) for record in records(run, "media")]
    return [item for item in found if item[0] in kinds]


drawing = functools.partial(start, pictures=True)


def test_a_sample_after_each_evaluation_that_changes_no_loss(tmp_path):
    output = train(tmp_path, *arguments(max_iters=20, sample_at_eval=True))
    run = tmp_path / "runs" / "run"
    assert media(run, "text") == [("text", "sample", step, f"media/sample-{step:08d}.txt") for step in (0, 10, 20)]
    texts = [(run / file).read_text(encoding="utf-8") for *_, file in media(run, "text")]
    assert f"-\n{shown(texts[2])}\n" in output
    train(tmp_path, *arguments(max_iters=20, tracker_run_name="without"))
    assert losses(run) == losses(tmp_path / "runs" / "without")
    assert media(tmp_path / "runs" / "without", "text", "artifact", "table") == []


def test_a_sample_that_a_kill_prevented_is_made_when_the_run_continues(tmp_path):
    train(tmp_path, *arguments(max_iters=20, sample_at_eval=True, tracker_artifacts="last"))
    run = tmp_path / "runs" / "run"
    journal = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    text = (run / "media" / "sample-00000020.txt").read_bytes()
    evaluated = next(n for n, line in enumerate(journal) if '"event":"eval","step":20' in line)
    (run / "journal.jsonl").write_text("".join(journal[: evaluated + 1]))  # as if killed before its sample
    (run / "summary.json").unlink()
    (run / "media" / "sample-00000020.txt").unlink()
    train(tmp_path, "--resume", str(run))
    assert [step for _, _, step, _ in media(run, "text")] == [0, 10, 20]
    assert (run / "media" / "sample-00000020.txt").read_bytes() == text
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert media(run, "artifact") == [("artifact", "last-checkpoint", 20, "checkpoints/step-000000020.pt")]


def test_the_best_checkpoint_is_named_at_each_end_also_if_it_is_not_the_newest(tmp_path):
    words = arguments(max_iters=10, checkpoint_best=True, tracker_artifacts="best", eval_interval=5)
    train(tmp_path, *words)
    run = tmp_path / "runs" / "run"
    assert media(run, "artifact") == [("artifact", "best-checkpoint", 10, "checkpoints/step-000000010.pt")]
    # Two more steps with a rate that spoils the weights: the best stays that of step 10.
    train(tmp_path, "--resume", str(run), "MAX_ITERS=12", "LEARNING_RATE=1", "LR_SCHEDULE=constant")
    assert media(run, "artifact")[1:] == [("artifact", "best-checkpoint", 12, "checkpoints/step-000000010.pt")]


@pytest.mark.extra("report")
def test_pictures_at_the_end_are_drawn_once(tmp_path):
    words = arguments(max_iters=20, pruning_method="magnitude", pruning_warmup=2, pruning_end=15, pruning_interval=2)
    train(tmp_path, *words, by=drawing)
    run = tmp_path / "runs" / "run"
    pictures = [("image", "loss", 20, "media/loss-00000020.png")]
    pictures.append(("image", "layer_sparsity", 20, "media/layer_sparsity-00000020.png"))
    assert media(run, "image") == pictures
    assert all((run / file).read_bytes().startswith(b"\x89PNG\r\n") for *_, file in pictures)
    assert all((run / file).stat().st_size > 5000 for *_, file in pictures)
    journal = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(journal[:-1]))  # as if killed before it recorded its end
    train(tmp_path, "--resume", str(run), by=drawing)
    assert media(run, "image") == pictures


@pytest.mark.extra("report")
def test_a_picture_that_cannot_be_written_is_a_note(tmp_path):
    """The run has made all its steps, so it ends as it should."""
    process = start(tmp_path, *arguments(max_iters=40))
    for line in process.stdout:
        if line.startswith("step 20/40"):
            (tmp_path / "runs" / "run" / "media").write_text("no folder")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())["status"] == "finished"
    assert media(tmp_path / "runs" / "run", "image") == []


def test_without_matplotlib_a_run_with_a_tracker_says_what_to_install(tmp_path):
    output = train(tmp_path, *arguments(max_iters=2, tracker="csv"))
    drawn = bool(media(tmp_path / "runs" / "run", "image"))
    assert ("no pictures: package matplotlib is not installed; run: " in output) is not drawn

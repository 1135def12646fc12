"""Runs trained again from what their folders keep, in a real clone with uncommitted changes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.base.errors import UserError
from lib.record import checkpoint, journal
from scripts import reproduce
from tests import forked, forking
from tests.training import ROOT, TEXT, TINY, arguments, rewrite

STEPS = 10


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True).stdout


def program(home, name, *words):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CONFIG_", "WANDB"))}
    environment["TMPDIR"] = str(home / "tmp")
    return forked.Program(home / "work", str(home / "clone" / name), list(words), environment, forking.clone)


def done(process, code):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A clone whose optimizer was changed and whose loss function is a new file, and a run that it trained."""
    home = tmp_path_factory.mktemp("home")
    for name in ("clone", "work", "tmp"):
        (home / name).mkdir()
    (home / "work/corpus.txt").write_text(TEXT)
    for name in ("gpt2", "lib", "scripts"):
        shutil.copytree(ROOT / name, home / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Kconfig", "Kconfig.renames", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, home / "clone")
    git(home / "clone", "init")
    git(home / "clone", "add", "-A")
    git(home / "clone", "commit", "-m", "first")
    schedule = home / "clone/lib/schedule/cosine.py"
    schedule.write_text(schedule.read_text() + "\n\nfrom lib.slower import build  # noqa\n")
    (home / "clone/lib/slower.py").write_text(
        '"""Half."""\n\nfrom lib.schedule import cosine\n\n_full = cosine.build\n\n\n'
        "def build(bind):\n    rate = _full(bind)\n    return lambda step: rate(step) / 2\n"
    )
    done(program(home, "gpt2/train.py", *arguments(max_iters=STEPS, json_output="out.json")), 0)
    git(home / "clone", "checkout", "lib/schedule/cosine.py")  # work has gone on since
    (home / "clone/lib/slower.py").unlink()
    (home / "work/out.json").unlink()
    return home


def scratch(home):
    """What is left of worktrees."""
    return [*(home / "tmp").iterdir()], git(home / "clone", "worktree", "list").count("\n") - 1


def test_a_run_is_reproduced_with_its_own_code(home):
    assert journal.history(home / "work/runs/run")["train", 5]["metrics"]["learning_rate"] == 0.0015
    output = done(program(home, "scripts/reproduce.py"), 0)
    assert "step  5/10  loss" in output
    assert "note:" not in output
    assert output.endswith(f"bit-identical: {STEPS + 2} records, weights too\n")
    assert (home / "work/runs/run-reproduced/summary.json").exists()
    assert not (home / "work/out.json").exists()
    assert scratch(home) == ([], 0)


def test_a_run_that_began_from_weights_is_reproduced_from_the_very_same(home, monkeypatch):
    """`more` began at step 6 of `first`, which its INIT_FROM does not say: it was the newest then."""
    monkeypatch.chdir(home / "work")
    few = {"max_iters": 6, "tracker_run_name": "first", "checkpoint_at": "6"}
    done(program(home, "gpt2/train.py", *arguments(**few)), 0)
    cut = TINY["block_size"] // 2
    few = {"max_iters": 4, "tracker_run_name": "more", "init_from": "runs/first", "block_size": cut}
    done(program(home, "gpt2/train.py", *arguments(**few)), 0)
    done(program(home, "gpt2/train.py", "--resume", "runs/first", "MAX_ITERS=8"), 0)
    output = done(program(home, "scripts/reproduce.py", "runs/more"), 0)
    assert output.endswith("bit-identical: 6 records, weights too\n")
    newer, old = (home / "work/runs/first/checkpoints" / f"step-00000000{step}.pt" for step in (8, 6))
    assert journal.read(home / "work/runs/more-reproduced").__next__()["init"]["path"] == str(old)
    run = (home / "work/runs/more").resolve()
    rewrite(old, checkpoint.load(newer))
    with pytest.raises(UserError, match=rf"^{old}: has changed since the run began with it: its sha256 was "):
        reproduce.beginning(run)
    old.unlink()
    with pytest.raises(UserError, match=rf"^{old}: is gone, and the run began with it; restore it, or start a"):
        reproduce.beginning(run)


def test_a_run_is_reproduced_with_the_very_same_teacher(home, monkeypatch):
    """`taught` learned from step 6 of `teacher`, which its DISTILL_FROM does not say: it was the newest then."""
    monkeypatch.chdir(home / "work")
    few = {"max_iters": 6, "tracker_run_name": "teacher", "checkpoint_at": "6"}
    done(program(home, "gpt2/train.py", *arguments(**few)), 0)
    few = {"max_iters": 4, "tracker_run_name": "taught", "distill_from": "runs/teacher"}
    done(program(home, "gpt2/train.py", *arguments(**few)), 0)
    done(program(home, "gpt2/train.py", "--resume", "runs/teacher", "MAX_ITERS=8"), 0)
    output = done(program(home, "scripts/reproduce.py", "runs/taught"), 0)
    assert output.endswith("bit-identical: 6 records, weights too\n")


def test_worktrees_of_others_stay(home, tmp_path):
    git(home / "clone", "worktree", "add", "--detach", str(tmp_path / "theirs"))
    (tmp_path / "theirs").rename(tmp_path / "away")  # a disk that is not mounted, say
    commit = git(home / "clone", "rev-parse", "HEAD").strip()
    code = f"from scripts import reproduce\nwith reproduce.worktree('{commit}', None, False) as tree: print(tree)"
    tree = subprocess.run([sys.executable, "-c", code], cwd=home / "clone", check=True, capture_output=True, text=True)
    assert not Path(tree.stdout.strip()).exists()
    (tmp_path / "away").rename(tmp_path / "theirs")
    assert git(tmp_path / "theirs", "rev-parse", "HEAD").strip() == commit
    assert scratch(home) == ([], 1)
    git(home / "clone", "worktree", "remove", "--force", str(tmp_path / "theirs"))


def test_what_differs_is_told_and_the_exit_code_is_1(home):
    run = home / "work/runs/tampered"
    shutil.copytree(home / "work/runs/run", run)
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    for record in lines:
        if record["event"] == "train" and record["step"] == 7:
            loss = record["metrics"]["train_loss"]
            record["metrics"]["train_loss"] = loss + 0.125
        record["metrics"].pop("tokens_per_second", None)  # of the clock
    (run / "journal.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in lines))
    made = json.loads((run / "provenance.json").read_text())
    made["packages"]["torch"] = "1.0"
    (run / "provenance.json").write_text(json.dumps(made))
    output = done(program(home, "scripts/reproduce.py", str(run), "--to", "elsewhere/copy", "--keep"), 1)
    assert "\nnote: torch 1.0 -> 2." in output
    assert output.endswith(
        f"not identical\n1 of {STEPS + 2} records differ, the first at step 7 "
        f"(train: train_loss {loss + 0.125} -> {loss})\n"
        "the largest difference of a loss is 0.125 (train_loss of step 7)\nthe weights are bit-identical\n"
    )
    assert (home / "work/elsewhere/copy/summary.json").exists()
    [kept], worktrees = scratch(home)
    assert worktrees == 1
    assert (kept / "clone/lib/slower.py").exists()
    git(home / "clone", "worktree", "remove", "--force", str(kept / "clone"))
    kept.rmdir()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_training_and_removes_the_worktree(home, number, code):
    run = home / f"work/runs/long-{code}"
    shutil.copytree(home / "work/runs/run", run)
    config = (run / ".config").read_text().replace(f"MAX_ITERS={STEPS}\n", "MAX_ITERS=2000\n")  # more would compile
    (run / ".config").write_text(config)
    process = program(home, "scripts/reproduce.py", str(run), "--to", f"runs/copy-{code}")
    for line in process.stdout:
        if line.startswith("step    3/"):
            break
    process.send_signal(number)
    assert "stopped after step" in done(process, code)
    assert [*(home / f"work/runs/copy-{code}/checkpoints").iterdir()]
    assert scratch(home) == ([], 0)


# ---- what cannot be reproduced ---------------------------------------------------------------------------------------


@pytest.fixture
def run(home, tmp_path):
    """A copy of the run, to be spoiled."""
    shutil.copytree(home / "work/runs/run", tmp_path / "run")
    return tmp_path / "run"


def add(run, **record):
    with (run / "journal.jsonl").open("a") as file:
        file.write(json.dumps({"seq": 99, "time": 0, "metrics": {}, **record}) + "\n")


def test_a_run_that_was_resumed_unchanged_is_fine_and_one_with_other_options_is_not(run):
    config = reproduce.configuration(run)
    assert (config["max_iters"], config["seed"]) == (STEPS, 7)
    add(run, event="resume", step=5, config=config | {"tracker": ["trackio"], "output_dir": "x"})
    assert reproduce.configuration(run) == config
    add(run, event="resume", step=10, config=config | {"max_iters": 12, "log_interval": 2}, changed={"MAX_ITERS": []})
    with pytest.raises(
        UserError,
        match=r"run: was resumed after step 10 with other options \(LOG_INTERVAL 1 -> 2, MAX_ITERS 10 -> 12\), which "
        r"a single training cannot repeat; reproduce a run whose options never changed$",
    ):
        reproduce.configuration(run)


def test_a_change_of_a_renamed_option_is_seen(run):
    """The run was begun by a version that called the schedule DECAY_LR."""
    earlier = {name: value for name, value in reproduce.configuration(run).items() if name != "lr_schedule"}
    add(run, event="resume", step=5, config=earlier | {"decay_lr": True})  # cosine, as it began
    reproduce.configuration(run)
    add(run, event="resume", step=6, config=earlier | {"decay_lr": False})
    with pytest.raises(UserError, match=r"with other options \(LR_SCHEDULE cosine -> constant\)"):
        reproduce.configuration(run)


def test_a_run_that_is_not_finished_is_not_reproduced(run):
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(line for line in lines if '"event":"finish"' not in line))
    with pytest.raises(UserError, match=r"run: has not finished its 10 steps; first: make resume RUN=/\S+/run$"):
        reproduce.configuration(run)
    (run / "journal.jsonl").write_text("")
    with pytest.raises(UserError, match=r"run: the journal does not say how the run was started$"):
        reproduce.configuration(run)


def test_a_one_shot_run_is_refused_with_the_command_that_repeats_it(tmp_path):
    folder, config = (
        tmp_path / "my run",
        {"max_iters": 2, "block_size": 8, "tracker": [], "pruning_dynamics": "oneshot"},
    )
    init = {"from": "dense@10", "path": "/r/dense/step-10.pt", "sha256": "0", "kind": "run", "step": 10}
    init |= {"revision": "", "ancestors": {}}
    folder.mkdir()
    (folder / "run.json").write_text('{"run_id": "0123456789ab", "project": "p", "name": "my run"}')
    book = journal.Journal(folder)
    book.write("start", 0, config=config, init=init)
    book.close()
    with pytest.raises(UserError) as raised:
        reproduce.configuration(folder)
    assert raised.value.args == (
        f"{folder}: is a one-shot run, which no training repeats; repeat it with: KCONFIG_CONFIG='{folder}/.config' "
        "make oneshot INIT_FROM=/r/dense/step-10.pt BLOCK_SIZE=8",
    )


def test_a_run_without_its_code_is_not_reproduced(run, tmp_path):
    made = reproduce.kept(run)
    assert reproduce.changes(run, made) == run / "changes.patch"
    with (run / "changes.patch").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"changes.patch: has changed since the run was made: its sha256 differs"):
        reproduce.changes(run, made)
    (run / "changes.patch").unlink()
    with pytest.raises(UserError, match=r"changes.patch: the run's uncommitted changes cannot be read: No such file"):
        reproduce.changes(run, made)
    with pytest.raises(UserError, match=r"run: an older version made it and did not keep all of its uncommitted"):
        reproduce.changes(run, made | {"uncommitted_changes": "diff --git"})
    assert reproduce.changes(run, made | {"uncommitted_changes": None}) is None
    for why, told in (
        ("git is not installed", "git is not installed"),
        (None, "it was made outside of a git clone, or"),
    ):
        (run / "provenance.json").write_text(json.dumps(made | {"commit": None, "commit_unknown": why or ""}))
        sentence = rf"run: its commit was not known when it was trained, so it cannot be reproduced \({told}"
        with pytest.raises(UserError, match=sentence):
            reproduce.kept(run)
    for text, sentence in (
        ("{}", "does not name the code and the packages"),
        ("[1]", "is damaged: it must hold a JSON"),
    ):
        (run / "provenance.json").write_text(text)
        with pytest.raises(UserError, match=rf"provenance.json: {sentence}"):
            reproduce.kept(run)


def test_a_commit_that_is_not_there_is_one_sentence(home, run):
    made = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(made | {"commit": "1" * 40}))
    output = done(program(home, "scripts/reproduce.py", str(run)), 1)
    assert (
        output.splitlines()[-1] == f"error: commit {'1' * 40} is not in the clone at {home / 'clone'}; fetch it first"
    )
    assert done(program(home, "scripts/reproduce.py", str(run), "--to", str(run)), 2).startswith("error: --to ")
    assert "there is no run in this folder" in done(program(home, "scripts/reproduce.py", "nowhere"), 2)
    assert scratch(home) == ([], 0)


def test_the_paths_of_a_run_that_was_moved_start_from_its_new_place(run, tmp_path):
    options = {"OUTPUT_DIR": {"value": run.parent.name, "source": "default"}}
    made = {"folder": str(tmp_path / "gone"), "options": options}
    assert reproduce.start_of_paths(run, made) == run.parent.parent
    assert reproduce.start_of_paths(run, made | {"folder": str(tmp_path)}) == tmp_path
    assert reproduce.start_of_paths(run, {"folder": str(tmp_path / "gone")}) == Path.cwd()


def test_what_else_could_explain_a_difference_is_told(run, tmp_path):
    made = reproduce.kept(run)
    changes = made["uncommitted_changes"] | {"note": "not kept: data.bin"}
    (run / "provenance-20.json").write_text(json.dumps(made | {"commit": "2" * 40}))
    (run / "provenance-30.json").write_text(json.dumps(made | {"uncommitted_changes": changes}))
    (run / "provenance-40.json").write_text(json.dumps(made | {"commit": None, "commit_unknown": "no git"}))
    add(run, event="resume", step=10, machine="2 x cpu, float32")
    with (run / "journal.jsonl").open("a") as file:
        file.write("damaged\n")
    lines = len((run / "journal.jsonl").read_text().splitlines())
    told = list(reproduce.remarks(run, made | {"folder": str(tmp_path / "gone"), "uncommitted_changes": changes}))
    assert told == [
        f"{tmp_path}/gone, where it was trained, does not exist: relative paths start from {ROOT}",
        "not kept: data.bin",
        "it was resumed with other code, see provenance-20.json; now the code of its start trains all steps",
        "it was resumed with code whose commit is not known (no git), see provenance-40.json",
        "2 processes trained it, now one does; sums of gradients are rounded differently",
        f"lines {lines} of its journal are damaged, so their records are missing",
    ]


# ---- comparing -------------------------------------------------------------------------------------------------------


def history(*rows):
    return {(event, step): {"metrics": metrics} for event, step, metrics in rows}


def test_records_are_compared_in_the_order_they_are_written():
    before = history(
        ("eval", 0, {"val_loss": 5.5}),
        ("train", 10, {"train_loss": 2.5, "grad_norm": 1.0, "tokens_per_second": 10.0, "mfu": 0.1}),
        ("eval", 10, {"val_loss": 2.25}),
        ("train", 20, {"train_loss": "NaN"}),
    )
    clock = {"tokens_per_second": 11.0}
    after = before | history(("train", 10, {"train_loss": 2.5, "grad_norm": 1.0, **clock}))
    assert list(reproduce.unlike(before, after)) == []
    after |= history(("train", 10, {"train_loss": 2.5, "grad_norm": 2.0, **clock}), ("eval", 10, {"val_loss": 2.75}))
    assert list(reproduce.unlike(before, after)) == [
        "2 of 4 records differ, the first at step 10 (train: grad_norm 1.0 -> 2.0)",
        "the largest difference of a loss is 0.5 (val_loss of step 10)",
    ]
    del after["eval", 0]
    assert next(reproduce.unlike(before, after)) == (
        "3 of 4 records differ, the first at step 0 (eval: val_loss 5.5 -> missing)"
    )
    after = before | history(("train", 20, {"train_loss": 2.0}))
    assert list(reproduce.unlike(before, after)) == [
        "1 of 4 records differ, the first at step 20 (train: train_loss NaN -> 2.0)", "no loss differs",
    ]  # fmt: skip


def test_differences_are_versions_and_the_machine():
    now = {"python": "3.12.0", "platform": "Linux", "cpu": "A", "processors": 2, "gpus": [], "gpu_driver": None}
    now["packages"] = {"torch": "2.14.0", "numpy": "2.0", "new": "1.0"}
    made = now | {"python": "3.11.7", "packages": {"torch": "2.13.0", "numpy": "2.0", "old": "1"}}
    assert list(reproduce.differences(made, now)) == [
        "python 3.11.7 -> 3.12.0", "torch 2.13.0 -> 2.14.0", "old 1 -> not installed",
        "packages that were not installed, or not recorded, when the run was made: 1",
    ]  # fmt: skip


def test_weights_are_compared_bit_for_bit(home, tmp_path):
    import torch

    from lib.record import checkpoint

    run = home / "work/runs/run"
    shutil.copytree(run, tmp_path / "copy")
    assert reproduce.weights(run, tmp_path / "copy", STEPS) == (True, "")
    path = tmp_path / "copy/checkpoints" / checkpoint.name(STEPS)
    state = checkpoint.load(path)
    name, tensor = next((name, tensor) for name, tensor in state["model"].items() if tensor.ndim == 2)
    tensor[0, 0] += 0.5
    rewrite(path, state)
    same, words = reproduce.weights(run, tmp_path / "copy", STEPS)
    assert not same
    assert words.endswith("weight tensors differ, by 0.5 at most")
    assert name
    rewrite(path, state | {"data": "other"})
    assert reproduce.weights(run, tmp_path / "copy", STEPS) == (False, "the reproduction was trained on other data")
    assert reproduce.weights(tmp_path, run, STEPS)[0] is None
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert reproduce.same_bits(nan, nan.clone())
    assert not reproduce.same_bits(zero, -zero)
    assert not reproduce.same_bits(zero, zero.half())

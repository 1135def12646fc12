"""Several processes, one run: real torchrun jobs, SLURM's variables, kills, signals, and the losses of one process."""

import itertools
import os
import platform
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gpt2.data import prepare, windows
from lib.base.errors import UsageError
from lib.base.launch import Launch
from lib.record import checkpoint, journal, run
from tests.forked import Trainer
from tests.training import ROOT, TEXT, UNEVALUATED, arguments, losses, schema, train

WORDS = arguments(dropout=0, batch_size=8, gradient_accumulation=1, eval_samples=6)
CUT = "BATCH_SIZE=4 GRADIENT_ACCUMULATION=2"
TRAIN = str(ROOT / "gpt2" / "train.py")
STEPS = {"train": list(range(1, 41)), "eval": [0, 10, 20, 30, 40]}
JOBS = itertools.count(100 * os.getpid())  # their numbers choose the ports where the tasks of each meet


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a program in `folder`, which gets the corpus and a place for trackio."""
    (folder / "corpus.txt").write_text(TEXT)
    return {**os.environ, "TRACKIO_DIR": str(folder / "trackio"), "OMP_NUM_THREADS": "1", **more}


def torchrun(folder: Path, *words: str, job: str = "mine") -> subprocess.Popen:
    """Start a job of two ranks."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", job]
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *rendezvous, TRAIN, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment(folder), **pipes)


def task(folder: Path, *words: str, **env: str) -> Trainer:
    """Start one rank with these variables of a launcher."""
    return Trainer(folder, list(words), environment(folder, **env))


def srun(
    folder: Path, *words: str, second: list[str] | None = None, local_ranks: tuple[str, str] = ("0", "1")
) -> list[Trainer]:
    """Start two tasks as srun would, the second with more words. On two machines, both have the local rank 0."""
    common = {
        "SLURM_JOB_ID": str(next(JOBS)), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }  # fmt: skip
    return [
        task(folder, *words, *more, **common, SLURM_PROCID=rank, SLURM_LOCALID=local)
        for rank, local, more in zip("01", local_ranks, ([], second or []), strict=True)
    ]


def workers(folder: Path, *words: str, job: str = "mine") -> list[Trainer]:
    """Start two ranks with the variables that torchrun gives to its workers, without torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": job}
    return [task(folder, *words, **common, RANK=rank, LOCAL_RANK=rank) for rank in "01"]


def finish(process: subprocess.Popen | Trainer, code: int = 0) -> str:
    """What a job printed; fails when its exit code is not `code`."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def wait_for_step(folder: Path, step: int) -> None:
    """Return once the journal has a training step at or beyond `step`."""
    deadline = time.monotonic() + 60
    while not (folder / "journal.jsonl").exists() or max(losses(folder), default=0) < step:
        assert time.monotonic() < deadline, "the run did not get that far"
        time.sleep(0.005)


def assert_one_run(folder: Path) -> Path:
    """The only run in `folder`, with each event in its journal once."""
    [found] = (folder / "runs").iterdir()
    records = [record for record in journal.read(found) if record["event"] in STEPS]
    for event, steps in STEPS.items():
        assert [record["step"] for record in records if record["event"] == event] == steps
    return found


def assert_same_course(one: Path, other: Path, tolerance: float) -> None:
    """The same events with losses that differ by `tolerance` at most."""
    mine, theirs = journal.history(one), journal.history(other)
    assert mine.keys() == theirs.keys()
    for key, record in mine.items():
        for name in {"train_loss", "val_loss", "grad_norm"} & record["metrics"].keys():
            assert record["metrics"][name] == pytest.approx(theirs[key]["metrics"][name], abs=tolerance), (key, name)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run of two ranks that nothing interrupted."""
    folder = tmp_path_factory.mktemp("pair")
    command = [sys.executable, str(ROOT / "scripts/processes.py"), "2", *WORDS, "--tracker", "trackio"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    output = finish(subprocess.Popen(command, cwd=folder, env=environment(folder), **pipes))
    assert output.count("run folder") == 2  # before and after, by one rank
    said = f"note: 2 processes share a step evenly with {CUT} in place of BATCH_SIZE=8 GRADIENT_ACCUMULATION=1"
    assert output.count(said) == 1
    return folder


def test_two_ranks_make_one_run_with_the_losses_of_one_process(pair, tmp_path):
    train(tmp_path, *WORDS)
    assert_same_course(assert_one_run(pair), tmp_path / "runs/run", 1e-5)


def test_two_ranks_that_compile_have_the_losses_of_one_process(tmp_path):
    words = arguments(
        **UNEVALUATED, dropout=0, n_layer=1, batch_size=4, max_iters=4, checkpoint_interval=0, compile=True
    )
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    shared.mkdir()
    train(alone, *words)
    for rank in workers(shared, *words):
        finish(rank)
    for folder, size in ((alone, 1), (shared, 2)):
        machine = next(journal.read(folder / "runs/run"))["machine"]
        assert (machine["ranks"], machine["compiled"]) == (size, True)
    assert_same_course(alone / "runs/run", shared / "runs/run", 1e-5)


def test_two_ranks_are_one_run_to_a_tracker(pair):
    [database] = (pair / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("select run_id, log_id from metrics").fetchall()
    rows = [(run_id, log_id) for run_id, log_id in rows if "-image-" not in log_id]  # drawn if matplotlib is installed
    identity = run.Identity.load(pair / "runs/run")
    assert {run_id for run_id, _ in rows} == {identity.run_id}
    wanted = [(event, step) for event, steps in STEPS.items() for step in steps] + [("finish", 40)]
    assert Counter(log_id for _, log_id in rows) == Counter(f"{identity.run_id}-{e}-{s}" for e, s in wanted)


def test_a_job_that_lost_a_rank_goes_on_when_it_is_started_again_with_as_many_or_fewer(pair, tmp_path):
    first, second = workers(tmp_path, *WORDS)
    while not checkpoint.find(tmp_path / "runs/run/checkpoints"):
        assert first.poll() is None, finish(first)
        time.sleep(0.005)
    wait_for_step(tmp_path / "runs/run", 12)
    second.kill()
    assert "error: rank 0 has lost the other ranks of its run (" in finish(first, 1)
    saved = checkpoint.find(tmp_path / "runs/run/checkpoints")[-1]
    step = next(step for step in (10, 20, 30) if saved.name == checkpoint.name(step))
    shutil.copytree(tmp_path / "runs", tmp_path / "stopped")

    output = finish(torchrun(tmp_path, *WORDS))
    assert "runs/run was begun by this torchrun job, mine; for a new run, set another TRACKER_RUN_NAME\n" in output
    assert_same_course(assert_one_run(tmp_path), pair / "runs/run", 0)

    fewer = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "mine"}
    (tmp_path / "runs").rename(tmp_path / "done")
    (tmp_path / "stopped").rename(tmp_path / "runs")
    output = finish(task(tmp_path, *WORDS, **fewer))
    assert f"resuming runs/run after step {step}" in output
    assert "changed:" not in output  # the run keeps the cut that two ranks could share
    assert_same_course(assert_one_run(tmp_path), pair / "runs/run", 1e-5)


def test_a_job_does_not_go_on_with_what_it_began_with_other_options(tmp_path):
    job = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "100"}
    words = arguments(max_iters=2)
    finish(task(tmp_path, *words, **job))
    before = {path: path.read_bytes() for path in (tmp_path / "runs/run").rglob("*") if path.is_file()}
    output = finish(task(tmp_path, *words, "--learning-rate", "0.3", **job), 2)
    assert output.endswith(
        "error: runs/run: this job began it with other options (LEARNING_RATE 0.003 -> 0.3); for a new run, set "
        "another TRACKER_RUN_NAME; to continue this run with the new options, use --resume\n"
    )
    again = [*words, "--json-output", "runs/run/summary.json"]
    assert "runs/run is finished: see runs/run/summary.json" in finish(task(tmp_path, *again, **job))
    assert {path: path.read_bytes() for path in (tmp_path / "runs/run").rglob("*") if path.is_file()} == before
    finish(task(tmp_path, *words, "--tracker-run-name", "b", "--learning-rate", "0.3", **job))
    assert (tmp_path / "runs/b/summary.json").exists()


def test_tasks_of_slurm_make_one_run_and_say_whose_system_metrics_it_has(pair, tmp_path):
    first, second = srun(tmp_path, *WORDS, "--system-metrics-interval", "1", local_ranks=("0", "0"))
    output = finish(first)
    assert "run folder" in output
    assert (
        f"note: system metrics are those of {platform.node()}, the machine of rank 0, and of all its GPUs; the others "
        "of the 2 machines are not measured\n"
    ) in output
    assert finish(second) == ""
    assert_same_course(assert_one_run(tmp_path), pair / "runs/run", 0)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    tasks = srun(tmp_path, *WORDS, "--max-iters", "100000", "--dropout", "0.1")
    wait_for_step(tmp_path / "runs/run", 5)
    tasks[1].send_signal(signal.SIGTERM)
    output = finish(tasks[0], 143)
    assert finish(tasks[1], 143) == ""  # only rank 0 answers a signal
    [end] = [record for record in journal.read(tmp_path / "runs/run") if record["event"] == "finish"]
    assert end["status"] == "interrupted"
    assert f"stopped after step {end['step']}; continue with: make resume RUN=runs/run" in output
    assert checkpoint.find(tmp_path / "runs/run/checkpoints")[-1].name == checkpoint.name(end["step"])


def test_a_rank_that_dies_is_one_sentence_to_the_others(tmp_path):
    tasks = srun(tmp_path, *WORDS, "--max-iters", "100000")
    wait_for_step(tmp_path / "runs/run", 5)
    tasks[1].kill()
    tasks[1].communicate()
    output = finish(tasks[0], 1)
    assert "error: rank 0 has lost the other ranks of its run (" in output
    assert "Traceback" not in output


def test_ranks_that_disagree_do_not_train(tmp_path):
    tasks = srun(tmp_path, *WORDS, second=["--learning-rate", "0.004"])
    for task in tasks:
        output = finish(task, 2)
        assert "ranks 0 and 1 of one run differ: LEARNING_RATE is 0.003 and 0.004; give all the same values\n" in output
    assert not (tmp_path / "runs/run/journal.jsonl").read_text()


def test_every_validation_window_is_some_ranks(tmp_path):
    configured = schema(tmp_path, batch_size=2, eval_samples=7)
    prepare.ensure(configured.bind(windows.DataOptions))
    made = windows.load(configured.bind(windows.DataOptions))
    shares = [[row.tolist() for x, _ in made.val_batches(rank, 3) for row in x] for rank in range(3)]
    assert list(map(len, shares)) == [3, 2, 2]
    assert sorted(itertools.chain(*shares)) == sorted(row.tolist() for x, _ in made.val_batches() for row in x)


def test_a_job_has_one_id_per_name_and_folder(tmp_path):
    def job_id(folder="runs", name="", job="7", launcher="slurm"):
        return run.job_id(run.RunOptions(str(folder), "", name, "adamw"), Launch(launcher, 0, 2, 0, job, ""))

    assert job_id() == job_id() and len(job_id()) == 12
    assert len({job_id(), job_id(name="b"), job_id(tmp_path), job_id(job="8"), job_id(launcher="ray")}) == 5
    assert job_id(job="") == ""


def test_a_run_is_found_by_its_id_among_damaged_ones(tmp_path):
    options = run.RunOptions(str(tmp_path), "", "mine", "adamw")
    folder, identity = run.create(options, "0123456789ab")
    assert identity.run_id == "0123456789ab"
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_bytes(b"\xff{")
    assert run.find(str(tmp_path), "0123456789ab") == folder
    assert run.find(str(tmp_path), "ba9876543210") is None


def test_a_job_with_two_runs_of_its_id_does_not_choose(tmp_path):
    folder, _ = run.create(run.RunOptions(str(tmp_path), "", "a", "adamw"), "0123456789ab")
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(UsageError, match=rf"^{folder} and {tmp_path}/copy are both the run that this job began, so "):
        run.find(str(tmp_path), "0123456789ab")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_runs_of_others_do_not_stop_a_job(tmp_path, monkeypatch):
    theirs, _ = run.create(run.RunOptions(str(tmp_path), "", "a", "adamw"))
    mine, _ = run.create(run.RunOptions(str(tmp_path), "", "b", "adamw"), "0123456789ab")
    monkeypatch.chdir(tmp_path)  # what is above is root's alone
    tmp_path.chmod(0o755)
    (theirs / "run.json").chmod(0o600)
    (mine / "run.json").chmod(0o644)
    os.seteuid(65534)
    try:
        assert run.find(".", "0123456789ab") == Path("b")
    finally:
        os.seteuid(0)


def test_a_worker_keeps_its_own_import_path():
    code = "import sys; sys.path.insert(0, 'first'); import gpt2.train, gpt2.session; print(sys.path[0])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "first\n"

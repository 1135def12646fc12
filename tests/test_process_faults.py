"""Faults of the process and what is around it, made for real: signals, closed terminals, folders that go, memory."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from gpt2 import loop
from gpt2.recorder import Unrecorded
from gpt2.session import Session
from lib.base.signals import StopSignals
from lib.machine import device
from lib.record import checkpoint, history, journal
from lib.track.cursor import Cursor, path_of
from tests import own_terminal
from tests.disk import disk
from tests.forked import Trainer
from tests.tracking import wait_for
from tests.training import ROOT, TEXT, Records, arguments, environment, losses, program, schema, start, train
from tests.wholeness import is_intact

__all__ = ["disk"]  # fixtures
STEPS = 60


def without_locks():
    """Let this process, and those that it forks, find a file system that has no locks."""

    def flock(fd, kind):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    fcntl.flock = flock


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The losses of a run of STEPS that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, *arguments(max_iters=STEPS))
    return losses(folder / "runs/run")


def wait_for_step(run, step, process):
    """Return when the journal has a step, while the trainer lives."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(journal.JournalError):
            if any(r["event"] == "train" and r["step"] >= step for r in journal.read(run)):
                return
        time.sleep(0.005)
    pytest.fail(f"step {step} was not reached: {process.communicate(timeout=120)[0]}")


def ended(process):
    """Exit code and output of a trainer, in which there is no traceback."""
    output = process.communicate(timeout=60)[0]
    assert "Traceback" not in output
    return process.returncode, output


def assert_goes_on(folder, run, whole):
    """The run can be resumed, and has every step once with the loss of the run that nothing disturbed."""
    train(folder, "--resume", str(run))
    assert journal.damaged(folder / run) == []
    steps = [r["step"] for r in journal.read(folder / run) if r["event"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    assert losses(folder / run) == whole


# ---- signals ---------------------------------------------------------------------------------------------------------


def test_asked_again_and_again_a_run_ends_at_once_and_goes_on(tmp_path, whole):
    """Whether it was quick enough to save or was ended while it did."""
    process, run = start(tmp_path, *arguments(max_iters=STEPS)), tmp_path / "runs/run"
    wait_for_step(run, 12, process)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    code, _ = ended(process)
    *_, last = journal.read(run)
    assert (code, last["event"], last["status"]) == (130, "finish", "interrupted")
    names = [path.name for path in (run / "checkpoints").glob("*.pt")]
    assert all(is_intact(run / "checkpoints" / name) for name in names) and names
    assert_goes_on(tmp_path, "runs/run", whole)


def evaluate_for_ever():
    """Let a trainer be inside a library as soon as it evaluates; it then writes a file `evaluating`."""

    def evaluate(*_):
        Path("evaluating").touch()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)

    loop.validation_loss = evaluate


def test_asked_twice_while_it_evaluates_a_run_is_interrupted(tmp_path):
    """As by Ctrl-C twice: nothing was saved yet, and the journal, `make runs` and the trackers tell what happened."""
    (tmp_path / "corpus.txt").write_text(TEXT)
    process = Trainer(tmp_path, arguments(tracker="csv"), environment(), evaluate_for_ever)
    run = tmp_path / "runs/run"
    wait_for(lambda: (run / "trackers/csv.log").exists() and (tmp_path / "evaluating").exists())
    process.send_signal(signal.SIGINT)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert (code, output.endswith("a second one stops at once\ninterrupted\n")) == (130, True)
    *_, last = journal.read(run)
    assert (last["event"], last["status"], last["step"]) == ("finish", "interrupted", 0)
    assert history.state(history.load(run), run) == "interrupted"
    wait_for(lambda: path_of(run, "csv").exists() and Cursor.load(run, "csv").state == "finished")


def test_a_step_is_broken_off_between_its_batches_and_made_again(tmp_path):
    """With all the random numbers that it drew for nothing."""

    def record(calls):
        made, records = schema(tmp_path, max_iters=6, gradient_accumulation=4), Records()
        session = Session(made, device.choose(made.bind(device.SystemOptions)))
        parts = session.training, session.data, session.machine, made.bind(loop.LoopOptions), session.schedule, records
        loop.train(*parts, lambda: next(calls))
        broken_off = session.training.step
        loop.train(*parts, lambda: False)
        return broken_off, [(step, metrics["train_loss"]) for event, step, metrics in records if event == "train"]

    never, undisturbed = record(itertools.repeat(False))
    assert never == 6
    # Asked once before all, before each of 4 batches, and twice at the end of a step.
    assert record(itertools.chain([False] * (1 + 2 * (4 + 2) + 2), itertools.repeat(True))) == (2, undisturbed)


def test_a_wish_that_comes_twice_at_once_is_one(tmp_path):
    """As by `make`, which hands SIGTERM on to a trainer that has had it with the whole process group."""
    process, run = start(tmp_path, *arguments(max_iters=10_000)), tmp_path / "runs/run"
    wait_for_step(run, 3, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    *_, last = journal.read(run)
    assert (last["event"], last["status"]) == ("finish", "interrupted")
    assert checkpoint.find(run / "checkpoints")[-1].name == checkpoint.name(last["step"])


INSTANTS = {
    "it imports torch": lambda pid, folder: "libtorch" in Path(f"/proc/{pid}/maps").read_text(),
    "it prepares data": lambda pid, folder: (folder / "data").exists(),
    "it has a run": lambda pid, folder: (folder / "runs").exists(),
}


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has loaded is told by Linux alone")
@pytest.mark.parametrize("instant", INSTANTS)
def test_ctrl_c_while_it_starts_is_no_traceback(tmp_path, instant):
    process = program(tmp_path, *arguments(max_iters=10_000))
    wait_for(lambda: INSTANTS[instant](process.pid, tmp_path))
    process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert code == 130
    assert "interrupted" in output or "stopped after step" in output


def test_a_closed_terminal_saves(tmp_path):
    """With a progress bar on it; the kernel sends SIGHUP, and so does the shell that had the terminal."""
    run = tmp_path / "runs/run"
    (tmp_path / "corpus.txt").write_text(TEXT)
    words = [str(ROOT / "gpt2" / "train.py"), *arguments(max_iters=10_000, tracker="csv")]
    process, ours = own_terminal.start(tmp_path, words)
    wait_for_step(run, 12, process)
    assert b"%|" in os.read(ours, 1 << 16)
    os.close(ours)
    time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 129
    *_, last = journal.read(run)
    assert (last["event"], last["status"]) == ("finish", "interrupted")
    assert checkpoint.find(run / "checkpoints")[-1].name == checkpoint.name(last["step"])
    assert len((run / "metrics.csv").read_text().splitlines()) > 12  # the tracker was not hurried either


def test_a_run_that_is_stopped_and_continued_is_the_same(tmp_path, whole):
    process, run = start(tmp_path, *arguments(max_iters=STEPS)), tmp_path / "runs/run"
    wait_for_step(run, 12, process)
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.005)
    size = (run / "journal.jsonl").stat().st_size
    time.sleep(0.2)
    assert (run / "journal.jsonl").stat().st_size == size
    process.send_signal(signal.SIGCONT)
    assert ended(process)[0] == 0
    assert losses(run) == whole


class Left(Unrecorded):
    """A recorder that knows of no evaluation, and notes that the run was left."""

    def val_loss(self, step):
        return None

    def interrupt(self, step, run_time):
        self.step = step


def test_ctrl_c_that_ends_the_compiler_too_ends_the_run_like_any_other(tmp_path):
    """A terminal sends it to all that runs there, so to the compiler that torch.compile has called."""
    from torch._dynamo.exc import InternalTorchDynamoError

    class Compiled(torch.nn.Module):
        def forward(self, *_):
            signal.raise_signal(signal.SIGINT)
            raise InternalTorchDynamoError("CppCompileError: C++ compile error")

    made, recorder = schema(tmp_path), Left(tmp_path)
    session = Session(made, device.choose(made.bind(device.SystemOptions)))
    session.training.forward = Compiled()
    with StopSignals() as asked:
        assert session._loop(recorder, asked)
    assert (recorder.step, asked.exit_code) == (0, 130)


def test_the_compiler_is_not_waited_for(tmp_path):
    def compiler(graph, inputs):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    made, recorder = schema(tmp_path, max_iters=1), Left(tmp_path)
    session = Session(made, device.choose(made.bind(device.SystemOptions)))
    session.training.compiled = True
    session.training.forward = torch.compile(session.model, backend=compiler)
    with StopSignals() as asked:
        assert session._loop(recorder, asked)
    assert (recorder.step, asked.exit_code) == (0, 143)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_removed_run_is_put_back(tmp_path, whole):
    process, run = start(tmp_path, *arguments(max_iters=STEPS)), tmp_path / "runs/run"
    wait_for_step(run, 12, process)
    before = {name: (run / name).read_bytes() for name in ("run.json", ".config", "defconfig", "provenance.json")}
    shutil.rmtree(run.parent)
    code, output = ended(process)
    assert code == 1
    words = "was removed, or its journal removed or replaced, while the run was trained; it is saved in"
    assert f"error: runs/run: {words}" in output
    assert {name: (run / name).read_bytes() for name in before} == before
    *_, last = journal.read(run)
    assert (last["event"], last["status"], last["seq"] > 12) == ("finish", "failed", True)
    assert output.endswith(f"continue after step {last['step']} with: make resume RUN=runs/run\n")
    assert_goes_on(tmp_path, "runs/run", whole)


def test_a_moved_run_is_saved_where_it_is(tmp_path, whole):
    process, run = start(tmp_path, *arguments(max_iters=STEPS)), tmp_path / "runs/run"
    wait_for_step(run, 12, process)
    run.rename(tmp_path / "moved")
    code, output = ended(process)
    assert code == 1
    assert f"error: runs/run: was moved to {tmp_path}/moved while the run was trained; continue after step " in output
    assert not run.exists()
    assert_goes_on(tmp_path, "moved", whole)


def test_a_run_whose_place_another_has_taken_is_put_beside_it(tmp_path):
    process, run = start(tmp_path, *arguments(max_iters=STEPS)), tmp_path / "runs/run"
    wait_for_step(run, 12, process)
    shutil.rmtree(run)
    run.mkdir()
    (run / "journal.jsonl").write_text("another's\n")
    code, output = ended(process)
    assert (code, "it is saved in runs/run-2; continue after step" in output) == (1, True)
    assert [path.name for path in run.iterdir()] == ["journal.jsonl"]
    *_, last = journal.read(tmp_path / "runs/run-2")
    assert checkpoint.find(tmp_path / "runs/run-2/checkpoints")[-1].name == checkpoint.name(last["step"])


def test_removed_checkpoints_are_said_and_the_next_ones_kept(tmp_path, whole):
    process, run = start(tmp_path, *arguments(max_iters=STEPS)), tmp_path / "runs/run"
    wait_for_step(run, 12, process)
    shutil.rmtree(run / "checkpoints")
    code, output = ended(process)
    assert (code, losses(run)) == (0, whole)
    assert output.count(": runs/run/checkpoints was removed; it is made again\n") == 1
    assert [path.name for path in checkpoint.find(run / "checkpoints")] == [checkpoint.name(n) for n in (50, 60)]


@pytest.mark.parametrize("where", ["output", "data"])
def test_a_read_only_folder_is_one_sentence(tmp_path, disk, where):
    """When a run begins there, and when one goes on."""
    folder = disk("size=16m")
    words = arguments(output_dir=folder) if where == "output" else arguments(data_dir=folder / "data")
    if where == "output":
        train(tmp_path, *words, "--max-iters", "10")
    disk("ro")
    output = train(tmp_path, *words, "--max-iters", "20", code=1)
    assert ("Read-only file system\n" in output, output.count("error: ")) == (True, 1)
    if where == "output":
        again = train(tmp_path, "--resume", str(folder / "run"), "--max-iters", "20", code=1)
        assert again == f"error: {folder}/run: cannot be written: Read-only file system\n"


# ---- memory ----------------------------------------------------------------------------------------------------------

ADVICE = "error: memory does not suffice: halve BATCH_SIZE and double GRADIENT_ACCUMULATION, which learns the same; "


def allow(process, more_bytes):
    """Let a process have so much more memory than it has now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    size = int(status["VmData"].split()[0]) * 1024 + more_bytes
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (size, size))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory that hold are Linux's")
def test_too_little_memory_for_a_model_is_one_sentence(tmp_path):
    process = start(tmp_path, *arguments(n_layer=48, n_embd=4096))
    allow(process, 200 << 20)
    code, output = ended(process)
    assert (code, ADVICE in output) == (1, True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory that hold are Linux's")
def test_too_little_memory_for_a_step_is_one_sentence_and_recorded(tmp_path):
    process = start(tmp_path, *arguments(max_iters=10_000, n_embd=128, batch_size=64, compile=False))
    run = tmp_path / "runs/run"
    wait_for_step(run, 2, process)
    allow(process, 0)
    code, output = ended(process)
    assert (code, ADVICE in output) == (1, True)
    *_, last = journal.read(run)
    assert (last["event"], last["status"], last["message"][:23]) == ("finish", "failed", "memory does not suffice")


def test_a_file_system_without_locks_stops_no_preparation_no_training_and_no_resume(tmp_path, whole):
    (tmp_path / "corpus.txt").write_text(TEXT)
    first = arguments(max_iters=STEPS // 2, lr_schedule="constant")
    for words in first, ["--resume", "runs/run", "--max-iters", str(STEPS)]:
        trainer = Trainer(tmp_path, words, environment(), without_locks)
        output = trainer.communicate(timeout=60)[0]
        assert trainer.returncode == 0, output
        assert output.count("this file system has no locks (Function not implemented); do not start a second") == 1
    assert list(losses(tmp_path / "runs/run")) == list(whole)

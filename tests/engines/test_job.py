"""A trainer that is called in a worker's process: its output, exit code and lock, and the environment that it sees."""

import dataclasses
import multiprocessing
import os
import sys

import pytest

from lib.base import files
from lib.base.errors import UserError
from lib.engines import job
from lib.engines.job import Job

PROGRAM = """
import os, subprocess, sys
print("words", sys.argv[1:], os.environ.get("CONFIG_SEED"), os.environ.get("KEY"), os.environ["HOME"], flush=True)
print("to stderr", file=sys.stderr)
subprocess.run(["echo", "from a child"])
{end}
"""


@pytest.fixture
def made(folder, monkeypatch):
    """Makes a job whose program ends with this line."""
    monkeypatch.setattr(job, "ROOT", folder)

    def make(end):
        (folder / "program.py").write_text(PROGRAM.format(end=end))
        return Job(folder / "runs/one", folder / "one.log", "program.py", ("SEED=1",))

    return make


def called(one, folder, given):
    """What a worker's process returns; the error if it raises one."""

    def work():
        try:
            queue.put(job.work(one, folder, given))
        except UserError as error:
            queue.put(str(error))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=work)
    process.start()
    found = queue.get(timeout=60)
    process.join()
    return found


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        ("sys.exit(2)", 2, "from a child"),
        ("print('error: it was this')\nraise SystemExit", 0, "it was this"),
        ("sys.exit('text')", 1, "text"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("pass", 0, "from a child"),
    ],
)
def test_a_worker_returns_the_exit_code_and_the_log_has_the_output(made, folder, monkeypatch, end, code, reason):
    monkeypatch.setenv("CONFIG_SEED", "9")
    monkeypatch.setenv("HOME", "the worker's")
    one = made(end)
    assert called(one, folder, {"KEY": "given", "HOME": "the sweep's"}) == code
    lines = one.log.read_text().splitlines()
    assert lines[0] == f"$ {sys.executable} program.py SEED=1"
    assert lines[1:] and "words ['SEED=1'] None given the worker's" in lines
    assert {"to stderr", "from a child"} <= set(lines)
    assert job.reason(one.log, code) == reason
    assert not one.held


def test_a_worker_refuses_a_run_that_another_process_goes_on_to_train(made, folder, monkeypatch):
    monkeypatch.setattr(job, "_PATIENCE", 0.3)
    one = made("pass")
    with one.log.open("ab") as log:
        assert files.locks(log.fileno(), one.log) and one.held
        assert called(one, folder, {}) == f"{one.folder}: another process trains this run; wait for it or stop it"
    assert one.log.read_bytes() == b""


def test_a_worker_without_the_folder_says_what_must_be_shared(made, folder):
    told = f"{folder}/none: is not there on {os.uname().nodename} (No such file or directory); the repository, "
    assert called(made("pass"), folder / "none", {}).startswith(told)


def test_a_begun_run_is_resumed_with_the_present_time(made, folder):
    one = dataclasses.replace(made("pass"), run_time="2h")
    one.folder.mkdir(parents=True)
    assert one.command()[2:] == ["SEED=1"]  # there is nothing of a run yet
    (one.folder / "run.json").write_text("{}")
    assert one.command()[2:] == ["--resume", str(one.folder), "RUN_TIME=2h"]
    assert dataclasses.replace(one, afresh=True).command()[2:] == ["SEED=1"]
    assert not one.folder.exists()

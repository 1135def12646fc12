"""Fixtures for tests of jobs: a stand-in for the hub, a small repository in place of this one, and make's commands."""

import subprocess
import sys

import pytest

from lib.jobs import api, environment
from scripts import job, jobs
from tests.jobs import hub as hubs


def git(folder, *words):
    """Run git there as somebody."""
    who = ("-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", *who, "-C", folder, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(folder):
    """A git repository with one file and one commit."""
    place = folder / "repository"
    place.mkdir()
    (place / "code.txt").write_text("committed\n")
    git(place, "init", "--quiet")
    git(place, "add", ".")
    git(place, "commit", "--quiet", "-m", "first")
    return place


@pytest.fixture
def hub(folder, repository, monkeypatch):
    """A hub with which huggingface_hub of this process talks, with planted secrets in the environment."""
    monkeypatch.setattr(job, "ROOT", repository)
    monkeypatch.setattr(api, "_POLL", 0.01)
    theirs = [name for names in environment._OF.values() for name in (*names.keys, *names.plain)]
    for name in (*theirs, "TRACKIO_SPACE_ID", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with hubs.serve(folder / "buckets") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", hubs.TOKEN)
        monkeypatch.setattr("huggingface_hub.utils._xet.get_xet_session", lambda: hubs.Xet(server))
        yield server


@pytest.fixture
def make(monkeypatch, capsys):
    """Call scripts/job.py in this process: make("submit", "MAX_ITERS=3") returns its exit code and what it printed.

    Other first words are those of scripts/jobs.py.
    """

    def call(*words):
        submits = words[0] == "submit"
        monkeypatch.setattr(sys, "argv", ["program", *words[submits:]])
        code = job.main() if submits else jobs.main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call

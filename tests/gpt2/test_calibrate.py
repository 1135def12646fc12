"""What a run costs beside its steps is measured with a real run of one step, of which nothing stays."""

import subprocess
import sys
import tempfile

import pytest

from gpt2 import calibrate
from lib.base.errors import UserError


def test_a_start_is_that_of_a_whole_run_and_leaves_nothing(tmp_path, monkeypatch):
    finished, run = [], subprocess.run

    def watched(*given, **more):
        done = run(*given, **more)
        finished.extend(path.parts[-3] for path in tmp_path.glob("*/runs/*/summary.json"))
        return done

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", watched)
    monkeypatch.setenv("CONFIG_MAX_ITERS", "x")  # must not matter
    assert calibrate.start() > 0
    assert finished == ["runs"]
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_is_one_sentence(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'warning: x' >&2\necho 'error: no memory is left' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=r"^a run of one step, which measures .* has failed: no memory is left$"):
        calibrate.start()

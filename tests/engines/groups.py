"""A run of two processes, as the tests of each cluster start, read and end it."""

import subprocess
import sys

from tests.training import ROOT


def start(folder, environment, options, *words):
    """Start one in this folder: start(tmp_path, os.environ, ["--engine=slurm", "--detach"], "MAX_ITERS=20", ...)."""
    program = [sys.executable, str(ROOT / "scripts/processes.py")]
    return subprocess.Popen(
        [*program, *options, "2", *words],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def steps(run):
    path = run / "journal.jsonl"
    return path.read_text().count('"event":"train"') if path.exists() else 0

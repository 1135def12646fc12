"""Every program starts by its path, from any folder. Those that import torch for it are forked, as in other tests."""

import os
import subprocess
import sys

import pytest

from lib.config.kconf import ROOT
from tests import forked, forking

PROGRAMS = [
    *sorted(path for path in (ROOT / "scripts").glob("*.py") if path.name not in ("environment.py",)),
    *(ROOT / name for name in ("gpt2/train.py", "gpt2/sample.py", "gpt2/prepare_data.py", "bench/run.py")),
]
SLOW = {"evaluate.py", "export_model.py", "prune_report.py", "run.py", "sample.py"}  # import torch at their top


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_starts_in_any_folder(path, tmp_path):
    if path.name in SLOW:
        program = forked.Program(tmp_path, str(path), ["--help"], dict(os.environ), forking.clone, apart=True)
        printed, errors = program.communicate()
        code = program.returncode
    else:
        done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True)
        printed, errors, code = done.stdout, done.stderr, done.returncode
    assert (code, errors) == (0, "")
    assert printed.startswith("usage: ")

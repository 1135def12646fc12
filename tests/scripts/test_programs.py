"""Every program starts as a user starts it: by its path, from any folder. Other tests fork their programs."""

import subprocess
import sys

import pytest

from lib.config.kconf import ROOT

PROGRAMS = [
    *sorted(path for path in (ROOT / "scripts").glob("*.py") if path.name not in ("environment.py",)),
    *(ROOT / name for name in ("gpt2/train.py", "gpt2/sample.py", "gpt2/prepare_data.py", "bench/run.py")),
]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_starts_in_any_folder(path, tmp_path):
    done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")

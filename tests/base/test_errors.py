"""How programs end, and what they need before they begin."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from tests.training import ROOT, TEXT, arguments, environment

CLOSINGS = [" ".join(closing) for n in (1, 2, 3) for closing in itertools.combinations(("0<&-", "1>&-", "2>&-"), n)]
# Opens a file, writes to all streams and lets a child do so, and says which number the file had.
PROGRAM = """
import os, subprocess, sys
from lib.base.errors import run_program

def main():
    with open("file", "w") as file:
        print("to the output")
        print("to the errors", file=sys.stderr)
        os.write(1, b"raw"), os.write(2, b"raw")
        assert sys.stdin.read() == ""
        file.write(f"{file.fileno()}\\n")
        file.flush()
        child = "import os; os.write(1, b'x'); os.write(2, b'x'); open('child', 'w').write(str(os.read(0, 1)))"
        subprocess.run([sys.executable, "-c", child], check=True)
    return 7

run_program(main)
"""


def closed(closing, *words, **popen):
    """Start a program with standard streams closed as a shell does it."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, **popen,
    )  # fmt: skip


@pytest.mark.parametrize("closing", CLOSINGS)
def test_a_closed_stream_is_no_error_and_its_number_no_file_s(folder, closing):
    done = closed(closing, "-c", PROGRAM, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 7, done.stderr
    assert int((folder / "file").read_text()) > 2  # and nothing else is in it
    assert (folder / "child").read_text() == "b''"
    assert ("to the output" in done.stdout) == ("1>&-" not in closing)
    assert ("to the errors" in done.stderr) == ("2>&-" not in closing)


PROGRAMS = [*(ROOT / "gpt2").glob("*.py"), *(ROOT / "scripts").glob("*.py"), *ROOT.glob("*.py")]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_is_run_by_run_program(path):
    text = path.read_text()
    if path.name != "environment.py":  # which has the standard library alone, and prints three lines
        assert ("__main__" in text) == ("\n    run_program(main" in text)


def test_a_trainer_without_standard_streams_trains_as_ever(folder):
    (folder / "corpus.txt").write_text(TEXT)
    words = arguments(max_iters=3, eval_interval=0)
    done = closed("0<&- 1>&- 2>&-", str(ROOT / "gpt2/train.py"), *words, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = (folder / "runs/run/journal.jsonl").read_text().splitlines()
    assert [event for event in (json.loads(line)["event"] for line in lines) if event == "train"] == ["train"] * 3


def test_a_kconfig_entry_without_code_is_told_with_the_file_that_is_missing():
    code = "import importlib; from lib.base.errors import run_program\n"
    code += "run_program(lambda: importlib.import_module('lib.optim.mine'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    expected = "error: there is no lib/optim/mine.py; write it, or remove its entry from Kconfig\n"
    assert (done.returncode, done.stderr) == (1, expected)

"""Importing costs no torch where only configurations and journals are read, and writes nothing."""

import subprocess
import sys

import pytest

from lib.config.kconf import ROOT
from tests.test_kconfig import modules

# What reads configurations and journals.
WITHOUT_TORCH = (
    "lib.config.kconf",
    "lib.config.option",
    "lib.config.command_line",
    "lib.record.journal",
    "lib.record.run",
    "lib.base.launch",
    "lib.record.provenance",
    "lib.record.history",
    "lib.track",
    "lib.optim",
    "lib.prune.feasible",
)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_reads_configurations_and_journals_imports_no_torch(module):
    code = f"import sys, {module}; print({{'torch', 'numpy', 'gpt2'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_how_threads_wait_can_be_chosen_after_numpy_is_imported():
    """gpt2/train.py imports this module before it chooses. libgomp reads the choice once, when torch loads it."""
    code = "import sys, gpt2.place; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "{'numpy'}\n"


def test_importing_everything_writes_nothing(tmp_path):
    names = [m.__name__ for m in modules()]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = True\n"
        "def watch(event, arguments):\n"
        "    if event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+'):\n"
        "        print('opened', arguments)\n"
        "    if event in ('os.mkdir', 'os.rename', 'os.remove', 'socket.connect', 'subprocess.Popen'):\n"
        "        print(event, arguments)\n"
        "import importlib, torch\n"  # what torch does on import is not ours, nor what transformers does
        "import transformers.trainer_callback, transformers.pytorch_utils\n"
        "sys.addaudithook(watch)\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert list(tmp_path.iterdir()) == []

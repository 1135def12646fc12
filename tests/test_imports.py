"""Imports go down one list of rooms, cost no torch where only configurations are read, and write nothing."""

import ast
import subprocess
import sys

import pytest

from lib.config.kconf import ROOT
from tests.test_kconfig import modules

# A room may import from itself and from the rooms below it. Those of one line do not import from each other.
FLOORS = """
    bench scripts test_tracking
    gpt2
    gpt2.data
    lib.track
    lib.prune
    lib.compare
    lib.terminal
    lib.record
    lib.optim
    lib.machine
    lib.schedule
    lib.config
    lib.base
"""
FLOOR = {room: height for height, line in enumerate(reversed(FLOORS.split("\n"))) for room in line.split()}
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
)
SOURCES = sorted(path for top in ("bench", "gpt2", "lib", "scripts") for path in (ROOT / top).rglob("*.py"))
PUBLISHED = {ROOT / "lib/espalier_tracker.py"}  # the documented import of what lib.track has


def room(name):
    """The room that a module is in, or None if it is not ours."""
    parts = name.split(".")
    return next((known for n in (2, 1) if (known := ".".join(parts[:n])) in FLOOR), None)


def imports(path):
    """Names of the modules that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", [ROOT / "test_tracking.py", *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_floors(path):
    if path in PUBLISHED or path == ROOT / "lib/__init__.py":
        return
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert own, f"{path} is in no room of FLOORS"
    other = {found for name in imports(path) if (found := room(name)) not in (None, own)}
    assert {name for name in other if FLOOR[name] >= FLOOR[own]} == set()


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_reads_configurations_and_journals_imports_no_torch(module):
    code = f"import sys, {module}; print({{'torch', 'numpy', 'gpt2'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_importing_everything_writes_nothing(tmp_path):
    names = [m.__name__ for m in modules()]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = True\n"
        "def watch(event, arguments):\n"
        "    if event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+'):\n"
        "        print('opened', arguments)\n"
        "    if event in ('os.mkdir', 'os.rename', 'os.remove', 'socket.connect', 'subprocess.Popen'):\n"
        "        print(event, arguments)\n"
        "import importlib, torch\n"  # what torch does on import is not ours
        "sys.addaudithook(watch)\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert list(tmp_path.iterdir()) == []

"""Other versions of Python, where they are installed: every source parses, and what needs no torch works."""

import os
import shutil
import subprocess
from importlib import util
from pathlib import Path

import pytest

from tests.runs import ended, evaluated, trained, write
from tests.test_imports import WITHOUT_TORCH
from tests.training import ROOT

PACKAGES = ("kconfiglib", "tqdm", "rich", "pygments", "markdown_it", "mdurl")  # which have no compiled modules


def interpreter(version):
    """Python of this version, from PATH or pyenv; skips the test if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for found in (shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))):
        if found and not subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
            return found
    pytest.skip(f"there is no Python {version} here")


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_what_needs_no_torch_works_with(version, tmp_path):
    python, packages = interpreter(version), tmp_path / "packages"
    packages.mkdir()
    for path in (Path(util.find_spec(name).origin) for name in PACKAGES):
        path = path.parent if path.name == "__init__.py" else path
        (packages / path.name).symlink_to(path)
    environment = os.environ | {"PYTHONPATH": f"{packages}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*words):
        command = [python, "-W", "error", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tops = ("bench", "gpt2", "lib", "scripts", "tests")
    sources = [str(path) for top in tops for path in (ROOT / top).rglob("*.py")]
    run("-c", "import ast, pathlib, sys; [ast.parse(pathlib.Path(n).read_text()) for n in sys.argv[1:]]", *sources)
    run("-c", f"import {', '.join(WITHOUT_TORCH)}")
    config, runs = ROOT / "scripts/config.py", ROOT / "scripts/runs.py"
    assert run(config, "docs") == (ROOT / "docs/config.md").read_text()
    run(config, "defconfig", "gpt2_shakespeare_defconfig")
    assert "OK" in run(config, "checkconfig", "SEED=3")
    run(config, "randconfig", "1")
    assert "LEARNING_RATE" in run(config, "explain", "LEARNING_RATE")
    write(tmp_path / "runs/one", *trained(1, 2), evaluated(2, 2.0), ended(2))
    assert "runs/one\tfinished\t2" in run(runs, "list")
    assert run(runs, "export", "runs/one") == "runs/one/steps.csv: 2 steps, 9 columns\n"

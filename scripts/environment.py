"""Makes the environment that Espalier runs in, from the packages that pyproject.toml names; standard library alone.

    environment.py install LEVEL VENV     install a level into VENV, making it when it is missing
    environment.py check LEVEL            say what this Python lacks of a level, and how to install it

Levels: `config` (Kconfiglib), `train` (everything that a run needs), `test` (the tests, the linter and every tracker),
`audit` (Kconfiglib and pip-audit).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this is where an older one is told
    sys.exit(
        "error: Espalier needs Python 3.11 or newer; this is {}.{} ({})".format(*sys.version_info[:2], sys.executable)
    )

import re
import subprocess
import tomllib
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Each with the levels that it includes.
LEVELS = {"config": (), "train": ("config",), "test": ("config", "train"), "audit": ("config",)}
TESTED = ("test", "tensorboard", "mlflow", "accelerate")  # extras; Ray is as large as all of them together


def requirements(level: str) -> list[str]:
    """The packages of a level, pinned as in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    if level in ("config", "audit"):
        own = extras["audit"] if level == "audit" else []
        return [name for name in project["dependencies"] if name.startswith("kconfiglib")] + own
    return project["dependencies"] + [name for extra in TESTED if level == "test" for name in extras[extra]]


def install(level: str, folder: Path) -> None:
    """Bring the virtual environment in `folder` to `level`, and stamp every level that it then has."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder} with Python {sys.version.split()[0]}", flush=True)
        venv.create(folder, with_pip=True)
    packages = requirements(level)
    size = "" if level in ("config", "audit") else ": PyTorch and more, some hundred MB, a minute or two"
    print(f"installing {len(packages)} package{'s'[: len(packages) > 1]} for `{level}` into {folder}{size}", flush=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"error: {folder}: pip could not install {' '.join(packages)}; see its message above, then try again")
    for done in (*LEVELS[level], level):
        (folder / f".{done}").touch()


def check(level: str) -> None:
    """Exit with a sentence when a package of `level` is missing or has another version."""
    wrong = []
    for requirement in requirements(level):
        name, _, version = requirement.partition("==")
        try:
            found = metadata.version(re.sub(r"\[.*", "", name))
        except metadata.PackageNotFoundError:
            found = "missing"
        if found.partition("+")[0] != version:
            wrong.append(f"{requirement} ({found})")
    if wrong:
        packages = " ".join(f"'{w.split()[0]}'" for w in wrong)
        sys.exit(f"error: {sys.executable} lacks {', '.join(wrong)}; run: {sys.executable} -m pip install {packages}")


def main() -> None:
    """Do what the command line says."""
    if len(sys.argv) == 4 and sys.argv[1] == "install" and sys.argv[2] in LEVELS:
        install(sys.argv[2], Path(sys.argv[3]))
    elif len(sys.argv) == 3 and sys.argv[1] == "check" and sys.argv[2] in LEVELS:
        check(sys.argv[2])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()

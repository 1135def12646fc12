"""Creates Espalier's virtual environments with the packages pinned in pyproject.toml. Uses only the standard library.

    environment.py install LEVEL VENV     install a level into VENV, which is created if it is missing
    environment.py check LEVEL            report which packages of a level this Python lacks, and how to install them
    environment.py pins                   print every pinned package, for pip-audit

Levels: `config` (only Kconfiglib), `train` (everything that a run needs), `report` (also what statistics and figures
need), `sweep` (also what tuning needs), `test` (`report`, the tests and the linter), `extras` (every package but those
of `audit`), `audit` (only pip-audit).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older Python can run up to here
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
# Level -> the levels that it includes.
LEVELS = {
    "config": (), "train": ("config",), "report": ("config", "train"), "sweep": ("config", "train", "report"),
    "test": ("config", "train", "report"), "extras": ("config", "train", "report", "sweep", "test"), "audit": (),
}  # fmt: skip


def project() -> tuple[list[str], dict[str, list[str]], dict[str, list[str]]]:
    """What pyproject.toml pins: the dependencies, the optional ones by extra, and those of developers by group."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return read["project"]["dependencies"], read["project"]["optional-dependencies"], read["dependency-groups"]


def requirements(level: str) -> list[str]:
    """The packages of a level, pinned as in pyproject.toml."""
    dependencies, extras, groups = project()
    if level == "audit":
        return groups["audit"]
    if level == "config":
        return [name for name in dependencies if name.startswith("kconfiglib")]
    wanted = {"report": ["report"], "sweep": ["report", "tune"], "test": ["report"], "extras": list(extras)}
    more = [name for extra in wanted.get(level, ()) for name in extras[extra]]
    tests = groups["test"] if level in ("test", "extras") else []
    return list(dict.fromkeys(dependencies + more + tests))  # extras share packages


def pinned() -> list[str]:
    """Every package that pyproject.toml pins."""
    dependencies, extras, groups = project()
    return dependencies + [name for more in (extras, groups) for names in more.values() for name in names]


def install(level: str, folder: Path) -> None:
    """Install `level` into the virtual environment in `folder`, and create a marker file for each included level."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"creating {folder} with Python {sys.version.split()[0]}", flush=True)
        venv.create(folder, with_pip=True)
    packages = requirements(level)
    size = "" if level in ("config", "audit") else ": several hundred MB, with PyTorch; it takes a minute or two"
    print(f"installing {len(packages)} package{'s'[: len(packages) > 1]} for `{level}` into {folder}{size}", flush=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"error: {folder}: pip could not install {' '.join(packages)}; see its message above, then try again")
    for done in (*LEVELS[level], level):
        (folder / f".{done}").touch()


def check(level: str) -> None:
    """Exit with an error if a package of `level` is missing or has another version."""
    wrong = []
    for package in requirements(level):
        name, _, version = package.partition("==")
        try:
            found = metadata.version(re.sub(r"\[.*", "", name))
        except metadata.PackageNotFoundError:
            found = "missing"
        if found.partition("+")[0] != version:
            wrong.append(f"{package} ({found})")
    if wrong:
        packages = " ".join(f"'{w.split()[0]}'" for w in wrong)
        sys.exit(f"error: {sys.executable} lacks {', '.join(wrong)}; run: {sys.executable} -m pip install {packages}")


def main() -> None:
    """Run the command of the command line."""
    if len(sys.argv) == 4 and sys.argv[1] == "install" and sys.argv[2] in LEVELS:
        install(sys.argv[2], Path(sys.argv[3]))
    elif len(sys.argv) == 3 and sys.argv[1] == "check" and sys.argv[2] in LEVELS:
        check(sys.argv[2])
    elif sys.argv[1:] == ["pins"]:
        print(*pinned(), sep="\n")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()

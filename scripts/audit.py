"""Ask the advisory database of PyPI, or that of OSV, about every package that pyproject.toml pins, by pip-audit.

The exit code is 0 when all were asked about and none has an advisory, else 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib.base.errors import UserError, run_program
from lib.config.kconf import ROOT


def main() -> int:
    """Ask; returns 0 when nothing is known against any package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="whom to ask [pypi]")
    args = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    if not find_spec("pip_audit"):
        raise UserError(f"pip-audit is not installed; run: {sys.executable} -m pip install {' '.join(extras['audit'])}")
    packages = [*project["dependencies"], *(package for extra in extras.values() for package in extra)]
    print(verdict(ask(packages, args.service)))
    return 0


def ask(packages: list[str], service: str) -> list[dict[str, Any]]:
    """What pip-audit says of each package; raises UserError when the service cannot be asked."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(packages))
        file.flush()
        # --disable-pip: the versions are pinned, so that nothing need be resolved, downloaded or built.
        words = f"--vulnerability-service {service} --no-deps --disable-pip --progress-spinner off --format json"
        command = [sys.executable, "-m", "pip_audit", *words.split(), "--requirement", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(
            f"the advisories of {service} cannot be asked: {reason[:300]}; try again with a network"
        ) from None


def verdict(found: list[dict[str, Any]]) -> str:
    """What to say when nothing is known; raises UserError for an advisory, and for a package that was passed over."""
    bad = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for one in found
        for hole in one.get("vulns", ())
    ]
    # pip-audit itself exits with 0 when it could ask about none of them.
    bad += [f"{one['name']}: not audited: {one['skip_reason']}" for one in found if "skip_reason" in one]
    if bad:
        raise UserError(*bad)
    return f"no advisory is known for the {len(found)} packages that pyproject.toml pins"


if __name__ == "__main__":
    run_program(main)

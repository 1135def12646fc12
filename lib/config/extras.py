"""Optional packages: how to install what an extra of pyproject.toml names."""

import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from lib.config.kconf import ROOT


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def extra(name: str) -> list[str]:
    """The pinned packages of an extra."""
    return project()["optional-dependencies"][name]


def install(packages: Iterable[str]) -> str:
    """What the user has to do: `run: <this python> -m pip install <packages>`."""
    return f"run: {sys.executable} -m pip install {' '.join(packages)}"


def missing(name: str) -> list[str]:
    """The packages of an extra that this Python lacks."""
    names = [package.partition("==")[0].partition("[")[0] for package in extra(name)]
    return [name for name in names if not any(metadata.distributions(name=name))]

"""Which trackers there are: files of this folder, trackers of Accelerate, and plug-ins that other packages bring."""

import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from lib.base.errors import UsageError
from lib.config.kconf import ROOT, Schema
from lib.config.option import nearest
from lib.track.tracker import Tracker

GROUP = "espalier.trackers"  # the entry points that name a class like lib.track.tracker.Tracker


def names(wanted: Iterable[str]) -> list[str]:
    """Trackers in place of `all`, which means every one that is installed; raises UsageError for what is not.

    A name is that of a file lib/track/<name>.py, `accelerate:<name of a tracker of Accelerate>`, or that of an entry
    point of the group `espalier.trackers`.
    """
    wanted = list(wanted)
    if wanted == ["all"]:
        return [name for name in known() if not problem(name)]
    if problems := [text for name in wanted if (text := problem(name))]:
        raise UsageError(*problems)
    return wanted


def along(names: Iterable[str], config: Mapping[str, Any], folder: Path) -> list[str]:
    """Trackers, each followed by those that its module's `also`, if it has one, adds in a run of this configuration."""
    found = []
    for name in names:
        also = None if name in plugins() else getattr(module(name.partition(":")[0]), "also", None)
        found += [name, *(also(config, folder) if also else [])]
    return list(dict.fromkeys(found))


def known() -> list[str]:
    """Every tracker that can be named alone: the members of the option TRACKER, and plug-ins."""
    members = [value for value in Schema().options["TRACKER"].members if value != "all"]
    return [*members, *sorted(plugins().keys() - set(members))]


def plugins() -> dict[str, metadata.EntryPoint]:
    """Name -> the entry point of each installed plug-in; one that is called like a tracker of this folder is none."""
    here = Path(__file__).parent
    found = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    return {name: entry for name, entry in found.items() if not (here / f"{name}.py").exists()}


def load(name: str) -> Callable[[], Tracker]:
    """The class of a tracker, with the libraries that it needs imported."""
    if name in plugins():
        return plugins()[name].load()
    base, _, argument = name.partition(":")
    found = module(base)
    for library in (getattr(found, "MODULE", None), getattr(found, "ARGUMENT", {}).get(argument)):
        if library:
            importlib.import_module(library)
    return (lambda: found.Tracker(argument)) if argument else found.Tracker


def module(name: str) -> ModuleType:
    """lib/track/<name>.py, or the module of a plug-in; raises ModuleNotFoundError."""
    if name in plugins():
        return importlib.import_module(plugins()[name].module)
    return importlib.import_module(f"lib.track.{name.replace('-', '_')}")


def problem(name: str) -> str:
    """Why a tracker cannot be used here, in one sentence that says what to do, or an empty text."""
    if name in plugins():  # its module may do anything: only the tracker's own process imports it
        return ""
    base, _, argument = name.partition(":")
    try:
        found = module(base)
    except ModuleNotFoundError:
        found = None
    if not hasattr(found, "Tracker"):
        return f"tracker {name}: there is none called so{nearest(name, known())}"
    arguments = getattr(found, "ARGUMENT", {})
    if argument and not arguments:
        return f"tracker {name}: {base} takes nothing after a colon"
    if arguments and argument not in arguments:
        return f"tracker {name}: there is none called so; write {base}: and one of {', '.join(arguments)}"
    needed = {getattr(found, "MODULE", None): base, arguments.get(argument): argument}
    missing = [library for library in needed if library and not installed(library)]
    if not missing:
        return ""
    packages = " ".join(text for library in missing for text in requirements(needed[library], library))
    what = f"package {' and package '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
    return f"tracker {name}: {what} not installed; run: {sys.executable} -m pip install {packages}"


def installed(library: str) -> bool:
    """Whether a library can be imported; a mere folder called like it, such as ./wandb, is none."""
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None


def requirements(name: str, library: str) -> list[str]:
    """What to install for a tracker, pinned as in pyproject.toml: the extra of its name, or the library itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"].get(name)
    return extra or [text for text in project["dependencies"] if re.split(r"[=\[]", text)[0] == library] or [library]

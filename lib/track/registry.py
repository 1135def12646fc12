"""Finds trackers: files of this folder, trackers of Accelerate, and plug-ins of other packages."""

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from lib.base.errors import UsageError
from lib.config import extras
from lib.config.option import nearest
from lib.track.tracker import Tracker

GROUP = "espalier.trackers"  # the entry points that name a class like lib.track.tracker.Tracker


def names(wanted: Iterable[str], config: Mapping[str, Any] | None = None) -> list[str]:
    """The wanted trackers; `all` becomes every installed one. Raises UsageError for one that cannot be used.

    A name belongs to a file lib/track/<name>.py, to a tracker of Accelerate (`accelerate:<name>`), or to an entry point
    of the group `espalier.trackers`. With the resolved options, `config`, these are checked too.
    """
    wanted = list(wanted)
    if wanted == ["all"]:
        wanted = [name for name in known() if not problem(name)]
    elif problems := [text for name in wanted if (text := problem(name))]:
        raise UsageError(*problems)
    if config is not None and (problems := [text for name in wanted if (text := misconfigured(name, config))]):
        raise UsageError(*problems)
    return wanted


def along(names: Iterable[str], config: Mapping[str, Any], folder: Path) -> list[str]:
    """The trackers, each followed by those that the function `also` of its module adds for this configuration."""
    found = []
    for name in names:
        also = None if name in plugins() else getattr(module(name.partition(":")[0]), "also", None)
        found += [name, *(also(config, folder) if also else [])]
    return list(dict.fromkeys(found))


def known() -> list[str]:
    """Every tracker that needs no argument: the members of the option TRACKER, each a file here, and plug-ins."""
    files = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "_" not in path.stem)
    ours = [name for name in files if _has_tracker(module(name)) and not hasattr(module(name), "ARGUMENT")]
    return [*ours, *sorted(plugins())]


def plugins() -> dict[str, metadata.EntryPoint]:
    """Name -> entry point of each installed plug-in; one with the name of a file of this folder is ignored."""
    here = Path(__file__).parent
    found = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    return {name: entry for name, entry in found.items() if not (here / f"{name}.py").exists()}


def tracker_class(name: str) -> Callable[[], Tracker]:
    """The class or function that builds a tracker; imports the libraries that it needs."""
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
    """Why a tracker cannot be used and how to correct this, in one sentence; empty if it can be used."""
    if name in plugins():  # only the tracker's own process imports it, because its module may do anything
        return ""
    base, _, argument = name.partition(":")
    try:
        found = module(base)
    except ModuleNotFoundError:
        found = None
    if not _has_tracker(found):
        return f"tracker {name} does not exist{nearest(name, known())}"
    arguments = getattr(found, "ARGUMENT", {})
    if argument and not arguments:
        return f"tracker {name}: {base} takes no argument after a colon"
    if arguments and argument not in arguments:
        return f"tracker {name} does not exist; write {base}: and one of {', '.join(arguments)}"
    needed = {getattr(found, "MODULE", None): base, arguments.get(argument): argument}
    missing = [library for library in needed if library and not installed(library)]
    if not missing:
        return ""
    packages = [text for library in missing for text in requirements(needed[library], library)]
    what = f"package {' and package '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
    return f"tracker {name}: {what} not installed; {extras.install(packages)}"


def misconfigured(name: str, config: Mapping[str, Any]) -> str:
    """Why a tracker that is installed cannot be used with these options, in one sentence; empty if it can be used."""
    check = None if name in plugins() else getattr(module(name.partition(":")[0]), "problem", None)
    return f"tracker {name}: {text}" if check and (text := check(config)) else ""


def _has_tracker(found: ModuleType | None) -> bool:
    return getattr(found, "Tracker", Tracker) is not Tracker  # the interface is not a tracker


def installed(library: str) -> bool:
    """Whether a library can be imported; a folder of the same name, such as ./wandb, does not count."""
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None


def requirements(name: str, library: str) -> list[str]:
    """The packages that a tracker needs, pinned as in pyproject.toml: the extra of its name, or the library itself."""
    project = extras.project()
    extra = project["optional-dependencies"].get(name)
    return extra or [text for text in project["dependencies"] if re.split(r"[=\[]", text)[0] == library] or [library]

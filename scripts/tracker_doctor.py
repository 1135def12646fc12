"""Check each tracker without a run: its package, storage, keys and network. The last line says what to do.

Each tracker is examined in its own process, with the options of .config, as in a run. The exit code is 0 if all named
trackers can be used, else 1. If no tracker is named, it is 0 if all installed trackers can be used.
"""

import argparse
import multiprocessing
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib.base.errors import run_program
from lib.config import command_line
from lib.terminal.console import say
from lib.track import registry
from lib.track.tracker import Finding

_SECONDS = 60  # for all trackers together; each limits its own requests to a few seconds
_FREE = 100e6  # bytes that should be free on the disk of the runs

Findings = Mapping[str, list[Finding]]


def main() -> int:
    """Examine trackers and show the findings; returns 0 if the trackers can be used, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="trackers, such as trackio wandb [all]")
    args = parser.parse_args()
    schema, _ = command_line.resolve("", [])
    if args.names:
        schema.override([("TRACKER", ",".join(args.names), "tracker-doctor")])
    asked = [name for name in schema["TRACKER"] if name != "all"] if args.names else []
    configurations = {}
    for name in asked or registry.known():
        schema.override([("TRACKER", name, "tracker-doctor")])
        configurations[name] = schema.values()
    found = {"espalier": general(Path(schema["OUTPUT_DIR"])), **examine(configurations)}
    show(found)
    wanted = {name: rows for name, rows in found.items() if name in asked or not any(map(absent, rows))}
    broken = {name: rows for name, rows in wanted.items() if not all(row.good for row in rows)}
    say(advice(sorted(wanted.keys() - broken.keys() - {"espalier"}), broken))
    return 1 if broken else 0


def absent(row: Finding) -> bool:
    """Whether the tracker is not installed, which is an error only if it was named."""
    return row.what == "package" and not row.good


# ---- examining -------------------------------------------------------------------------------------------------------


def general(runs: Path) -> list[Finding]:
    """What all trackers need: a folder for the runs that is writable and has free space."""
    return [Finding("Python", f"{platform.python_version()} at {sys.executable}", True), folder(runs)]


def folder(path: Path) -> Finding:
    """Whether a folder, or its nearest existing parent, is writable; creates and deletes a file there."""
    there = path.absolute()
    try:
        there = next(one for one in (there, *there.parents) if one.exists())  # raises if a parent cannot be entered
        with tempfile.NamedTemporaryFile(dir=there, prefix=".tracker-doctor-") as file:
            file.write(bytes(4096))
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding("runs", f"{there}: cannot be written: {error.strerror}", False)
    return Finding("runs", f"{path.absolute()}: writable, {free / 1e9:,.1f} GB free", free > _FREE)


def examine(configurations: Mapping[str, dict[str, Any]]) -> Findings:
    """The findings of each tracker; an exception, a crash or a hang of the examination is also a finding."""
    context, children = multiprocessing.get_context("spawn"), {}
    for name, config in configurations.items():
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(theirs, name, config), daemon=True)
        child.start()
        theirs.close()
        children[name] = child, ours
    deadline, found = time.monotonic() + _SECONDS, {}
    for name, (child, pipe) in children.items():
        if not pipe.poll(max(0.0, deadline - time.monotonic())):
            child.kill()
            found[name] = [Finding("examination", f"no answer within {_SECONDS} s", False)]
            continue
        try:
            found[name] = pipe.recv()
        except EOFError:
            child.join()
            found[name] = [Finding("examination", f"its process ended with exit code {child.exitcode}", False)]
    return found


def _child(pipe: Connection, name: str, config: dict[str, Any]) -> None:
    """Examine one tracker; what its library prints is discarded."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    rows = []
    try:
        rows.append(package(name))
        if rows[0].good and (text := registry.misconfigured(name, config)):
            rows.append(Finding("configuration", text.removeprefix(f"tracker {name}: "), False))
        usable = all(row.good for row in rows)
        look = getattr(registry.module(name.partition(":")[0]), "examine", None) if usable else None
        rows += [Finding(str(row.what), str(row.found), bool(row.good)) for row in (look(config) if look else [])]
    except Exception as error:  # a tracker may raise anything
        text = " ".join(str(error).split()) or "no reason given"
        rows.append(Finding("examination", f"failed: {type(error).__name__}: {text[:300]}", False))
    pipe.send(rows)


def package(name: str) -> Finding:
    """The versions of the packages that a tracker needs, or what is missing and how to install it."""
    if text := registry.problem(name):
        return Finding("package", text.removeprefix(f"tracker {name}: "), False)
    if entry := registry.plugins().get(name):
        return Finding("package", f"{entry.dist.name} {entry.dist.version}, a plug-in", True)
    base = name.partition(":")[0]
    library = getattr(registry.module(base), "MODULE", None)
    if not library:
        return Finding("package", "needs no package", True)
    wanted = registry.requirements(base, library)
    there = {one.name.lower(): f"{one.name} {one.version}" for one in metadata.distributions()}
    versions = {text: there.get(re.split(r"[^\w.-]", text)[0].lower()) for text in wanted}
    if lacking := [text for text in wanted if not versions[text]]:
        return Finding(
            "package", f"incomplete installation; run: {sys.executable} -m pip install {' '.join(lacking)}", False
        )
    return Finding("package", ", ".join(versions.values()), True)


# ---- showing ---------------------------------------------------------------------------------------------------------


def show(found: Findings) -> None:
    """Print a table if the output is a terminal, else aligned lines, which are never cut."""
    rows = [(name, row.what, mark(row), row.found) for name in found for row in found[name]]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:3]
        for row in rows:
            say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("tracker", "what", "", "found", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[3].overflow = "fold"
    for number, (name, what, good, text) in enumerate(rows):
        first = not number or rows[number - 1][0] != name
        style = {"ok": "green", "absent": "dim"}.get(good, "bold red")
        table.add_row(Text(name if first else "", "bold"), what, Text(good, style), Text(text))
    Console().print(table)


def mark(row: Finding) -> str:
    """One word for the state of a finding."""
    return "ok" if row.good else "absent" if absent(row) else "BAD"


def advice(good: list[str], broken: Findings) -> str:
    """What to do, in one line."""
    usable = f"make train TRACKER={','.join(good)}" if good else ""
    if not broken:
        return (
            f"no problems found: {usable}"
            if good
            else "no tracker is installed; train without: make train TRACKER=none"
        )
    todo = "; ".join(f"{name}: {row.what}: {row.found}" for name in broken for row in broken[name] if not row.good)
    return f"to do: {todo}" + (f"; meanwhile: {usable}" if usable and "espalier" not in broken else "")


if __name__ == "__main__":
    run_program(main, only_prints=True)

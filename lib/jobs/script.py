"""The script of a job: the packages that uv installs, the program `lib/jobs/inside.py`, and the task."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from lib.base import redact
from lib.base.errors import UserError
from lib.config import extras
from lib.jobs import inside
from lib.jobs.inside import Task

_OF_JOBS = {"train": (), "finetune": ("trl",), "sweep": ("report", "tune")}  # job -> extras of pyproject.toml
JOBS = tuple(_OF_JOBS)
_OF_TRACKERS = ("tensorboard", "mlflow", "accelerate")  # those with an extra of the same name


def packages(job: str, trackers: Iterable[str], has_tasks: bool) -> list[str]:
    """The pinned packages that a job needs: all dependencies, and the extras for what it does.

    Raises UserError if pyproject.toml has no such extra.
    """
    project = extras.project()
    wanted = [*_OF_JOBS[job], *["eval"] * has_tasks]
    for name in trackers:
        kind = name.partition(":")[0]
        wanted += [kind] * (kind in _OF_TRACKERS)
    if missing := [name for name in wanted if name not in project["optional-dependencies"]]:
        raise UserError(f"JOB={job}: this version of Espalier has no extra {missing[0]} in pyproject.toml; update it")
    more = [package for name in wanted for package in project["optional-dependencies"][name]]
    return list(dict.fromkeys([*project["dependencies"], *more]))


def text(task: Task, needed: Iterable[str], secrets: Mapping[str, str]) -> str:
    """The script. Raises UserError if it has a secret in it, as a configuration with a password would."""
    header = [
        "# /// script",
        f'# requires-python = "{extras.project()["requires-python"]}"',
        "# dependencies = [",
        *(f'#     "{package}",' for package in needed),
        "# ]",
        "# ///",
    ]
    program = Path(inside.__file__).read_text(encoding="utf-8").rstrip()
    made = "\n".join([*header, program, "", "", f"TASK = {_literal(task)}", "", _END])
    if redact.finder()(made.encode()) or any(value in made for value in secrets.values() if value):
        raise UserError(
            "a key or password is in the words or the configuration of this job; leave it to the environment"
        )
    return made


_END = """if __name__ == "__main__":
    sys.exit(main(TASK, sys.argv[1:]))
"""


def _literal(task: Task) -> str:
    """The task as Python's source, one field a line and one line of the configuration a line."""
    lines = []
    for field in dataclasses.fields(task):
        value = getattr(task, field.name)
        if field.name == "config" and value:
            inner = [f"        {line!r}" for line in value.splitlines(keepends=True)]
            lines += [f"    {field.name}=(", *inner, "    ),"]
        elif value:
            lines.append(f"    {field.name}={value!r},")
    return "\n".join(["Task(", *lines, ")"])

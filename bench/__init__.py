"""The benchmark, `make bench`: run.py is the program; this file is what the sections share.

Sections, a module each: around, ceilings, oneshot, optimizers, prepare, pruning, reference (other trainers), saving,
scale, start, step, sweeps, tracking, utilisation. They use timing (variants in rounds), foreign (whether others used
the processor), process (a program as a user runs it) and whole (a training run). report shows the results and compares
them with docs/performance.md.
"""

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bench import foreign, goals
from bench.timing import Case, Timer
from gpt2 import model as models
from lib.config.kconf import Schema
from lib.machine import device

SIZES = {
    "gpt2": {"MODEL_NAME": "gpt2", "BLOCK_SIZE": "1024"},
    "tiny": {"MODEL_NAME": "custom", "N_LAYER": "2", "N_HEAD": "2", "N_EMBD": "32", "BLOCK_SIZE": "32"},
}
VOCABULARY = 50257
T = TypeVar("T")
_ADAMW_BYTES = 28  # per weight: read w, g, m, v and write w, m, v


class Bench:
    """What the sections have in common: the machine, the size of the model, and what has been measured so far."""

    def __init__(self, machine: device.Machine, size: str, timer: Timer, peer: Any = None, brief: bool = False):
        """`peer` is another trainer to compare with, a bench.peer.Peer, whose module imports this one.

        `brief`: leave out the variants beside it that have no goal.
        """
        self.machine, self.size, self.timer, self.peer, self.brief = machine, size, timer, peer, brief
        self.dtype = str(machine.dtype).removeprefix("torch.")
        self.sections: dict[str, dict[str, Any]] = {}

    def measure(self, title: str, cases: list[Case], writes: bool = False, **facts: int) -> None:
        """Add a section with the timings of `cases`, including the rounds before an interruption.

        Raises Busy if others use the processor all the time; the section then has no figures. `writes`: the kernel
        writes much for the cases, which is no disturbance.
        """
        for case in cases:
            case.goal = self._bound(title, case.name)
        watch = foreign.Watch(self.timer.allow_busy, writes, self.timer.left())
        self.sections.pop(title, None)  # an earlier try
        try:
            self.timer.measure(title, cases, watch)
        except foreign.Busy as busy:
            self.sections[title] = {"busy": busy.share}
            raise
        finally:  # Ctrl-C
            if title not in self.sections and cases[0].seconds:
                self.sections[title] = {**facts, **watch.facts(), "cases": [case.result() for case in cases]}

    def alone(self, title: str, run: Callable[[], T]) -> T:
        """What `run` returns, from a time in which nobody else used the processor; raises Busy if there was none.

        `title` is the section that it is for.
        """
        try:
            return foreign.Watch(self.timer.allow_busy, seconds=self.timer.left()).undisturbed(run)
        except foreign.Busy as busy:
            self.sections.setdefault(title, {"busy": busy.share})
            raise

    def note(self, title: str, rows: dict[str, dict[str, float | str]]) -> None:
        """Add a section of figures that are counted or measured once: row -> column -> figure.

        The column `to` names what `ratio` is relative to.
        """
        bounds = {name: {"goal": bound} for name in rows if (bound := self._bound(title, name))}
        self.sections[title] = {"rows": {name: figures | bounds.get(name, {}) for name, figures in rows.items()}}

    def _bound(self, title: str, case: str) -> str:
        """The goal of a case, for GPT-2's size."""
        return goals.bound(self.machine.device.type, title, case) if self.size == "gpt2" else ""

    def schema(self, **options: str) -> Schema:
        """The configuration of a run at this size, with changes."""
        schema = Schema()
        values = SIZES[self.size] | {"BATCH_SIZE": "4", "MAX_ITERS": "1000"} | options
        schema.override([(name, text, "bench") for name, text in values.items()])
        return schema

    def model(self) -> models.GPT2:
        """A new GPT-2 of this size."""
        torch.manual_seed(0)
        return models.GPT2(self.schema().bind(models.ModelOptions), VOCABULARY).to(self.machine.device)


def documents() -> list[str]:
    """About 5 MB of text that every machine has: the sources of this Python's standard library."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def unit(bench: Bench, weights: list[nn.Parameter]) -> Case:
    """One fused AdamW step over `weights`, which get random gradients: the case that others are compared with."""
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)
    gigabytes = sum(weight.numel() for weight in weights) * _ADAMW_BYTES / 1e9
    return Case("fused AdamW step", optimizer.step, work=gigabytes, unit="GB")

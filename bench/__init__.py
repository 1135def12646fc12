"""The benchmark, `make bench`: run.py is the program; this file is what the sections share.

Sections, a module each: ceilings, oneshot, optimizers, prepare, pruning, reference (nanoGPT), saving, scale, start,
step, tracking, utilisation. They use timing (variants in rounds), process (a program as a user runs it) and whole (a
training run). report shows the results and compares them with docs/performance.md.
"""

import dataclasses
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.timing import Case, Timer
from gpt2 import model as models
from lib.config.kconf import Schema
from lib.machine import device

SIZES = {
    "gpt2": {"MODEL_NAME": "gpt2", "BLOCK_SIZE": "1024"},
    "tiny": {"MODEL_NAME": "custom", "N_LAYER": "2", "N_HEAD": "2", "N_EMBD": "32", "BLOCK_SIZE": "32"},
}
VOCABULARY = 50257
_ADAMW_BYTES = 28  # per weight: read w, g, m, v and write w, m, v


class Bench:
    """What the sections have in common: the machine, the size of the model, and what has been measured so far."""

    def __init__(self, machine: device.Machine, size: str, rounds: int, ref: Path | None = None):
        """`ref` is a checkout of nanoGPT to compare with."""
        self.machine, self.size, self.ref = machine, size, ref
        self.dtype = str(machine.dtype).removeprefix("torch.")
        self.timer = Timer(machine.device, rounds)
        self.sections: dict[str, dict[str, Any]] = {}

    def measure(self, title: str, cases: list[Case], **facts: int) -> None:
        """Add a section with the timings of `cases`, including the rounds before an interruption."""
        if self.size != "gpt2":  # the goals are for GPT-2's shapes
            cases = [dataclasses.replace(case, goal="") for case in cases]
        try:
            self.timer.measure(title, cases)
        finally:  # Ctrl-C
            self.sections[title] = {**facts, "cases": [case.result() for case in cases if case.seconds]}

    def note(self, title: str, rows: dict[str, dict[str, float | str]]) -> None:
        """Add a section of figures that are counted or measured once: row -> column -> figure.

        The column `to` names what `ratio` is relative to. `goal` is the bound on the ratio, as in a Case.
        """
        if self.size != "gpt2":
            rows = {row: {name: figure for name, figure in rows[row].items() if name != "goal"} for row in rows}
        self.sections[title] = {"rows": rows}

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

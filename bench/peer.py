"""What all trainers have in common that ours is compared with: their ways to run, and how their steps are read."""

import re
import statistics
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from bench import process
from bench.whole import Outcome, Shape
from lib.base.errors import UserError

NANOGPTS_STEP = re.compile(r"iter (?P<step>\d+): loss (?P<loss>\S+), time (?P<ms>[\d.]+)ms")


class Way(NamedTuple):
    """A way to run a trainer."""

    dtype: str
    compiled: bool
    shipped: bool = False  # with the model and vocabulary that its README starts; else with ours


class Peer(Protocol):
    """Another trainer."""

    name: str
    eager: bool  # whether it can run without compiling

    def shipped(self, device: torch.device, dtype: str) -> Way:
        """How its README starts it on a machine whose matrix products are in `dtype`."""

    def train(self, way: Way, shape: Shape, folder: Path, device: torch.device, variables: dict[str, str]) -> Outcome:
        """Train `shape` in `folder`, which `whole.scratch` made, with more environment variables; raises UserError."""


def outcome(done: process.Finished, shape: Shape, name: str, pattern: re.Pattern[str] = NANOGPTS_STEP) -> Outcome:
    """The measurements of a program that printed its steps like `pattern`; raises UserError if some are missing."""
    found = [(when, step) for when, line in done.lines if (step := pattern.match(line))]
    if len(found) != shape.warmup + shape.steps:
        raise UserError(
            f"{name}: printed only {len(found)} of {shape.warmup + shape.steps} steps; is this version supported?"
        )
    counted = [step for _, step in found[shape.warmup :]]
    seconds = statistics.median(float(step["ms"]) for step in counted) / 1e3
    loss = statistics.mean(float(step["loss"]) for step in counted)
    return Outcome(seconds, found[0][0], done.seconds, done.peak_bytes, loss)

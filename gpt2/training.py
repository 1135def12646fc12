"""What changes while training: weights, optimizer, pruner, counters and times. A checkpoint holds all of it."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt2.divergence import DivergenceOptions, Guard
from gpt2.model import GPT2
from lib import optim
from lib.machine import random_state
from lib.machine.device import Machine
from lib.prune import AnyPruner
from lib.record import checkpoint
from lib.record.best import Evaluation, best


class Training:
    """The state of a run. `state_dict` is what a checkpoint holds; `load_state_dict` continues from one."""

    def __init__(
        self,
        model: GPT2,
        optimizer: torch.optim.Optimizer,
        pruner: AnyPruner,
        machine: Machine,
        divergence: DivergenceOptions,
        data_sums: Callable[[], dict[str, dict[str, str]]],
    ):
        """`data_sums` gives the SHA-256 of each data file (split -> file -> sum). It raises if a file has changed."""
        self.model, self.optimizer, self.pruner, self.device = model, optimizer, pruner, machine.device
        self.data_sums = data_sums
        self.compile(False)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype == torch.float16)
        self.good_scale = self.scaler.state_dict()  # the scale when updates were last known to be finite
        self.guard = Guard(divergence, machine.device)
        self.data_before: dict[str, dict[str, str]] = {}  # `data_sums` in the checkpoint that was loaded
        self.notes: list[str] = []  # what the user should know about the checkpoint that was loaded
        self.step = 0
        self.evaluations: list[Evaluation] = []  # up to the present step
        self.train_seconds = 0.0  # spent in steps, over all sessions
        self.total_seconds = 0.0  # with evaluations and checkpoints too

    def compile(self, compiled: bool) -> None:
        """From now on compute with the compiled model, or with the plain one."""
        self.compiled = compiled
        self.forward: Callable[..., Tensor] = torch.compile(self.model, dynamic=False) if compiled else self.model

    @property
    def best(self) -> Evaluation:
        """The best evaluation so far (see `lib.record.best`), with an infinite loss if there is none."""
        return best(self.evaluations) or Evaluation(0, float("inf"), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to continue bit for bit."""
        return {
            "model": self.pruner.model_state(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "pruner": self.pruner.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.guard.left_out(),
            "random": random_state.of(self.device),
            "data": self.data_sums(),
            "compiled": self.compiled,
            "step": self.step,
            "best": self.best._asdict() if self.evaluations else {},
            "evaluations": [list(one) for one in self.evaluations],
            "train_seconds": self.train_seconds,
            "total_seconds": self.total_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; raises CheckpointError if it is of another model or lacks something."""
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            self.pruner.check(state["pruner"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            padding = self.pruner.load_state_dict(state["pruner"])
            if self.scaler.is_enabled() and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
                self.good_scale = self.scaler.state_dict()
            self.guard.load(state["skipped"])
            self.data_before = {split: dict(state["data"][split]) for split in ("train", "val")}
            random = random_state.restore(state["random"], self.device)
            notes = [optim.note(self.optimizer), padding, random if self.model.options.dropout else ""]
            self.notes = list(filter(None, notes))
            self.step = state["step"]
            if "evaluations" in state:
                self.evaluations = [Evaluation(*one) for one in state["evaluations"]]
            else:  # an earlier version kept only the best one
                self.evaluations = [Evaluation(**state["best"])]
            self.train_seconds, self.total_seconds = state["train_seconds"], state["total_seconds"]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise checkpoint.CheckpointError(f"the checkpoint does not fit this model and optimizer: {error}") from None
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)  # settings come from the configuration, which may have changed, not from the checkpoint

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite; waits for the device."""
        return checkpoint.is_finite(self.model.parameters())

    def note(self, val_loss: float) -> float:
        """Remember the validation loss after the present step; returns the sparsity of the evaluated model."""
        sparsity = self.pruner.sparsity()
        before = [one for one in self.evaluations if one.step < self.step]
        self.evaluations = [*before, Evaluation(self.step, val_loss, sparsity)]
        return sparsity


class Stopwatch:
    """Measures the speed of steps. It stands still while the loop logs, evaluates and saves."""

    def __init__(self, training: Training):
        self.training, self.step, self.speed = training, training.step, 0.0
        self.began = time.perf_counter()

    def lap(self, step: int) -> None:
        """Stop at `step`; `speed` is then in steps per second since the last lap. Wait for the device first."""
        seconds = time.perf_counter() - self.began
        self.training.train_seconds += seconds
        self.speed = (step - self.step) / seconds
        self.step = step

    def resume(self) -> None:
        """Measure again from now."""
        self.began = time.perf_counter()

"""What changes while training: weights, optimizer, pruner, counters and times. A checkpoint holds all of it."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt2.distillation import Teacher
from gpt2.divergence import DivergenceOptions, Guard
from gpt2.model import GPT2
from lib import optim
from lib.base import garbage
from lib.machine import random_state
from lib.machine.device import Machine
from lib.prune.pruners import AnyPruner
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
        teacher: Teacher | None = None,
    ):
        """`data_sums` gives the SHA-256 of each data file (split -> file -> sum). It raises if a file has changed.

        `teacher` is on the device of the model.
        """
        self.model, self.optimizer, self.pruner, self.device = model, optimizer, pruner, machine.device
        self.data_sums, self.teacher = data_sums, teacher
        self.kernels: dict[str, Any] = {}  # how a resumed run has to compute, see gpt2.kernels
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
        self.forward: Callable[..., Tensor] = self.model
        self.taught = self.teacher and self.teacher.losses
        if compiled:
            with garbage.paused():
                self._compile()

    def _compile(self) -> None:
        from torch._functorch import config  # imports the compiler, which takes a second

        # Otherwise torch traces a model with an autograd.Function again at every start. The key of its cache has the
        # operations of such functions, so it traces them again after a change.
        config.autograd_cache_allow_custom_autograd_functions = True
        self.forward = torch.compile(self.model, dynamic=False)
        self.taught = self.teacher and torch.compile(self.teacher.losses, dynamic=False)

    def learn(self, tokens: Tensor, targets: Tensor, plain: bool = False) -> tuple[Tensor, Tensor]:
        """The loss to minimise, and what is recorded of it: (1,) the cross entropy, or (2,) with the teacher's KL too.

        `plain`: without torch.compile.
        """
        if self.teacher is None:
            loss = (self.model if plain else self.forward)(tokens, targets)
            return loss, loss[None]
        losses = (self.teacher.losses if plain else self.taught)(self.model, tokens, targets)
        return losses[0], losses[1:]

    def flops_per_token(self) -> int:
        """Operations for a token of a step: those of the model, and of the forward pass of its teacher."""
        return self.model.flops_per_token() + self.teacher_flops()

    def teacher_flops(self) -> int:
        """Operations of the teacher for a token; 0 without one."""
        return self.teacher.flops_per_token() if self.teacher else 0

    def begin_compiling(self) -> None:
        """Start what the compiler needs while torch traces the model. Nothing may be timed meanwhile."""
        if self.compiled and self.device.type == "cpu":
            _look_for_instructions()

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
            "kernels": self.kernels,
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


@functools.cache
def _look_for_instructions() -> None:
    """Let a thread find out which instructions the compiler may use; torch waits for it, and keeps its answer.

    Small programs try them, which takes 2 to 14 s. Two threads must not try at once: torch (2.13) adds flags to shared
    objects meanwhile, and would compile with the flags of an unfinished try, which the next start does not find again.
    """
    from torch._inductor import cpu_vec_isa

    find, lock = cpu_vec_isa.valid_vec_isa_list, threading.Lock()

    def alone() -> list[cpu_vec_isa.VecISA]:
        with lock:
            return find()

    cpu_vec_isa.valid_vec_isa_list = alone
    threading.Thread(target=alone, daemon=True).start()

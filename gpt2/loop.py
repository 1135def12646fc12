"""The loop: batch, loss, backward, optimizer, pruner, journal. All of training that repeats is on this page."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpt2.data.windows import Data
from gpt2.divergence import Diverged, DivergenceOptions, Guard
from gpt2.evaluate import validation_loss
from gpt2.model import GPT2
from lib import optim
from lib.config.kconf import Options
from lib.machine import random_state
from lib.machine.device import Machine
from lib.optim import set_learning_rate, skip_if
from lib.optim.schedule import ScheduleOptions, learning_rate
from lib.prune import AnyPruner
from lib.record import checkpoint
from lib.record.best import Evaluation, best


@dataclasses.dataclass(frozen=True)
class LoopOptions(Options):
    """How the loop steps and when it looks up."""

    gradient_accumulation: int  # micro-batches per step
    grad_clip: float  # norm; 0 does not clip
    eval_interval: int  # steps; 0: only before and after
    log_interval: int  # steps
    checkpoint_interval: int  # steps; 0: only at the end
    checkpoint_best: bool  # also when an evaluation is the best


class Recorder(Protocol):
    """What the loop tells about itself; it does not know who listens."""

    def write(self, event: str, step: int, metrics: dict[str, float], **details: object) -> object:
        """An event with its metrics, and what else is to be known of it."""

    def tick(self) -> None:
        """A step was launched."""

    def alert(self, kind: str, level: str, message: str, step: int) -> None:
        """Something that the user should know at once."""

    def busy(self, what: str) -> AbstractContextManager[None]:
        """For as long as something else than steps takes time."""

    def save(self, step: int) -> None:
        """Write a checkpoint."""


class Training:
    """What changes while training: weights, optimizer, pruner, counters. A checkpoint holds its `state_dict`."""

    def __init__(
        self,
        model: GPT2,
        optimizer: torch.optim.Optimizer,
        pruner: AnyPruner,
        machine: Machine,
        divergence: DivergenceOptions,
    ):
        self.model, self.optimizer, self.pruner, self.device = model, optimizer, pruner, machine.device
        pruner.begin()  # a checkpoint that is loaded later has other masks
        self.compile(False)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype == torch.float16)
        self.good_scale = self.scaler.state_dict()  # when updates were last seen to be good
        self.guard = Guard(divergence, machine.device)
        self.data_sums: Callable[[], dict] = dict  # what the data are known by; raises when they have changed
        self.data_before: dict[str, dict[str, str]] = {}  # the same in the checkpoint that was loaded
        self.notes: list[str] = []  # what the user should know of the checkpoint that was loaded
        self.step = 0
        self.evaluations: list[Evaluation] = []  # up to the present step
        self.train_seconds = 0.0  # in steps alone
        self.total_seconds = 0.0  # with evaluations and checkpoints, over all sessions

    def compile(self, compiled: bool) -> None:
        """Compute with a compiled model from now on, or with the model as it is."""
        self.compiled = compiled
        self.forward: Callable[..., Tensor] = torch.compile(self.model, dynamic=False) if compiled else self.model

    @property
    def best(self) -> Evaluation:
        """The best evaluation so far (see `lib.record.best`); an infinite loss where there is none."""
        return best(self.evaluations) or Evaluation(0, float("inf"), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on bit for bit."""
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
            "best": self.best._asdict(),
            "evaluations": [list(one) for one in self.evaluations],
            "train_seconds": self.train_seconds,
            "total_seconds": self.total_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; raises CheckpointError when it is of another model or lacks something."""
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
            else:  # an earlier version kept the best alone
                self.evaluations = [Evaluation(**state["best"])]
            self.train_seconds, self.total_seconds = state["train_seconds"], state["total_seconds"]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise checkpoint.CheckpointError(f"the checkpoint does not fit this model and optimizer: {error}") from None
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)  # the configuration's, which may have changed, not the checkpoint's

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite; waits for the device."""
        return checkpoint.is_finite(self.model.parameters())

    def note(self, val_loss: float) -> float:
        """Remember the validation loss after the present step; returns the sparsity of the model that has it."""
        sparsity = self.pruner.sparsity()
        before = [one for one in self.evaluations if one.step < self.step]
        self.evaluations = [*before, Evaluation(self.step, val_loss, sparsity)]
        return sparsity


def train(
    training: Training,
    data: Data,
    machine: Machine,
    options: LoopOptions,
    schedule: ScheduleOptions,
    recorder: Recorder,
    asked: Callable[[], bool],
) -> None:
    """Make steps until the schedule ends or some rank is `asked` to stop; a run of one leaves a step unfinished then.

    Where this raises Diverged, `training` holds the weights of the last update that was made. They can be NaN or
    infinite too: call `training.is_finite` before they are used.

    The device is waited for at steps that log, evaluate, save or choose masks, at no other.
    """
    stopped = machine.ranks.agreed(asked)
    if machine.ranks.any(asked()):
        return
    at_once = asked if machine.ranks.size == 1 else lambda: False  # several have to agree on the step
    watch = Stopwatch(training)
    for step in range(training.step + 1, schedule.max_iters + 1):
        last = step == schedule.max_iters
        set_learning_rate(training.optimizer, learning_rate(step, schedule))
        try:
            loss, grad_norm = update(training, data, machine, options, step, at_once)
        except KeyboardInterrupt:
            if not asked():
                raise
            check_finite(training, recorder)
            watch.lap(training.step)
            return
        training.step = step
        recorder.tick()

        logs, evaluates, saves = (
            last or due(step, interval)
            for interval in (options.log_interval, options.eval_interval, options.checkpoint_interval)
        )
        if not (logs or evaluates or saves or stopped()):
            continue
        check_finite(training, recorder)
        watch.lap(step)
        if logs:
            recorder.write(
                "train", step, train_metrics(training, data, machine, schedule, loss, grad_norm, watch.speed)
            )
        if evaluates:
            evaluate(training, data, machine, recorder, asked)
        if saves or stopped() or (options.checkpoint_best and evaluates and training.best.step == step):
            recorder.save(step)
        if stopped():
            return
        watch.resume()


def due(step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) happens at this one."""
    return interval > 0 and step % interval == 0


def update(
    training: Training,
    data: Data,
    machine: Machine,
    options: LoopOptions,
    step: int,
    asked: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns loss and gradient norm (scalars on the device) without waiting for them.

    Every rank computes its share of the micro-batches, and from their sum all make the same step. `asked` to stop
    between two of them, it raises KeyboardInterrupt, and all that a checkpoint holds is as it was before the step.
    """
    random, loss = random_state.of(machine.device), torch.zeros((), device=machine.device)
    try:
        for micro in machine.ranks.share(options.gradient_accumulation):
            if asked():
                raise KeyboardInterrupt
            x, y = (part.to(machine.device, non_blocking=True) for part in data.batch(step - 1, micro))
            with machine.autocast():
                part = training.forward(x, y) / options.gradient_accumulation
            training.scaler.scale(part).backward()
            loss += part.detach()
    except KeyboardInterrupt:
        training.optimizer.zero_grad(set_to_none=True)
        random_state.restore(random, machine.device)
        raise
    machine.ranks.sum_step(loss, training.model.parameters())
    training.scaler.unscale_(training.optimizer)
    training.pruner.step(step, functools.cache(lambda: healthy(training, loss)))
    grad_norm = clip(list(training.model.parameters()), options.grad_clip)
    broken, infinite = ~torch.isfinite(loss), ~torch.isfinite(grad_norm)
    if training.scaler.is_enabled():  # infinite gradients are how it learns to scale less: they do not count
        left_out = training.guard.leave_out(step, broken) | infinite
    else:
        left_out = training.guard.leave_out(step, broken | infinite)
    skip_if(training.optimizer, left_out.float())
    training.optimizer.step()
    training.pruner.moved(step)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    return loss, grad_norm


def healthy(training: Training, loss: Tensor) -> Tensor:
    """Whether loss and gradients are numbers and the update will be made (a bool scalar on the device)."""
    norm = gradient_norm(list(training.model.parameters()))
    return torch.isfinite(loss) & torch.isfinite(norm) & training.guard.going()


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Joint norm of all gradients (a scalar on the device)."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most `max_norm` (0: leave them); returns the norm before."""
    norm = gradient_norm(parameters)
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def check_finite(training: Training, recorder: Recorder) -> None:
    """Tell of updates that were left out since the last check.

    Raises Diverged if these were too many, or if weights are NaN or infinite, which a finite gradient can make them.
    """
    try:
        training.guard.look(recorder.alert)
        if training.scaler.is_enabled() and training.scaler.get_scale() < 1:
            text = f"step {training.step}: the gradient is not a number in float16, however small it is scaled"
            raise Diverged(text, training.step, training.step)
    except Diverged as error:
        training.step = error.step
        training.scaler.load_state_dict(training.good_scale)
        raise
    if not training.is_finite():
        raise Diverged(f"step {training.step}: weights are NaN or infinite", training.step, training.step, good=False)
    training.good_scale = training.scaler.state_dict()


def train_metrics(
    training: Training,
    data: Data,
    machine: Machine,
    schedule: ScheduleOptions,
    loss: Tensor,
    grad_norm: Tensor,
    steps_per_second: float,
) -> dict[str, float]:
    """What a `train` event records: loss in nats per token, learning rate of this step, speed since the last record."""
    tokens_per_second = steps_per_second * data.tokens_per_step
    metrics = {
        "train_loss": loss.item(),
        "learning_rate": learning_rate(training.step, schedule),
        **training.pruner.metrics(training.step),
        **optim.metrics(training.optimizer),
        **training.guard.metrics(),
        "grad_norm": grad_norm.item(),
        "tokens": training.step * data.tokens_per_step,
        "tokens_per_second": tokens_per_second,
    }
    if machine.peak_flops:
        metrics["mfu"] = (
            tokens_per_second * training.model.flops_per_token() / (machine.peak_flops * machine.ranks.size)
        )
    return metrics


def evaluate(training: Training, data: Data, machine: Machine, recorder: Recorder, asked: Callable[[], bool]) -> None:
    """Record the validation loss after the present step, unless asked to stop (a resumed run then measures it)."""
    try:
        with recorder.busy("evaluating"):
            loss = validation_loss(training.forward, data, machine, asked)
    except KeyboardInterrupt:  # while its first batch was compiled
        if not asked():
            raise
        loss = None
    if loss is not None:
        sparsity = training.note(loss)
        perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()
        losses = {"val_loss": loss, "val_perplexity": perplexity}
        recorder.write("eval", training.step, losses | training.pruner.layers(), sparsity=sparsity)
        if not (math.isfinite(loss) or training.guard.skips):
            text = f"step {training.step}: the validation loss is not a number"
            raise Diverged(text, training.step, training.step, good=False)


class Stopwatch:
    """Measures the speed of steps alone: it stands still while the loop logs, evaluates and saves."""

    def __init__(self, training: Training):
        self.training, self.step, self.speed = training, training.step, 0.0
        self.began = time.perf_counter()

    def lap(self, step: int) -> None:
        """Stop at `step`; `speed` is in steps per second since the last lap. The device must have been waited for."""
        seconds = time.perf_counter() - self.began
        self.training.train_seconds += seconds
        self.speed = (step - self.step) / seconds
        self.step = step

    def resume(self) -> None:
        """Go on."""
        self.began = time.perf_counter()

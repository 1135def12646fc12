"""The training loop: batch, loss, backward, pruner, optimizer, evaluation. Everything that repeats is on this page."""

import dataclasses
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from gpt2.data.ahead import Ahead
from gpt2.data.windows import Data
from gpt2.divergence import Diverged
from gpt2.training import Stopwatch, Training
from lib import optim
from lib.base.metric import Metric
from lib.config.kconf import Options
from lib.machine import random_state
from lib.machine.device import Machine
from lib.optim import set_learning_rate, skip_if
from lib.record import checkpoint_file
from lib.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class LoopOptions(Options):
    """How a step is made, and after which steps the loop logs, evaluates and saves."""

    gradient_accumulation: int  # micro-batches per step
    grad_clip: float  # largest norm of the gradient; 0: no clipping
    eval_interval: int | None  # steps; 0: only before the first and after the last; None: nothing is evaluated
    log_interval: int  # steps
    checkpoint_interval: int  # steps; 0: only after the last
    checkpoint_best: bool | None  # also after each evaluation that is the best so far; None: nothing is evaluated
    checkpoint_at: str  # also after these steps, as in 200,1000


class Listener(Protocol):
    """What the loop reports to. `gpt2.recorder` has one for rank 0, which records, and one for other ranks."""

    def write(self, event: str, step: int, metrics: dict[str, float], **details: object) -> object:
        """Record an event with its metrics and other details."""

    def tick(self) -> None:
        """Count a step that was given to the device. The device may not have finished it."""

    def alert(self, kind: str, level: str, message: str, step: int) -> None:
        """Tell the user something at once."""

    def busy(self, what: str) -> AbstractContextManager[None]:
        """A context for work other than steps, such as an evaluation."""

    def save(self, step: int) -> None:
        """Write a checkpoint."""


def train(
    training: Training,
    data: Data,
    machine: Machine,
    options: LoopOptions,
    schedule: Schedule,
    recorder: Listener,
    asked: Callable[[], bool],
) -> None:
    """Make steps until the schedule ends or some rank is `asked` to stop.

    When asked to stop, a single process drops its unfinished step. Several ranks finish theirs, so that all of them
    stop at the same step.

    After Diverged, `training` holds the weights of the last update that was made. They can be NaN or infinite too:
    call `training.is_finite` before you use them.

    Only steps that log, evaluate, save or choose masks wait for the device.
    """
    stopped = machine.ranks.agreed(asked)
    if machine.ranks.any(asked()):
        return
    at_once = asked if machine.ranks.size == 1 else lambda: False  # several ranks have to stop at the same step
    batches = Ahead(data, machine.ranks.share(options.gradient_accumulation))
    watch, for_good = Stopwatch(training), checkpoint_file.steps(options.checkpoint_at)
    for step in range(training.step + 1, schedule.max_iters + 1):
        last = step == schedule.max_iters
        set_learning_rate(training.optimizer, schedule.learning_rate(step))
        try:
            losses, grad_norm = update(training, batches, machine, options, step, at_once)
        except KeyboardInterrupt:
            if not asked():
                raise
            check_finite(training, recorder)
            watch.lap(training.step)
            return
        training.step = step
        recorder.tick()

        logs, saves = (last or due(step, every) for every in (options.log_interval, options.checkpoint_interval))
        saves = saves or step in for_good
        evaluates = evaluation_due(step, schedule.max_iters, options.eval_interval)
        if not (logs or evaluates or saves or stopped()):
            continue
        check_finite(training, recorder)
        watch.lap(step)
        if logs:
            recorder.write(
                "train", step, train_metrics(training, data, machine, schedule, losses, grad_norm, watch.speed)
            )
            training.pruner.tell(recorder.alert, step)
        if evaluates:
            evaluate(training, data, machine, recorder, asked)
        if saves or stopped() or (options.checkpoint_best and evaluates and training.best.step == step):
            recorder.save(step)
        if stopped():
            return
        watch.resume()


def due(step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) happens after this one."""
    return interval > 0 and step % interval == 0


def evaluation_due(step: int, last: int, interval: int | None) -> bool:
    """Whether the validation loss is measured after this step; with an `interval` of None it never is."""
    return interval is not None and (step in (0, last) or due(step, interval))


def update(
    training: Training,
    data: Data | Ahead,
    machine: Machine,
    options: LoopOptions,
    step: int,
    asked: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """Make one optimizer step; returns losses (see `Training.learn`) and gradient norm without waiting for the device.

    Every rank computes its share of the micro-batches. All ranks make the same step from the sum of the gradients. If
    `asked` to stop between two micro-batches, this raises KeyboardInterrupt and leaves everything as it was before.
    """
    random, losses = random_state.of(machine.device), torch.zeros((), device=machine.device)
    share = machine.ranks.share(options.gradient_accumulation)
    try:
        for micro in share:
            if asked():
                raise KeyboardInterrupt
            x, y = (part.to(machine.device, non_blocking=True) for part in data.batch(step - 1, micro))
            with machine.autocast():
                loss, parts = training.learn(x, y)
            losses = losses + parts.detach() / options.gradient_accumulation
            with machine.ranks.summing(losses, training.model, last=micro == share[-1]):
                training.scaler.scale(loss / options.gradient_accumulation).backward()
    except KeyboardInterrupt:
        training.optimizer.zero_grad(set_to_none=True)
        random_state.restore(random, machine.device)
        raise
    training.scaler.unscale_(training.optimizer)
    training.pruner.step(step, functools.cache(lambda: healthy(training, losses)))
    grad_norm = clip(list(training.model.parameters()), options.grad_clip)
    broken, infinite = ~torch.isfinite(losses).all(), ~torch.isfinite(grad_norm)
    if training.scaler.is_enabled():  # infinite gradients tell the scaler to scale less, so they are not counted
        left_out = training.guard.leave_out(step, broken) | infinite
    else:
        left_out = training.guard.leave_out(step, broken | infinite)
    skip_if(training.optimizer, left_out.float())
    training.optimizer.step()
    training.pruner.moved(step)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    return losses, grad_norm


def healthy(training: Training, losses: Tensor) -> Tensor:
    """Whether losses and gradients are finite, so that the update will be made (a bool scalar on the device)."""
    norm = gradient_norm(list(training.model.parameters()))
    return torch.isfinite(losses).all() & torch.isfinite(norm) & training.guard.going()


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The joint L2 norm of all gradients (a scalar on the device)."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients to a joint norm of at most `max_norm` (0: no limit); returns the norm before scaling."""
    norm = gradient_norm(parameters)
    # On a CPU the norm is known at once, and most steps need no scaling: its factor would be exactly 1.
    if max_norm > 0 and not (norm.device.type == "cpu" and norm + 1e-6 <= max_norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def check_finite(training: Training, recorder: Listener) -> None:
    """Report updates that were skipped since the last check.

    Raises Diverged if too many were skipped, or if a weight is NaN or infinite. Even an update with a finite gradient
    can make a weight infinite.
    """
    try:
        training.guard.look(recorder.alert)
        if training.scaler.is_enabled() and training.scaler.get_scale() < 1:
            text = f"step {training.step}: the gradient is NaN or infinite in float16, even at a loss scale below 1"
            raise Diverged(text, training.step, training.step)
    except Diverged as error:
        training.step = error.step
        training.scaler.load_state_dict(training.good_scale)
        raise
    if not training.is_finite():
        raise Diverged(f"step {training.step}: weights are NaN or infinite", training.step, training.step, good=False)
    training.good_scale = training.scaler.state_dict()


TRAIN_LOSS = Metric("train_loss", label="loss", row=1, chart=2)
DISTILL_LOSS = Metric("distill_loss", label="distill", row=2, chart=2)  # T^2 KL, of runs with a teacher
LEARNING_RATE = Metric("learning_rate", label="lr", form=".2e", row=3, chart=4)
GRAD_NORM = Metric("grad_norm", row=6, chart=5)
TOKENS = Metric("tokens", chart=10)
TOKENS_PER_SECOND = Metric("tokens_per_second", label="", form=",.0f", unit=" tokens/s", row=5, chart=6)
MFU = Metric("mfu", chart=9)  # model FLOPs utilization: share of the device's peak (arXiv 2204.02311, appendix B)
VAL_LOSS = Metric("val_loss", label="val loss", row=2, chart=1)
VAL_PERPLEXITY = Metric("val_perplexity", label="perplexity", form=",.2f", chart=7)
VAL_BITS_PER_BYTE = Metric("val_bits_per_byte", chart=7)  # of text, so that tokenizers can be compared


def train_metrics(
    training: Training,
    data: Data,
    machine: Machine,
    schedule: Schedule,
    losses: Tensor,
    grad_norm: Tensor,
    steps_per_second: float,
) -> dict[str, float]:
    """The metrics of a `train` event: losses in nats per token, learning rate of the step, speed since the last lap."""
    tokens_per_second = steps_per_second * data.tokens_per_step
    metrics = {
        TRAIN_LOSS: losses[0].item(),
        **({DISTILL_LOSS: losses[1].item()} if training.teacher else {}),
        LEARNING_RATE: schedule.learning_rate(training.step),
        **training.pruner.metrics(training.step),
        **optim.metrics(training.optimizer),
        **training.guard.metrics(),
        GRAD_NORM: grad_norm.item(),
        TOKENS: training.step * data.tokens_per_step,
        TOKENS_PER_SECOND: tokens_per_second,
    }
    if machine.peak_flops:
        metrics[MFU] = tokens_per_second * training.flops_per_token() / (machine.peak_flops * machine.ranks.size)
    return metrics


def evaluate(training: Training, data: Data, machine: Machine, recorder: Listener, asked: Callable[[], bool]) -> None:
    """Record the validation loss after the present step. If asked to stop, leave the evaluation to a resume.

    Raises Diverged if the loss is NaN or infinite, unless NAN_POLICY=skip.
    """
    try:
        with recorder.busy("evaluating"):
            loss = validation_loss(training.forward, data, machine, asked)
    except KeyboardInterrupt:  # a signal while the first batch was compiled
        if not asked():
            raise
        loss = None
    if loss is not None:
        sparsity = training.note(loss)
        perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()
        losses = {VAL_LOSS: loss, VAL_PERPLEXITY: perplexity, VAL_BITS_PER_BYTE: data.bits_per_byte(loss)}
        recorder.write("eval", training.step, losses | training.pruner.layers(), sparsity=sparsity)
        if not (math.isfinite(loss) or training.guard.skips):
            text = f"step {training.step}: the validation loss is NaN or infinite"
            raise Diverged(text, training.step, training.step, good=False)


@torch.no_grad()
def validation_loss(
    model: torch.nn.Module, data: Data, machine: Machine, asked: Callable[[], bool] = lambda: False
) -> float | None:
    """The mean loss in nats per token over all validation windows; None if some rank was `asked` to stop.

    The windows are the same every time. Each rank evaluates its share, and all return the same mean. Dropout is off.
    The order of the training data and the random state stay as they are.
    """
    model.eval()
    ranks, device = machine.ranks, machine.device if machine.device.type != "mps" else "cpu"
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    try:
        for x, y in data.val_batches(ranks.rank, ranks.size):
            if asked():
                break
            with machine.autocast():
                loss = model(x.to(machine.device, non_blocking=True), y.to(machine.device, non_blocking=True))
            total += loss.to(total) * len(x)
            count += len(x)
    finally:
        model.train()
    counts = torch.full_like(total, count)
    ranks.sum([total, counts])
    return total.item() / counts.item() if counts == data.val_windows else None  # fewer: some rank stopped

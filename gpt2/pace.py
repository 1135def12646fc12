"""Estimates how long a run will take on this machine, by timing parts of a batch before the first step."""

import time
from collections.abc import Iterator

import torch

from gpt2 import flops
from gpt2.data.windows import Data
from gpt2.training import Training
from lib.machine.device import Machine
from lib.schedule import Schedule
from lib.terminal.console import roughly

_ENOUGH = 0.3  # seconds: a part of a batch that takes this long is large enough to measure
_GROWTH = 4
_LONG = 3 * 3600  # seconds


def seconds_left(
    training: Training, data: Data, machine: Machine, schedule: Schedule, eval_interval: int | None
) -> float | None:
    """About how long the rest of a run takes; None if no step is left, or if memory is too short to measure.

    Weights, optimizer, pruner and random state stay as they are. The model is timed without torch.compile.
    """
    steps = schedule.max_iters - training.step
    if not steps:
        return None
    evaluations = 1 + (steps // eval_interval if eval_interval else 1)
    try:
        each = _seconds_per_token(training, data, machine)
    except (RuntimeError, MemoryError):  # the first step will report it
        return None
    finally:
        training.model.train()
        training.optimizer.zero_grad(set_to_none=True)
    validation = data.val_windows * data.options.block_size
    # An evaluation needs only a forward pass, and no teacher.
    forward = flops.inference(training.model.options, training.model.vocab_size) / training.flops_per_token()
    return each * (steps * data.tokens_per_step + evaluations * validation * forward) / machine.ranks.size


def words(seconds: float | None, training: Training, schedule: Schedule) -> str:
    """The words after the number of steps: `, about 1:40 here`."""
    if seconds is None:
        return ""
    left = f" for the {schedule.max_iters - training.step:,} that are left" * bool(training.step)
    return f", about {roughly(seconds)} here{left}" + ", less once compiled" * training.compiled


def advice(seconds: float | None, machine: Machine) -> str:
    """A note for a run that takes hours on a CPU; empty for any other."""
    if machine.device.type != "cpu" or (seconds or 0) < _LONG:
        return ""
    return "that is long; Ctrl-C stops it, and make list-defconfigs lists smaller models, some of which take minutes"


def _seconds_per_token(training: Training, data: Data, machine: Machine) -> float:
    """Seconds per token of a forward and a backward pass, on parts of a batch that grow until one takes long enough."""
    x, y = (part.to(machine.device) for part in data.batch(0, 0))  # (B, T)
    training.model.eval()  # no dropout, so no random numbers; and pruning criteria ignore these inputs
    for number, (windows, tokens) in enumerate(_parts(*x.shape)):
        part = x[:windows, :tokens], y[:windows, :tokens]
        tries = 1 if number else 2  # the first time is slower
        took = min(_time(training, machine, part) for _ in range(tries))
        if took > _ENOUGH:
            break
    return took / (windows * tokens)


def _parts(windows: int, tokens: int) -> Iterator[tuple[int, int]]:
    """(windows, tokens of each), from a part of a window to the complete batch."""
    count, length = 1, min(64, tokens)
    while (count, length) != (windows, tokens):
        yield count, length
        if length < tokens:
            length = min(tokens, length * _GROWTH)
        else:
            count = min(windows, count * _GROWTH)
    yield count, length


def _time(training: Training, machine: Machine, part: tuple[torch.Tensor, torch.Tensor]) -> float:
    began = time.perf_counter()
    with machine.autocast():
        loss, _ = training.learn(*part, plain=True)
    loss.backward()
    loss.item()  # waits for the device
    next(training.model.parameters()).grad[0, 0].item()
    return time.perf_counter() - began

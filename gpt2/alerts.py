"""Alerts: finds divergence, loss spikes and milestones in the events of a run as they are recorded."""

import dataclasses
import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lib.config.kconf import Options
from lib.record import journal

_WORSE = 1.1  # times the loss of guessing: above it a loss is worse; an untrained model is within a few percent of 1
_LOSSES = {"train": "train_loss", "eval": "val_loss"}  # event -> its metric
_WINDOW = 128  # recorded values that a spike is compared with
_ENOUGH = _WINDOW // 2  # the fewest values that a spike is compared with
_CALM = 10  # consecutive normal values that end a spike


@dataclasses.dataclass(frozen=True)
class AlertOptions(Options):
    """When to give an alert."""

    loss_spike_sigma: float  # standard deviations above the mean; 0: spikes give no alert


class Alert(NamedTuple):
    """An alert that is not recorded yet: `kind` is for programs, `message` is one sentence for people."""

    kind: str
    level: str  # info, warn or error
    message: str


class Spikes:
    """Finds spikes in a series: values more than `sigma` standard deviations above the mean of earlier values.

    OLMo 2 (arXiv 2501.00656, section 3.2) counts a value as a spike if it is 7 standard deviations from the mean of the
    last 1000 steps. We take the last 128 values, as OLMo-core's SkipStepOptimizer does, and need 64 of them. Losses are
    recorded only every 10 steps or so. 1000 values would include the fast fall at the beginning, and its large standard
    deviation would hide all but huge spikes.
    """

    def __init__(self, sigma: float):
        """With a `sigma` of 0, no value is a spike."""
        self.sigma = sigma or math.inf
        self.values: deque[float] = deque(maxlen=_WINDOW)
        self.calm = _CALM  # values since the last spike

    def look(self, value: float) -> tuple[float, float] | None:
        """Take in a value. Returns (standard deviations above the mean, the mean) if a spike begins with it."""
        if not math.isfinite(value):
            return None
        mean, above = 0.0, 0.0
        if len(self.values) >= _ENOUGH:
            mean = math.fsum(self.values) / len(self.values)
            deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in self.values) / len(self.values))
            above = (value - mean) / (deviation or math.inf)
        self.values.append(value)
        begins = above > self.sigma and self.calm >= _CALM
        self.calm = 0 if above > self.sigma else self.calm + 1
        return (above, mean) if begins else None


class Watch:
    """Gives alerts for divergence, loss spikes, the target sparsity and the end of a run."""

    def __init__(self, vocab_size: int, target: float, reached: bool, sigma: float, ends: float = math.inf):
        """`target` is the sparsity at the end of pruning (inf: no target). `reached` says whether its alert was given.

        `sigma` is how many standard deviations make a spike of the training loss (0: no alerts about spikes). `ends` is
        the step at which pruning without a target ends (inf: never).
        """
        self.guessing = math.log(vocab_size)  # in nats per token: the loss if all tokens have equal probability
        self.target, self.reached, self.ends = target, reached, ends
        self.spikes = Spikes(sigma)

    def recall(self, folder: Path, step: int) -> None:
        """Take in the losses that the run in `folder` recorded up to `step`, for a run that continues after it."""
        rows = [row for (event, at), row in journal.history(folder).items() if event == "train" and at <= step]
        losses = filter(math.isfinite, (journal.numbers(row).get("train_loss", math.nan) for row in rows))
        for loss in deque(losses, _WINDOW + _CALM):  # older values have no effect
            self.spikes.look(loss)

    def look(self, event: str, step: int, metrics: Mapping[str, float], status: str = "") -> Iterator[Alert]:
        """Yield the alerts for one event."""
        worst = _WORSE * self.guessing if step else sys.float_info.max
        if event == "eval" and not metrics["val_loss"] <= worst:  # true for NaN and infinity too
            loss = f"{metrics['val_loss']:.4g}"
            text = f"the validation loss {loss} is worse than guessing, whose loss is {self.guessing:.4g}"
            yield Alert("divergence", "warn", text)
        if event == "train" and not self.reached and metrics["sparsity"] >= self.target:
            self.reached = True
            yield Alert("sparsity", "info", f"the target sparsity is reached: {metrics['sparsity']:.4%}")
        if event == "train" and not self.reached and step >= self.ends:
            self.reached = True
            yield Alert("sparsity", "info", f"pruning has ended at a sparsity of {metrics['sparsity']:.4%}")
        if event == "train" and (found := self.spikes.look(metrics["train_loss"])):
            text = "the training loss {:.4g} is {:.1f} standard deviations above {:.4g}, the mean of the losses before"
            yield Alert("spike", "warn", text.format(metrics["train_loss"], *found))
        if event == "finish" and status == "finished":
            losses = ": validation loss {final_val_loss:.4f}, best {best_val_loss:.4f}"
            losses = losses.format(**metrics) if "final_val_loss" in metrics else ""
            yield Alert("finished", "info", f"the run is finished after {step:,} steps{losses}")


def worse_since(folder: Path, vocab_size: int) -> float:
    """The step since which every recorded loss is worse than guessing; inf if the last one is not."""
    since = math.inf
    for (event, step), row in reversed(journal.history(folder).items()):
        if journal.numbers(row).get(_LOSSES[event], math.inf) <= _WORSE * math.log(vocab_size):
            break
        since = step
    return since

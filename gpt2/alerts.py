"""What a run's user is told at once, found in its records as they are written."""

import dataclasses
import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lib.config.kconf import Options
from lib.record import journal

_WORSE = 1.1  # times the loss of guessing: an untrained model is within some percent of it
_LOSSES = {"train": "train_loss", "eval": "val_loss"}  # event -> its metric
_WINDOW = 128  # recorded values that a spike is measured against
_ENOUGH = _WINDOW // 2  # of them to judge by
_CALM = 10  # recorded values without one that end a spike


@dataclasses.dataclass(frozen=True)
class AlertOptions(Options):
    """What is worth an alert."""

    loss_spike_sigma: float  # standard deviations; 0: no spike is


class Alert(NamedTuple):
    """An alert to be: `kind` names its sort for machines, `message` is one sentence for people."""

    kind: str
    level: str  # info, warn or error
    message: str


class Spikes:
    """Finds the spikes of a series: values that many standard deviations above the mean of those recorded before.

    OLMo 2 (arXiv 2501.00656, section 3.2) counts as spikes what lies 7 standard deviations from the mean of the last
    1000 steps. The window here is that of OLMo-core's SkipStepOptimizer, the last 128, of which half must be there: of
    what is recorded every 10 steps, 1000 would reach back to where the loss fell fast, and hide all but huge spikes.
    """

    def __init__(self, sigma: float):
        """`sigma` standard deviations make a spike; 0: nothing does."""
        self.sigma = sigma or math.inf
        self.values: deque[float] = deque(maxlen=_WINDOW)
        self.calm = _CALM  # values since the last that was one

    def look(self, value: float) -> tuple[float, float] | None:
        """(standard deviations above the mean, the mean) if a spike begins with this value; takes it in."""
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
    """Looks at the events of a run: divergence, spikes, the sparsity asked for, and the end are alerts."""

    def __init__(self, vocab_size: int, target: float, reached: bool, sigma: float):
        """`target` is the sparsity at the end of pruning (inf without); `reached` whether that was told before.

        `sigma` is how many standard deviations make a spike of the training loss (0: none).
        """
        self.guessing = math.log(vocab_size)  # nats per token, of a model that knows nothing
        self.target, self.reached = target, reached
        self.spikes = Spikes(sigma)

    def recall(self, folder: Path, step: int) -> None:
        """Take in what the run in `folder` recorded up to `step`, after which it goes on, as if it was seen here."""
        rows = [row for (event, at), row in journal.history(folder).items() if event == "train" and at <= step]
        losses = filter(math.isfinite, (journal.numbers(row).get("train_loss", math.nan) for row in rows))
        for loss in deque(losses, _WINDOW + _CALM):  # before these nothing counts any more
            self.spikes.look(loss)

    def look(self, event: str, step: int, metrics: Mapping[str, float], status: str = "") -> Iterator[Alert]:
        """The alerts that an event gives rise to."""
        worst = _WORSE * self.guessing if step else sys.float_info.max
        if event == "eval" and not metrics["val_loss"] <= worst:  # or no number at all
            text = f"the validation loss {metrics['val_loss']:.4g} is worse than guessing's {self.guessing:.4g}"
            yield Alert("divergence", "warn", text)
        if event == "train" and not self.reached and metrics["sparsity"] >= self.target:
            self.reached = True
            yield Alert("sparsity", "info", f"the sparsity asked for is reached: {metrics['sparsity']:.4%}")
        if event == "train" and (found := self.spikes.look(metrics["train_loss"])):
            text = "the training loss {:.4g} is {:.1f} standard deviations above {:.4g}, the mean of those before"
            yield Alert("spike", "warn", text.format(metrics["train_loss"], *found))
        if event == "finish" and status == "finished":
            losses = f"validation loss {metrics['final_val_loss']:.4f}, best {metrics['best_val_loss']:.4f}"
            yield Alert("finished", "info", f"the run is finished after {step:,} steps: {losses}")


def worse_since(folder: Path, vocab_size: int) -> float:
    """The step since which every loss that a run recorded is worse than guessing's; inf if the last one is not."""
    since = math.inf
    for (event, step), row in reversed(journal.history(folder).items()):
        if journal.numbers(row).get(_LOSSES[event], math.inf) <= _WORSE * math.log(vocab_size):
            break
        since = step
    return since

"""What a run's user is told at once, found in its records as they are written."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_WORSE = 1.1  # times the loss of guessing: an untrained model is within some percent of it


class Alert(NamedTuple):
    """An alert to be: `kind` names its sort for machines, `message` is one sentence for people."""

    kind: str
    level: str  # info, warn or error
    message: str


class Watch:
    """Looks at the events of a run: divergence, the sparsity asked for, and the end are alerts."""

    def __init__(self, vocab_size: int, target: float, reached: bool):
        """`target` is the sparsity at the end of pruning (inf without); `reached` whether that was told before."""
        self.guessing = math.log(vocab_size)  # nats per token, of a model that knows nothing
        self.target, self.reached = target, reached

    def look(self, event: str, step: int, metrics: Mapping[str, float], status: str = "") -> Iterator[Alert]:
        """The alerts that an event gives rise to."""
        if event == "eval" and step and not metrics["val_loss"] <= _WORSE * self.guessing:  # or no number at all
            text = f"the validation loss {metrics['val_loss']:.4g} is worse than guessing's {self.guessing:.4g}"
            yield Alert("divergence", "warn", text)
        if event == "train" and not self.reached and metrics["sparsity"] >= self.target:
            self.reached = True
            yield Alert("sparsity", "info", f"the sparsity asked for is reached: {metrics['sparsity']:.4%}")
        if event == "finish" and status == "finished":
            losses = f"validation loss {metrics['final_val_loss']:.4f}, best {metrics['best_val_loss']:.4f}"
            yield Alert("finished", "info", f"the run is finished after {step:,} steps: {losses}")

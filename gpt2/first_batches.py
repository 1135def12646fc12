"""The losses of the first batches of a run, which pruning before the first step reads (lib.prune.passes)."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2.data.windows import Data
from gpt2.model import GPT2
from lib.machine.device import Machine
from lib.prune.score import Losses


def losses(model: GPT2, data: Data, machine: Machine) -> Losses:
    """What `lib.prune.build` needs: this rank's share of the losses of the batches that training reads first.

    They are computed in float32, without dropout. What training reads and its random state stay as they are.

    With a temperature the loss of each window comes alone, because all that both backward passes need is in memory at
    once. The head's loss and torch's fast attention cannot be differentiated twice, so their plain forms take their
    place.
    """

    def of(batches: int, temperature: float | None) -> Iterator[Tensor]:
        micros = data.options.gradient_accumulation
        model.eval()
        try:
            for step in range(batches):
                for micro in machine.ranks.share(micros):
                    x, y = (part.to(machine.device, non_blocking=True) for part in data.batch(step, micro))
                    for loss in [model(x, y)] if temperature is None else _windows(model, x, y, temperature):
                        yield loss / (micros * batches)
        finally:
            model.train()

    return of


def _windows(model: GPT2, x: Tensor, y: Tensor, temperature: float) -> Iterator[Tensor]:
    """The loss of each window, divided by their number, with logits divided by `temperature`; x, y (B, T)."""
    for window, targets in zip(x.split(1), y, strict=True):
        with sdpa_kernel(SDPBackend.MATH):
            logits = model(window)[0] / temperature  # (T, V)
        yield F.cross_entropy(logits, targets) / len(x)

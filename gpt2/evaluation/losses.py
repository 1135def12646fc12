"""The mean loss of each of many windows, with a progress bar."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gpt2.evaluation.harness import ROWS, Model
from lib.base.errors import UserError
from lib.machine.device import Machine


@torch.no_grad()
def of_windows(
    model: Model, batches: Iterable[tuple[Tensor, Tensor]], count: int, machine: Machine, what: str
) -> Tensor:
    """The mean loss in nats per token of each of `count` windows, float64 (count,).

    `model` is in evaluation mode. `batches` have token ids and, for each, the id that follows it, (B, T). Raises
    UserError if a loss is NaN or infinite; `what` names the text in the message and at the bar.
    """
    losses: list[float] = []
    with tqdm(desc=what, total=count, unit=" windows", disable=None, leave=False) as bar:
        for x, y in batches:
            with machine.autocast():
                hidden = model.hidden(x.to(machine.device, non_blocking=True))  # (B, T, C)
                found = [_loss(model, one, target) for one, target in zip(hidden, y.to(machine.device), strict=True)]
            losses += torch.stack(found).tolist()
            if not all(map(math.isfinite, losses[-len(x) :])):
                advice = "use DTYPE=float32" if machine.dtype != torch.float32 else "use another checkpoint"
                raise UserError(f"{what}: the loss is NaN or infinite in the first {len(losses)} windows; {advice}")
            bar.update(len(x))
    return torch.tensor(losses, dtype=torch.float64)


def _loss(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of one window, (T, C) and (T,), as a float64 scalar."""
    parts = zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
    sums = [F.cross_entropy(model.logits(part).float(), target, reduction="sum") for part, target in parts]
    return torch.stack(sums).sum(dtype=torch.float32 if hidden.device.type == "mps" else torch.float64) / len(targets)


def metrics(name: str, losses: Tensor, bits_per_byte: float) -> dict[str, float]:
    """The metrics of a Result; the standard error over windows is left out for a single window."""
    mean = losses.mean()
    found = {"perplexity": mean.exp().item(), "loss": mean.item(), "bits_per_byte": bits_per_byte}
    if len(losses) > 1:
        found["loss_stderr"] = losses.std().item() / math.sqrt(len(losses))
    return {f"{name}/{metric}": value for metric, value in found.items()}

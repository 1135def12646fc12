"""Evaluation: the mean loss over the same validation windows every time."""

from collections.abc import Callable

import torch

from gpt2.data.windows import Data
from lib.machine.device import Machine


@torch.no_grad()
def validation_loss(
    model: torch.nn.Module, data: Data, machine: Machine, asked: Callable[[], bool] = lambda: False
) -> float | None:
    """Mean loss in nats per token over the windows that `data` evaluates on; None if `asked` to stop before the end.

    Each rank evaluates its share of the batches, and all return the same. Dropout is off meanwhile. Training data, its
    order and the random state are not touched.
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
    return total.item() / counts.item() if counts == data.val_windows else None  # fewer: some rank was asked to stop

"""Evaluation: the mean loss over the same validation windows every time."""

from collections.abc import Callable

import torch

from gpt2.data import Data
from lib.device import Machine


@torch.no_grad()
def validation_loss(
    model: torch.nn.Module, data: Data, machine: Machine, stopped: Callable[[], bool] = lambda: False
) -> float | None:
    """Mean loss in nats per token over the windows that `data` evaluates on; None if `stopped` before the end.

    Dropout is off meanwhile. Training data, its order and the random state are not touched.
    """
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=machine.device if machine.device.type != "mps" else "cpu")
    count = 0
    try:
        for x, y in data.val_batches():
            if stopped():
                return None
            with machine.autocast():
                loss = model(x.to(machine.device, non_blocking=True), y.to(machine.device, non_blocking=True))
            total += loss.to(total) * len(x)
            count += len(x)
    finally:
        model.train()
    return total.item() / count

"""Estimates the sizes of a run's optimizer state and checkpoints before it makes them."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2 import model as models
from gpt2.training import Training
from lib import optim
from lib.record import checkpoint, checkpoint_file


def kind(name: str) -> str:
    """The name of a parameter without the number of its layer: `h.*.attn.c_attn.weight`."""
    return re.sub(r"\.\d+\.", ".*.", name)


def small(shape: models.ModelOptions) -> models.GPT2:
    """A model with the same kinds of parameters, but only one narrow layer. The random state stays as it is."""
    with torch.random.fork_rng():
        narrow = models.ModelOptions(shape.model_name, 1, 1, 16, 16, shape.dropout, shape.activation)
        return models.GPT2(narrow, vocab_size=64)


def state_bytes(shape: models.ModelOptions, bind: Callable[[type], Any]) -> dict[str, float]:
    """Kind of a parameter -> bytes of optimizer state per weight, measured on a small model.

    The random state stays as it is.
    """
    with torch.random.fork_rng():
        model = small(shape)
        optimizer = optim.build(model, bind)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optim.skip_if(optimizer, torch.zeros(()))
        optimizer.step()
    return {
        kind(name): sum(value.nbytes for value in like(p, optimizer.state[p].values())) / p.numel()
        for name, p in model.named_parameters()
    }


def like(parameter: Tensor, values: Iterable[object]) -> list[Tensor]:
    """The tensors among `values` that have as many elements as `parameter`."""
    return [value for value in values if isinstance(value, Tensor) and value.numel() == parameter.numel()]


def checkpoint_bytes(training: Training, bind: Callable[[type], Any]) -> int:
    """About how many bytes a checkpoint of this run has after the optimizer has made a step."""
    size = checkpoint.size(training.state_dict())
    # Asked for parameters, because SPAM's counters are in the state before the first step.
    if not any(p in training.optimizer.state for p in training.model.parameters()):
        each = state_bytes(training.model.options, bind)
        size += int(sum(p.numel() * each[kind(name)] for name, p in training.model.named_parameters()))
    return size


def shortage(folder: Path, training: Training, max_iters: int, bind: Callable[[type], Any]) -> str:
    """A note if `folder` has too little room for all checkpoints, else ""; raises CheckpointError if none fits."""
    size, keeping = checkpoint_bytes(training, bind), bind(checkpoint.Keeping)
    free = checkpoint.require_room(folder / checkpoint.name(max_iters), size)
    for_good = len(checkpoint_file.steps(keeping.checkpoint_at))
    most = keeping.checkpoint_keep + bool(keeping.checkpoint_best) + for_good + 1  # and the one that is being written
    missing = (most - len(checkpoint.find(folder))) * size - free
    if missing <= 0:
        return ""
    return (
        f"{folder}: a checkpoint of this run takes {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free: "
        f"{missing / 1e6:,.1f} MB too few for the {most} checkpoints that it can have at once; see CHECKPOINT_KEEP"
    )

"""What a run will take before it has taken it: bytes of its optimizer's state, and of its checkpoints on a disk."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from gpt2 import model as models
from gpt2.training import Training
from lib import optim
from lib.config.kconf import Schema
from lib.record import checkpoint


def kind(name: str) -> str:
    """The name of a parameter without the number of its layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


def small(shape: models.ModelOptions) -> models.GPT2:
    """A model of the same kinds of parameters, with few of each; the random state is left as it is."""
    with torch.random.fork_rng():
        return models.GPT2(dataclasses.replace(shape, n_layer=1, n_head=1, n_embd=16, block_size=16), vocab_size=64)


def state_bytes(shape: models.ModelOptions, schema: Schema) -> dict[str, float]:
    """Kind of a parameter -> bytes that the optimizer keeps for each of its numbers, counted on a small model.

    The random state is left as it is.
    """
    with torch.random.fork_rng():
        model = small(shape)
        optimizer = optim.build(model, schema.bind)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optim.skip_if(optimizer, torch.zeros(()))
        optimizer.step()
    return {
        kind(name): sum(map(nbytes, like(p, optimizer.state[p].values()))) / p.numel()
        for name, p in model.named_parameters()
    }


def like(parameter: Tensor, values: Iterable[object]) -> list[Tensor]:
    """The tensors among `values` that hold something for each number of `parameter`."""
    return [value for value in values if isinstance(value, Tensor) and value.numel() == parameter.numel()]


def nbytes(tensor: Tensor) -> int:
    """Its size, on the device "meta" too."""
    return tensor.numel() * tensor.element_size()


def checkpoint_bytes(training: Training, schema: Schema) -> int:
    """About what a checkpoint of this run takes once its optimizer has made a step."""
    size = checkpoint.size(training.state_dict())
    if not any(p in training.optimizer.state for p in training.model.parameters()):  # SPAM has counters from the start
        each = state_bytes(training.model.options, schema)
        size += int(sum(p.numel() * each[kind(name)] for name, p in training.model.named_parameters()))
    return size


def shortage(folder: Path, training: Training, schema: Schema) -> str:
    """What the room for checkpoints in `folder` lacks, empty if nothing; raises CheckpointError if one has no room."""
    size, keeping = checkpoint_bytes(training, schema), schema.bind(checkpoint.Keeping)
    free = checkpoint.require_room(folder / checkpoint.name(schema["MAX_ITERS"]), size)
    most = keeping.checkpoint_keep + keeping.checkpoint_best + 1  # one more while it is written
    missing = (most - len(checkpoint.find(folder))) * size - free
    if missing <= 0:
        return ""
    return (
        f"{folder}: a checkpoint of this run takes {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free: "
        f"{missing / 1e6:,.1f} MB too few for the {most} that there will be at times; see CHECKPOINT_KEEP"
    )

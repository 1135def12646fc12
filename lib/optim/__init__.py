"""Optimizers, one file each: the value of the option OPTIMIZER names the module, which has `build(groups, bind)`."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from lib.kconf import Options, Schema

Groups = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class OptimizerOptions(Options):
    """What is common to all optimizers."""

    optimizer: str
    weight_decay: float
    learning_rate: float


class Module(Protocol):
    """What a file of this folder defines."""

    build: Callable[[Groups, Callable[[type], Any]], torch.optim.Optimizer]


def build(model: nn.Module, schema: Schema) -> torch.optim.Optimizer:
    """The chosen optimizer over the parameters of `model`; weight decay acts on matrices only.

    Biases and norms have a scale that decay would distort; this is the split that GPT-2's reproductions use.
    """
    options = schema.bind(OptimizerOptions)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    for group in groups:
        group["lr"] = options.learning_rate
    module: Module = importlib.import_module(f"lib.optim.{options.optimizer}")
    return module.build(groups, schema.bind)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group the learning rate of this step; the schedule owns it, no optimizer changes it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def skip_if(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """Make the next `optimizer.step()` leave weights and state alone where `bad` (a float32 scalar on the device) is 1.

    The fused optimizers of torch read this on the device, so nobody waits for the answer; it is the hook that
    `torch.amp.GradScaler` uses. An optimizer of our own reads `self.found_inf` too.
    """
    optimizer.grad_scale = None
    optimizer.found_inf = bad

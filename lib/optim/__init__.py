"""Optimizers, one file each: the value of the option OPTIMIZER names the module, which has `build(groups, bind)`.

Those that torch doesn't have are built on `skippable`.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from lib.config.kconf import Options

Groups = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class OptimizerOptions(Options):
    """What is common to all optimizers."""

    optimizer: str
    weight_decay: float
    learning_rate: float


class Module(Protocol):
    """What a file of this folder that is a value of OPTIMIZER defines.

    The groups have `params`, `lr`, `weight_decay`, and `hidden`: whether they are the matrices of the model's blocks.
    """

    build: Callable[[Groups, Callable[[type], Any]], torch.optim.Optimizer]


def build(model: nn.Module, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """The chosen optimizer over the parameters of `model`, whose `prunable()` are the matrices of its blocks.

    A model may have `stacked()`: parameter -> how many matrices it consists of, one below the other. A rule that mixes
    the elements of a matrix finds them as `self.stacked`.

    Weight decay acts on matrices only. Biases and norms have a scale that decay would distort; this is the split that
    GPT-2's reproductions use.
    """
    options = bind(OptimizerOptions)
    blocks = set(model.prunable())
    hidden, matrices, vectors = [], [], []
    for p in model.parameters():
        if p.requires_grad:
            (hidden if p in blocks else matrices if p.dim() >= 2 else vectors).append(p)
    groups = [
        {"params": hidden, "weight_decay": options.weight_decay, "hidden": True},
        {"params": matrices, "weight_decay": options.weight_decay, "hidden": False},
        {"params": vectors, "weight_decay": 0.0, "hidden": False},
    ]
    for group in groups:
        group["lr"] = options.learning_rate
    _leave_compiler_alone()
    module: Module = importlib.import_module(f"lib.optim.{options.optimizer}")
    optimizer = module.build(groups, bind)
    optimizer.stacked = model.stacked() if hasattr(model, "stacked") else {}
    return optimizer


@functools.cache
def _leave_compiler_alone() -> None:
    """Keep torch's optimizers from importing its compiler, which took 1.1 s of every start.

    They import it to tell it not to compile them, and no optimizer is compiled here. `__dynamo_disable` is where
    torch._compile keeps the function to call in place of its import; `step` is wrapped by more than that.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(torch.optim.Optimizer, name).__wrapped__
        method.__dynamo_disable = method
    for kind in (torch.optim.SGD, torch.optim.Adam):  # AdamW is an Adam
        kind.step = torch.no_grad()(kind.step.__wrapped__)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group the learning rate of this step; the schedule owns it, no optimizer changes it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def skip_if(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """Make the next `optimizer.step()` leave weights and state alone where `bad` (a float32 scalar on the device) is 1.

    The fused optimizers of torch read this on the device, so nobody waits for the answer; it is the hook that
    `torch.amp.GradScaler` uses. Those of our own read `self.found_inf` too (see lib.optim.skippable).
    """
    optimizer.grad_scale = None
    optimizer.found_inf = bad


def use_masks(optimizer: torch.optim.Optimizer, masks: dict[nn.Parameter, torch.Tensor]) -> None:
    """Tell the optimizer which weights are pruned: parameter -> uint8 of its shape, 0 where pruned, changed in place.

    Pruned weights have zero gradients and zero moments, which move nothing in a rule that works element by element. A
    rule that mixes the elements of a matrix multiplies its update by `self.masks`.
    """
    optimizer.masks = masks


def metrics(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What a log line says of the optimizer; waits for the device. Empty for those without a method `metrics`."""
    return optimizer.metrics() if hasattr(optimizer, "metrics") else {}


def note(optimizer: torch.optim.Optimizer) -> str:
    """What the user should know of the state that was loaded; empty for those without a `note`."""
    return getattr(optimizer, "note", "")

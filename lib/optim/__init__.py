"""Optimizers, one file each: the value of the option OPTIMIZER names the module, which has `build(groups, bind)`.

Optimizers that torch does not have build on `skippable`. Importing this imports no PyTorch, so that options are checked
without it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from lib.config.kconf import Options

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclasses.dataclass(frozen=True)
class OptimizerOptions(Options):
    """Options that all optimizers have."""

    optimizer: str
    weight_decay: float
    learning_rate: float


class Groups(list[dict[str, Any]]):
    """Groups of parameters as torch takes them, with `params`, `lr` and `weight_decay`.

    `hidden` is true for the group that holds the matrices of the model's blocks.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], stacked: dict[nn.Parameter, int]):
        """`stacked`: parameter -> number of matrices that it stacks along its first dimension, such as q, k and v."""
        super().__init__(groups)
        self.stacked = stacked


class Module(Protocol):
    """What each optimizer's file defines."""

    build: Callable[[Groups, Callable[[type], Any]], torch.optim.Optimizer]


def build(model: nn.Module, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """The chosen optimizer over the parameters of `model`, whose `prunable()` are the matrices of its blocks.

    A model may have `stacked()`, for a rule that works on each matrix: see `Groups`. `bind` returns the options that a
    dataclass declares.

    Weight decay acts on matrices only, as in other reproductions of GPT-2. It would distort the scale of biases and
    norms.
    """
    options = bind(OptimizerOptions)
    blocks = set(model.prunable())
    hidden, matrices, vectors = [], [], []
    for p in model.parameters():
        if p.requires_grad:
            (hidden if p in blocks else matrices if p.dim() >= 2 else vectors).append(p)
    settings = [
        {"params": hidden, "weight_decay": options.weight_decay, "hidden": True},
        {"params": matrices, "weight_decay": options.weight_decay, "hidden": False},
        {"params": vectors, "weight_decay": 0.0, "hidden": False},
    ]
    stacked = model.stacked() if hasattr(model, "stacked") else {}
    groups = Groups(({**group, "lr": options.learning_rate} for group in settings), stacked)
    _leave_compiler_alone()
    module: Module = importlib.import_module(f"lib.optim.{options.optimizer}")
    return module.build(groups, bind)


@functools.cache
def _leave_compiler_alone() -> None:
    """Keep torch's optimizers from importing its compiler, which took 1.1 s of every start.

    They import the compiler only to tell it not to compile them, and no optimizer is compiled here. torch._compile
    calls the function in `__dynamo_disable`, if there is one, and imports nothing. The wrapper of `step` imports the
    compiler itself, so it is replaced by the method that it wraps.
    """
    import torch

    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(torch.optim.Optimizer, name).__wrapped__
        method.__dynamo_disable = method
    for kind in (torch.optim.SGD, torch.optim.Adam):  # AdamW is an Adam
        kind.step = torch.no_grad()(kind.step.__wrapped__)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group the learning rate of this step. Only the schedule sets it; no optimizer changes it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def skip_if(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """If `bad` (a float32 scalar on the device) is 1, the next `optimizer.step()` changes neither weights nor state.

    torch's fused optimizers read `found_inf` on the device, so the host does not wait. `torch.amp.GradScaler` uses the
    same attributes. The optimizers of this folder read `self.found_inf` as well (see lib.optim.skippable).
    """
    optimizer.grad_scale = None
    optimizer.found_inf = bad


def use_masks(optimizer: torch.optim.Optimizer, masks: dict[nn.Parameter, torch.Tensor]) -> None:
    """Tell the optimizer which weights are pruned: parameter -> uint8 of its shape, 0 where pruned.

    The pruner changes the masks in place. Most rules need no masks: they work element by element, and a pruned weight
    has zero gradient and zero moments. A rule that mixes the elements of a matrix has a method `use_masks`, and
    multiplies its update by the masks.
    """
    if hasattr(optimizer, "use_masks"):
        optimizer.use_masks(masks)


def use_kernels(optimizer: torch.optim.Optimizer, kernels: Collection[str]) -> None:
    """Tell the optimizer which kernels were chosen for a CPU; one that has such kernels has a method `use_kernels`."""
    if hasattr(optimizer, "use_kernels"):
        optimizer.use_kernels(kernels)


def metrics(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The optimizer's metrics for a log line; waits for the device. Empty for optimizers without `metrics`."""
    return optimizer.metrics() if hasattr(optimizer, "metrics") else {}


def note(optimizer: torch.optim.Optimizer) -> str:
    """A note for the user about the state that was loaded; empty for optimizers without `note`."""
    return getattr(optimizer, "note", "")

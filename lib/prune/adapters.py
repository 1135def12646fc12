"""Layers that peft adapts, with LoRA for example: what they compute when their adapters are merged."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BASE = ".base_layer"  # peft puts the layer that it adapts under this name


def adapts(module: nn.Module) -> bool:
    """Whether this is a layer of peft: one beside whose frozen weights adapters are trained."""
    return hasattr(module, "base_layer") and hasattr(module, "merge")


@torch.no_grad()
def merged(layer: nn.Module) -> nn.Module:
    """A plain copy of an adapted layer, with the active adapters merged into its weights."""
    copied = copy.deepcopy(layer)
    if not copied.merged:
        copied.merge()
    return copied.get_base_layer()


@contextlib.contextmanager
def replaced(layers: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """A context in which adapted layers compute as the plain ones that `layers` has for them.

    peft's own merge would change the frozen weights, and undoing it by a subtraction would not restore their bits.
    """
    before = {layer: vars(layer).get("forward") for layer in layers}
    try:
        for layer, plain in layers.items():
            layer.forward = _forward(layer, plain)
        yield
    finally:
        for layer, forward in before.items():
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward


def _forward(layer: nn.Module, plain: nn.Module) -> Callable[..., Tensor]:
    """As `plain`, but as ever with other adapters or none: so TRL computes the reference model of DPO and GRPO."""
    adapted, active = layer.forward, list(layer.active_adapters)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        own = layer.disable_adapters or list(layer.active_adapters) != active
        return adapted(*args, **kwargs) if own else plain(*args, **kwargs)

    return forward

"""Skips the initialisation of weights on the device `meta`, where they have no memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Unfilled(TorchFunctionMode):
    """A context in which `torch.nn.init` and `Tensor.triu` return their tensor unchanged.

    On the device `meta` they would import PyTorch's compiler, which takes a second and makes a folder.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call `func`, unless it fills a tensor."""
        kwargs = kwargs or {}
        if func is torch.Tensor.triu or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)

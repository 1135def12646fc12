"""Masks of one bit per weight, as checkpoints and masks.safetensors have them: numpy's packbits, 1 where kept."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def size(shape: Sequence[int]) -> int:
    """The bytes of a packed mask of this shape."""
    return (math.prod(shape) + 7) // 8


def pack(mask: Tensor) -> Tensor:
    """A bit per element of a mask (uint8 or bool) in row-major order, on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The uint8 mask of this shape that was packed, on the CPU; raises ValueError if it has the wrong size."""
    if packed.numel() != size(shape):
        raise ValueError(f"a mask of {list(shape)} has {packed.numel()} bytes instead of {size(shape)}")
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=math.prod(shape))).view(*shape)

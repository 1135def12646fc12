"""What sparsity buys: the size on disk, dense and packed, and the speed of inference (`speed.py`)."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from gpt2.data.local_files import reason
from gpt2.evaluation import speed
from gpt2.evaluation.result import Result
from lib.base.errors import UserError
from lib.machine.device import Machine
from lib.prune import bits

_WIDTHS = {"float32": torch.float32, "16bit": torch.bfloat16}  # float16 takes as much


def measure(
    model: nn.Module, state: Mapping[str, Tensor], masks: Mapping[str, Tensor], machine: Machine
) -> Iterator[Result]:
    """The Results `size` and `speed` of a pruned model; `state` and `masks` are those of `Weights`.

    Raises UserError if a weight under a zero of its mask is not zero, or if the temporary folder is full. `speed` is
    left out if no linear layer is pruned.
    """
    for name, mask in masks.items():
        if bool(state[name][mask == 0].any()):
            raise UserError(f"{name}: has weights that are not zero where its mask is; the model cannot be packed")
    yield size(state, masks)
    paths = [name.removesuffix(".weight") for name in masks if name.endswith(".weight")]
    layers = [path for path in paths if isinstance(model.get_submodule(path), nn.Linear)]
    if layers:
        yield speed.measure(model, layers, machine)


def size(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Result:
    """Bytes of safetensors files that are written for this: each tensor dense, and each pruned tensor packed."""
    written = {}
    for width, dtype in _WIDTHS.items():
        written[f"dense_{width}"] = _written({name: tensor.to(dtype) for name, tensor in state.items()})
        written[f"packed_{width}"] = _written(packed(state, masks, dtype))
    kept, total = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    ratios = {width: written[f"packed_{width}"] / written[f"dense_{width}"] for width in _WIDTHS}
    notes = [
        f"packed, with a bit of mask for each weight in scope, the model takes {ratios['float32']:.2f} of its dense "
        f"size in float32 and {ratios['16bit']:.2f} in 16 bits"
    ]
    values = {f"size/{name}_bytes": count for name, count in written.items()}
    return Result("size", values, len(masks), details={"kept": kept, "weights_in_scope": total, "notes": notes})


def packed(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a packed model: of n weights with a mask that keeps k, n / 8 bytes of bits and k values.

    The bits are numpy's packbits of the mask in row-major order, the values are in that order.
    """
    found = {}
    for name, tensor in state.items():
        if name in masks:
            keeps = masks[name].bool()
            found[f"{name}.mask"] = bits.pack(keeps)
            found[f"{name}.values"] = tensor[keeps].to(dtype)
        else:
            found[name] = tensor.to(dtype)
    return found


def _written(tensors: dict[str, Tensor]) -> int:
    """The size of a temporary file with these tensors."""
    try:
        with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
            path = Path(folder, "model.safetensors")
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
            return path.stat().st_size
    except (OSError, safetensors.SafetensorError) as error:
        need = sum(tensor.nbytes for tensor in tensors.values())
        raise UserError(
            f"a temporary file of {need:,} bytes, to measure the size of the model, cannot be written: "
            f"{reason(error)}; make room, or set TMPDIR to another folder"
        ) from None

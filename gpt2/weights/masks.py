"""Masks outside of a run: those of a file, those that the zeros of weights imply, and those that INIT_MASKS names."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gpt2.weights import source
from lib.base import files
from lib.base.errors import UserError
from lib.prune.masks_file import FILE, read_file, write
from lib.record import checkpoint_file, lineage

__all__ = ["FILE", "read", "read_file", "write", "zeros"]


def zeros(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks that weights with zeros imply: 1 where a weight is not zero."""
    return {name: (value != 0).to(torch.uint8) for name, value in state.items()}


def read(given: str, output_dir: str = "") -> tuple[dict[str, Tensor], dict[str, object]]:
    """The masks of a run (RUN, RUN@best, RUN@STEP), an exported folder or a file; and what the journal says of them.

    A run's name is looked up as `source.find` does it. The second part has the keys from, path, sha256, ancestors and
    flops, as `Source` and `Weights` have them. Raises UserError with one sentence.
    """
    path = files.named(given)
    if (path / FILE).is_file():
        path /= FILE
    if path.suffix == ".safetensors" or (path.is_file() and not checkpoint_file.is_name(path.name)):
        masks, sha256 = read_file(path)
        ancestors, flops = _ancestors(path, sha256), {}
    else:
        found = _find(given, output_dir)
        path = found.path
        weights = source.read(found, found.shape.block_size, found.shape.vocab_size)
        masks, sha256, ancestors = weights.masks, weights.sha256, found.lineage(weights.sha256)
        flops = found.flops(weights.average)
        if not masks:
            raise UserError(
                f"{path}: has no masks, because nothing was pruned there; name a pruned run, a folder with {FILE} or "
                "such a file, or set INIT_MASKS=zeros for the zeros of the weights"
            )
    return masks, {"from": given, "path": str(path), "sha256": sha256, "ancestors": ancestors, "flops": flops}


def _find(given: str, output_dir: str) -> source.Source:
    try:
        return source.find(given, output_dir)
    except UserError as error:  # INIT_FROM may have a wrong name too
        error.args = tuple(f"INIT_MASKS: {sentence}" for sentence in error.args)
        raise


def _ancestors(path: Path, sha256: str) -> lineage.Ancestors:
    """What was trained for the masks in a file: as for the model beside them; of masks without a model nobody knows."""
    if (path.parent / "config.json").is_file():
        found = source.find(str(path.parent))
        return found.lineage(source.sha256(found))
    return {f"{path.resolve().parent.name}/{path.name} {sha256[:12]}": None}

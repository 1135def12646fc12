"""Masks outside of a run: the file masks.safetensors, and the masks that INIT_MASKS names."""

from pathlib import Path

from torch import Tensor


def write(path: Path, masks: dict[str, Tensor]) -> None:
    """Write masks (parameter name -> uint8 mask of our shape and orientation, (out, in)) as packed bits, atomically."""
    raise NotImplementedError


def read(given: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The masks of a run (RUN, RUN@best, RUN@STEP), an exported folder or a file; and what the journal says of them.

    The second part has the keys from, sha256 and ancestors, as `Source` has them. Raises UserError with one sentence.
    """
    raise NotImplementedError

"""The import that docs/finetuning.md documents; the callback itself is in lib/prune/."""

from lib.prune.hold_masks import HoldMasks

__all__ = ["HoldMasks"]

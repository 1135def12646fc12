"""The import that docs/accelerate.md documents; the tracker itself is in lib/track/."""

from lib.track.espalier_tracker import EspalierTracker

__all__ = ["EspalierTracker"]

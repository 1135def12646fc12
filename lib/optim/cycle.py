"""The cycle of SPAM's resets: what cannot be. Needs no PyTorch."""

import dataclasses

from lib.base.errors import UsageError
from lib.config.kconf import Options


@dataclasses.dataclass(frozen=True)
class CycleOptions(Options):
    """Steps of a cycle. All are None if the optimizer is another one."""

    spam_interval: int | None  # between resets; 0: never
    spam_warmup_steps: int | None
    spam_clip_free_steps: int | None  # also None without clipping


def check(options: CycleOptions) -> None:
    """Raise UsageError if warm-up or clip-free steps do not end before the next reset."""
    if not options.spam_interval:
        return
    for name in ("spam_warmup_steps", "spam_clip_free_steps"):
        steps = getattr(options, name) or 0
        if options.spam_interval <= steps:
            raise UsageError(
                f"{name.upper()}={steps} does not end before the next reset; choose less than "
                f"SPAM_INTERVAL={options.spam_interval}"
            )

"""Names of configurations that no sweep has named: the options that tell them apart, as NAME=value."""

import shlex
from collections.abc import Mapping, Sequence

from lib.compare.space import METHOD, SPARSITY
from lib.config.matters import TUNED

Values = Mapping[str, str | None]  # option -> its value; None: the configuration does not have it


def name(values: Values) -> str:
    """`pruning_method=magnitude target_sparsity=0.8`, without the options that the configuration does not have.

    Other values have another name: those with spaces are quoted.
    """
    words = [f"{option.lower()}={shlex.quote(value)}" for option, value in values.items() if value is not None]
    lacking = f"no {', '.join(map(str.lower, values))}" if values else "all runs"
    return (" ".join(words) or lacking).encode(errors="backslashreplace").decode()


def telling(configurations: Sequence[Values], options: Sequence[str]) -> list[str]:
    """As few of the options as tell the configurations apart, in the order of `options`.

    Those of the method and its sparsity go first. Options that are tuned for each method would tell methods apart too,
    but a reader does not know methods by them, so they go last.
    """
    methods = [one for one in options if one in METHOD or one == SPARSITY]
    others = [one for one in options if one not in methods and one not in TUNED]
    found: list[str] = []
    for some in (methods, others, [one for one in options if one in TUNED]):
        found = _extended(configurations, found, some)
    return [one for one in options if one in found]


def _extended(configurations: Sequence[Values], found: list[str], more: Sequence[str]) -> list[str]:
    """`found`, and of `more` as few as tell apart what all of them would; the one that tells most apart goes first."""
    wanted, found = _classes(configurations, [*found, *more]), list(found)
    before = len(found)
    while _classes(configurations, found) < wanted:
        found.append(max(more, key=lambda one: _classes(configurations, [*found, one])))
    for one in found[before:]:
        rest = [other for other in found if other != one]
        if _classes(configurations, rest) == wanted:  # what came later tells all apart without it
            found = rest
    return found


def _classes(configurations: Sequence[Values], options: Sequence[str]) -> int:
    """How many configurations differ in these options."""
    return len({tuple(values[one] for one in options) for values in configurations})

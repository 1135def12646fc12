"""The space of a tuning: what the line `tune` of a sweep says, and the points of the space that are tried.

All points are known in advance: no result decides what is tried next. They are those of a Sobol sequence. It is
scrambled, with a fixed seed, because the first point of the plain sequence is a corner of the space.
"""

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence

from lib.base.errors import UsageError, UserError
from lib.config import extras
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.config.matters import METHOD_MENUS, TUNED
from lib.config.option import Option, nearest

MOST = 256  # trials of a method
SPARSITY = "TARGET_SPARSITY"
# What makes a method: a space has none of them.
METHOD = ("OPTIMIZER", "ADAMWPRUNE_BASE_OPTIMIZER_NAME", "PRUNING_METHOD", "PRUNING_DYNAMICS")
_SEED = 2025  # of the scrambling
_DIGITS = 3  # significant ones of a value, so that its text is short and exact
_EDGE = 0.1  # a chosen value in this outer share of its range may have a better one outside
_EXAMPLE = "tune 8 LEARNING_RATE=log:1e-4:1e-2 PRUNING_STATE=hybrid,variance seeds 101 at TARGET_SPARSITY=0.8"

Point = tuple[tuple[str, str], ...]  # each option of a space, and its value


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One option of the space."""

    name: str
    kind: str  # log, linear or choice
    texts: tuple[str, ...]  # the bounds, or the values of a choice
    whole: bool = False  # whether its values are whole numbers

    @property
    def size(self) -> float:
        """How many values it has; those of a range of fractions are not counted."""
        if self.kind == "choice":
            return len(self.texts)
        low, high = map(float, self.texts)
        return high - low + 1 if self.whole else math.inf

    def text(self, share: float) -> str:
        """The value at a share in [0, 1] of the range; a choice has equal parts of it."""
        if self.kind == "choice":
            return self.texts[min(int(share * len(self.texts)), len(self.texts) - 1)]
        low, high = map(float, self.texts)
        value = low * (high / low) ** share if self.kind == "log" else low + (high - low) * share
        rounded = round(value) if self.whole else float(f"{value:.{_DIGITS}g}")
        if rounded <= low or rounded >= high:  # rounding must not leave the range
            return self.texts[rounded >= high]
        return str(rounded) if self.whole else f"{rounded:.{_DIGITS}g}"

    def at_edge(self, text: str) -> bool:
        """Whether a value lies in the outer part of the range."""
        if self.kind == "choice":
            return False
        low, value, high = (float(one) for one in (self.texts[0], text, self.texts[1]))
        if self.kind == "log":
            low, value, high = map(math.log, (low, value, high))
        return not _EDGE <= (value - low) / (high - low) <= 1 - _EDGE


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What the line `tune` says."""

    count: int  # trials of each method
    space: tuple[Dimension, ...]
    seeds: tuple[int, ...]  # of each trial
    sparsity: str  # of the trials of methods that prune; "": that of the configuration
    place: str


# ---- reading ---------------------------------------------------------------------------------------------------------


def parse(words: Sequence[str], place: str, schema: Schema, reported: Iterable[int]) -> Tuning:
    """What the words after `tune` say; raises ConfigError with every problem.

    `reported` are the seeds of the sweep. `schema` has the values of its base.
    """
    parts = _parts(words)
    first, *rest = parts[""] or [""]
    if "=" in first:
        first, rest = "", [first, *rest]
    problems, space = [], []
    if not (first.isascii() and first.isdigit() and 1 <= int(first[:9]) <= MOST and len(first) < 9):
        problems.append(f"tune needs a number of trials from 1 to {MOST} first, as in: {_EXAMPLE}; got {first!r}")
    if not rest:
        problems.append(f"tune needs options with a range or values, as in: {_EXAMPLE}")
    for word in rest:
        try:
            space.append(_dimension(word, schema))
        except UsageError as error:
            problems += error.args
    names = [one.name for one in space]
    problems += [f"{name} is given twice; leave one out" for name in dict.fromkeys(names) if names.count(name) > 1]
    seeds = _seeds(parts, schema.options["SEED"], list(reported), problems)
    sparsity = _sparsity(parts, schema, problems)
    if problems:
        raise ConfigError(f"{place}: {problem}" for problem in problems)
    return Tuning(int(first), tuple(space), tuple(seeds), sparsity, place)


def _parts(words: Iterable[str]) -> dict[str, list[str]]:
    """The words before the keywords ("") and after each."""
    parts: dict[str, list[str]] = {"": []}
    key = ""
    for word in words:
        if word in ("seeds", "at"):
            parts.setdefault(key := word, [])
        else:
            parts[key].append(word)
    return parts


def _dimension(word: str, schema: Schema) -> Dimension:
    """The option and the values of `NAME=log:a:b`, `NAME=a:b` or `NAME=a,b`; raises UsageError."""
    name, equals, text = word.partition("=")
    name = schema.now_called(name.removeprefix("CONFIG_"))
    if not equals:
        raise UsageError(f"expected NAME=values; got {word!r}")
    if name not in schema.options:
        raise UsageError(f"unknown option {name}{nearest(name.upper(), schema.options)}")
    option = schema.options[name]
    if name in (*METHOD, SPARSITY):
        raise UsageError(f"{name} makes a method or its sparsity, which are compared; it cannot be tuned")
    if (option.menu[:1] or ("",))[0] not in METHOD_MENUS and name not in TUNED:
        raise UsageError(f"{name} must be equal in all configurations of a sweep; it cannot be tuned")
    if option.kind not in ("int", "float", "choice", "bool"):
        raise UsageError(f"{name} is a list or a text; it cannot be tuned")
    return _range(option, text, word) if ":" in text else _choice(option, text, word)


def _range(option: Option, text: str, word: str) -> Dimension:
    kind, bounds = "linear", text.split(":")
    if bounds[0] == "log":
        kind, bounds = "log", bounds[1:]
    if option.kind not in ("int", "float"):
        raise UsageError(f"{word}: {option.name} has no numbers; write its values with commas")
    if len(bounds) != 2:
        raise UsageError(f"{word}: write a range as lowest:highest, or log:lowest:highest")
    _check(option, bounds, word)
    if any(math.isinf(float(bound)) for bound in bounds):
        raise UsageError(f"{word}: a range cannot end at inf")
    low, high = map(float, bounds)
    if not low < high:
        raise UsageError(f"{word}: write the smaller number first")
    if kind == "log" and low <= 0:
        raise UsageError(f"{word}: a log range must begin above 0")
    return Dimension(option.name, kind, tuple(bounds), option.kind == "int")


def _choice(option: Option, text: str, word: str) -> Dimension:
    texts = [option.written(one.strip()) for one in text.split(",")]
    _check(option, texts, word)
    same = {float(one) if option.kind in ("int", "float") else one for one in texts}
    if len(same) < len(texts) or len(texts) < 2:
        raise UsageError(f"{word}: write at least two different values, as in a,b, or a range")
    return Dimension(option.name, "choice", tuple(texts))


def _check(option: Option, texts: Iterable[str], word: str) -> None:
    """Raise UsageError if the option cannot have these values."""
    if wrong := next((problem for one in texts if (problem := option.complaint(one))), None):
        raise UsageError(f"{word}: {option.name} {wrong}")


def _seeds(parts: dict[str, list[str]], option: Option, reported: list[int], problems: list[str]) -> list[int]:
    """The seeds of the trials: those that are named, else the one after the highest of the reported ones."""
    texts = parts.get("seeds", [str(max(reported, default=0) + 1)])
    if not texts:
        problems.append("expected whole numbers after seeds, as in: seeds 101 102")
    wrong = {text: problem for text in texts if (problem := option.complaint(text))}
    problems += [f"a seed of tuning {problem}" for problem in wrong.values()]
    seeds = [int(text) for text in texts if text not in wrong]
    if len(set(seeds)) < len(seeds):
        problems.append("a seed of tuning is given twice")
    if clash := sorted(set(seeds) & set(reported)):
        problems.append(
            f"seed {', '.join(map(str, clash))} of tuning is among the reported seeds, so the chosen values would be "
            "fitted to them; name other seeds"
        )
    return seeds


def _sparsity(parts: dict[str, list[str]], schema: Schema, problems: list[str]) -> str:
    """The value after `at TARGET_SPARSITY=`."""
    if "at" not in parts:
        return ""
    name, _, text = " ".join(parts["at"]).partition("=")
    if name.removeprefix("CONFIG_") != SPARSITY:
        problems.append(f"after at stands the sparsity of the trials, as in: at {SPARSITY}=0.8")
    elif wrong := schema.options[SPARSITY].complaint(text):
        problems.append(f"{SPARSITY} {wrong}")
    return text


# ---- points ----------------------------------------------------------------------------------------------------------


def points(tuning: Tuning) -> Iterator[Point]:
    """The values of the whole space, trial by trial, without end. Raises UserError if Optuna is missing."""
    for number in itertools.count():
        count = tuning.count << number  # few sweeps need more than their number of trials
        yield from _first(tuning, count)[count // 2 if number else 0 :]


@functools.cache
def _first(tuning: Tuning, count: int) -> tuple[Point, ...]:
    try:
        import optuna
        import scipy.stats  # noqa: F401  QMCSampler needs it
    except ImportError as error:
        raise UserError(
            f"{tuning.place}: tuning needs the package {error.name}; {extras.install(extras.extra('tune'))}"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(
            qmc_type="sobol", scramble=True, seed=_SEED, warn_independent_sampling=False
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.NopPruner())
    unit = {one.name: optuna.distributions.FloatDistribution(0, 1) for one in tuning.space}
    # QMCSampler learns the space from the first trial, whose values are random: it is none of ours.
    study.tell(study.ask(unit), 0.0)
    found = []
    for _ in range(count):
        trial = study.ask(unit)
        found.append(tuple((one.name, one.text(trial.params[one.name])) for one in tuning.space))
        study.tell(trial, 0.0)
    return tuple(found)

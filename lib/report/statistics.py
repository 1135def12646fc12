"""Which configurations are better than a reference, by how much, and how sure that is: functions of numbers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from lib.base.errors import UserError
from lib.report import inference
from lib.report.inference import Family, Plan

BETTER, WORSE, EQUIVALENT, UNDECIDED = "better", "worse", "equivalent", "undecided"
# No verdict: a single pair; no pair of runs with the same seed; a loss that is NaN or infinite.
ONE_SEED, NO_PAIR, DIVERGED = "one seed", "no pair", "diverged"


@dataclasses.dataclass(frozen=True)
class More:
    """How many more seeds would probably decide: with 80 % power, at the difference and the spread that were seen.

    Deciding is one of better, worse and equivalent, whichever needs fewer seeds. None is more than 1,000.
    """

    seeds: int | None
    low: int | None  # with the ends of the spread's 95 % interval
    high: int | None

    def __str__(self) -> str:
        seeds, low, high = (f"{n:,}" if n else "more than 1,000" for n in (self.seeds, self.low, self.high))
        return f"{seeds} more seed{'s' * (self.seeds != 1)} ({low} to {high})" if self.low else f"{seeds} more seeds"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One configuration against the reference. Lower losses are better."""

    word: str  # one of the seven words above
    n: int  # pairs of runs with the same seed
    difference: float | None = None  # mean of the paired differences, in nats; negative: better than the reference
    low: float | None = None  # of the difference's 95 % interval, which holds for this configuration by itself
    high: float | None = None
    family_low: float | None = None  # of the wider interval that holds for all configurations together; as `word`
    family_high: float | None = None
    percent: float | None = None  # the difference relative to the reference's mean
    p: float | None = None  # adjusted for the number of configurations
    more: More | None = None  # where the word is `undecided`


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All configurations against one reference."""

    reference: str
    margin: float | None  # differences within ± margin count as equivalent, nats; None: there is none
    margin_from: str  # where the margin comes from, in words
    method: str  # what was done, in sentences: pooled or not, Dunnett or Holm, and the test that chose
    verdicts: Mapping[str, Verdict]  # by configuration, without the reference


def compare(
    losses: Mapping[str, Mapping[int, float]],
    reference: str,
    margin: float | None = None,
    dense: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Comparison:
    """Compare configurations with the reference. `losses` is configuration -> seed -> loss in nats per token.

    `margin` is in nats. None takes the standard deviation over the seeds of the first of the `dense` configurations
    (name -> losses) that has several, or else that of the reference.

    A configuration is compared by the seeds that it shares with the reference. `low` and `high` are an interval for
    reading one difference, as in a figure. The words answer for all configurations together: better and worse have an
    adjusted p of at most 0.05, and the wider interval of an equivalent configuration lies within the margin, which is a
    simultaneous TOST. A small difference can be better although it is within the margin.

    If some runs are missing, the pooled variance is that of the seeds that all tested configurations have. It is then
    independent of all means, so each t is exact; their correlations are taken as zero, which is conservative.
    Raises UserError for a reference that is missing or has no finite loss, and for an impossible margin.
    """
    against = _reference(losses, reference)
    margin, margin_from = _margin({**dense, reference: list(against.values())}, reference, margin)
    verdicts: dict[str, Verdict] = {}
    pairs: dict[str, dict[int, float]] = {}  # configuration -> seed -> loss; those with a spread
    for name, own in losses.items():
        if name != reference:
            verdicts[name] = _plain(own, against)  # also keeps the order
            if verdicts[name].word == UNDECIDED:
                pairs[name] = {seed: own[seed] for seed in own if seed in against}
    if not pairs:
        method = f"No configuration shares two seeds with {reference}, so nothing can be tested."
    else:
        tested, method = _test(pairs, against, margin)
        verdicts |= tested
    return Comparison(reference, margin, margin_from, method, verdicts)


def _reference(losses: Mapping[str, Mapping[int, float]], reference: str) -> Mapping[int, float]:
    """The losses of the reference."""
    if reference not in losses:
        raise UserError(f"{reference}: is not among the configurations, name one of {', '.join(losses)}")
    if not losses[reference]:
        raise UserError(f"{reference}: has no finished run, so nothing can be compared with it, name another reference")
    for seed, loss in losses[reference].items():
        if not math.isfinite(loss):
            raise UserError(f"{reference}: the loss of seed {seed} is {loss}, name a reference that did not diverge")
    return losses[reference]


def _margin(seeds: Mapping[str, Sequence[float]], reference: str, margin: float | None) -> tuple[float | None, str]:
    """The margin, and where it comes from. `seeds` has the losses of those whose deviation can be it, best first."""
    if margin is not None:
        if not 0 <= margin < math.inf:
            raise UserError(f"MARGIN: {margin} is not a difference in nats per token, give a number of at least 0")
        return margin, "declared"
    for name, losses in seeds.items():
        if len(losses) > 1 and all(map(math.isfinite, losses)):
            return float(np.std(losses, ddof=1)), f"the standard deviation of {name} over its {len(losses)} seeds"
    return None, f"{reference} has one seed; MARGIN declares one"


def _plain(own: Mapping[int, float], against: Mapping[int, float]) -> Verdict:
    """The verdict as far as it needs no test; `undecided` if it needs one."""
    seeds = [seed for seed in own if seed in against]
    if not all(map(math.isfinite, own.values())):
        return Verdict(DIVERGED, len(seeds))
    if not seeds:
        return Verdict(NO_PAIR, 0)
    base = float(np.mean([against[seed] for seed in seeds]))
    difference = float(np.mean([own[seed] - against[seed] for seed in seeds]))
    word = ONE_SEED if len(seeds) == 1 else UNDECIDED
    return Verdict(word, len(seeds), difference, percent=100 * difference / base if base else None)


def _test(
    pairs: Mapping[str, Mapping[int, float]], against: Mapping[int, float], margin: float | None
) -> tuple[dict[str, Verdict], str]:
    """The verdicts of configurations with at least two pairs, and the method in words."""
    differences = [np.array([own[seed] - against[seed] for seed in own]) for own in pairs.values()]
    counts = np.array([len(one) for one in differences])
    variance, df = np.array([one.var(ddof=1) for one in differences]), counts - 1
    block = _block(pairs, against)
    pooled, why = _pooled(block, int(counts.max()))
    rows = 1
    complete = block.shape[1] == counts.min() == counts.max()
    if pooled is not None:
        rows = len(pairs)
        variance, df = np.full(rows, 2 * pooled), np.full(rows, rows * (block.shape[1] - 1))
    family = Family(len(pairs), pooled is not None, 0.5 if complete else 0.0)
    means = np.array([one.mean() for one in differences])
    errors = np.sqrt(variance / counts)
    t = np.divide(means, errors, out=np.where(means == 0, 0.0, np.inf), where=errors > 0)
    p = family.adjusted(t, df)
    plan, found = Plan(family, rows), {}
    for i, (name, own) in enumerate(pairs.items()):
        each = inference.single_critical(int(df[i])) * float(errors[i])
        wide = family.critical(int(df[i])) * float(errors[i])
        plain = _plain(own, against)
        found[name] = _decided(plain, each, wide, float(p[i]), margin)
        if found[name].word == UNDECIDED:
            more = _more(plan, plain, math.sqrt(variance[i]), int(df[i]), margin)
            found[name] = dataclasses.replace(found[name], more=more)
    return found, f"Configurations are paired with the reference by seed. {why} {_adjustment(family, complete)}"


def _block(pairs: Mapping[str, Mapping[int, float]], against: Mapping[int, float]) -> np.ndarray:
    """The losses of the reference and the configurations with the seeds that all of them have."""
    seeds = [seed for seed in against if all(seed in own for own in pairs.values())]
    return np.array([[own[seed] for seed in seeds] for own in (against, *pairs.values())])


def _pooled(block: np.ndarray, most: int) -> tuple[float | None, str]:
    """The pooled variance of a loss, or None; and a sentence that says why. `most` is the largest number of pairs."""
    k, n = block.shape
    df = (k - 1) * (n - 1)
    if k == 2:
        return None, "Their differences have a t test."
    if df <= most - 1:
        return None, "Each pair has its own t test, as too few seeds are common to all for a pooled variance."
    variance, share = inference.residuals(block)
    p, level = float(inference.cochran(share, k, n)), inference.pooling_level(n)
    found = "p < 0.01" if p < 0.01 else f"p = {p:.3f}"
    tested = f"(Cochran's test of equal variances: {found}; to pool them, {n} seeds need p > {level:.3f})"
    if p <= level:
        return None, f"Each pair has its own t test, as the variances may be unequal {tested}."
    return float(variance), (
        f"Their variances are pooled in a two-way layout, configuration + seed, with {df:,} residual degrees of "
        f"freedom, as no configuration's variance stands out {tested}."
    )


def _adjustment(family: Family, complete: bool) -> str:
    """The sentence on multiplicity."""
    if family.size == 1:
        return "With one comparison nothing is adjusted."
    how = "Dunnett's" if family.pooled and complete else "Šidák's" if family.pooled else "Holm's"
    return f"p and verdicts have {how} adjustment for {family.size} comparisons; each interval holds by itself."


def _decided(plain: Verdict, each: float, wide: float, p: float, margin: float | None) -> Verdict:
    """The verdict with p and both intervals, given their half-widths."""
    low, high = plain.difference - wide, plain.difference + wide
    word = UNDECIDED
    if p <= inference.LEVEL:
        # Holm's later steps reject where the first step's interval still has zero; it ends there then.
        word, low, high = (BETTER, low, min(high, 0.0)) if plain.difference < 0 else (WORSE, max(low, 0.0), high)
    elif margin is not None and -margin <= low and high <= margin:
        word = EQUIVALENT
    return dataclasses.replace(
        plain,
        word=word,
        low=plain.difference - each,
        high=plain.difference + each,
        family_low=low,
        family_high=high,
        p=p,
    )


def _more(plan: Plan, plain: Verdict, sd: float, df: int, margin: float | None) -> More:
    """How many more seeds would decide, given the standard deviation of the paired differences."""
    needed = [plan.seeds(plain.difference, one, margin or 0.0) for one in (sd, *inference.spread_interval(sd, df))]
    return More(*(None if n is None else max(1, n - plain.n) for n in needed))

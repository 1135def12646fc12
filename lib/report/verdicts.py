"""Verdicts in words: one sentence for each configuration against the reference."""

import math
from collections.abc import Iterator

from lib.report import statistics
from lib.report.statistics import Comparison, More, Verdict
from lib.report.study import Block, Study


def lines(comparison: Comparison) -> list[str]:
    """A sentence for each configuration, and one that names the margin."""
    found = [sentence(name, verdict, comparison) for name, verdict in comparison.verdicts.items()]
    return [*found, margin(comparison)]


def margin(comparison: Comparison) -> str:
    """The sentence about the margin."""
    if comparison.margin is None:
        return f"Nothing can be called equivalent, because there is no margin ({comparison.margin_from})."
    return f"Equivalent means within ±{nats(comparison.margin)} nats per token: {comparison.margin_from}."


def of_study(study: Study) -> list[str]:
    """The same for all blocks of a study, each with a line that names its budget if there are several."""
    return list(_of_study(study))


def _of_study(study: Study) -> Iterator[str]:
    if len(study.blocks) > 1:
        yield not_ranked(study)
    for block in study.blocks:
        comparisons = [one for one in (block.comparison, block.beside) if one]
        if len(study.blocks) > 1:
            yield budget(block)
        yield from block.why
        for comparison in comparisons:
            yield from lines(comparison)


def budget(block: Block) -> str:
    """The sentence that names a block's budget and its configurations."""
    names = ", ".join(group.name for group in block.groups)
    return f"With {block.budget}: {names}." + " A single configuration is not ranked." * (len(block.groups) == 1)


def not_ranked(study: Study) -> str:
    """The sentence that stands before the verdicts if budgets or evaluations differ."""
    return (
        "The budgets or evaluations differ, so configurations are ranked only within each of "
        f"{len(study.blocks)} blocks."
    )


def sentence(name: str, verdict: Verdict, comparison: Comparison) -> str:
    """`mag-80: worse than dense by 0.0401 nats (1.27 %), 95 % interval +0.03 to +0.05, p = 0.003, n = 3.`"""
    reference = comparison.reference
    if verdict.word == statistics.DIVERGED:
        return f"{name}: diverged, so it has no place beside {reference}."
    if verdict.word == statistics.NO_PAIR:
        return f"{name}: no seed in common with {reference}, so they cannot be compared."
    if verdict.word == statistics.ONE_SEED:
        return f"{name}: one seed only: {_far(verdict, reference)}. One pair has no interval, so this is no verdict."
    several = verdict.p is not None and len(comparison.verdicts) > 1  # then p is adjusted, and the interval is not
    facts = f"{_interval(verdict)}, {'adjusted ' * several}{p_value(verdict.p)}, n = {verdict.n}"
    if verdict.word in (statistics.BETTER, statistics.WORSE):
        size = f"{nats(abs(verdict.difference or 0))} nats ({abs(verdict.percent or 0):.2f} %)"
        return f"{name}: {verdict.word} than {reference} by {size}, {facts}."
    if verdict.word == statistics.EQUIVALENT:
        return f"{name}: equivalent to {reference} within the margin: {_far(verdict, reference)}, {facts}."
    return f"{name}: undecided: {_far(verdict, reference)}, {facts}{more(verdict.more)}."


def _far(verdict: Verdict, reference: str) -> str:
    if verdict.difference is None:
        return "no difference is known"
    where = "above" if verdict.difference >= 0 else "below"
    return f"{nats(abs(verdict.difference))} nats ({abs(verdict.percent or 0):.2f} %) {where} {reference}"


def _interval(verdict: Verdict) -> str:
    if verdict.low is None or verdict.high is None:
        return "no interval"
    return f"95 % interval {nats(verdict.low, '+')} to {nats(verdict.high, '+')}"


def more(found: More | None) -> str:
    """`; about 4 more seeds (2 to 30) would decide`, or nothing."""
    if found is None:
        return ""
    return f"; about {found} would decide" if found.seeds else f"; {found} would be needed to decide"


def nats(value: float, sign: str = "") -> str:
    """Four decimals, or more for a value that they would not show."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:{sign}.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:{sign}.2g}"


def p_value(p: float | None) -> str:
    """`p = 0.012` or `p < 0.001`."""
    return "no p" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"

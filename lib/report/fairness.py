"""What is equal between the configurations of a report and what is not, and which of them may be ranked together."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence, Set

from lib.compare import comparison
from lib.config import matters
from lib.config.kconf import Schema
from lib.config.matters import TUNED
from lib.record import lineage
from lib.report.outcome import Group, Outcome

# What can be matched -> the field of an outcome that has it, and its words.
QUANTITIES = {"tokens": ("total_tokens", "tokens"), **comparison.QUANTITIES}
_STEP = ("BATCH_SIZE", "GRADIENT_ACCUMULATION", "BLOCK_SIZE")  # options whose product is the tokens of a step


def blocks(groups: Sequence[Group], quantity: str, references: Sequence[str]) -> list[tuple[str, list[Group]]]:
    """The groups that may be ranked together, with their budget in words: equal budget, data, evaluation and scope.

    What is compared with a reference equals it; see `comparison.partition`. A group without an amount, because no run
    is finished, goes to the first block that was measured on the same, and its verdict tells whether it diverged.
    """
    named = {group.name: group for group in groups}
    order = [name for name in dict.fromkeys([*references, *named]) if name in named]
    measured = evaluations([named[name] for name in order])
    known = [name for name in order if budget(named[name], quantity)]

    def fits(one: str, other: str) -> bool:
        is_same = comparison.is_equal(measured[one], measured[other])
        return is_same and is_equal(named[one], named[other], quantity)

    several = len({words for by_seed in measured.values() for words in by_seed.values()}) > 1
    return [
        (
            comparison.amount(budget(named[first], quantity), quantity, scopes(named[first], quantity))[1]
            + (f"; measured on {' and '.join(sorted({*measured[first].values()}))}" if several else ""),
            [named[name] for name in names],
        )
        for first, names in comparison.partition(list(named), known, fits).items()
    ]


def outliers(groups: Sequence[Group], members: Sequence[Group], reference: str, quantity: str) -> list[str]:
    """Why groups are not in the block of the reference, although their means are."""
    [theirs] = [budget(group, quantity) for group in members if group.name == reference]
    words = [comparison.outlier(group.name, budget(group, quantity), reference, theirs, quantity) for group in groups]
    return [sentence for sentence in words if sentence]


def is_equal(one: Group, other: Group, quantity: str) -> bool:
    """Whether the budget of a group is that of the other, run by run, and counted in the same weights.

    True if one has no budget yet, because nothing says that they differ.
    """
    own, theirs = budget(one, quantity), budget(other, quantity)
    if not own or not theirs:
        return True
    return comparison.is_same(scopes(one, quantity), scopes(other, quantity)) and comparison.is_equal(own, theirs)


def scopes(group: Group, quantity: str) -> comparison.Scopes:
    """The weights that the matched non-zeros of its finished runs are counted in; see `comparison.counted`."""
    return {
        comparison.counted(quantity, one.options.get("PRUNING_SCOPE"), one.in_scope, one.parameters)
        for one in _counting(group)
    }


def budget(group: Group, quantity: str) -> comparison.Budget:
    """Seed -> the matched quantity of its finished run. If none is finished, the planned tokens, or nothing."""
    finished = [one for one in group.outcomes if one.finished]
    if quantity == "tokens":
        return {one.seed: _trained(one) for one in finished} or {one.seed: _planned(one) for one in group.outcomes}
    return {one.seed: getattr(one, QUANTITIES[quantity][0]) for one in finished}


def _trained(one: Outcome) -> str | None:
    """The tokens of a run and of all before it, in words. Those of a published model are unknown, so they are named."""
    if one.total_tokens is not None:
        return f"{one.total_tokens:,}"
    return lineage.words(lineage.chain(one.folder, one.steps)) if one.before else None


def _planned(one: Outcome) -> str | None:
    """The tokens that a run will have trained on at its end, with those of the runs before it."""
    try:
        own = int(one.options["MAX_ITERS"]) * math.prod(int(one.options[name]) for name in _STEP)
    except (KeyError, ValueError):
        return None
    if not one.before:
        return f"{own:,}"
    return None if one.total_tokens is None else f"{own + one.total_tokens - (one.tokens or 0):,}"


def evaluations(groups: Sequence[Group]) -> dict[str, dict[int, str]]:
    """Group -> seed -> what its loss was measured on, in words.

    Data whose checksum is unknown is taken to be the first known one of the same name, so it is no other data.
    """
    first: dict[str, str] = {}
    for one in (one for group in groups for one in _counting(group) if one.checksum):
        first.setdefault(_without_checksum(one, one.evaluation), one.checksum)
    return {group.name: {one.seed: _measured_on(one, first) for one in _counting(group)} for group in groups}


def _without_checksum(one: Outcome, words: str) -> str:
    return words.removesuffix(f", {one.checksum}") if one.checksum else words


def _counting(group: Group) -> Sequence[Outcome]:
    """The finished runs of a group; all of them if none is finished. A run that has just begun has recorded little."""
    return [one for one in group.outcomes if one.finished] or group.outcomes


def _measured_on(one: Outcome, known: Mapping[str, str]) -> str:
    """What a run's loss was measured on, with every option of the data that differs from its default."""
    evaluation = _without_checksum(one, one.evaluation)
    more = [f"{name}={one.options[name]}" for name in _data_options() if one.options.get(name, "") not in ("", "n")]
    return ", ".join(filter(None, [evaluation, one.checksum or known.get(evaluation, ""), *more]))


@functools.cache
def _schema() -> Schema:
    return Schema()


@functools.cache
def _data_options() -> tuple[str, ...]:
    """The options of the menu Dataset that change the text and that `Outcome.data` does not name."""
    named = {"DATASET", "DATASET_SOURCE", "DATASET_SUBSET", "TOKENIZER", "VAL_FRACTION", "DATASET_MAX_TOKENS"}
    default = {name: option.text for name, option in _schema().options.items()}
    return tuple(
        name
        for name, option in _schema().options.items()
        if option.menu[0] == "Dataset"
        and name not in named
        and matters.group(option).equal_in_comparison
        and default[name] in ("", "n")
    )


# ---- the box ---------------------------------------------------------------------------------------------------------


def differences(
    groups: Sequence[Group],
) -> tuple[dict[str, str], dict[str, dict[str, list[str]]]]:
    """What is the same in all finished runs -> its value; and what is not -> value -> the groups that have it."""
    equal, unequal = {}, {}
    finished = [(group.name, one) for group in groups for one in group.outcomes if one.finished]
    options = options_that_count([one for _, one in finished])
    sums: dict[str, set[str]] = {}
    for _, one in finished:
        sums.setdefault(_without_checksum(one, one.data), set()).add(one.checksum)
    facts = [(name, _facts(one, options, sums)) for name, one in finished]
    for fact in facts[0][1] if facts else ():  # all runs have the same facts
        found: dict[str, dict[str, None]] = {}
        for name, values in facts:
            found.setdefault(values[fact], {})[name] = None
        if len(found) == 1:
            equal[fact] = next(iter(found))
        else:
            unequal[fact] = {value: list(names) for value, names in found.items()}
    return equal, unequal


def options_that_count(outcomes: Sequence[Outcome]) -> list[str]:
    """The options that must be equal in a comparison, or that are tuned for each method, and are not equal here."""
    return [name for name in differing(outcomes) if name in TUNED or _counts(name)]


def _counts(name: str) -> bool:
    option = _schema().options.get(name)
    return option is None or matters.group(option).equal_in_comparison


def differing(outcomes: Sequence[Outcome]) -> list[str]:
    """The options that decide what is learned and are not the same in all these runs, in the order of Kconfig."""
    names = [*_schema().options, *sorted({name for one in outcomes for name in one.options} - {*_schema().options})]
    return [name for name in names if len({value(one, name) for one in outcomes}) > 1 and decisive(name)]


def value(one: Outcome, name: str) -> str | None:
    """The value of an option. Of a run that began from one with its own seed, as sweeps do, the seed is left out."""
    found = one.options.get(name)
    return found and (found.replace(f"-seed{one.seed}", "") if name in lineage.OPTIONS.values() else found)


def decisive(name: str) -> bool:
    """Whether an option decides what is learned; the seed does not count, nor where the run came from or went."""
    option = _schema().options.get(name)
    if name == "SEED":
        return False
    if option is None:  # of an earlier version
        return True
    group = matters.group(option)
    return group.on_resume != matters.IGNORED and group.same_when_sweep_continues


def _facts(one: Outcome, options: Iterable[str], sums: Mapping[str, Set[str]]) -> Mapping[str, str]:
    """What a fair comparison asks of a run, in words. `sums` has the checksums of data of one name."""
    return {
        "tokens, with the runs before": _trained(one) or "unknown",
        "data": _data(one, sums),
        "validation loss": _without_checksum(one, one.evaluation),
        "tuning": _tuning(one.tuned),
        "model": _model(one),
        "code": one.code,
        "packages": one.packages,
        "machine": one.machine,
        "retries": str(one.retries),
        **{name: one.options.get(name) or "-" for name in options},
    }


def _data(one: Outcome, sums: Mapping[str, Set[str]]) -> str:
    """The data of a run, in words. An unknown checksum does not look like another one, unless there are several."""
    name = _without_checksum(one, one.data)
    known = sums[name] - {""}
    if known == sums[name] or not known:
        return one.data
    return f"{name}, " + (f"{min(known)} where it is known" if len(known) == 1 else one.checksum or "sha256 unknown")


def _tuning(trials: int | None) -> str:
    return "unknown" if trials is None else f"{trials} trial{'s' * (trials != 1)}" if trials else "none"


def _model(one: Outcome) -> str:
    shape = [one.options.get(name, "?") for name in ("N_LAYER", "N_HEAD", "N_EMBD")]
    size = f", {one.parameters:,} parameters" if one.parameters else ""
    return "{} layers, {} heads, width {}".format(*shape) + size

"""The methods of a sweep that are tuned: which configurations share a tuning, and which have none."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Set
from decimal import Decimal

from lib.compare.plan import Configuration, Sweep
from lib.compare.space import SPARSITY, Tuning
from lib.config import matters
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema

_SIZE = ("MODEL_NAME", "N_LAYER", "N_HEAD", "N_EMBD", "MAX_ITERS")  # what match= may choose
_NUMBER = re.compile(r"\d+(\.\d+)?", re.ASCII)
_IN_FULL = f"-{SPARSITY.lower().replace('_', '-')}"  # before the number, where a name has the names of all options


@dataclasses.dataclass(frozen=True)
class Method:
    """Configurations that share a tuning."""

    name: str
    names: tuple[str, ...]  # of the configurations
    first: Configuration  # the one whose trials are run


def untuned(plan: Sweep) -> dict[str, str]:
    """Configuration -> why it is not tuned. Chains are not: their trials would need trials of what they begin from."""
    tuned = {name for method in methods(plan) for name in method.names}
    return {one.name: _why(one) for one in plan.configurations if one.name not in tuned}


def _why(one: Configuration) -> str:
    if one.oneshot:
        return "one-shot pruning trains nothing"
    if one.begins:
        return "it begins from another run of the sweep"
    return "it uses none of the tuned options"


def methods(plan: Sweep) -> list[Method]:
    """The methods that are tuned, in the order of the sweep; [] without a line `tune`."""
    if not plan.tuning:
        return []
    schema, groups, texts = Schema(), {}, {}
    for one in plan.configurations:
        if one.oneshot or one.begins:
            continue
        untuned_part(one, plan.tuning).resolve(schema)
        if not any(schema.options[dimension.name].settable for dimension in plan.tuning.space):
            continue
        texts[one.name] = {name: option.text for name, option in schema.options.items()}
        groups.setdefault(_key(one, schema, plan.tuning), []).append(one)
    found, taken = [], set()
    for members in groups.values():
        taken.add(name := _name(members[0], _sparsity(members[0], texts), taken))
        found.append(Method(name, tuple(one.name for one in members), _first(members, texts, plan.tuning)))
    return found


def _key(one: Configuration, schema: Schema, tuning: Tuning) -> tuple[object, ...]:
    """What the configurations of a method have in common: all that is learned but sparsity and tuned options.

    Sizes that match= chose for several sparsities are those of one method.
    """
    apart = {SPARSITY, "SEED", *(dimension.name for dimension in tuning.space), *(_SIZE if one.matched else ())}
    names = sorted(matters.decisive(schema) - apart)
    texts = ((name, schema.options[name].text) for name in names if name not in ("TRACKER_PROJECT", "TRACKER_RUN_NAME"))
    return (one.matched and one.matched[0], *texts)


def _name(first: Configuration, sparsity: str | None, taken: Set[str]) -> str:
    """The name of a method's first configuration without its sparsity: `magnitude`, `small-dense`, `str-50`.

    It depends on earlier methods only: those of configurations that a sweep gets later change no name.
    """
    names = itertools.chain(
        [_without(first.name, sparsity), first.name], (f"{first.name}-{number}" for number in itertools.count(2))
    )
    return next(name for name in names if name not in taken)


def _without(name: str, sparsity: str | None) -> str:
    """A name without the sparsity in it, as a share or in percent: `state-0.5` and `state-50` are both `state`."""
    if not sparsity:
        return name
    share = Decimal(sparsity)
    parts = name.split("-")
    for wanted in (share, 100 * share):
        for n in reversed(range(len(parts))):
            if _NUMBER.fullmatch(parts[n]) and Decimal(parts[n]) == wanted:
                before = "-".join(["", *parts[:n]]).removesuffix(_IN_FULL)
                return "-".join([before, *parts[n + 1 :]]).strip("-") or name
    return name


def _sparsity(one: Configuration, texts: Mapping[str, Mapping[str, str]]) -> str | None:
    """The sparsity of a configuration, or of what it is sized for; "" or None: it has none."""
    return texts.get(one.matched[1] if one.matched else one.name, {}).get(SPARSITY)


def _first(members: list[Configuration], texts: Mapping[str, Mapping[str, str]], tuning: Tuning) -> Configuration:
    """The configuration of a method whose trials are run: the one at the sparsity of the trials, if it is there."""
    sparsities = {one.name: _sparsity(one, texts) for one in members}
    if len(set(sparsities.values())) > 1 and not tuning.sparsity:
        raise ConfigError(
            [f"{tuning.place}: {members[0].name} and others share their tuning; add its sparsity: at {SPARSITY}=0.8"]
        )
    fitting = [one for one in members if sparsities[one.name] and float(sparsities[one.name]) == _number(tuning)]
    return (fitting or members)[0]


def _number(tuning: Tuning) -> float:
    return float(tuning.sparsity) if tuning.sparsity else math.nan


def untuned_part(one: Configuration, tuning: Tuning) -> Configuration:
    """The configuration without the values that an earlier tuning gave it."""
    ours = {dimension.name for dimension in tuning.space}
    kept = tuple(a for a in one.assignments if not (a[0] in ours and a[2] == tuning.place))
    return dataclasses.replace(one, assignments=kept)

"""What was trained on the way to a run: the runs that its first weights, masks and teacher came from, and their cost.

The start event of a run has `init` (from, kind, path, sha256, revision, step, ancestors, flops) if INIT_FROM names its
first weights, `masks` (from, path, sha256, ancestors, flops) if INIT_MASKS names a source, and `teacher`, with the
entries of `init`, if DISTILL_FROM names one. `ancestors` is run id, or the name of a foreign model with its commit or
the start of its sha256 -> tokens that were trained for it; None where nobody knows. `flops` is the same for the
operations, dense and by non-zeros; runs of earlier versions have none. A run that is reached twice counts once, with
the larger number. Copies of a run's folder have the same id, so they count as one run even if each was trained further.
"""

import math
import re
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.record import history, run
from lib.record.in_force import Record

Ancestors = dict[str, int | None]
Flops = dict[str, list[float] | None]  # name -> operations of training, dense and by non-zeros; see gpt2/flops.py
# Part of the start event -> the option that names its source.
OPTIONS = {"init": "INIT_FROM", "masks": "INIT_MASKS", "teacher": "DISTILL_FROM"}
_CHECKPOINT = re.compile(r"@(newest|best|(step-)?\d+(\.pt)?)$")  # which one of a run; folders may have an @ too
_BATCH = ("batch_size", "gradient_accumulation", "block_size")  # options whose product is the tokens of a step
_MOST_FLOPS = 1e40
_MOST = 1 << 63  # tokens, or a part of their number: what is larger was not counted


def ancestors(folder: Path) -> Ancestors:
    """The ancestors of the run in `folder`, without itself; {} for a run that began with random weights."""
    return merged(*(part["ancestors"] for part in origin(folder).values()))


def merged(*several: Ancestors) -> Ancestors:
    """The union, each with its larger number; None (unknown) is larger than every number."""
    found: Ancestors = {}
    for name, tokens in (item for one in several for item in one.items()):
        before = found.get(name, 0)
        found[name] = None if tokens is None or before is None else max(before, tokens)
    return found


def own_tokens(folder: Path, step: int) -> int | None:
    """The tokens that the run in `folder` itself trained on in its first `step` steps; None if the journal is lost.

    One-shot pruning trains none. Fine-tuning counts them, because its examples differ in length. A resume keeps the
    batch (see lib/record/option_changes.py), so that of the start holds. Raises UserError if the journal does not have
    it.
    """
    start = _start(folder)
    if start is None:
        return None
    config = start.get("config", {})
    if config.get("pruning_dynamics") == "oneshot":
        return 0
    if config.get("finetune_recipe", "none") != "none":
        counted = [tokens for at, tokens in history.load(folder).values("tokens").items() if at <= step]
        return int(counted[-1]) if counted else 0
    sizes = [config.get(name) for name in _BATCH]
    if not all(type(size) is int and 0 < size < _MOST for size in sizes):
        raise UserError(f"{folder}: the journal does not say how many tokens a step had")
    return step * math.prod(sizes)


def chain(folder: Path, step: int) -> Ancestors:
    """The ancestors of what the run in `folder` was after `step`: those of the run, and the run itself."""
    return merged(ancestors(folder), {run.Identity.load(folder).run_id: own_tokens(folder, step)})


def total_tokens(folder: Path, step: int) -> int | None:
    """The tokens of the whole chain up to `step` of this run; None if an ancestor's are unknown."""
    known, unknown = cost(chain(folder, step))
    return None if unknown else known


def cost(found: Ancestors) -> tuple[int, frozenset[str]]:
    """The known tokens of a chain, and the names of the ancestors whose tokens are unknown.

    Two chains with the same cost had equal budgets.
    """
    unknown = frozenset(name for name, tokens in found.items() if tokens is None)
    return sum(tokens for tokens in found.values() if tokens is not None), unknown


def own_flops(folder: Path, step: int, average: float | None) -> list[float] | None:
    """The operations of the run itself in its first `step` steps, dense and by non-zeros; None if it records none.

    `average` is the mean over these steps of the weights in scope that were kept, which its checkpoint of `step` knows;
    None: all of them, since nothing was pruned.
    """
    tokens = own_tokens(folder, step)
    if tokens == 0:
        return [0, 0]
    known = (_start(folder) or {}).get("flops")
    names = ("training_per_token", "training_per_zero", "weights_in_scope")
    if tokens is None or not isinstance(known, dict) or not all(_is_amount(known.get(name)) for name in names):
        return None
    token, zero, scope = (known[name] for name in names)
    if average is None:
        average = scope
    if not 0 <= average <= scope:  # of a damaged checkpoint or journal
        return None
    return [token * tokens, (token - zero * (scope - average)) * tokens]


def flops(folder: Path, step: int, average: float | None) -> Flops:
    """The operations of all that `chain` has, as far as they are known; `average` is that of `own_flops`."""
    own = {run.Identity.load(folder).run_id: own_flops(folder, step, average)}
    return _merged_flops(_flops_before(folder), own)


def total_flops(folder: Path, own: list[float]) -> list[float] | None:
    """The operations of the whole chain, dense and by non-zeros, with `own` of the run itself; None if unknown."""
    found = _merged_flops(_flops_before(folder), {run.Identity.load(folder).run_id: own})
    return None if None in found.values() else [sum(each) for each in zip(*found.values(), strict=True)]


def _flops_before(folder: Path) -> Flops:
    """The operations of each ancestor. Who trained no tokens needed none."""
    parts = [
        {name: [0, 0] if tokens == 0 else part.get("flops", {}).get(name) for name, tokens in part["ancestors"].items()}
        for part in origin(folder).values()
    ]
    return _merged_flops(*parts)


def _merged_flops(*several: Flops) -> Flops:
    """The union, each with its larger numbers; None (unknown) is larger than every number."""
    found: Flops = {}
    for name, new in (item for one in several for item in one.items()):
        before = found.get(name, [0, 0])
        found[name] = None if new is None or before is None else [max(pair) for pair in zip(before, new, strict=True)]
    return found


def _is_amount(found: Any) -> bool:
    return type(found) in (int, float) and 0 <= found < _MOST_FLOPS


def _is_flops(found: Any) -> bool:
    return isinstance(found, dict) and all(
        each is None or (isinstance(each, list) and len(each) == 2 and all(map(_is_amount, each)))
        for each in found.values()
    )


def words(found: Ancestors) -> str:
    """`4,915,200`, or `4,915,200 (and unknown: openai-community/gpt2)`."""
    known, unknown = cost(found)
    return f"{known:,}" + (f" (and unknown: {', '.join(sorted(unknown))})" if unknown else "")


def origin(folder: Path) -> dict[str, dict[str, Any]]:
    """The parts of OPTIONS that the start event has; {} for a run that was killed before it had one.

    Raises UserError if they are damaged: a run may come from elsewhere.
    """
    start = _start(folder) or {}
    found = {part: start[part] for part in OPTIONS if part in start}
    if not all(_is_origin(part, value) for part, value in found.items()):
        raise UserError(f"{folder}: the journal's first line is damaged: it does not say what the run began from")
    return found


def is_ancestors(found: Any) -> bool:
    """Whether a value that was read is Ancestors. Python makes no text of sums with thousands of digits."""
    return isinstance(found, dict) and all(
        tokens is None or (type(tokens) is int and 0 <= tokens < _MOST) for tokens in found.values()
    )


def _is_origin(name: str, part: Any) -> bool:
    """Whether `part`, the value of one of OPTIONS, has all that the module's docstring says, with these types."""
    texts = ("from", "path", "sha256", *(("kind", "revision") if name != "masks" else ()))
    return (
        isinstance(part, dict)
        and all(isinstance(part.get(text), str) for text in texts)
        and (name == "masks" or type(part.get("step")) is int)
        and is_ancestors(part.get("ancestors"))
        and _is_flops(part.get("flops", {}))
    )


def described(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What a run began with, in words: `start`, as in `runs/dense at step 200 (sha256 3f2a5c07d1e8)`, and the like."""
    words = {}
    for name, part in (("start" if name == "init" else name, found.get(name)) for name in OPTIONS):
        if part:
            place, at = part["from"], ""
            if part.get("kind") == "run":
                place, at = _CHECKPOINT.sub("", place), f" at step {part['step']:,}"
            elif part.get("revision"):
                at = f" at commit {part['revision'][:10]}"
            words[name] = f"{place}{at} (sha256 {part['sha256'][:12]})"
    return words


def exactly(part: dict[str, Any]) -> str:
    """The value of the option that names just what the start event has in a part of OPTIONS."""
    revision = part.get("revision")
    return f"{part['from'].partition('@')[0]}@{revision}" if revision else part["path"]


def check(part: dict[str, Any], sha256: str) -> None:
    """Raise UserError if what was read now has another sha256 than what the start event has in a part of OPTIONS."""
    if part["sha256"] != sha256:
        raise UserError(
            f"{part['path']}: has changed since the run began with it: its sha256 was {part['sha256'][:12]} and is "
            f"{sha256[:12]}; restore it, or start a new run"
        )


def _start(folder: Path) -> Record | None:
    """The start event of the run; None if the journal has none."""
    found = history.skim(folder).sessions
    return found[0] if found and found[0]["event"] == "start" else None

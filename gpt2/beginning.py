"""What a run begins with: the weights and masks that INIT_FROM and INIT_MASKS name, or random weights."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2.weights import adopt, form, masks, source
from gpt2.weights.source import Source, Weights
from lib.base.errors import UserError
from lib.config.kconf import Options, Schema
from lib.machine.dist import Ranks
from lib.record import checkpoint_file, lineage


@dataclasses.dataclass(frozen=True)
class BeginningOptions(Options):
    """Where the first weights and masks come from."""

    init_from: str  # empty: random weights
    init_masks: str | None  # zeros: those of the weights; None: the run is not given masks
    output_dir: str  # where runs are looked up by name


@dataclasses.dataclass(frozen=True)
class Origin:
    """The weights and masks that are to be read, and what the journal says of those that the run began with."""

    weights: Source | None = None  # None: random weights, or those of a checkpoint
    masks: str = ""  # `zeros`, those of the weights, or for `masks.read`; empty: none are to be read
    output_dir: str = ""  # where `masks` is looked up if it is the name of a run
    recorded: dict[str, Any] = dataclasses.field(default_factory=dict)  # `init` and `masks` of the start event


RANDOM = Origin()


@dataclasses.dataclass(frozen=True)
class Beginning:
    """The first weights and masks of a run, in memory."""

    state: dict[str, Tensor] | None  # for GPT2.load; None: the weights stay as they are
    masks: dict[str, Tensor] | None  # for prune.build
    facts: dict[str, Any]  # `init` and `masks`, for the journal's start event


def new(schema: Schema, ranks: Ranks) -> Origin:
    """The origin of a new run. Gives `schema` the shape, activation and tokenizer of INIT_FROM's weights."""
    found = ranks.first(lambda: adopt.adopt(schema))
    if ranks.rank:
        adopt.adopt(schema, lambda given, output_dir: found)
    options = schema.bind(BeginningOptions)
    return Origin(found, options.init_masks or "", options.output_dir)


def again(schema: Schema, folder: Path, ranks: Ranks) -> Origin:
    """The origin of the run in `folder`, which continues. A run with a checkpoint needs no other weights and masks."""
    return ranks.first(lambda: _again(schema.bind(BeginningOptions), folder))


def _again(options: BeginningOptions, folder: Path) -> Origin:
    recorded = lineage.origin(folder)
    if checkpoint_file.find(folder / "checkpoints"):
        return Origin(recorded=recorded)
    given = _exactly(recorded["init"]) if "init" in recorded else options.init_from
    named = _exactly(recorded["masks"]) if "masks" in recorded else options.init_masks or ""
    return Origin(source.find(given, options.output_dir) if given else None, named, options.output_dir, recorded)


def _exactly(part: dict[str, Any]) -> str:
    """See lineage.exactly; raises UserError if there is nothing at the path any more."""
    given = lineage.exactly(part)
    if given == part["path"] and not Path(given).exists():
        raise UserError(f"{given}: is gone, and the run began with it; restore it, or start a new run")
    return given


def read(origin: Origin, ranks: Ranks, block_size: int, vocab_size: int) -> Beginning:
    """Read the weights and masks of `origin`, on rank 0 first, so that only one rank reports what is wrong.

    Raises UserError if they cannot be read, or if they are not those that the run began with.
    """
    made = ranks.only_first(lambda: _read(origin, block_size, vocab_size), None)
    return made or _read(origin, block_size, vocab_size)


def exact(recorded: dict[str, Any]) -> dict[str, str]:
    """The options that name just what the journal has in `recorded`, by name in lower case.

    Raises UserError if the weights or masks are gone, or if they have changed.
    """
    given = {part: _exactly(about) for part, about in recorded.items()}
    if "init" in given:
        lineage.check(recorded["init"], source.sha256(source.find(given["init"])))
    if "masks" in given:
        lineage.check(recorded["masks"], masks.read(given["masks"])[1]["sha256"])
    return {lineage.OPTIONS[part].lower(): value for part, value in given.items()}


def _read(origin: Origin, block_size: int, vocab_size: int) -> Beginning:
    state, kept, facts = None, None, dict(origin.recorded)
    if found := origin.weights:
        weights = source.read(found, block_size, vocab_size)
        state = weights.state
        facts.setdefault("init", init(found, weights))
        lineage.check(facts["init"], weights.sha256)
    if origin.masks == "zeros":
        kept = None if state is None else masks.zeros(state)
    elif origin.masks:
        kept, about = masks.read(origin.masks, origin.output_dir)
        kept = form.cut(kept, block_size, vocab_size)
        facts.setdefault("masks", about | {"path": str(Path(about["path"]).absolute())})
        lineage.check(facts["masks"], about["sha256"])
    return Beginning(state, kept, facts)


def init(found: Source, weights: Weights) -> dict[str, Any]:
    """What the start event of a run has about its first weights."""
    return {
        "from": found.given,
        "kind": found.kind,
        "path": str(found.path.absolute()),
        "sha256": weights.sha256,
        "revision": found.revision,
        "step": found.step,
        "ancestors": found.lineage(weights.sha256),
    }

"""What a run begins with: the weights, masks and teacher that INIT_FROM, INIT_MASKS and DISTILL_FROM name."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2 import distillation
from gpt2.model import GPT2
from gpt2.weights import adopt, form, masks, source
from gpt2.weights.source import Source, Weights
from lib.base.errors import UserError
from lib.config.kconf import Options, Schema
from lib.machine.dist import Ranks
from lib.record import checkpoint_file, lineage


@dataclasses.dataclass(frozen=True)
class BeginningOptions(Options):
    """Where the first weights, the masks and the teacher come from."""

    init_from: str  # empty: random weights
    init_masks: str | None  # zeros: those of the weights; None: the run is not given masks
    distill_from: str | None  # empty or None: there is no teacher
    output_dir: str  # where runs are looked up by name
    tokenizer: str


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is to be read, and what the journal says of what the run began with."""

    weights: Source | None = None  # None: random weights, or those of a checkpoint
    masks: str = ""  # `zeros`, those of the weights, or for `masks.read`; empty: none are to be read
    output_dir: str = ""  # where `masks` is looked up if it is the name of a run
    teacher: Source | None = None
    recorded: dict[str, Any] = dataclasses.field(default_factory=dict)  # those parts of the start event
    saved: bool = False  # whether a checkpoint has weights and masks


RANDOM = Origin()


@dataclasses.dataclass(frozen=True)
class Beginning:
    """The first weights and masks of a run and its teacher, in memory."""

    state: dict[str, Tensor] | None  # for GPT2.load; None: the weights stay as they are
    masks: dict[str, Tensor] | None  # for prune.build
    facts: dict[str, Any]  # `init`, `masks` and `teacher`, for the journal's start event
    teacher: GPT2 | None = None  # on the CPU


def new(schema: Schema, ranks: Ranks) -> Origin:
    """The origin of a new run. Gives `schema` the shape, activation and tokenizer of INIT_FROM's weights."""
    found = ranks.first(lambda: adopt.adopt(schema))
    if ranks.rank:
        adopt.adopt(schema, lambda given, output_dir: found)
    options = schema.bind(BeginningOptions)
    teacher = ranks.first(lambda: _teacher(options, options.distill_from))
    return Origin(found, options.init_masks or "", options.output_dir, teacher)


def _teacher(options: BeginningOptions, given: str | None) -> Source | None:
    return distillation.find(given, options.output_dir, options.tokenizer) if given else None


def again(schema: Schema, folder: Path, ranks: Ranks) -> Origin:
    """The origin of the run in `folder`, which continues. One with a checkpoint needs no weights but its teacher's."""
    return ranks.first(lambda: _again(schema.bind(BeginningOptions), folder))


def _again(options: BeginningOptions, folder: Path) -> Origin:
    recorded = lineage.origin(folder)
    teacher = _teacher(options, _exactly(recorded["teacher"]) if "teacher" in recorded else options.distill_from)
    if checkpoint_file.find(folder / "checkpoints"):
        return Origin(teacher=teacher, recorded=recorded, saved=True)
    given = _exactly(recorded["init"]) if "init" in recorded else options.init_from
    named = _exactly(recorded["masks"]) if "masks" in recorded else options.init_masks or ""
    found = source.find(given, options.output_dir) if given else None
    return Origin(found, named, options.output_dir, teacher, recorded)


def _exactly(part: dict[str, Any]) -> str:
    """See lineage.exactly; raises UserError if there is nothing at the path any more."""
    given = lineage.exactly(part)
    if given == part["path"] and not Path(given).exists():
        raise UserError(f"{given}: is gone, and the run began with it; restore it, or start a new run")
    return given


def read(origin: Origin, ranks: Ranks, block_size: int, vocab_size: int) -> Beginning:
    """Read the weights, masks and teacher of `origin`, on rank 0 first, so that only one rank reports what is wrong.

    Raises UserError if they cannot be read, or if they are not those that the run began with.
    """
    made = ranks.only_first(lambda: _read(origin, block_size, vocab_size), None)
    return made or _read(origin, block_size, vocab_size)


def exact(recorded: dict[str, Any]) -> dict[str, str]:
    """The options that name just what the journal has in `recorded`, by name in lower case.

    Raises UserError if the weights, masks or teacher are gone, or if they have changed.
    """
    given = {part: _exactly(about) for part, about in recorded.items()}
    for part in given.keys() - {"masks"}:
        lineage.check(recorded[part], source.sha256(source.find(given[part])))
    if "masks" in given:
        lineage.check(recorded["masks"], masks.read(given["masks"])[1]["sha256"])
    return {lineage.OPTIONS[part].lower(): value for part, value in given.items()}


def _read(origin: Origin, block_size: int, vocab_size: int) -> Beginning:
    state, kept, teacher, facts = None, None, None, dict(origin.recorded)
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
    if origin.teacher:
        teacher, weights = distillation.read(origin.teacher, block_size, vocab_size)
        facts.setdefault("teacher", init(origin.teacher, weights))
        lineage.check(facts["teacher"], weights.sha256)
    return Beginning(state, kept, facts, teacher)


def init(found: Source, weights: Weights) -> dict[str, Any]:
    """What the start event of a run has about its first weights, or about its teacher."""
    return {
        "from": found.given,
        "kind": found.kind,
        "path": str(found.path.absolute()),
        "sha256": weights.sha256,
        "revision": found.revision,
        "step": found.step,
        "ancestors": found.lineage(weights.sha256),
        "flops": found.flops(weights.average),
    }

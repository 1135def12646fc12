"""Checks of a configuration that need no data. They run before data is prepared, which may take hours.

Each check is beside the code that it protects. This is the one place that calls them all.
"""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpt2 import shape
from gpt2.data import vocabulary
from gpt2.weights import named
from lib import schedule
from lib.base.errors import UsageError
from lib.config.kconf import Options, Schema
from lib.optim import cycle
from lib.prune import feasible
from lib.record import checkpoint_file
from lib.schedule import Bind

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TokenizerOptions(Options):
    """The tokenizer decides how many tokens the model knows."""

    tokenizer: str


@dataclasses.dataclass(frozen=True)
class SamplingOptions(Options):
    """Whether a run samples while it trains."""

    sample_tokens: int
    sample_at_eval: bool | None  # None: nothing is evaluated


@dataclasses.dataclass(frozen=True)
class EvaluationOptions(Options):
    """Whether there are evaluations, and what they read."""

    evaluate: bool
    val_fraction: float | None  # None: the dataset has its own validation part


def check_evaluation(options: EvaluationOptions) -> None:
    """Raise UsageError for evaluations of no text."""
    if options.evaluate and options.val_fraction == 0:
        raise UsageError("VAL_FRACTION=0 leaves no text for validation; raise it, or set EVALUATE=n")


@dataclasses.dataclass(frozen=True)
class TrainableOptions(Options):
    """Whether the configuration describes a training."""

    pruning_method: str
    pruning_dynamics: str | None
    finetune_recipe: str


def check_trainable(options: TrainableOptions, folder: Path | None = None) -> None:
    """Raise UsageError for what other programs do: one-shot pruning, which trains nothing, and fine-tuning.

    `folder` is that of a run to resume.
    """
    if options.finetune_recipe != "none":
        raise UsageError(
            f"FINETUNE_RECIPE={options.finetune_recipe} fine-tunes a finished model; run it with make finetune"
        )
    if options.pruning_dynamics != "oneshot":
        return
    if folder:
        name = shlex.quote(str(folder))
        raise UsageError(
            f"{folder}: is a one-shot run, which has no steps to train; to train it further, begin a new run with "
            f"INIT_FROM={name}"
        )
    method = f"PRUNING_METHOD={options.pruning_method}"
    if options.pruning_method == "shrink":
        raise UsageError(
            f"{method} removes neurons and heads from a finished model and trains nothing; run it with make shrink "
            "RUN=..."
        )
    what = method if options.pruning_method == "sparsegpt" else "PRUNING_DYNAMICS=oneshot"
    raise UsageError(f"{what} prunes a finished model and trains nothing; run it with make oneshot RUN=... {method}")


@dataclasses.dataclass(frozen=True)
class GivenOptions(Options):
    """Where the masks of PRUNING_METHOD=given come from."""

    init_from: str
    init_masks: str | None  # None: the run is not given masks


def check_given(options: GivenOptions) -> None:
    """Raise UsageError for masks from nowhere, or from the zeros of random weights, which have none."""
    if options.init_masks == "":
        raise UsageError(
            "INIT_MASKS is empty, and PRUNING_METHOD=given needs masks; name a pruned run, or set INIT_MASKS=zeros"
        )
    if options.init_masks == "zeros" and not options.init_from:
        raise UsageError(
            "INIT_MASKS=zeros takes the zeros of trained weights, but INIT_FROM is empty, and random weights have no "
            "zeros; set INIT_FROM, or name masks with INIT_MASKS"
        )


@dataclasses.dataclass(frozen=True)
class LengthOptions(Options):
    """The steps of the run, and those whose checkpoints it keeps for good."""

    max_iters: int
    checkpoint_at: str


def check_steps(options: LengthOptions) -> None:
    """Raise UsageError for a CHECKPOINT_AT that is no list of steps of this run."""
    last = max(checkpoint_file.steps(options.checkpoint_at), default=0)
    if last > options.max_iters:
        raise UsageError(
            f"CHECKPOINT_AT={options.checkpoint_at}: step {last} is after the last one, MAX_ITERS={options.max_iters}"
        )


@dataclasses.dataclass(frozen=True)
class SharesOptions(Options):
    """What the ranks of a run share."""

    batch_size: int  # windows
    gradient_accumulation: int  # micro-batches


def check_shares(options: SharesOptions, ranks: int) -> None:
    """Raise UsageError unless all ranks get the same number of micro-batches of a step."""
    micro = options.gradient_accumulation
    if micro % ranks:
        more = -(-micro // ranks) * ranks
        raise UsageError(
            f"BATCH_SIZE={options.batch_size} GRADIENT_ACCUMULATION={micro}: {ranks} processes cannot share a step "
            f"evenly; set a multiple of {ranks}, such as GRADIENT_ACCUMULATION={more}, or start another number of "
            "processes"
        )


@dataclasses.dataclass(frozen=True)
class NamesOptions(Options):
    """What a run begins with, by name."""

    init_from: str
    init_masks: str | None
    distill_from: str | None
    output_dir: str


def check_names(options: NamesOptions) -> None:
    """Raise UsageError for a name of a run, folder or file that is not here. The hub is not asked."""
    problems = Problems()
    for name, check_one in (
        ("init_from", named.check),
        ("init_masks", named.check_masks),
        ("distill_from", named.check),
    ):
        given, found = getattr(options, name), Problems()
        if given and given != "zeros":
            try:
                found.of(lambda check_one=check_one, given=given: check_one(given, options.output_dir))
            except OSError as error:  # no permission, or no possible name
                found.append(f"{given}: cannot be read: {error.strerror}")
        problems += [f"{name.upper()}: {sentence}" for sentence in found]
    problems.tell()


class Problems(list[str]):
    """The sentences of the checks that failed."""

    def of(self, check: Callable[[], T]) -> T | None:
        """Return what `check` returns. If it raises UsageError, keep its sentences and return None."""
        try:
            return check()
        except UsageError as error:
            self.extend(error.args)
            return None

    def tell(self) -> None:
        """Raise UsageError with all sentences, if there are any."""
        if self:
            raise UsageError(*dict.fromkeys(self))


def quick(bind: Bind, shaped: bool = True) -> list[str]:
    """Run the checks that do not import PyTorch. Returns warnings; raises UsageError with all problems.

    Without `shaped`, the model gets its shape from weights that nobody has read yet.
    """
    problems = Problems()
    if shaped:
        problems.of(lambda: shape.check(bind(shape.ShapeOptions)))
    fits = shaped and not problems
    problems.of(lambda: check_evaluation(bind(EvaluationOptions)))
    problems.of(lambda: check_given(bind(GivenOptions)))
    problems.of(lambda: check_steps(bind(LengthOptions)))
    problems.of(lambda: cycle.check(bind(cycle.CycleOptions)))
    problems.of(lambda: feasible.check(bind))
    useless = problems.of(lambda: _check_pruned(bind) if fits else feasible.useless(bind))
    warnings = problems.of(lambda: schedule.warnings(bind))
    problems.tell()
    warnings += useless
    sampling = bind(SamplingOptions)
    if sampling.sample_at_eval and not sampling.sample_tokens:
        warnings.append("SAMPLE_AT_EVAL=y samples nothing, because SAMPLE_TOKENS=0")
    return warnings


def _check_pruned(bind: Bind) -> list[str]:
    """Check pruning against the shapes of the model; returns warnings."""
    options = bind(shape.ShapeOptions)
    shapes = shape.tensors(options, vocabulary.SIZES[bind(TokenizerOptions).tokenizer])
    return feasible.check_model(bind, shapes, shape.groups(options))


def new(schema: Schema) -> list[str]:
    """Run all checks of a new run that do not import PyTorch. Returns warnings; raises UsageError with all problems."""
    problems = Problems()
    warnings = problems.of(lambda: quick(schema.bind, shaped=not schema["INIT_FROM"]))
    problems.of(lambda: check_names(schema.bind(NamesOptions)))
    problems.tell()
    return [*untrainable(schema), *idle(schema), *warnings]


def untrainable(schema: Schema) -> list[str]:
    """Why make train refuses the configuration, though another program takes it."""
    problems = Problems()
    problems.of(lambda: check_trainable(schema.bind(TrainableOptions)))
    return problems


def idle(schema: Schema) -> list[str]:
    """Warnings about options that were given and do nothing, because there is no teacher."""
    names = [name for name in ("DISTILL_WEIGHT", "DISTILL_TEMPERATURE") if name in schema.given]
    texts = [f"{name}={schema.options[name].text}" for name in names if schema["DISTILL_FROM"] == ""]
    return [f"{text} does nothing, because DISTILL_FROM is empty" for text in texts]


def check(bind: Bind, ranks: int = 1) -> None:
    """Raise UsageError with every reason why `ranks` ranks cannot train this configuration.

    The model is built on the device `meta`, without memory, so this takes milliseconds once PyTorch is imported.
    """
    problems = Problems()
    problems.of(lambda: check_shares(bind(SharesOptions), ranks))
    problems.of(lambda: quick(bind))
    problems.tell()
    import torch

    from gpt2 import footprint, model
    from gpt2.data import tokenizer
    from gpt2.unfilled import Unfilled
    from lib import optim, prune

    options = bind(shape.ShapeOptions)
    problems.of(lambda: optim.build(footprint.small(options), bind))
    with torch.device("meta"), Unfilled():
        planned = model.GPT2(options, tokenizer.vocab_size(bind(TokenizerOptions).tokenizer))
        # A pruner needs an optimizer's parameters. PyTorch's fused optimizers do not accept parameters on `meta`.
        problems.of(lambda: prune.build(planned, torch.optim.SGD(planned.parameters()), bind))
    problems.tell()

"""Checks of a configuration that need no data. They run before data is prepared, which may take hours.

Each check is beside the code that it protects. This is the one place that calls them all.
"""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpt2 import shape
from lib import schedule
from lib.base.errors import UsageError
from lib.config.kconf import Options
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

    pruning_dynamics: str | None


def check_trainable(options: TrainableOptions, folder: Path | None = None) -> None:
    """Raise UsageError for one-shot pruning, which trains nothing; `folder` is that of a run to resume."""
    if options.pruning_dynamics != "oneshot":
        return
    if folder:
        name = shlex.quote(str(folder))
        raise UsageError(
            f"{folder}: is a one-shot run, which has no steps to train; to train it further, begin a new run with "
            f"INIT_FROM={name}"
        )
    raise UsageError("PRUNING_DYNAMICS=oneshot prunes a finished model and trains nothing; run it with make oneshot")


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


def quick(bind: Bind) -> list[str]:
    """Run the checks that do not import PyTorch. Returns warnings; raises UsageError with all problems."""
    problems = Problems()
    problems.of(lambda: shape.check(bind(shape.ModelOptions)))
    problems.of(lambda: check_evaluation(bind(EvaluationOptions)))
    problems.of(lambda: check_given(bind(GivenOptions)))
    problems.of(lambda: check_steps(bind(LengthOptions)))
    warnings = problems.of(lambda: schedule.warnings(bind))
    problems.tell()
    sampling = bind(SamplingOptions)
    if sampling.sample_at_eval and not sampling.sample_tokens:
        warnings.append("SAMPLE_AT_EVAL=y samples nothing, because SAMPLE_TOKENS=0")
    return warnings


def check(bind: Bind, ranks: int = 1) -> None:
    """Raise UsageError with every reason why `ranks` ranks cannot train this configuration.

    The model is built on the device `meta`, without memory, so this takes milliseconds once PyTorch is imported.
    """
    quick(bind)
    import torch

    from gpt2 import footprint, model
    from gpt2.data import tokenizer, windows
    from gpt2.unfilled import Unfilled
    from lib import optim, prune

    problems = Problems()
    problems.of(lambda: windows.check_shares(bind(windows.DataOptions), ranks))
    options = bind(shape.ModelOptions)
    problems.of(lambda: optim.build(footprint.small(options), bind))
    with torch.device("meta"), Unfilled():
        planned = model.GPT2(options, tokenizer.vocab_size(bind(TokenizerOptions).tokenizer))
        # A pruner needs an optimizer's parameters. PyTorch's fused optimizers do not accept parameters on `meta`.
        problems.of(lambda: prune.build(planned, torch.optim.SGD(planned.parameters()), bind))
    problems.tell()

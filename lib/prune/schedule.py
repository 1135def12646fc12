"""When masks are chosen and how much is pruned by then: pure functions of the step."""

import dataclasses
import math

from lib.base.errors import UsageError
from lib.config.kconf import Options

_STEEPNESS = 6  # of the sigmoid: the k that the paper uses in all experiments


@dataclasses.dataclass(frozen=True)
class PruningScheduleOptions(Options):
    """When masks are chosen, and how much is pruned. An option is None where dynamics or distribution do not use it."""

    max_iters: int
    pruning_dynamics: str | None  # None: movement pruning and str, which have their own dynamics
    pruning_distribution: str | None
    pruning_schedule: str | None
    target_sparsity: float | None
    pruning_first_sparsity: float | None
    pruning_power: float | None
    pruning_warmup: float | None  # up to 1: a share of the run; above 1: a step
    pruning_end: float | None
    pruning_interval: int | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Masks are chosen at steps `start`, `start + interval`, ... and `end`.

    Step 1 is the first of the run. Step 0 is before it, so that even the first forward pass is masked.
    """

    start: int
    end: int
    interval: int
    curve: str  # cubic, linear, polynomial, one-shot, late-cubic or sigmoid
    power: float | None = None
    continues: bool = False  # after `end`, masks are still chosen at every interval, at the target
    first: float = 0.0  # the share of the target that the first update prunes

    def not_before(self, step: int) -> "Plan":
        """The same plan, except that no masks are chosen before `step`."""
        return dataclasses.replace(self, start=max(self.start, step), end=max(self.end, step))

    def last(self, step: int) -> int | None:
        """The latest step, this one included, at which masks are chosen; None before the first."""
        if step < self.start:
            return None
        if step >= self.end and not self.continues:
            return self.end
        regular = step - (step - self.start) % self.interval
        return self.end if regular < self.end <= step else regular

    def due(self, step: int) -> bool:
        """Whether masks are chosen at this step."""
        return self.last(step) == step

    def updates(self, steps: int) -> int:
        """How often masks are chosen in a run of `steps`."""
        until_end, odd = divmod(self.end - self.start, self.interval)
        after = (steps - self.start) // self.interval - until_end if self.continues else 0
        return 1 + until_end + bool(odd) + after

    def share(self, step: int) -> float:
        """The share of the target sparsity that is due at this step, from 0 to 1."""
        if step < self.start:
            return 0.0
        if step >= self.end or self.curve == "one-shot":
            return 1.0
        x = (step - self.start) / (self.end - self.start)
        if self.curve == "late-cubic":
            way = x**3
        elif self.curve == "sigmoid":
            way = 0.5 + math.tanh(_STEEPNESS / 2 * (2 * x - 1)) / (2 * math.tanh(_STEEPNESS / 2))
        else:
            way = 1 - (1 - x) ** {"cubic": 3.0, "linear": 1.0, "polynomial": self.power}[self.curve]
        return self.first + (1 - self.first) * way


def plan(options: PruningScheduleOptions) -> Plan:
    """The plan that the options describe; raises UsageError if it ends before it starts, or after the run, or falls.

    cubic is Zhu & Gupta (arXiv 1710.01878), equation 1, whose initial sparsity is PRUNING_FIRST_SPARSITY.
    sigmoid is Zhang et al. (arXiv 2501.19107), equation 4 with k = 6, scaled as in their code so that it begins at 0
    and ends at 1.
    """
    dynamics, interval = options.pruning_dynamics, options.pruning_interval
    if dynamics == "static":
        return Plan(0, 0, 1, "one-shot")
    if dynamics in ("rigl", "set", "mest", "chts", "topkast"):
        return Plan(0, _step("PRUNING_END", options.pruning_end, options.max_iters, 1), interval, "one-shot")
    if dynamics in ("sr-ste", "s-ste") or options.pruning_warmup is None:  # the thresholds of str move at every step
        return Plan(0, 0, interval or 1, "one-shot", continues=True)
    # GraNet grows by gradient, and there is none before step 1.
    start = _step("PRUNING_WARMUP", options.pruning_warmup, options.max_iters, 1 if dynamics == "granet" else 0)
    curve = options.pruning_schedule or "one-shot"  # n:m has no levels in between
    end = start  # PRUNING_END is inactive if masks are chosen only once
    if options.pruning_end is not None:
        end = _step("PRUNING_END", options.pruning_end, options.max_iters, 1)
    shares = options.pruning_end is not None and options.pruning_end <= 1 >= options.pruning_warmup
    if end < start or (shares and options.pruning_end < options.pruning_warmup):
        raise UsageError(
            f"PRUNING_END={options.pruning_end:g} is step {end}, before pruning starts at step {start} "
            f"(PRUNING_WARMUP={options.pruning_warmup:g}); end it later or start it sooner"
        )
    continues = dynamics in ("ste", "granet")
    return Plan(start, end, interval or 1, curve, options.pruning_power, continues, _first(options))


def _first(options: PruningScheduleOptions) -> float:
    """The share of the target that the first update prunes."""
    first, target = options.pruning_first_sparsity, options.target_sparsity
    if not first:
        return 0.0
    if first > target:
        raise UsageError(
            f"PRUNING_FIRST_SPARSITY={first:g} exceeds TARGET_SPARSITY={target:g}, but sparsity never falls; lower it"
        )
    return first / target


def _step(name: str, value: float, max_iters: int, first: int) -> int:
    """Turns a share of the run (up to 1) or a step (above 1) into a step, at least `first`."""
    step = max(first, math.floor(value * max_iters + 0.5) if value <= 1 else round(value))
    if step > max_iters:
        raise UsageError(f"{name}={value:g} lies beyond MAX_ITERS={max_iters}, so the target would never be reached")
    return step

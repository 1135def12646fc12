"""Times variants in one process: they take turns in every round, and are compared within each round.

A lower clock rate slows all variants of a round, so it hardly changes the ratios. Another program may slow only some of
them, so rounds are repeated in which others used the processor.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from bench.foreign import WINDOW, Busy, Watch

_OUTSIDE = 0.05  # of all medians are not in their interval


@dataclasses.dataclass
class Case:
    """A variant to time."""

    name: str
    run: Callable[[], object]
    base: str = ""  # name of the case that this one is compared with
    work: float = 0.0  # of one run, in `unit`
    unit: str = ""  # GFLOP or GB
    every: int = 1  # training does this once in this many steps
    reports: bool = False  # whether `run` warms up by itself and returns the seconds, or (the seconds, details)
    goal: str = ""  # bound on the ratio to the base, or without a base on the seconds: "<= 0.35"; from bench/goals.py
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each round
    details: list[Any] = dataclasses.field(default_factory=list)
    ratios: list[float] = dataclasses.field(default_factory=list)

    @property
    def figures(self) -> list[float]:
        """What each round says about it: the ratio to its base, or without a base the seconds."""
        return self.ratios if self.base else self.seconds

    def result(self) -> dict[str, Any]:
        """The figures: median and spread of the seconds, rate, and the median of the ratios round by round."""
        low, middle, high = quartiles(self.seconds)
        figures = {"name": self.name, "median_seconds": middle, "iqr_seconds": high - low, "rounds": self.seconds}
        if self.work:
            figures |= {"rate": self.work / middle, "rate_unit": f"{self.unit}/s"}
        if self.ratios:
            ratio = quartiles(self.ratios)[1]
            figures |= {"base": self.base, "ratio": ratio, "every": self.every, "ratio_per_step": ratio / self.every}
        if ends := interval(self.figures):
            figures["interval"] = ends  # of the ratio, or without a base of the seconds
        if self.goal and (self.ratios or not self.base):
            figures |= {"goal": self.goal, "met": meets(figures["ratio"] if self.base else middle, self.goal)}
        return figures


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The 25th, 50th and 75th percentile, interpolated."""
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return tuple(torch.tensor(values, dtype=torch.float64).quantile(shares).tolist())


def interval(values: list[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the median; None for fewer than 6 values, which cannot give one.

    Its ends are two of the sorted values, by the binomial distribution of how many lie below the median. So it holds
    for any distribution of the noise. The interval of a mean logarithm would need a normal one, and rounds have
    outliers.
    """
    count = len(values)
    below, cut = 0.5**count, 0  # the probability that at most `cut` values are below the median
    if below > _OUTSIDE / 2:
        return None
    while (more := below + math.comb(count, cut + 1) * 0.5**count) <= _OUTSIDE / 2:
        below, cut = more, cut + 1
    ordered = sorted(values)
    return ordered[cut], ordered[-1 - cut]


def close(values: list[float], within: float) -> bool:
    """Whether the interval of the median reaches at most the share `within` of the median to each side."""
    if not (ends := interval(values)):
        return False
    middle = quartiles(values)[1]
    return max(middle - ends[0], ends[1] - middle) <= within * middle


def meets(ratio: float, goal: str) -> bool:
    """Whether `ratio` meets `goal`, such as "<= 0.35" or ">= 5"."""
    sign, bound = goal.split()
    return ratio <= float(bound) if sign == "<=" else ratio >= float(bound)


class Timer:
    """Runs cases on a device, with a progress bar on a terminal."""

    def __init__(self, device: torch.device, rounds: int, within: float = 0.0, allow_busy: bool = False):
        """At most `rounds`, and fewer if the intervals of all ratios are `within` this share of their medians."""
        self.device, self.rounds, self.within, self.allow_busy = device, rounds, within, allow_busy
        self.together = 0.0 if allow_busy else WINDOW  # seconds of rounds that are checked together
        self.until = math.inf  # when to begin no further round, by time.perf_counter()

    def left(self) -> float:
        """Seconds until then."""
        return self.until - time.perf_counter()

    def measure(self, title: str, cases: list[Case], watch: Watch) -> None:
        """Run every case once to warm up and once in each round; raises Busy if others use the processor all the time.

        Every other round goes backwards, so that a case does not always follow the same one. After an exception the
        rounds stay in which nobody else used the processor.
        """
        layout = "{desc} |{bar}| {n_fmt}/{total_fmt}"
        with tqdm(total=self.rounds, disable=not sys.stderr.isatty(), leave=False, bar_format=layout) as bar:
            bar.set_description_str(title)
            for case in cases[::-1]:
                if not case.reports:
                    self._time(case)
            while not self._enough(cases):
                try:
                    found = watch.undisturbed(lambda: self._rounds(cases))
                except Busy:
                    if interval(cases[0].seconds):  # enough for a figure
                        return
                    raise
                _keep(cases, found)
                bar.update(len(found))

    def _enough(self, cases: list[Case]) -> bool:
        done, compared = len(cases[0].seconds), [case for case in cases if case.base] or cases
        over = done >= self.rounds or (done and self.left() <= 0)
        return over or all(close(case.figures, self.within) for case in compared)

    def _rounds(self, cases: list[Case]) -> list[dict[str, tuple[float, Any]]]:
        """(seconds, details) of each case in the next rounds: one, or several short ones to check together."""
        done, began, found = len(cases[0].seconds), time.perf_counter(), []
        while not found or (done + len(found) < self.rounds and time.perf_counter() < began + self.together):
            backwards = (done + len(found)) % 2
            found.append({case.name: self._time(case) for case in (cases[::-1] if backwards else cases)})
        return found

    def _time(self, case: Case) -> tuple[float, Any]:
        if case.reports:
            return found if isinstance(found := case.run(), tuple) else (found, None)
        self._wait()
        began = time.perf_counter()
        case.run()
        self._wait()
        return time.perf_counter() - began, None

    def _wait(self) -> None:
        """Wait until the device is idle."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()


def _keep(cases: list[Case], rounds: list[dict[str, tuple[float, Any]]]) -> None:
    """Append seconds, details and ratios of `rounds` to the cases."""
    for found in rounds:
        for case in cases:
            seconds, details = found[case.name]
            case.seconds.append(seconds)
            case.details.append(details)
            if case.base:
                case.ratios.append(seconds / found[case.base][0])

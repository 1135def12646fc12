"""Times variants in one process: they take turns in every round, and are compared within each round.

Another program or a lower clock rate disturbs all variants of a round, so it hardly changes the ratios.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm


@dataclasses.dataclass
class Case:
    """A variant to time."""

    name: str
    run: Callable[[], object]
    base: str = ""  # name of the case that this one is compared with
    goal: str = ""  # bound on the ratio to the base, or without a base on the seconds: "<= 0.35"
    work: float = 0.0  # of one run, in `unit`
    unit: str = ""  # GFLOP or GB
    every: int = 1  # training does this once in this many steps
    reports: bool = False  # whether `run` warms up by itself and returns the seconds
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each round
    ratios: list[float] = dataclasses.field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """The figures: median and spread of the seconds, rate, and the median of the ratios round by round."""
        low, middle, high = quartiles(self.seconds)
        figures = {"name": self.name, "median_seconds": middle, "iqr_seconds": high - low, "rounds": self.seconds}
        if self.work:
            figures |= {"rate": self.work / middle, "rate_unit": f"{self.unit}/s"}
        if self.ratios:
            ratio = quartiles(self.ratios)[1]
            figures |= {"base": self.base, "ratio": ratio, "every": self.every, "ratio_per_step": ratio / self.every}
        if self.goal and (self.ratios or not self.base):
            figures |= {"goal": self.goal, "met": meets(figures["ratio"] if self.base else middle, self.goal)}
        return figures


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The 25th, 50th and 75th percentile, interpolated."""
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return tuple(torch.tensor(values, dtype=torch.float64).quantile(shares).tolist())


def meets(ratio: float, goal: str) -> bool:
    """Whether `ratio` meets `goal`, such as "<= 0.35" or ">= 5"."""
    sign, bound = goal.split()
    return ratio <= float(bound) if sign == "<=" else ratio >= float(bound)


class Timer:
    """Runs cases on a device, with a progress bar on a terminal."""

    def __init__(self, device: torch.device, rounds: int):
        self.device, self.rounds = device, rounds

    def measure(self, title: str, cases: list[Case]) -> None:
        """Run every case once to warm up and once in each round; after an exception the figures so far are kept.

        Every other round goes backwards, so that a case does not always follow the same one.
        """
        total = sum(self.rounds + (not case.reports) for case in cases)
        layout = "{desc} |{bar}| {n_fmt}/{total_fmt}"
        with tqdm(total=total, disable=not sys.stderr.isatty(), leave=False, bar_format=layout) as bar:
            for number in range(self.rounds + 1):
                warming_up = number == 0
                for case in cases if number % 2 else cases[::-1]:
                    if warming_up and case.reports:
                        continue
                    bar.set_description_str(f"{title}: {case.name}")
                    seconds = self._time(case)
                    if not warming_up:
                        case.seconds.append(seconds)
                    bar.update()
                if not warming_up:
                    _compare(cases)

    def _time(self, case: Case) -> float:
        if case.reports:
            return case.run()
        self._wait()
        began = time.perf_counter()
        case.run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        """Wait until the device is idle."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()


def _compare(cases: list[Case]) -> None:
    """Append the ratios of the last round."""
    latest = {case.name: case.seconds[-1] for case in cases}
    for case in cases:
        if case.base:
            case.ratios.append(latest[case.name] / latest[case.base])

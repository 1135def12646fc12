"""Times pieces of work against each other: they take turns, and the fastest round of each counts."""

import time
from collections.abc import Callable, Sequence

import torch

_SECONDS, _LEAST = 2.0, 5  # for all rounds; rounds

Work = Callable[[], object]


def fastest(works: Sequence[Work], where: torch.device, tick: Work = lambda: None) -> tuple[list[float], int]:
    """The seconds of each piece of work in its fastest round, and the number of rounds; `tick` is called after each.

    Other programs only make a round slower, often for many rounds that follow each other. They would move a mean or a
    median. The rounds go on for seconds, however short they are, so that some fall between the others' turns. Each
    piece runs once before, because the first time takes longer.
    """
    for work in works:
        work()
    seconds, rounds = [float("inf")] * len(works), 0
    began = time.perf_counter()
    while rounds < _LEAST or time.perf_counter() - began < _SECONDS:
        order = range(len(works))
        for i in order if rounds % 2 else reversed(order):
            wait(where)
            start = time.perf_counter()
            works[i]()
            wait(where)
            seconds[i] = min(seconds[i], time.perf_counter() - start)
        rounds += 1
        tick()
    return seconds, rounds


def wait(where: torch.device) -> None:
    """Wait until the device is idle."""
    if where.type != "cpu":
        torch.accelerator.synchronize(where)

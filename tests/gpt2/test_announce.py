"""What the user hears before the first step, beside the facts of the run."""

import platform

import pytest
import torch

from gpt2 import announce
from lib.machine.device import Machine
from lib.machine.dist import Ranks


class Pair(Ranks):
    """Two processes; nothing is communicated here."""

    size = 2


@pytest.mark.parametrize(
    ("machine", "monitored", "notes"),
    [
        ({"gpus": 0}, True, []),
        ({"gpus": 1}, True, []),
        (
            {"gpus": 8},
            True,
            ["this process uses 1 of 8 GPUs; to use all, give the same options to make train NPROC=8"],
        ),
        ({"gpus": 8, "ranks": Pair()}, True, []),
        ({"ranks": Pair(), "machines": 2}, False, []),
        (
            {"ranks": Pair(), "machines": 2},
            True,
            [
                f"system metrics are those of {platform.node()}, the machine of rank 0, and of all its GPUs; the "
                "others of the 2 machines are not measured"
            ],
        ),
    ],
)
def test_gpus_without_work_and_machines_without_measurements_are_said(machine, monitored, notes):
    found = Machine(torch.device("cpu"), torch.float32, "cpu", None, **machine)
    assert list(announce.notes(found, monitored)) == notes

"""Which random state a resume continues with, also for devices that are not here."""

import pytest
import torch

from lib.machine import random_state

CPU, ONE, TWO, MPS = (torch.full((4,), value, dtype=torch.uint8) for value in range(4))
LOST = "from here on dropout differs from that of a run that was never interrupted"


@pytest.mark.parametrize(
    ("state", "kind", "index", "chosen", "why"),
    [
        ({"cpu": CPU}, "cpu", 0, CPU, ""),
        ({"cpu": CPU, "cuda": ONE}, "cuda", 0, ONE, ""),
        ({"cpu": CPU, "cuda": ONE}, "cuda", 3, ONE, ""),  # the run's one device, wherever it is now
        ({"cpu": CPU, "mps": MPS}, "mps", 0, MPS, ""),
        ({"cpu": CPU, "cuda": ONE}, "cpu", 0, None, "was made on cuda"),
        ({"cpu": CPU, "cuda": ONE}, "mps", 0, None, "was made on cuda"),
        ({"cpu": CPU}, "cuda", 0, None, "has no state of this cuda device"),
        # Earlier versions: the states of all GPUs, and none of MPS.
        ({"cpu": CPU, "cuda": []}, "cpu", 0, CPU, ""),
        ({"cpu": CPU, "cuda": [ONE, TWO]}, "cpu", 0, CPU, ""),  # trained on the CPU of a machine with GPUs, perhaps
        ({"cpu": CPU, "cuda": [ONE, TWO]}, "cuda", 1, TWO, ""),
        ({"cpu": CPU, "cuda": [ONE, TWO]}, "cuda", 2, None, "has no state of this cuda device"),
        ({"cpu": CPU, "cuda": []}, "mps", 0, None, "has no state of this mps device"),
    ],
)  # fmt: skip
def test_the_state_of_the_device_is_chosen_or_its_lack_is_said(state, kind, index, chosen, why):
    sentence = f"the random state of {kind} cannot be restored, since the checkpoint {why}; {LOST}"
    assert random_state.choose(state, kind, index) == (chosen, sentence if why else "")


def test_a_cpu_has_one_state():
    assert random_state.of(torch.device("cpu")).keys() == {"cpu"}

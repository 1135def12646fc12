"""SPAM's cycle: what does not end before the next reset is refused."""

import pytest

from lib.base.errors import UsageError
from lib.optim.cycle import CycleOptions, check


@pytest.mark.parametrize("options", [(500, 150, 10), (500, 499, None), (0, 150, 10), (None, None, None)])
def test_a_cycle_that_ends(options):
    check(CycleOptions(*options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((100, 100, None), "SPAM_WARMUP_STEPS=100 does not end before the next reset; choose less than "),
        ((100, 0, 200), "SPAM_CLIP_FREE_STEPS=200 does not end before the next reset; choose less than "),
    ],
)
def test_a_cycle_that_does_not_end(options, sentence):
    with pytest.raises(UsageError) as caught:
        check(CycleOptions(*options))
    assert str(caught.value) == f"{sentence}SPAM_INTERVAL=100"

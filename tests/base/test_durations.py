"""Durations as users write them."""

import pytest

from lib.base import durations
from lib.base.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 90),
        ("20m", 1200),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1d", 86400),
        ("45", 45),
        ("0", 0),
        ("1d2h3m4s", 93784),
    ],
)
def test_seconds(text, expected):
    assert durations.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "h", "30m1h", "1.5h", "-1", "2 h", "2H", "1m1m", "٣s", "1w"])
def test_other_texts_are_refused(text):
    with pytest.raises(UsageError, match="is not a duration; write 90s, 20m, 1h30m, 2d or a number of seconds"):
        durations.seconds(text)

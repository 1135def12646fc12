"""The published self-test of tracking, which trains with every tracker and reads each one back."""

import pytest

import test_tracking


@pytest.mark.extra("tensorboard")
@pytest.mark.extra("mlflow")
def test_every_tracker_holds_what_the_journal_says(capsys):
    assert test_tracking.main() == 0
    assert capsys.readouterr().out.count("  ok\n") == 7

"""The published self-test of tracking, which trains with every tracker and reads each one back."""

import test_tracking


def test_every_tracker_holds_what_the_journal_says(capsys):
    assert test_tracking.main() == 0
    assert capsys.readouterr().out.count("  ok\n") == 7

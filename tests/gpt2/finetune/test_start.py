"""What a finished run of fine-tuning says to a resume."""

from pathlib import Path

import pytest

from lib.base.errors import UsageError


@pytest.mark.extra("trl")
def test_a_finished_run_names_the_way_on_and_refuses_changes(capsys):
    from gpt2.finetune import start

    start._say_finished(Path("runs/a b"), {})
    assert capsys.readouterr().out == (
        "runs/a b is finished: see runs/a b/summary.json; to train its model further: make finetune RUN='runs/a b'\n"
    )
    with pytest.raises(UsageError, match=r"^runs/one: is finished, too late to change GRAD_CLIP 1.0 -> 0.5; "):
        start._say_finished(Path("runs/one"), {"GRAD_CLIP": ["1.0", "0.5"]})

"""Results are in the journal as soon as they are known, and survive a lock that another process takes meanwhile."""

import contextlib
import json

import pytest

from gpt2.evaluation import recording
from gpt2.evaluation.recording import Recording
from gpt2.evaluation.result import Result
from lib.base import files
from lib.record import journal

FIRST = Result("perplexity/a.txt", {"perplexity/a.txt/loss": 2.5}, 3, details={"notes": ["not recorded"]})
SECOND = Result("speed", {"speed/dense_prompt_tokens_per_second": 10.0}, 5, details={"dtype": "float32"})
ABOUT = {"sha256": "0" * 64, "dtype": "bfloat16"}


def recorded(run):
    return [(row["task"], row["step"], row["n"], row["dtype"]) for row in journal.read(run)]


def test_each_result_is_recorded_before_the_next_is_measured(tmp_path):
    made = Recording("runs/a", 7, ABOUT, tmp_path)
    made.add(FIRST)
    assert recorded(tmp_path) == [("perplexity/a.txt", 7, 3, "bfloat16")]
    made.add(SECOND)
    made.end(tmp_path / "out.json")
    expected = [("perplexity/a.txt", 7, 3, "bfloat16"), ("speed", 7, 5, "float32")]
    assert recorded(tmp_path) == expected
    found = json.loads((tmp_path / "out.json").read_text())
    assert [(one["task"], one["step"], one["n"], one["dtype"]) for one in found["results"]] == expected


def test_results_wait_for_a_process_that_trains_the_run_meanwhile(tmp_path, monkeypatch):
    said, lock = [], contextlib.ExitStack()

    def say(words):
        said.append(words)
        lock.close()

    monkeypatch.setattr(recording, "say", say)
    monkeypatch.setattr(recording, "_PAUSE", 0.01)
    made = Recording("runs/a", 7, ABOUT, tmp_path)
    with lock:
        lock.enter_context(files.held(tmp_path, "training this run"))
        made.add(SECOND)
        assert not (tmp_path / "journal.jsonl").exists()
        made.end(None)
    assert said[0] == f"{tmp_path}: another process trains this run; waiting for it, to record these results"
    assert recorded(tmp_path) == [("speed", 7, 5, "float32")]


def test_the_journal_refuses_what_its_readers_refuse(tmp_path):
    made = Recording("runs/a", 7, ABOUT, tmp_path)
    with pytest.raises(journal.JournalError, match=r"journal.jsonl: step 7 cannot be recorded: readers would refuse"):
        made.add(Result("od\nd.txt", {"od\nd.txt/loss": 2.5}, 3))
    assert (tmp_path / "journal.jsonl").read_bytes() == b""

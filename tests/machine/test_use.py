"""How a run uses the machine: fields in the journal, the sentence that people read, and that of earlier versions."""

import dataclasses

import pytest

from lib.machine import use
from lib.machine.use import Use

SENTENCES = {
    "cpu": Use("cpu"),
    "cpu, float32, 1 thread, not compiled": Use("cpu", "float32", threads=1, compiled=False),
    "cpu, bfloat16 (auto: this device multiplies it in hardware), 2 threads, deterministic, compiled": Use(
        "cpu", "bfloat16", "auto: this device multiplies it in hardware", 2, True, True
    ),
    "4 x NVIDIA H100 80GB HBM3, float16, compiled (auto: 2.0e+16 operations are enough)": Use(
        "NVIDIA H100 80GB HBM3", "float16", "", 0, False, True, "auto: 2.0e+16 operations are enough", 4
    ),
    "cpu, float32, 2 threads, not compiled (auto: the compiler /a (b)/g++ is not installed)": Use(
        "cpu", "float32", threads=2, compiled=False, compiled_reason="auto: the compiler /a (b)/g++ is not installed"
    ),
}


@pytest.mark.parametrize(("words", "fields"), SENTENCES.items())
def test_a_sentence_of_an_earlier_version_is_read_as_fields(words, fields):
    assert use.read(words) == fields
    assert fields.words() == words


def test_fields_come_back_from_the_journal_and_later_ones_are_passed_over():
    one = Use("cpu", "float32", "auto: so", 2, True, False, "auto: too few", 3)
    assert use.read(dataclasses.asdict(one) | {"cooling": "water"}) == one
    assert use.read({"device": "mps"}) == Use("mps")


def test_what_differs_between_runs_is_shown_without_reasons():
    one = Use("cpu", "float32", "auto: so", 2, False, False, "auto: too few")
    assert one.words(reasons=False) == "cpu, float32, 2 threads, not compiled"


@pytest.mark.parametrize("recorded", [{}, {"device": 1}, {"device": "cpu", "ranks": "2"}])
def test_fields_of_other_types_are_refused(recorded):
    with pytest.raises(ValueError, match="machine"):
        use.read(recorded)


@pytest.mark.parametrize("words", ["", "a\nb", ", , ", "x" * 100_000])
def test_any_other_text_is_the_device(words):
    assert use.read(words).words() == words

"""Sampling: what is drawn, and the program that prints it."""

import pytest
import torch

from gpt2 import sample
from tests import forked
from tests.training import arguments, train


def drawn(logits, temperature, top_k, draws=2000):
    generator = torch.Generator().manual_seed(0)
    tokens = [sample.draw(torch.tensor(logits), temperature, top_k, generator) for _ in range(draws)]
    return [tokens.count(token) / draws for token in range(len(logits))]


def test_temperature_zero_takes_the_likeliest():
    assert drawn([1.0, 3.0, 2.0], 0, 0, draws=5) == [0, 1, 0]


def test_frequencies_follow_the_softmax():
    assert drawn([0.0, 1.0, 2.0], 1.0, 0) == pytest.approx([0.0900, 0.2447, 0.6652], abs=0.03)
    assert drawn([0.0, 1.0, 2.0], 0.5, 0) == pytest.approx([0.0159, 0.1173, 0.8668], abs=0.03)


def test_top_k_leaves_the_k_likeliest():
    assert drawn([0.0, 1.0, 2.0], 1.0, 2) == pytest.approx([0, 0.2689, 0.7311], abs=0.03)
    assert drawn([0.0, 1.0, 2.0], 1.0, 1, draws=50) == [0, 0, 1]
    assert sum(p > 0 for p in drawn([0.0, 1.0, 2.0], 1.0, 9)) == 3


def test_the_smallest_temperature_takes_the_likeliest():
    assert drawn([1.0, 3.0, 2.0], 1e-300, 0, draws=5) == [0, 1, 0]


def run_sample(folder, *words):
    return forked.run(folder, "gpt2/sample.py", *words)


def test_the_program_continues_a_prompt(tmp_path):
    train(tmp_path, *arguments())
    first = run_sample(tmp_path, "--run", "runs/run", "--prompt", "12 squared", "--sample-tokens", "30")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("12 squared")
    assert len(first.stdout.encode(errors="replace")) > len("12 squared")
    assert first.stderr == "runs/run, step-000000040\n"
    again = run_sample(tmp_path, "PROMPT=12 squared", "SAMPLE_TOKENS=30")  # the latest run, the same seed
    assert again.stdout == first.stdout
    other = run_sample(tmp_path, "--prompt", "12 squared", "--sample-tokens", "30", "--seed", "8")
    assert other.stdout != first.stdout


def test_without_a_run_or_a_checkpoint_it_says_what_to_do(tmp_path):
    missing = run_sample(tmp_path)
    assert (missing.returncode, missing.stderr) == (
        2,
        "error: runs: there is no run in this folder yet; start one with make train\n",
    )
    train(tmp_path, *arguments(max_iters=5))
    for file in (tmp_path / "runs/run/checkpoints").iterdir():
        file.unlink()
    empty = run_sample(tmp_path)
    assert empty.returncode == 2
    assert empty.stderr == "error: runs/run: this run has no checkpoint yet; continue with make resume RUN=runs/run\n"


def test_a_run_whose_sample_has_no_tokens_says_so(tmp_path):
    output = train(tmp_path, *arguments(max_iters=2, sample_tokens=0))
    assert "sample from it   make sample RUN=runs/run SAMPLE_TOKENS=200\n" in output
    done = run_sample(tmp_path)
    note = "note: SAMPLE_TOKENS=0 samples nothing; set the number of tokens, as in SAMPLE_TOKENS=200\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", note)
    assert run_sample(tmp_path, "SAMPLE_TOKENS=3", "PROMPT=7 squared").stdout.startswith("7 squared")


def test_the_usage_in_its_help_is_one_that_works(tmp_path):
    text = run_sample(tmp_path, "--help").stdout
    assert "python gpt2/sample.py --run RUN_FOLDER --prompt 'def '" in text

"""When the validation loss is measured, and its value against a plain computation over the same windows."""

import math
import types

import numpy as np
import pytest
import torch

from gpt2.data import windows
from gpt2.loop import evaluate, evaluation_due, validation_loss
from gpt2.model import GPT2, ModelOptions
from lib.machine import device
from lib.machine.device import SystemOptions
from tests.training import Records

BLOCK, WINDOWS = 16, 7


@pytest.fixture
def parts(tmp_path):
    """Bins of random bytes, a model with dropout, and the machine."""
    generator = np.random.default_rng(0)
    for split, size in (("train", 500), ("val", 200)):
        generator.integers(0, 256, size).astype("<u2").tofile(tmp_path / f"{split}.bin")
    made = windows.load(
        windows.DataOptions(
            dataset="bins", dataset_source=None, dataset_subset=None, dataset_text_field=None, dataset_max_tokens=None,
            val_fraction=None, dataset_end_of_text=None, text_errors=None, tokenizer="bytes", data_dir=str(tmp_path),
            data_cache_dir="", evaluate=True, block_size=BLOCK, batch_size=3, gradient_accumulation=1, seed=0,
            eval_samples=WINDOWS,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2(ModelOptions("custom", 2, 2, 32, BLOCK, dropout=0.5, activation="gelu-tanh"), 256)
    return model, made, device.choose(SystemOptions("cpu", "float32", 0, False, "float32")), tmp_path


@pytest.mark.parametrize(
    ("interval", "steps"), [(4, [0, 4, 8, 10]), (5, [0, 5, 10]), (0, [0, 10]), (99, [0, 10]), (None, [])]
)
def test_is_measured_before_the_first_step_at_the_interval_and_after_the_last(interval, steps):
    assert [step for step in range(11) if evaluation_due(step, 10, interval)] == steps


def test_is_the_mean_over_the_windows(parts):
    model, made, machine, folder = parts
    tokens = torch.from_numpy(np.fromfile(folder / "val.bin", "<u2").astype(np.int64))
    available = (200 - 1) // BLOCK  # 12
    starts = [i * available // WINDOWS * BLOCK for i in range(WINDOWS)]
    model.eval()
    with torch.no_grad():
        losses = [model(tokens[s : s + BLOCK][None], tokens[s + 1 : s + BLOCK + 1][None]).item() for s in starts]
    model.train()
    assert validation_loss(model, made, machine) == pytest.approx(sum(losses) / WINDOWS, rel=1e-6)


def test_leaves_training_as_it_was(parts):
    model, made, machine, _ = parts
    before = torch.get_rng_state()
    first = validation_loss(model, made, machine)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert validation_loss(model, made, machine) == first


def test_stops_when_asked(parts):
    model, made, machine, _ = parts
    calls = iter([False, True])
    assert validation_loss(model, made, machine, lambda: next(calls)) is None
    assert model.training


@pytest.mark.parametrize("without_end", [True, False])
def test_an_evaluation_has_bits_per_byte(parts, without_end):
    """With a token for each byte, one bit per token is one bit per byte, unless end-of-text tokens count no byte."""
    model, made, machine, folder = parts
    tokens = np.fromfile(folder / "val.bin", "<u2")
    available = (200 - 1) // BLOCK
    targets = [s + 1 + t for s in (i * available // WINDOWS * BLOCK for i in range(WINDOWS)) for t in range(BLOCK)]
    tokens[targets] = 7
    if not without_end:
        tokens[targets[:28]] = 0  # a quarter of the 112 targets
    tokens.tofile(folder / "val.bin")
    made = windows.load(made.options)
    training = types.SimpleNamespace(
        forward=model, step=5, note=lambda loss: 0.0, pruner=types.SimpleNamespace(layers=dict)
    )
    recorder = Records()
    evaluate(training, made, machine, recorder, lambda: False)
    [(event, step, metrics)] = recorder
    assert (event, step) == ("eval", 5)
    bits = metrics["val_loss"] / math.log(2)
    assert metrics["val_bits_per_byte"] == pytest.approx(bits if without_end else bits * 4 / 3, rel=1e-12)

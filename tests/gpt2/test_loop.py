"""When the validation loss is measured, and its value against a plain computation over the same windows."""

import numpy as np
import pytest
import torch

from gpt2.data import windows
from gpt2.loop import evaluation_due, validation_loss
from gpt2.model import GPT2, ModelOptions
from lib.machine import device
from lib.machine.device import SystemOptions

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
            evaluate=True, block_size=BLOCK, batch_size=3, gradient_accumulation=1, seed=0, eval_samples=WINDOWS,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2(ModelOptions("custom", 2, 2, 32, BLOCK, dropout=0.5), 256)
    return model, made, device.choose(SystemOptions("cpu", "float32", 0, False)), tmp_path


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

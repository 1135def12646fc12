"""The loss on the whole validation split, against plain arithmetic in float64 on the model's logits."""

import dataclasses
import math
import statistics

import numpy as np
import pytest
import torch

from gpt2.data import windows
from gpt2.evaluation import validation
from gpt2.loop import validation_loss
from lib.base.errors import UsageError, UserError
from lib.config.kconf import Schema
from tests.gpt2.evaluation.models import tiny


def data(folder, **changes):
    generator = np.random.default_rng(0)
    for split, size in (("train", 100), ("val", 200)):  # 12 windows of 16, and a rest of 7
        (generator.integers(0, 4, size) * 60).astype("<u2").tofile(folder / f"{split}.bin")
    return load(folder, **changes)


def load(folder, **changes):
    schema = Schema()
    named = {"data_dir": folder, "dataset": "bins", "tokenizer": "bytes", "block_size": 16, "batch_size": 5}
    schema.override([(name.upper(), str(value), "test") for name, value in (named | changes).items()])
    return windows.load(schema.bind(windows.DataOptions))


def reference(model, tokens):
    """The mean loss of each window of 16 in float64, and how many targets are not byte 0."""
    model, found, text = model.double(), [], 0
    for start in range(0, 12 * 16, 16):
        x, y = tokens[start : start + 16], tokens[start + 1 : start + 17]
        logits = model(torch.tensor(x[None], dtype=torch.int64))[0].detach().numpy()
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        found.append(-logs[np.arange(16), y].mean())
        text += int((y != 0).sum())
    model.float()
    return found, text


@pytest.mark.parametrize("batch_size", [1, 5])
def test_every_window_counts_once(tmp_path, batch_size):
    model, machine = tiny()
    made = data(tmp_path, eval_samples=3, batch_size=batch_size)
    tokens = np.fromfile(tmp_path / "val.bin", "<u2")
    result = validation.measure(model, made, machine)
    losses, text = reference(model, tokens)
    mean = statistics.fmean(losses)
    assert (result.name, result.n, result.details["data_sha256"]) == ("validation", 12, made.fingerprint)
    about = {name: value for name, value in result.details.items() if name != "data_sha256"}
    described = "bins-bytes: 100 training and 200 validation tokens"
    assert about == {"tokens": 192, "block_size": 16, "data": described}
    assert statistics.stdev(losses) > 0.1
    assert 100 < text < 192
    assert result.metrics == {
        "validation/loss": pytest.approx(mean, rel=1e-6),
        "validation/loss_stderr": pytest.approx(statistics.stdev(losses) / math.sqrt(12), rel=1e-5),
        "validation/perplexity": pytest.approx(math.exp(mean), rel=1e-5),
        "validation/bits_per_byte": pytest.approx(sum(losses) * 16 / text / math.log(2), rel=1e-6),
    }


def test_with_as_many_samples_it_is_the_loss_of_an_evaluation(tmp_path):
    model, machine = tiny()
    made = data(tmp_path)  # EVAL_SAMPLES=200
    loss = validation.measure(model, made, machine).metrics["validation/loss"]
    assert validation_loss(model, made, machine) == pytest.approx(loss, rel=1e-6)


def test_one_window_has_no_standard_error(tmp_path):
    model, machine = tiny()
    made = data(tmp_path)
    made.val.tokens = 17
    result = validation.measure(model, made, machine)
    assert (result.n, "validation/loss_stderr" in result.metrics) == (1, False)


def test_without_a_validation_split_there_is_nothing_to_measure(tmp_path):
    model, machine = tiny()
    with pytest.raises(UsageError, match=r"^EVALUATE=n: there is no validation split to measure; use EVALUATE=y"):
        validation.measure(model, data(tmp_path, evaluate="n"), machine)


def test_an_empty_file_is_one_sentence(tmp_path):
    data(tmp_path)
    (tmp_path / "val.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"^the validation split has 0 tokens, and a window takes BLOCK_SIZE"):
        load(tmp_path)


def test_a_loss_that_is_nan_is_one_sentence(tmp_path):
    model, machine = tiny()
    made = data(tmp_path)
    with torch.no_grad():
        model.ln_f.bias[3] = math.nan
    with pytest.raises(UserError, match=r"^validation: the loss is NaN or infinite in the first 5 windows; use a"):
        validation.measure(model, made, machine)
    half = dataclasses.replace(machine, dtype=torch.float16)
    with pytest.raises(UserError, match=r"; use DTYPE=float32$"):
        validation.measure(model, made, half)

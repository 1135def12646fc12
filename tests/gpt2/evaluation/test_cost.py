"""Sizes against sums by hand and files that are unpacked again; speeds only of what computes the same."""

import dataclasses
import math
import resource
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

from gpt2.evaluation import cost, speed
from gpt2.model import GPT2
from lib.base.errors import UserError
from lib.machine import device, turns
from tests.gpt2.evaluation.models import tiny


def pruned(sparsity=0.5, **shape):
    """A model with masks on its linear layers, its state and its masks."""
    model, machine = tiny(**shape)
    generator = torch.Generator().manual_seed(1)
    masks = {}
    with torch.no_grad():
        for name, parameter in model.h.named_parameters(prefix="h"):
            if parameter.dim() == 2:
                masks[name] = (torch.rand(parameter.shape, generator=generator) >= sparsity).to(torch.uint8)
                parameter.mul_(masks[name])
    state = {name: value[:256] if name == "wte.weight" else value for name, value in model.state_dict().items()}
    return model, state, masks, machine


def test_the_packed_model_has_a_bit_for_each_weight_and_the_kept_values():
    """Two weights of 4 and 24 numbers: 10 of 24 are kept, so 3 bytes of bits and 40 of values, and 16 of the other."""
    mask = torch.zeros(4, 6, dtype=torch.uint8)
    mask.view(-1)[[0, 1, 5, 7, 8, 12, 15, 20, 22, 23]] = 1
    state = {"a.weight": torch.arange(1.0, 25).view(4, 6) * mask, "b.weight": torch.arange(4.0)}
    packed = cost.packed(state, {"a.weight": mask}, torch.float32)
    assert {name: tensor.nbytes for name, tensor in packed.items()} == {
        "a.weight.mask": 3, "a.weight.values": 40, "b.weight": 16,
    }  # fmt: skip
    assert packed["a.weight.mask"].tolist() == [0b11000101, 0b10001001, 0b00001011]
    assert packed["a.weight.values"].tolist() == [1, 2, 6, 8, 9, 13, 16, 21, 23, 24]
    result = cost.size(state, {"a.weight": mask})
    assert (result.name, result.n) == ("size", 1)
    assert (result.details["kept"], result.details["weights_in_scope"]) == (10, 24)
    for name, content in {
        "dense_float32": 112, "packed_float32": 59, "dense_16bit": 56, "packed_16bit": 31,
    }.items():  # fmt: skip
        header = result.metrics[f"size/{name}_bytes"] - content
        assert 8 < header < 400  # what safetensors says of the tensors


def test_the_size_is_that_of_files_and_the_weights_come_back():
    _, state, masks, _ = pruned(0.75, width=64)
    result = cost.size(state, masks)
    kept, total = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    other = sum(value.numel() for name, value in state.items() if name not in masks)
    assert total == 2 * 12 * 64 * 64
    for width, size in {"float32": 4, "16bit": 2}.items():
        assert result.metrics[f"size/dense_{width}_bytes"] == pytest.approx((total + other) * size, abs=4000)
        expected = total / 8 + (kept + other) * size
        assert result.metrics[f"size/packed_{width}_bytes"] == pytest.approx(expected, abs=4000)
    packed = cost.packed(state, masks, torch.float32)
    for name, mask in masks.items():
        whole = np.zeros(mask.numel(), np.float32)
        bits = np.unpackbits(packed[f"{name}.mask"].numpy(), count=mask.numel()).astype(bool)
        whole[bits] = packed[f"{name}.values"].numpy()
        assert torch.equal(torch.from_numpy(whole).view(mask.shape), state[name])


def test_a_weight_under_a_zero_of_its_mask_is_one_sentence():
    model, state, masks, machine = pruned()
    masks["h.1.mlp.c_fc.weight"] = torch.zeros_like(masks["h.1.mlp.c_fc.weight"])
    with pytest.raises(UserError, match=r"^h.1.mlp.c_fc.weight: has weights that are not zero where its mask is;"):
        list(cost.measure(model, state, masks, machine))


def test_embeddings_and_biases_under_a_mask_are_packed_and_stay_dense_for_speed(monkeypatch):
    model, state, masks, machine = pruned()
    asked = []
    monkeypatch.setattr(speed, "measure", lambda model, layers, machine: asked.extend(layers))
    others = {name: (state[name] != 0).to(torch.uint8) for name in ("wte.weight", "h.0.mlp.c_fc.bias", "ln_f.weight")}
    assert len(list(cost.measure(model, state, masks | others, machine))) == 2
    assert asked == [name.removesuffix(".weight") for name in masks]
    assert [result.name for result in cost.measure(model, state, others, machine)] == ["size"]


def test_a_folder_without_room_is_one_sentence(tmp_path, monkeypatch):
    _, state, masks, _ = pruned()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes that a file may have
    try:
        with pytest.raises(UserError, match=r"bytes, to measure the size of the model, cannot be written: .*too large"):
            cost.size(state, masks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(turns, "_SECONDS", 0.0)


def test_csr_is_timed_beside_dense_and_leaves_the_model_as_it_was(brief):
    model, state, masks, machine = pruned(0.9, width=64)
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    size, found = cost.measure(model, state, masks, machine)
    assert (size.name, found.name, found.n) == ("size", "speed", 5)
    assert found.metrics.keys() == {
        f"speed/{name}_{what}_tokens_per_second" for name in ("dense", "csr") for what in ("prompt", "decoding")
    }
    assert all(0 < value < math.inf for value in found.metrics.values())
    notes = "\n".join(found.details["notes"])
    assert "csr: its activations are those of dense up to " in notes
    assert "2to4: not timed: a CPU has no 2:4 kernels; they need a CUDA device of compute capability 8.0" in notes
    ratio = found.metrics["speed/csr_prompt_tokens_per_second"] / found.metrics["speed/dense_prompt_tokens_per_second"]
    words = f"is {ratio:.2f} times as fast as" if ratio >= 1 else f"takes {1 / ratio:.2f} times as long as"
    assert f"csr: {words} dense for a prompt of 16 tokens" in notes
    assert {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)} == layers


@pytest.mark.parametrize("length", [1, 16])
@torch.no_grad()
def test_the_model_with_csr_matrices_gives_the_same_logits(length):
    model, _, masks, _ = pruned(0.8)
    paths = [name.removesuffix(".weight") for name in masks]
    changed = speed.replaced(model, {path: speed.Csr(model.get_submodule(path)) for path in paths})
    tokens = torch.arange(length)[None] * 7
    expected = model(tokens)
    assert isinstance(changed.h[1].mlp.c_fc, speed.Csr) and isinstance(model.h[1].mlp.c_fc, nn.Linear)
    assert changed.h[1].mlp.c_fc.weight.layout == torch.sparse_csr
    assert changed.wte.weight is model.wte.weight  # no second copy
    found = changed(tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_csr_multiplies_as_by_hand():
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, -1.0]]))
        linear.bias.copy_(torch.tensor([10.0, 20.0]))
        layer = speed.Csr(linear)
        assert layer(torch.tensor([[[1.0, 2.0, 3.0]]])).tolist() == [[[14.0, 20.0]]]
        assert layer(torch.tensor([[[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]])).tolist() == [[[14.0, 20.0], [12.0, 20.0]]]


def test_rounds_that_others_slow_do_not_count(monkeypatch):
    """By a clock of the test: a token takes 1 ms dense and 2 ms with CSR, but others slow all rounds of CSR but one."""
    now, seen, plain = [0.0], [], GPT2.hidden

    def hidden(model, tokens):
        takes = 0.001
        if isinstance(model.h[0].mlp.c_fc, speed.Csr):
            seen.append(tokens.shape[1])
            takes = 0.002 if seen.count(1) == 20 else 0.079
        now[0] += takes if tokens.shape[1] == 1 else 1.0
        return plain(model, tokens)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(GPT2, "hidden", hidden)
    model, _, masks, machine = pruned()
    found = speed.measure(model, [name.removesuffix(".weight") for name in masks], machine)
    assert found.metrics["speed/dense_decoding_tokens_per_second"] == pytest.approx(1000)
    assert found.metrics["speed/csr_decoding_tokens_per_second"] == pytest.approx(500)
    assert "csr: takes 2.00 times as long as dense for one token without" in "\n".join(found.details["notes"])


def test_what_computes_something_else_is_not_timed(brief, monkeypatch):
    class Wrong(speed.Csr):
        def forward(self, x):
            return super().forward(x) * 1.01

    monkeypatch.setattr(speed, "Csr", Wrong)
    model, _, masks, machine = pruned()
    found = speed.measure(model, [name.removesuffix(".weight") for name in masks], machine)
    assert found.metrics.keys() == {"speed/dense_prompt_tokens_per_second", "speed/dense_decoding_tokens_per_second"}
    assert any(note.startswith("csr: not timed: its activations are off by ") for note in found.details["notes"])


def test_a_slow_device_gets_a_shorter_prompt(brief, monkeypatch):
    monkeypatch.setattr(speed, "_PASS", 0.0)
    monkeypatch.setattr(speed, "_SHORTEST", 5)
    model, _, masks, machine = pruned()
    found = speed.measure(model, [name.removesuffix(".weight") for name in masks], machine)
    assert found.details["prompt_tokens"] == 5  # of 16, 8, 5


def test_in_16_bits_dense_is_timed_in_both(brief):
    model, _, masks, machine = pruned()
    machine = dataclasses.replace(machine, dtype=torch.bfloat16)
    found = speed.measure(model, [name.removesuffix(".weight") for name in masks], machine)
    assert {name.split("/")[1].rsplit("_", 4)[0] for name in found.metrics} == {"dense", "csr", "dense_bfloat16"}
    assert model.wte.weight.dtype == torch.float32
    assert found.fields({"dtype": "bfloat16"})["dtype"] == "float32"  # in which dense and csr compute


HAS_TWO_FOUR = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


@pytest.mark.skipif(not HAS_TWO_FOUR, reason="there is no GPU with 2:4 kernels")
def test_on_a_gpu_two_four_is_timed_and_other_masks_are_not(brief):
    model, _, masks, _ = pruned(0.0, width=64, block_size=64)
    machine = device.choose(device.SystemOptions("cuda", "float16", 0, False, "float32"))
    model, layers = model.to(machine.device), [name.removesuffix(".weight") for name in masks]
    dense = speed.measure(model, layers, machine)
    assert any("keeps more than 2 of 4 neighbours" in note for note in dense.details["notes"])
    with torch.no_grad():
        for path in layers:
            model.get_submodule(path).weight.view(-1, 4)[:, 1:3] = 0
    found = speed.measure(model, layers, machine)
    assert {name.split("/")[1].split("_")[0] for name in found.metrics} == {"dense", "2to4"}, found.details["notes"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 0, 0, 2, 0, 0, 3, 4]], True),
        ([[1, 0, 5, 2, 0, 0, 3, 0]], False),
        ([[1, 0, 0, 2], [0, 0, 0, 0]], True),
        ([[1, 0]], False),
    ],
)
def test_two_four_is_at_most_two_of_four_neighbours_along_the_input(rows, expected):
    assert speed.is_two_four(torch.tensor(rows, dtype=torch.float32)) is expected

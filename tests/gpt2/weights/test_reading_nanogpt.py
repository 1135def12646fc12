"""Checkpoints in the format of nanoGPT's trainer give the logits that their tensors describe."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

from gpt2.model import GPT2, ModelOptions
from gpt2.weights.source import Shape, find, read
from lib.base.errors import UserError

WIDTH, HEADS, LAYERS, POSITIONS = 16, 2, 2, 12
TOKENS = torch.tensor([[72, 101, 108, 108, 111, 0, 255, 31, 7, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])


def tensors(bias: bool, rows: int = 256) -> dict[str, torch.Tensor]:
    """Random weights with nanoGPT's names."""
    generator = torch.Generator().manual_seed(11)

    def draw(*shape):
        return 0.3 * torch.randn(shape, generator=generator)

    found = {"transformer.wte.weight": draw(rows, WIDTH), "transformer.wpe.weight": draw(POSITIONS, WIDTH)}
    for n in range(LAYERS):
        for name, shape in {
            "ln_1": (WIDTH,), "attn.c_attn": (3 * WIDTH, WIDTH), "attn.c_proj": (WIDTH, WIDTH), "ln_2": (WIDTH,),
            "mlp.c_fc": (4 * WIDTH, WIDTH), "mlp.c_proj": (WIDTH, 4 * WIDTH),
        }.items():  # fmt: skip
            found[f"transformer.h.{n}.{name}.weight"] = draw(*shape)
            if bias:
                found[f"transformer.h.{n}.{name}.bias"] = draw(shape[0])
    found["transformer.ln_f.weight"] = draw(WIDTH)
    if bias:
        found["transformer.ln_f.bias"] = draw(WIDTH)
    return {**found, "lm_head.weight": found["transformer.wte.weight"]}


def logits(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """nanoGPT's formulas with the exact GELU, step by step; a bias that is not there is not added."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state.get(f"{name}.bias"))

    batch, time = tokens.shape
    future = torch.ones(time, time).triu(1).bool()
    x = state["transformer.wte.weight"][tokens] + state["transformer.wpe.weight"][:time]
    for block in (f"transformer.h.{n}" for n in range(LAYERS)):
        q, k, v = (
            part.view(batch, time, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(WIDTH, dim=2)
        )
        scores = (q @ k.mT / (WIDTH // HEADS) ** 0.5).masked_fill(future, -torch.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, time, WIDTH), f"{block}.attn.c_proj")
        inner = F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
        x = x + linear(inner, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["lm_head.weight"].T


def save(path, state, **changes):
    """A checkpoint as nanoGPT's trainer writes it."""
    arguments = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": POSITIONS, "vocab_size": 256}
    path.parent.mkdir(exist_ok=True)
    content = {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "model_args": {**arguments, "bias": "transformer.ln_f.bias" in state, "dropout": 0.0, **changes},
        "iter_num": 20,
        "best_val_loss": torch.tensor(2.5),
        "config": {"out_dir": "out", "learning_rate": 0.003},
    }
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_logits_and_loss_are_those_that_the_tensors_describe(tmp_path, bias, prefix):
    state = tensors(bias)
    path = tmp_path / "out-small" / "ckpt.pt"
    source = find(save(path, {prefix + name: tensor for name, tensor in state.items()}, bias=bias))
    assert (source.kind, source.path, source.tokenizer, source.revision) == ("nanogpt", path, "bytes", "")
    assert source.shape == Shape(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=256)
    assert (source.step, source.ancestors, source.foreign) == (0, {}, "out-small")
    weights = read(source, 12, 256)
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.masks == {}
    assert source.activation == "gelu"
    model = GPT2(ModelOptions("custom", 2, 2, 16, 12, 0.0, "gelu"), 256).eval()
    assert weights.state.keys() == model.state_dict().keys()
    model.load(weights.state)
    with torch.no_grad():
        expected = logits(state, TOKENS)
        torch.testing.assert_close(model(TOKENS), expected, rtol=0, atol=1e-5)
        loss = F.cross_entropy(expected[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        torch.testing.assert_close(model(TOKENS[:, :-1], TOKENS[:, 1:]), loss, rtol=0, atol=1e-5)


def test_a_model_without_biases_gets_biases_of_zero(tmp_path):
    state = read(find(save(tmp_path / "ckpt.pt", tensors(bias=False))), 12, 256).state
    biases = [name for name in state if name.endswith(".bias")]
    assert len(biases) == 2 * 6 + 1
    assert not any(int(state[name].count_nonzero()) for name in biases)


def test_padding_and_the_causal_masks_are_left_out(tmp_path):
    state = tensors(bias=True, rows=50304)
    state |= {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 12, 12) for n in (0, 1)}
    source = find(save(tmp_path / "ckpt.pt", state, vocab_size=50304))
    assert (source.tokenizer, source.shape.vocab_size) == ("gpt2", 50304)
    found = read(source, 5, 50257).state
    assert torch.equal(found["wte.weight"], state["transformer.wte.weight"][:50257])
    assert torch.equal(found["wpe.weight"], state["transformer.wpe.weight"][:5])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layer": 3}, "12 of 40 tensors are missing, the first is h.2.ln_1.weight"),
        ({"n_layer": 1}, "the tensor h.1.ln_1.weight is not part of this GPT-2"),
        ({"vocab_size": None}, "is no checkpoint of nanoGPT, which has model and model_args with n_layer, n_head"),
        ({"n_layer": 10**9}, "n_layer must lie between 1 and 1000; got 1000000000"),
        ({"bias": False}, "is there twice"),
        ({"bias": torch.zeros(2)}, "bias in model_args is neither True nor False"),
        ({"n_layer": 10**9}, "n_layer must lie between 1 and 1000; got 1000000000"),
        ({"n_head": 3}, "n_embd=16 is no multiple of n_head=3"),
    ],
)
def test_model_args_that_do_not_fit_are_one_sentence(tmp_path, changes, words):
    with pytest.raises(UserError) as caught:
        read(find(save(tmp_path / "ckpt.pt", tensors(bias=True), **changes)), 12, 256)
    assert words in str(caught.value)
    assert str(tmp_path / "ckpt.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": [1, 2], "model_args": {}}, "is no checkpoint of nanoGPT"),
        ([1, 2], "holds no dictionary of weights"),
        (len, "holds something other than tensors, or would execute code, so it is not loaded"),
    ],
)
def test_another_file_of_torch_save_is_one_sentence(tmp_path, content, words):
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=words) as caught:
        find(str(tmp_path / "ckpt.pt"))
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_tensors_are_one_sentence(tmp_path):
    path = save(tmp_path / "ckpt.pt", {"transformer.ln_f.bias": 3.5})
    with pytest.raises(UserError, match=r"ckpt\.pt: holds no dictionary of weights"):
        read(find(path), 12, 256)


def test_an_untied_head_and_nan_are_one_sentence(tmp_path):
    state = tensors(bias=True)
    path = save(tmp_path / "ckpt.pt", {**state, "lm_head.weight": state["lm_head.weight"] + 1})
    with pytest.raises(UserError, match=r"lm_head\.weight differs from wte\.weight"):
        read(find(path), 12, 256)
    state["transformer.h.1.mlp.c_fc.bias"][3] = torch.nan
    with pytest.raises(UserError, match=r"weights in h\.1\.mlp\.c_fc\.bias are NaN or infinite"):
        read(find(save(tmp_path / "ckpt.pt", state)), 12, 256)

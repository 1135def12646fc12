"""Optimizers of torch against float64 transcriptions of their papers, composition, and that every option acts."""

import subprocess
import sys

import pytest
import torch

from gpt2.model import GPT2, ModelOptions
from lib import optim
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.optim.adam import AdamOptions
from tests.training import ROOT

KINDS = ["sgd", "adam", "adamw", "adamwadv", "adamwspam", "stablespam", "adamwprune", "muon"]
BUSY = {  # options with which much happens in few steps
    "adamwspam": {"SPAM_INTERVAL": "8", "SPAM_WARMUP_STEPS": "3", "SPAM_CLIP_FREE_STEPS": "2", "SPAM_THETA": "4"},
    "stablespam": {"STABLESPAM_INTERVAL": "8", "STABLESPAM_TOTAL_STEPS": "40"},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of torch's fused optimizers spin: next to another program, a step of microseconds takes milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def schema(**values):
    made = Schema()
    made.override([(name, text, "test") for name, text in values.items()])
    return made


class Small(torch.nn.Module):
    """Two matrices of blocks, an embedding and a bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.tall = torch.nn.Parameter(torch.randn(5, 7)), torch.nn.Parameter(torch.randn(9, 4))
        self.embedding, self.bias = torch.nn.Parameter(torch.randn(11, 5)), torch.nn.Parameter(torch.randn(5))

    def prunable(self):
        return [self.wide, self.tall]


def gradients(model, seed):
    """Noise with rare spikes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator)
        spikes = torch.rand(p.shape, generator=generator) < 0.01
        yield torch.where(spikes, 300 * noise, noise)


def make_steps(model, optimizer, seeds):
    for seed in seeds:
        optim.set_learning_rate(optimizer, 1e-2 / (1 + seed))
        for p, grad in zip(model.parameters(), gradients(model, seed), strict=True):
            p.grad = grad
        optim.skip_if(optimizer, torch.tensor(0.0))
        optimizer.step()


def trained(steps=40, **options):
    """The weights after some steps, and the optimizer."""
    model = Small()
    optimizer = optim.build(model, schema(**options).bind)
    make_steps(model, optimizer, range(steps))
    return [p.detach() for p in model.parameters()], optimizer


def same(a, b):
    """Whether two nests of tensors and numbers are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# ---- rules of torch --------------------------------------------------------------------------------------------------


def reference_step(kind, w, g, state, lr, decay, b1=0.9, b2=0.95, eps=1e-8, momentum=0.9):
    """One update in float64, from the papers' formulas."""
    if kind in ("adamw", "adamwadv"):
        w = w * (1 - lr * decay)
    else:
        g = g + decay * w
    if kind == "sgd":
        state["v"] = momentum * state["v"] + g if state["t"] else g
        state["t"] += 1
        return w - lr * state["v"]
    state["t"] += 1
    state["m"] = b1 * state["m"] + (1 - b1) * g
    state["v"] = b2 * state["v"] + (1 - b2) * g * g
    state["max"] = torch.maximum(state["max"], state["v"]) if kind == "adamwadv" else state["v"]
    m_hat, v_hat = state["m"] / (1 - b1 ** state["t"]), state["max"] / (1 - b2 ** state["t"])
    return w - lr * m_hat / (v_hat.sqrt() + eps)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "adamwadv"])
def test_update_agrees_with_the_paper_in_float64(kind):
    model = Small()
    optimizer = optim.build(model, schema(OPTIMIZER=kind, WEIGHT_DECAY="0.3").bind)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    zero = torch.zeros((), dtype=torch.float64)
    states = {name: {"t": 0, "m": zero, "v": zero, "max": zero} for name in expected}
    for step in range(1, 60):
        for (name, p), grad in zip(model.named_parameters(), gradients(model, step), strict=True):
            decay = 0.3 if p.dim() > 1 else 0.0  # matrices alone decay
            expected[name] = reference_step(kind, expected[name], grad.double(), states[name], 1e-2 / (1 + step), decay)
        make_steps(model, optimizer, [step])
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("kind", "amsgrad"), [("adamw", False), ("adamwadv", True)])
def test_adamw_is_torchs_bit_for_bit(kind, amsgrad):
    model, twin = Small(), Small()
    ours = optim.build(model, schema(OPTIMIZER=kind).bind)
    groups = [
        {"params": [twin.wide, twin.tall, twin.embedding], "weight_decay": 0.1},
        {"params": [twin.bias], "weight_decay": 0.0},
    ]
    torchs = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8, amsgrad=amsgrad, fused=True)
    make_steps(model, ours, range(50))
    make_steps(twin, torchs, range(50))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


# ---- composition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["adam", "adamw", "adamwadv", "adamwspam"])
def test_adamwprune_without_pruning_is_its_base(base):
    options = BUSY.get(base, {}) | {"WEIGHT_DECAY": "0.3", "ADAM_BETA2": "0.9"}
    weights, optimizer = trained(OPTIMIZER=base, **options)
    pruned, other = trained(
        OPTIMIZER="adamwprune", ADAMWPRUNE_BASE_OPTIMIZER_NAME=base, PRUNING_METHOD="none", **options
    )
    assert same(weights, pruned)
    assert same(optimizer.state_dict(), other.state_dict())


def test_options_of_a_base_are_there_when_it_is_chosen_and_only_then():
    chosen = schema(OPTIMIZER="adamwprune", ADAMWPRUNE_BASE_OPTIMIZER_NAME="adamwspam", SPAM_THETA="50")
    assert chosen["SPAM_THETA"] == 50
    adam = chosen.bind(AdamOptions)
    assert (adam.adam_beta1, adam.adam_beta2, adam.adam_epsilon) == (0.9, 0.999, 1e-6)
    adam = schema(OPTIMIZER="adamwprune").bind(AdamOptions)
    assert (adam.adam_beta1, adam.adam_beta2, adam.adam_epsilon) == (0.9, 0.95, 1e-8)
    with pytest.raises(ConfigError, match="SPAM_THETA=50 has no effect"):
        schema(OPTIMIZER="adamwprune", SPAM_THETA="50")


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "option", "text"),
    [
        ("sgd", "SGD_MOMENTUM", "0.5"),
        *((kind, "WEIGHT_DECAY", "0.5") for kind in KINDS),
        *((kind, name, "0.5") for kind in KINDS[1:] for name in ("ADAM_BETA1", "ADAM_BETA2", "ADAM_EPSILON")),
        ("adamwadv", "ADAMWADV_AMSGRAD", "n"),
        ("adamwprune", "ADAMWPRUNE_BASE_OPTIMIZER_NAME", "adam"),
        ("adamwspam", "SPAM_INTERVAL", "9"),
        ("adamwspam", "SPAM_WARMUP_STEPS", "5"),
        ("adamwspam", "SPAM_THETA", "40"),
        ("adamwspam", "SPAM_CLIP_FREE_STEPS", "4"),
        ("adamwspam", "SPAM_DENSITY", "0.9"),
        ("adamwspam", "SPAM_COMPAT", "official"),
        ("stablespam", "STABLESPAM_GAMMA1", "0.5"),
        ("stablespam", "STABLESPAM_GAMMA2", "0.5"),
        ("stablespam", "STABLESPAM_THETA", "0.5"),
        ("stablespam", "STABLESPAM_INTERVAL", "9"),
        ("stablespam", "STABLESPAM_TOTAL_STEPS", "0"),
        ("muon", "MUON_MOMENTUM", "0.5"),
        ("muon", "MUON_SCALE", "original"),
    ],
)
def test_every_option_acts(kind, option, text):
    options = {"OPTIMIZER": kind} | BUSY.get(kind, {})
    assert not same(trained(**options)[0], trained(**options | {option: text})[0])


def test_clipping_of_spikes_can_be_turned_off():
    options = {"OPTIMIZER": "adamwspam", "SPAM_INTERVAL": "8", "SPAM_WARMUP_STEPS": "3"}
    off, _ = trained(SPAM_ENABLE_CLIP="n", **options)
    assert not same(off, trained(SPAM_THETA="4", SPAM_CLIP_FREE_STEPS="2", **options)[0])
    assert same(off, trained(SPAM_THETA="1e12", SPAM_CLIP_FREE_STEPS="2", **options)[0])


# ---- groups ----------------------------------------------------------------------------------------------------------


def test_every_parameter_is_in_exactly_one_group_and_only_matrices_decay():
    model = GPT2(ModelOptions("custom", 2, 2, 16, 8, 0.0, "gelu-tanh"), 64)
    hidden, embeddings, vectors = optim.build(model, schema(WEIGHT_DECAY="0.25").bind).param_groups
    assert [group["weight_decay"] for group in (hidden, embeddings, vectors)] == [0.25, 0.25, 0.0]
    assert [group["hidden"] for group in (hidden, embeddings, vectors)] == [True, False, False]
    assert len(hidden["params"]) == 8
    assert set(embeddings["params"]) == {model.wte.weight, model.wpe.weight}
    assert {p.dim() for p in vectors["params"]} == {1}
    assert sum(len(group["params"]) for group in (hidden, embeddings, vectors)) == len(list(model.parameters()))


def test_options_reach_the_optimizer():
    adam = optim.build(Small(), schema(OPTIMIZER="adam", ADAM_BETA1="0.8", ADAM_BETA2="0.7", ADAM_EPSILON="1e-3").bind)
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.8, 0.7), 1e-3)
    sgd = optim.build(Small(), schema(OPTIMIZER="sgd", SGD_MOMENTUM="0.5", LEARNING_RATE="0.25").bind)
    assert (sgd.defaults["momentum"], sgd.param_groups[0]["lr"]) == (0.5, 0.25)


def test_no_optimizer_imports_torchs_compiler():
    """Which takes longer than everything else between the imports and the first step."""
    code = f"""
import sys, torch
from lib import optim
from lib.config.kconf import Schema
for kind in {KINDS}:
    schema = Schema()
    schema.override([("OPTIMIZER", kind, "test")])
    model = torch.nn.Linear(4, 4)
    model.prunable = lambda: [model.weight]
    optimizer = optim.build(model, schema.bind)
    model(torch.ones(1, 4)).sum().backward()
    before = model.weight.clone()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

"""Small models, calibration windows and options, which the tests of one-shot pruning share."""

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor, nn

from gpt2.model import GPT2, ModelOptions
from gpt2.oneshot.blocks import OneshotOptions, prune
from lib.machine.device import Machine
from tests.training import TEXT

CPU = Machine(torch.device("cpu"), torch.float32, "cpu", peak_flops=None)
SHAPE = ModelOptions("custom", n_layer=2, n_head=2, n_embd=48, block_size=32, dropout=0.1, activation="gelu-tanh")
MATRICES = "h.*.attn.*.weight,h.*.mlp.*.weight"
BYTES = torch.tensor(list(TEXT.encode()))
BATCH, STEPS = 8, 60


def options(method: str, distribution: str, **changes: object) -> OneshotOptions:
    """Options as Kconfig gives them: None where they are not used."""
    has = {"n-m": distribution == "n-m", "sparsegpt": method == "sparsegpt", "owl": distribution == "owl"}
    plain = OneshotOptions(
        pruning_method=method,
        pruning_structure="none",
        pruning_distribution=distribution,
        pruning_n=2 if has["n-m"] else None,
        pruning_m=4 if has["n-m"] else None,
        target_sparsity=None if has["n-m"] else 0.6,
        pruning_scope=MATRICES,
        pruning_layer_cap=0.99 if distribution.startswith("global") else None,
        calibration_samples=24,
        sparsegpt_damping=0.01 if has["sparsegpt"] else None,
        sparsegpt_block=32 if has["sparsegpt"] else None,
        owl_threshold=5.0 if has["owl"] else None,
        owl_lambda=0.08 if has["owl"] else None,
        seed=7,
    )
    return dataclasses.replace(plain, **changes)


def windows(count: int, seed: int = 1) -> Tensor:
    """Token ids of `count` windows of the text, as bytes."""
    starts = torch.randint(len(BYTES) - 32, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([BYTES[start : start + 32] for start in starts])


@functools.cache
def _state() -> dict[str, Tensor]:
    """The weights after 60 steps of AdamW, which reach a loss of about 1.5."""
    torch.manual_seed(0)
    model = GPT2(SHAPE, 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        tokens = windows(BATCH, seed=100 + step)
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def trained() -> GPT2:
    """A model that was trained a little, so that its inputs are those of a language model."""
    model = GPT2(SHAPE, 256)
    model.load_state_dict(_state())
    return model.eval()


def pruned(method: str, distribution: str, model: GPT2 | None = None, **changes: object) -> tuple[GPT2, dict]:
    """(a trained model that was pruned, its masks)."""
    model = model or trained()
    masks = prune(model, windows(24), CPU, options(method, distribution, **changes), lambda k: None, lambda: False)
    return model, masks


@torch.no_grad()
def inputs(block: nn.Module, states: Tensor) -> tuple[dict[str, np.ndarray], Tensor]:
    """(name of each matrix of `block` -> its inputs (S, I), the states behind the block); in the dtype of `states`."""
    found, hooks = {}, []
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear):
            note = functools.partial(_note, found, f"{name}.weight")
            hooks.append(layer.register_forward_pre_hook(note))
    states = block(states)
    for hook in hooks:
        hook.remove()
    return found, states


def _note(found: dict[str, np.ndarray], name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    found[name] = args[0].flatten(0, -2).numpy()


@torch.no_grad()
def embedded(model: GPT2, tokens: Tensor) -> Tensor:
    """The states in front of the first block."""
    return model.wte(tokens) + model.wpe.weight[: tokens.shape[1]]

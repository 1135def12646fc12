"""Times a model before and after `make shrink`, in turns: a sampled token, an evaluation, and a training step."""

from collections.abc import Callable
from typing import Any

import torch

from gpt2.model import GPT2
from lib import optim
from lib.machine import turns
from lib.machine.device import Machine
from lib.machine.turns import Work
from lib.optim import set_learning_rate, skip_if

_TOKENS = 4096  # of a batch at most: each product is large enough to be fast


def measure(models: list[GPT2], machine: Machine, batch: int, bind: Callable[[type], Any]) -> dict[str, list[float]]:
    """Kind of work -> the seconds that it takes with each of the `models`; see turns.fastest.

    `batch` is BATCH_SIZE; a long context gets fewer sequences. Nothing is compiled. The optimizer steps with a learning
    rate of 0, so no weight changes.
    """
    block = models[0].block_size
    generator = torch.Generator().manual_seed(0)
    rows = min(batch, max(1, _TOKENS // block))
    tokens = torch.randint(models[0].vocab_size, (rows, block), generator=generator).to(machine.device)
    work = {
        "token of make sample": [_sampling(model, tokens[:1], machine) for model in models],
        f"evaluation of {rows} x {block} tokens": [_evaluation(model, tokens, machine) for model in models],
        f"training step of {rows} x {block} tokens": [_training(model, tokens, machine, bind) for model in models],
        "the MLPs of that step": [_mlps(model, tokens.shape, machine) for model in models],
    }
    return {name: turns.fastest(each, machine.device)[0] for name, each in work.items()}


def _sampling(model: GPT2, tokens: torch.Tensor, machine: Machine) -> Work:
    """A token after a full context, which make sample computes from the beginning."""

    @torch.no_grad()
    def run() -> None:
        model.eval()
        with machine.autocast():
            model(tokens)

    return run


def _evaluation(model: GPT2, tokens: torch.Tensor, machine: Machine) -> Work:
    @torch.no_grad()
    def run() -> None:
        model.eval()
        with machine.autocast():
            model(tokens, tokens)

    return run


def _training(model: GPT2, tokens: torch.Tensor, machine: Machine, bind: Callable[[type], Any]) -> Work:
    optimizer = optim.build(model, bind)
    set_learning_rate(optimizer, 0.0)

    def run() -> None:
        model.train()
        with machine.autocast():
            loss = model(tokens, tokens)
        loss.backward()
        skip_if(optimizer, torch.zeros((), device=machine.device))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def _mlps(model: GPT2, shape: torch.Size, machine: Machine) -> Work:
    """Forward and backward pass of the MLPs alone, without the optimizer."""
    x = torch.randn(*shape, model.options.n_embd, device=machine.device, requires_grad=True)

    def run() -> None:
        model.train()
        for block in model.h:
            with machine.autocast():
                y = block.mlp(x)
            y.backward(torch.ones_like(y))
        model.zero_grad(set_to_none=True)
        x.grad = None

    return run

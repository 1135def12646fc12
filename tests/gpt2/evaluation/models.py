"""A tiny model on the CPU in float32, for tests that measure it."""

import torch

from gpt2.model import GPT2, ModelOptions
from lib.machine import device
from lib.machine.device import Machine, SystemOptions


def tiny(vocab_size: int = 256, block_size: int = 16, width: int = 32) -> tuple[GPT2, Machine]:
    """A model whose losses differ from window to window."""
    torch.manual_seed(0)
    model = GPT2(
        ModelOptions("custom", 2, 2, width, block_size, dropout=0.5, activation="gelu-tanh"), vocab_size
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model, device.choose(SystemOptions("cpu", "float32", 0, False, "float32"))

"""Measures what a run costs, with a few real steps on random tokens. It leaves no file and needs no data."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gpt2 import distillation, footprint, loop, model
from gpt2.data import tokenizer, windows
from gpt2.divergence import DivergenceOptions
from gpt2.preflight import TokenizerOptions
from gpt2.training import Training
from lib import optim
from lib.base.errors import UserError
from lib.config.command_line import unconfigured
from lib.config.kconf import ROOT, Schema
from lib.machine import device
from lib.prune.dense import NoPruning

_SECONDS, _STEPS = 1.0, 3  # steps are timed for so long, and at least so many
# The shortest run: what it takes is what every run takes beside its steps and evaluations.
_SHORTEST = (
    "MODEL_NAME=custom N_LAYER=1 N_HEAD=1 N_EMBD=8 BLOCK_SIZE=8 DATASET=files DATASET_SOURCE=corpus.txt DATA_DIR=data "
    "TOKENIZER=bytes BATCH_SIZE=1 GRADIENT_ACCUMULATION=1 MAX_ITERS=1 WARMUP_STEPS=0 EVAL_INTERVAL=0 EVAL_SAMPLES=1 "
    "OUTPUT_DIR=runs TRACKER=none SAMPLE_TOKENS=0"
).split()


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one configuration costs on this machine."""

    step: float  # seconds
    window: float  # seconds to evaluate a window
    checkpoint: int  # bytes


class _RandomTokens:
    """Takes the place of the data: the same tokens at every step."""

    def __init__(self, options: windows.DataOptions, vocab_size: int):
        shape = options.batch_size, options.block_size + 1
        self.tokens = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0))

    def batch(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        return self.tokens[:, :-1], self.tokens[:, 1:]


def cost(schema: Schema) -> Cost:
    """What a run of this configuration costs, without pruning and torch.compile. Raises UserError as a run would."""
    machine = device.choose(schema.bind(device.SystemOptions))
    with device.errors_for_users():
        vocab_size = tokenizer.vocab_size(schema.bind(TokenizerOptions).tokenizer)
        net = model.GPT2(schema.bind(model.ModelOptions), vocab_size).to(machine.device)
        optimizer, held = optim.build(net, schema.bind), NoPruning(net.prunable())
        teacher = distillation.stand_in(schema, vocab_size, machine.device)
        training = Training(net, optimizer, held, machine, schema.bind(DivergenceOptions), dict, teacher)
        data = _RandomTokens(schema.bind(windows.DataOptions), vocab_size)
        options = schema.bind(loop.LoopOptions)

        def step() -> None:
            losses, _ = loop.update(training, data, machine, options, 1)
            losses[0].item()  # waits for the device

        def evaluate() -> None:
            x, y = data.batch(1, 0)
            with torch.no_grad(), machine.autocast():
                net(x.to(machine.device), y.to(machine.device)).item()

        step_seconds = _time(step)
        net.eval()
        window = _time(evaluate) / len(data.tokens)
        return Cost(step_seconds, window, footprint.checkpoint_bytes(training, schema.bind))


def start() -> float:
    """Seconds that a run takes beside its steps and evaluations: imports, provenance, the checkpoint and the rest.

    Raises UserError if the run of one step that it makes in a temporary folder fails.
    """
    command = [sys.executable, str(ROOT / "gpt2/train.py"), "--config", str(ROOT / "defconfigs/gpt2_tiny_defconfig")]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "corpus.txt").write_text("The start is measured.\n" * 100)
        began, environment = time.perf_counter(), unconfigured(os.environ)
        done = subprocess.run([*command, *_SHORTEST], cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1].removeprefix("error: ")
        raise UserError(f"a run of one step, which measures the start of a run, has failed: {said}")
    return seconds


def _time(call: Callable[[], None]) -> float:
    """Seconds of a call; the first one, which is slower, does not count."""
    call()
    began, count = time.perf_counter(), 0
    while count < _STEPS or time.perf_counter() - began < _SECONDS / 2:
        call()
        count += 1
    return (time.perf_counter() - began) / count

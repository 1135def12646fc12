"""What a whole training step costs, dense and with a mask."""

import functools

import torch
from torch import Tensor

from bench import VOCABULARY, Bench
from bench.pruning import CHOICE_STEP, pruner
from bench.timing import Case
from gpt2 import loop
from gpt2.distillation import DistillOptions, Teacher
from gpt2.divergence import DivergenceOptions
from gpt2.training import Training
from lib import optim
from lib.config.kconf import Schema
from lib.prune.dense import NoPruning
from lib.prune.pruners import AnyPruner


class RandomTokens:
    """Takes the place of the data: the same random tokens at every step."""

    def __init__(self, schema: Schema):
        shape = schema["BATCH_SIZE"], schema["BLOCK_SIZE"] + 1
        self.tokens = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0))

    def batch(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        return self.tokens[:, :-1], self.tokens[:, 1:]


def step(bench: Bench) -> None:
    """A whole training step: dense, with half of the weights kept at zero, and with a teacher. One model and optimizer.

    The mask costs less than the noise between steps on a busy machine, so it is also timed without the step.
    """
    schema, model, machine = bench.schema(), bench.model(), bench.machine
    optimizer, data, options = optim.build(model, schema.bind), RandomTokens(schema), schema.bind(loop.LoopOptions)
    tokens = schema["BATCH_SIZE"] * schema["BLOCK_SIZE"]
    held = pruner(bench, model, optimizer, "magnitude")
    grads = [torch.randn_like(weight.value) for weight in held.weights]

    def case(name: str, held: AnyPruner, base: str = "", teacher: Teacher | None = None) -> Case:
        training = Training(model, optimizer, held, machine, schema.bind(DivergenceOptions), dict, teacher)
        loop.update(training, data, machine, options, CHOICE_STEP)
        run = functools.partial(loop.update, training, data, machine, options, CHOICE_STEP + 1)
        return Case(name, run, base, work=training.flops_per_token() * tokens / 1e9, unit="GFLOP")

    def hold() -> None:
        for weight, grad in zip(held.weights, grads, strict=True):
            weight.parameter.grad = grad
        held.hold()
        optimizer.zero_grad(set_to_none=True)

    free = NoPruning(model.prunable())
    dense = case("dense step", free)
    masked = case("step with a 50 % mask", held, dense.name)
    alone = Case("keeping the mask alone", hold, dense.name)
    taught = case("step with a teacher", free, dense.name, Teacher(bench.model(), schema.bind(DistillOptions)))
    bench.measure("step", [dense, masked, alone, taught], tokens=tokens)

"""What a checkpoint costs: the time that training waits for it, and the time to write it."""

import tempfile
import time
from pathlib import Path

import torch

from bench import Bench
from bench.timing import Case
from gpt2.divergence import DivergenceOptions
from gpt2.training import Training
from lib import optim
from lib.prune.dense import NoPruning
from lib.record import checkpoint


def saving(bench: Bench) -> None:
    """A save as the loop sees it, a save until it is written and a blocking save, against a copy of the tensors.

    Checkpoints go to the system's folder for temporary files; TMPDIR names another. The first save allocates memory
    for the copy, so it is not in the figures.
    """
    model = bench.model()
    optimizer = optim.build(model, bench.schema().bind)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    divergence = bench.schema().bind(DivergenceOptions)
    training = Training(model, optimizer, NoPruning(model.prunable()), bench.machine, divergence, dict)
    tensors = [*model.state_dict().values(), *(value for state in optimizer.state.values() for value in state.values())]
    keeping = bench.schema().bind(checkpoint.Keeping)
    copies = [torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda) for tensor in tensors]

    def copy() -> None:
        for mine, tensor in zip(copies, tensors, strict=True):
            mine.copy_(tensor, non_blocking=tensor.is_cuda)

    with tempfile.TemporaryDirectory() as name, checkpoint.Writer(Path(name), keeping, {}, bool, print) as writer:

        def save() -> float:
            began = time.perf_counter()
            writer.save(1, training.state_dict())
            seconds = time.perf_counter() - began
            writer.wait()
            return seconds

        save()
        gigabytes = sum(tensor.nbytes for tensor in tensors) / 1e9
        plain = Case("copy of the state", copy, work=gigabytes, unit="GB")
        seen = Case("save as the loop sees it", save, plain.name, reports=True)
        whole = Case("save until it is written", save, plain.name)
        blocking = Case(
            "blocking save", lambda: checkpoint.save(Path(name), 1, training.state_dict(), keeping, {}), plain.name
        )
        bench.measure("saving", [plain, seen, whole, blocking], writes=True)

"""What the loop around the model costs: batch, clipping, optimizer, guard and journal, beside forward and backward."""

import itertools
import tempfile
from pathlib import Path

import torch

from bench import Bench, whole
from bench.reference import COMPARISONS
from bench.timing import Case
from gpt2 import loop, model, training
from gpt2.data import windows
from gpt2.data.ahead import Ahead
from gpt2.divergence import DivergenceOptions
from lib import optim, schedule
from lib.prune.dense import NoPruning
from lib.record import journal


def around(bench: Bench) -> None:
    """A whole step with its journal record over forward and backward alone, on the smallest model beside nanoGPT's."""
    shape, device = whole.TINY if bench.size == "tiny" else COMPARISONS["4x128"].shape, bench.machine.device
    with whole.scratch({shape.tokenizer}) as folder, tempfile.TemporaryDirectory() as run:
        (Path(run) / "bins").symlink_to(folder / shape.tokenizer)
        where = {"DATASET": "bins", "DATA_DIR": str(Path(run) / "bins"), "TOKENIZER": shape.tokenizer}
        schema = bench.schema(**shape.options | where)
        data = windows.load(schema.bind(windows.DataOptions), pin=device.type == "cuda")
        torch.manual_seed(0)
        net = model.GPT2(schema.bind(model.ModelOptions), data.vocab_size).to(device)
        optimizer, rates = optim.build(net, schema.bind), schedule.build(schema.bind)
        pruner, guard = NoPruning(net.prunable()), schema.bind(DivergenceOptions)
        state = training.Training(net, optimizer, pruner, bench.machine, guard, dict)
        state.compile(whole.compilable(shape, device))
        options, numbers, book = schema.bind(loop.LoopOptions), itertools.count(1), journal.Journal(Path(run))
        x, y = (part.to(device) for part in data.batch(0, 0))
        batches = Ahead(data, bench.machine.ranks.share(options.gradient_accumulation))  # as training reads them

        def alone() -> None:
            with bench.machine.autocast():
                loss = state.forward(x, y)
            loss.backward()
            optimizer.zero_grad(set_to_none=True)

        def step() -> None:
            state.step = next(numbers)
            optim.set_learning_rate(optimizer, 1e-5)
            loss, norm = loop.update(state, batches, bench.machine, options, state.step)
            if state.step % options.log_interval == 0:
                metrics = loop.train_metrics(state, data, bench.machine, rates, loss, norm, 1.0)
                book.write("train", state.step, metrics)

        base = Case("forward and backward", alone)
        whole_step = Case("whole step", step, base.name)
        bench.measure("loop around the model", [base, whole_step], tokens=shape.tokens)
        book.close()

"""How costs grow: the threshold with the weights; training with model, context and batch; the journal with steps."""

import functools
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch

from bench import Bench, whole
from bench.timing import Case
from bench.whole import Shape
from lib.prune import select
from lib.record import journal

_PIECE = 100_000_000  # the most weights in memory; larger sizes use them several times
_MODEL = Shape(6, 6, 384, 256, 4, "bytes", 2, 5)
_TRAINED = {
    "4 x 128": _MODEL._replace(n_layer=4, n_head=4, n_embd=128),
    "12 x 768": _MODEL._replace(n_layer=12, n_head=12, n_embd=768),
    **{f"6 x 384, context {tokens}": _MODEL._replace(block_size=tokens) for tokens in (64, 256, 1024)},
    **{f"6 x 384, batch {batch}": _MODEL._replace(batch_size=batch) for batch in (1, 16)},
}
_RECORDS = 1000  # written to measure the time of one
_RECORD = {
    "train_loss": 3.25, "learning_rate": 6e-4, "sparsity": 0.5, "average_nonzeros": 1.2e8, "grad_norm": 0.71,
    "tokens": 4096000, "tokens_per_second": 123456.7,
}  # fmt: skip


def thresholds(bench: Bench) -> None:
    """The exact threshold of the smallest half against the number of weights."""
    sizes = (1_000, 10_000) if bench.size == "tiny" else (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
    held = torch.randn(min(max(sizes), _PIECE), device=bench.machine.device)
    cases = []
    for size in sizes:
        pieces = [held[:size]] * max(1, size // _PIECE)
        sources = [
            select.Source(one.shape, one.device, lambda rows, one=one: select.keys(one[rows].abs(), "weights"))
            for one in pieces
        ]
        run = functools.partial(select.prune, sources, size // 2)
        cases.append(Case(f"threshold of {size:,} weights", run, work=size * 4 / 1e9, unit="GB"))
    bench.measure("scale of the threshold", cases)


def training(bench: Bench) -> None:
    """Speed and peak memory of whole runs against model, context and batch; by default 4 x 256 tokens."""
    rows = {}
    for name, shape in ({"tiny": whole.TINY} if bench.size == "tiny" else _TRAINED).items():
        with whole.scratch({shape.tokenizer}) as folder:
            run = functools.partial(whole.train, shape, folder, bench.machine.device)
            done = bench.alone("scale of training", run)
        blocks = 12 * shape.n_layer * shape.n_embd**2
        rows[name] = {
            "M weights in blocks": blocks / 1e6, "tokens": shape.tokens, "tokens/s": shape.tokens / done.step_seconds,
            "peak MiB": done.peak_bytes / 2**20,
        }  # fmt: skip
        bench.note("scale of training", rows)


def journals(bench: Bench) -> None:
    """The time to give a record to the journal, and to read the history of a run by its number of steps."""
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as made:
        folder = Path(made)
        cases = []
        for steps in (10, 100) if bench.size == "tiny" else (1_000, 10_000, 100_000):
            (run := folder / str(steps)).mkdir()
            book = journal.Journal(run)
            for step in range(steps):
                book.write("train", step, _RECORD)
            book.close()
            cases.append(Case(f"history of {steps:,} steps", lambda run=run: journal.history(run)))
        book = journal.Journal(folder)
        steps = itertools.count()
        cases.append(Case("a record", lambda: _record_seconds(book, steps), reports=True))
        bench.measure("scale of the journal", cases)
        book.close()


def _record_seconds(book: journal.Journal, steps: itertools.count) -> float:
    """The median time that the loop waits for a record."""
    found = []
    for _ in range(_RECORDS):
        began = time.perf_counter()
        book.write("train", next(steps), _RECORD)
        found.append(time.perf_counter() - began)
    return statistics.median(found)

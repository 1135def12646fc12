"""Cuts a step's sequences into micro-batches: as many for each process, and as large as memory allows.

A step takes BATCH_SIZE x GRADIENT_ACCUMULATION sequences, and the cut changes only the rounding of what it learns. So
the product stays, and a run records the cut that it uses as if it had been given.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from gpt2 import distillation
from gpt2.data import tokenizer as tokenizers
from gpt2.model import GPT2
from gpt2.shape import ShapeOptions
from lib import optim
from lib.config.kconf import Options, Schema
from lib.machine.device import Machine

_NAMES = ("BATCH_SIZE", "GRADIENT_ACCUMULATION")
# The share of a GPU's memory that must stay free: for masks, for the sums of ranks, and for what is not tried out.
_RESERVE = 0.1


@dataclasses.dataclass(frozen=True)
class CutOptions(Options):
    """How a step is cut, and whether to find out a better way."""

    batch_size: int
    gradient_accumulation: int
    auto_batch: bool
    tokenizer: str


def follow(schema: Schema, folder: Path) -> None:
    """Give `schema` the cut of the run in `folder`, if both have as many sequences in a step.

    A job that comes back has the options it was started with, and its run may have been cut anew.
    """
    there = Schema()
    there.load(folder / ".config", ranges=False)
    if _total(there.bind(CutOptions)) == _total(schema.bind(CutOptions)):
        _set(schema, there["BATCH_SIZE"], f"{folder / '.config'}")


def cut(schema: Schema, machine: Machine) -> str:
    """Cut a step anew if its micro-batches cannot be shared evenly, or as AUTO_BATCH says; returns a note, or "".

    All ranks must call this together. If no cut can be shared, nothing changes, and `preflight.check_shares` raises.
    """
    options, ranks = schema.bind(CutOptions), machine.ranks
    before, total = _words(options), _total(options)
    if total % ranks.size:
        return ""
    if options.auto_batch and machine.device.type == "cuda":
        fits = trial(schema, machine)
        _set(schema, largest(total, ranks.size, lambda size: not ranks.any(not fits(size))), "AUTO_BATCH=y")
        del fits  # with the model that it trained
        torch.cuda.empty_cache()
        return f"AUTO_BATCH=y: {_words(schema.bind(CutOptions))} is the largest that fits"
    if options.auto_batch:
        _set(schema, options.batch_size, "AUTO_BATCH=y")
        return "AUTO_BATCH=y tries out only the memory of CUDA GPUs; " + (cut(schema, machine) or f"{before} stays")
    if count := shared(options.gradient_accumulation, total, ranks.size):
        _set(schema, total // count, f"{ranks.size} processes")
        after = _words(schema.bind(CutOptions))
        return f"{ranks.size} processes share a step evenly with {after} in place of {before}; this learns the same"
    return ""


def shared(count: int, total: int, ranks: int) -> int | None:
    """The smallest number of micro-batches above `count` that `ranks` can share; None if they can share `count`.

    So micro-batches only become smaller, and fit where those before did. `total` is a multiple of `ranks`.
    """
    if count % ranks == 0:
        return None
    return next(n for n in range(count - count % ranks + ranks, total + 1, ranks) if total % n == 0)


def largest(total: int, ranks: int, fits: Callable[[int], bool]) -> int:
    """The largest power of two that `fits` as the size of micro-batches that `ranks` can share; at least 1.

    Sizes are tried from small to large, up to the first that does not fit.
    """
    best, size = 1, 2
    while total % (size * ranks) == 0 and fits(size):
        best, size = size, 2 * size
    return best


def trial(schema: Schema, machine: Machine) -> Callable[[int], bool]:
    """A function that tells whether micro-batches of so many sequences fit into the memory of this rank's GPU.

    It trains a model of this configuration, with a teacher if it has one, without torch.compile and without pruning.
    """
    vocab_size = tokenizers.vocab_size(schema.bind(CutOptions).tokenizer)
    model = GPT2(schema.bind(ShapeOptions), vocab_size).to(machine.device)
    optimizer = optim.build(model, schema.bind)
    teacher = distillation.stand_in(schema, vocab_size, machine.device)

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        try:
            tokens = torch.zeros(size, model.block_size, dtype=torch.int64, device=machine.device)
            for _ in range(2):  # the second time, there are gradients and the optimizer's state
                with machine.autocast():
                    loss = teacher.losses(model, tokens, tokens)[0] if teacher else model(tokens, tokens)
                loss.backward()
                optim.skip_if(optimizer, torch.zeros((), device=machine.device))
                optimizer.step()
        except torch.OutOfMemoryError:
            return False
        finally:
            optimizer.zero_grad(set_to_none=True)
        free, there = torch.cuda.mem_get_info(machine.device)  # what was freed is still reserved
        return free >= _RESERVE * there

    return fits


def _total(options: CutOptions) -> int:
    return options.batch_size * options.gradient_accumulation


def _words(options: CutOptions) -> str:
    return f"BATCH_SIZE={options.batch_size} GRADIENT_ACCUMULATION={options.gradient_accumulation}"


def _set(schema: Schema, batch: int, source: str) -> None:
    """Cut the steps of `schema` into micro-batches of `batch` sequences."""
    texts = (str(batch), str(_total(schema.bind(CutOptions)) // batch))
    schema.override([(name, text, source) for name, text in zip(_NAMES, texts, strict=True)])
    if schema["AUTO_BATCH"]:
        schema.override([("AUTO_BATCH", "n", source)])  # so a resumed run keeps this cut

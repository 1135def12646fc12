"""Reads the weights and the masks of a run from one of its checkpoints."""

from torch import Tensor

from gpt2.data import tokenizer as tokenizers
from gpt2.weights.form import Content, Shape, Source
from lib.base.errors import UserError
from lib.config.kconf import Schema
from lib.prune import saved_masks
from lib.record import checkpoint, checkpoint_file, lineage, run


def find(given: str, named: run.Named) -> Source:
    """The checkpoint that `named` names, or the newest; the run's .config has its shape, tokenizer and activation."""
    schema = Schema()
    schema.load(run.configuration(named.folder), ranges=False)  # an earlier version may have had wider ranges
    path = checkpoint_file.chosen(named.folder, named.checkpoint or "newest")
    step = checkpoint_file.header(path)["step"]
    tokenizer = schema["TOKENIZER"]
    return Source(
        given=given,
        kind="run",
        path=path,
        shape=Shape(
            schema["N_LAYER"],
            schema["N_HEAD"],
            schema["N_EMBD"],
            schema["BLOCK_SIZE"],
            tokenizers.vocab_size(tokenizer),
            schema["MLP_WIDTHS"],
            schema["HEAD_COUNTS"],
        ),
        tokenizer=tokenizer,
        activation=schema["ACTIVATION"],
        revision="",
        step=step,
        ancestors=lineage.chain(named.folder, step),
    )


def read(source: Source) -> Content:
    """The model and the masks of a checkpoint. Rows that only pad the vocabulary are left out."""
    run_id = run.Identity.load(source.path.parent.parent).run_id
    state, rows = checkpoint.load(source.path, expected={"run_id": run_id}), source.shape.vocab_size
    model, pruner = state.get("model"), state.get("pruner") or {}
    del state  # the optimizer's moments take twice the memory of the weights
    if not isinstance(model, dict) or not all(isinstance(value, Tensor) for value in model.values()):
        raise UserError(f"{source.path}: there are no weights in this checkpoint; use another one")
    try:
        masks = saved_masks.unpack(pruner)
        average = _average(pruner["counters"], masks, source.step) if masks and source.step else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source.path}: the masks in this checkpoint cannot be read: {error}") from None
    if all(mask.all() for mask in masks.values()):  # the schedule has not pruned yet
        masks = {}
    return Content(
        tensors=[(name, _unpadded(name, value, rows)) for name, value in model.items()],
        masks={name: _unpadded(name, mask, rows) for name, mask in masks.items()},
        average=average,
    )


def _average(counters: dict[str, int], masks: dict[str, Tensor], step: int) -> float:
    """The weights that were kept, mean over the steps so far; see `Pruner.metrics`, which logs it at few steps."""
    kept = sum(int(mask.sum()) for mask in masks.values())
    return (counters["kept_steps"] + kept * (step - counters["changed_at"])) / step


def _unpadded(name: str, tensor: Tensor, rows: int) -> Tensor:
    return tensor[:rows] if name == "wte.weight" else tensor

"""Where weights can be read from: a run, a Hugging Face folder or hub name, or a checkpoint of nanoGPT."""

import hashlib

import torch
from torch import Tensor

from gpt2.weights import form, hub, huggingface, named, nanogpt, runs
from gpt2.weights.form import Content, Shape, Source, Weights
from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.record import checkpoint

__all__ = ["Shape", "Source", "Weights", "find", "read", "sha256"]

_HEAD, _EMBEDDING = "lm_head.weight", "wte.weight"
_READERS = {"run": runs.read, "huggingface": huggingface.read, "nanogpt": nanogpt.read}


def find(given: str, output_dir: str = "") -> Source:
    """The source that the value of INIT_FROM, or of a RUN@CHECKPOINT, names. Reads no tensors.

    A run or a model at this path is meant first, then a run of this name in `output_dir`, then a repository of the hub.
    Without `output_dir`, runs are looked up in the OUTPUT_DIR of .config. A name on the hub, OWNER/NAME or
    OWNER/NAME@REVISION, is resolved to a commit, and its files are downloaded. Raises UserError with one sentence for
    everything that cannot be used.
    """
    path = files.named(given)
    if found := named.of_run(given, output_dir):
        return runs.find(given, found)
    # The clone itself has a folder gpt2.
    if path.is_dir() and (given not in hub.PUBLISHED or (path / "config.json").exists()):
        return huggingface.find(given, path)
    if path.is_file() and path.suffix in (".safetensors", ".bin", ".json"):
        raise UsageError(f"{path}: is one file of a model; name its folder, {path.absolute().parent}")
    if path.is_file():
        return nanogpt.find(given, path)
    named.check(given, output_dir)
    found = hub.download(given)
    return huggingface.find(given, found.folder, found.name, found.folder.name)


def read(source: Source, block_size: int, vocab_size: int) -> Weights:
    """The weights of a source, cut to `block_size` positions and `vocab_size` tokens; raises UserError.

    Weights that are NaN or infinite, or that are missing, are errors.
    """
    shape = source.shape
    for what, asked, there in (("positions", block_size, shape.block_size), ("tokens", vocab_size, shape.vocab_size)):
        if asked > there:
            option = "lower BLOCK_SIZE" if what == "positions" else "choose another TOKENIZER"
            raise UsageError(f"{source.path}: the weights are for {there} {what}, not for {asked}; {option}")
    rows = form.rows(block_size, vocab_size)
    content = _READERS[source.kind](source)
    state = _collected(source, content, rows)
    masks = form.cut(content.masks, block_size, vocab_size)
    for name, mask in masks.items():
        if name not in state or mask.shape != state[name].shape:
            raise UserError(f"{source.path}: the mask of {name} does not fit the weights; use another source")
    return Weights(state, sha256(source), masks, content.average)


def _collected(source: Source, content: Content, rows: dict[str, int]) -> dict[str, Tensor]:
    """The tensors of `content` in float32, cut to `rows`, if they are exactly those of the shape."""
    expected, state = source.shape.tensors(), {}
    allowed = {**expected, _HEAD: expected[_EMBEDDING]}
    rows = {**rows, _HEAD: rows[_EMBEDDING]}
    for name, tensor in content.tensors:
        if problem := _problem(tensor, allowed.get(name), name in state):
            raise UserError(f"{source.path}: the tensor {name} {problem}; use weights that fit their configuration")
        kept = tensor[: rows.get(name)]
        if len(kept) < len(tensor):
            kept = kept.clone()  # so that the rest can be freed
        state[name] = kept.to(torch.float32).contiguous()
        if not checkpoint.is_finite([state[name]]):
            raise UserError(f"{source.path}: weights in {name} are NaN or infinite; use other weights")
    head = state.pop(_HEAD, None)
    # Of two tensors that are the same, some files have only one.
    if head is not None and not torch.equal(head, state.setdefault(_EMBEDDING, head)):
        raise UserError(
            f"{source.path}: {_HEAD} differs from {_EMBEDDING}, and the head of this GPT-2 is tied to its embedding; "
            "use another model"
        )
    if missing := [name for name in expected if name not in state]:
        raise UserError(
            f"{source.path}: {len(missing)} of {len(expected)} tensors are missing, the first is {missing[0]}; use "
            "weights that fit their configuration"
        )
    return state


def _problem(tensor: Tensor, shape: tuple[int, ...] | None, again: bool) -> str:
    """Why a tensor cannot be used where `shape` is expected, and None if nothing is; "" if it can."""
    if shape is None:
        return "is not part of this GPT-2"
    if again:
        return "is there twice"
    if not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return f"holds no plain floating-point numbers, but {tensor.dtype} ({tensor.layout}, {tensor.device})"
    if tuple(tensor.shape) != shape:
        return f"is {list(tensor.shape)}, not {list(shape)}"
    return ""


def sha256(source: Source) -> str:
    """See Weights.sha256."""
    found: dict[str, str] = {}
    for path in huggingface.files(source.path) if source.kind == "huggingface" else [source.path]:
        try:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(found) == 1:
        return next(iter(found.values()))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(found.items())).encode()).hexdigest()

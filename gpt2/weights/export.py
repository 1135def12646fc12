"""Writes a Hugging Face folder of a model, and reads it back: whole under its name, or absent."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from gpt2.data import tokenizer as tokenizers
from gpt2.weights import masks, tokenizer_files
from gpt2.weights.card import card
from gpt2.weights.facts import Facts
from gpt2.weights.source import Shape, Source, Weights
from lib.base import files
from lib.base.errors import UsageError, UserError

RECORD, WEIGHTS, MASKS = "espalier.json", "model.safetensors", "masks.safetensors"
FILES = (
    WEIGHTS, MASKS, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", RECORD,
    "README.md",
)  # fmt: skip
TOLERANCE = 1e-3  # the largest difference of a logit; rounding in float32 makes about 1e-5
_CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # (out, in) in our model, (in, out) in transformers
_ACTIVATIONS = {"gelu-tanh": "gelu_new", "gelu": "gelu"}  # ours -> theirs
_CHUNK = 1 << 26  # bytes that are written between two looks at the signals
_TEXT = "It's 12:30, naïve <|endoftext|>\t\n  再见 👩🏽‍🚀 \x00\u0301"


@contextlib.contextmanager
def folder(out: Path) -> Iterator[Path]:
    """A context with a new folder to write in. Its end renames the folder to `out`; an error deletes it.

    Raises UserError if `out` has something else than an earlier export, which is replaced.
    """
    check(out)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    earlier = draft.with_suffix(".old")
    try:
        with _writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            _tidy(out)
            draft.mkdir()
        yield draft
        check(out)  # it may have changed meanwhile
        with _writing(out):
            if out.exists():
                out.rename(earlier)
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if out.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        elif earlier.exists():
            earlier.rename(out)


def _tidy(out: Path) -> None:
    """Remove what killed exports to `out` left; an earlier export that they had moved away comes back."""
    for path in list(out.parent.iterdir()):
        left = re.fullmatch(rf"\.{re.escape(out.name)}\.(\d{{1,9}})\.(tmp|old)", path.name)
        if not left or (int(left[1]) != os.getpid() and psutil.pid_exists(int(left[1]))):
            continue
        if left[2] == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {files.reason(error, out.parent)}") from None


def check_shape(shape: Shape) -> None:
    """Raise UsageError for a model that transformers' GPT-2 cannot be: its layers are alike, with all their heads."""
    if shape.head_counts or "," in shape.mlp_widths:
        option = f"HEAD_COUNTS={shape.head_counts}" if shape.head_counts else f"MLP_WIDTHS={shape.mlp_widths}"
        raise UsageError(
            f"{option}: transformers' GPT2Config has one n_inner for all layers, and heads that fill n_embd, so "
            "it cannot describe this model; to export one, prune only neurons, with PRUNING_DISTRIBUTION=layer"
        )


def check(out: Path) -> None:
    """Raise UsageError if an export to `out` would replace anything but an earlier export."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out}: is there, and is no folder; choose another OUT")
    if not out.exists():
        return
    others = [path.name for path in out.iterdir() if path.name not in FILES or not path.is_file()]
    if others or (any(out.iterdir()) and not (out / RECORD).exists()):
        what = f"such as {min(others)}, " if others else ""
        raise UsageError(f"{out}: has files, {what}that are no export of Espalier; choose another OUT or remove them")


def write(draft: Path, source: Source, weights: Weights, facts: Facts) -> None:
    """Write all files of an export into a folder; raises UserError."""
    end = tokenizers.load(source.tokenizer).end_of_text
    write_weights(draft / WEIGHTS, published(weights.state))
    if weights.masks:
        masks.write(draft / MASKS, weights.masks)
    files.write_json(draft / "config.json", configuration(source, facts.schema["DROPOUT"], end))
    files.write_json(draft / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    tokenizer_files.write(draft, source.tokenizer, source.shape.block_size)
    files.write_json(draft / RECORD, facts.record())
    files.write(draft / "README.md", card(facts).encode(errors="replace"))


def configuration(source: Source, dropout: float, end: int) -> dict[str, Any]:
    """The content of config.json: what transformers' GPT2Config needs."""
    shape = source.shape
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": shape.vocab_size,
        "n_positions": shape.block_size,
        "n_embd": shape.n_embd,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_inner": int(shape.mlp_widths) if shape.mlp_widths else None,
        "activation_function": _ACTIVATIONS[source.activation],
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "float32",
        "torch_dtype": "float32",  # the name before transformers 4.56
    }


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the names and the orientation of transformers' GPT2LMHeadModel; views of ours."""
    return {f"transformer.{name}": t.t() if name.endswith(_CONV1D) else t for name, t in state.items()}


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write float32 tensors as safetensors, one after another, with a progress bar; raises UserError.

    The library's own function needs a copy of all of them in memory, and Ctrl-C waits for its end. The format is at
    https://huggingface.co/docs/safetensors: the length of the header in 8 bytes, the header as JSON, the tensors.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [size, size + tensor.nbytes]}
        size += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    try:
        with (
            files.whole(path) as file,
            tqdm(total=size, unit="B", unit_scale=True, desc=path.name, leave=False, disable=None) as bar,
        ):
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                content = memoryview(tensor.contiguous().numpy().reshape(-1).view("uint8"))
                for begin in range(0, len(content), _CHUNK):
                    bar.update(file.write(content[begin : begin + _CHUNK]))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {files.reason(error, path.parent, 8 + len(text) + size)}"
        ) from None


# ---- reading back ----------------------------------------------------------------------------------------------------


def window(source: Source) -> Tensor:
    """The tokens (1, T) for which logits are compared: the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(source.shape.vocab_size, (1, min(128, source.shape.block_size)), generator=generator)


def read_back(draft: Path, source: Source, weights: Weights, logits: Tensor) -> str:
    """Compare the folder with the run, bit by bit, and with transformers where it is installed; raises UserError.

    `logits` (T, V) are those of the run's model for `window`. Returns a sentence that says what was compared.
    """
    _same_tensors(draft, weights)
    count = f"{len(weights.state)} tensors are bit-identical to the run's"
    if weights.masks:
        count += f", and the zeros of {len(weights.masks)} are those of its masks"
    if importlib.util.find_spec("transformers") is None:
        return f"{count}; transformers is not installed, so no logits were compared"
    version, gap = _with_transformers(draft, source, logits)
    return f"{count}; logits of transformers {version} differ by at most {gap:.1e} on {window(source).numel()} tokens"


def _same_tensors(draft: Path, weights: Weights) -> None:
    """Raise UserError if a tensor or a mask in the folder differs from the run's, or if a pruned weight is not zero."""
    expected = published(weights.state)
    with safetensors.safe_open(draft / WEIGHTS, "pt") as file:
        if set(file.keys()) != expected.keys():
            raise UserError(f"{draft / WEIGHTS}: has other tensors than the run; export it again")
        for name, tensor in tqdm(expected.items(), desc="reading back", leave=False, disable=None):
            if not torch.equal(file.get_tensor(name).view(torch.int32), tensor.contiguous().view(torch.int32)):
                raise UserError(f"{draft / WEIGHTS}: {name} differs from the run's; the disk may be damaged")
    if not weights.masks:
        return
    kept = masks.read_file(draft / MASKS)[0]
    for name, mask in weights.masks.items():
        if not torch.equal(kept[name], mask):
            raise UserError(f"{draft / MASKS}: the mask of {name} differs from the run's; the disk may be damaged")
        if bool(weights.state[name][mask == 0].count_nonzero()):
            raise UserError(f"{name}: has weights under its mask that are not zero; use another checkpoint")


def _with_transformers(draft: Path, source: Source, logits: Tensor) -> tuple[str, float]:
    """The version of transformers, and the largest difference between its logits and ours; raises UserError."""
    import transformers  # here, because it takes seconds, and only tests and users of transformers have it

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ids = transformers.AutoTokenizer.from_pretrained(draft, local_files_only=True)(_TEXT)["input_ids"]
    if ids != tokenizers.load(source.tokenizer).encode_batch([_TEXT])[0].tolist():
        raise UserError(
            f"{draft}: AutoTokenizer of transformers {transformers.__version__} gives other ids than the run"
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(draft, local_files_only=True).float().eval()
    with torch.no_grad():
        gap = float((model(window(source)).logits[0] - logits).abs().max())
    if not gap <= TOLERANCE:  # also for NaN
        raise UserError(
            f"{draft}: logits of transformers {transformers.__version__} differ from the run's by {gap:.1e}, more than "
            f"{TOLERANCE:g}; another version of transformers may help"
        )
    return transformers.__version__, gap

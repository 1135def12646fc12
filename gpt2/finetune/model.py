"""The model on its way to TRL and back: a folder that transformers loads, and the weights of what was trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from gpt2.data import tokenizer as tokenizers
from gpt2.weights import export, masks, tokenizer_files
from gpt2.weights.source import Source
from lib.base import files
from lib.prune import adapters

_PREFIX = "transformer."
_CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # (in, out) in transformers, (out, in) in our model
_ADAPTED = ["c_attn", "c_proj", "c_fc"]


def write(
    folder: Path, source: Source, state: Mapping[str, Tensor], kept: Mapping[str, Tensor], dropout: float
) -> None:
    """Write the model into `folder` as transformers reads it, with the masks that hold, if there are any.

    Raises UsageError for a model that transformers cannot describe.
    """
    export.check_shape(source.shape)
    end = tokenizers.load(source.tokenizer).end_of_text
    export.write_weights(folder / export.WEIGHTS, export.published(state))
    if kept:
        masks.write(folder / masks.FILE, kept)
    files.write_json(folder / "config.json", export.configuration(source, dropout, end))
    files.write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    tokenizer_files.write(folder, source.tokenizer, source.shape.block_size)


def load(folder: Path) -> "transformers.PreTrainedModel":
    """The model of transformers in `folder`, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


def tokenizer(folder: Path, template: str) -> "transformers.PreTrainedTokenizerBase":
    """The tokenizer in `folder`, in whose texts the end-of-text token is itself: TRL appends it to texts.

    Everywhere else in Espalier it is ordinary text.
    """
    found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, split_special_tokens=False)
    end = found.eos_token_id
    found.add_special_tokens({"eos_token": found.eos_token, "bos_token": found.bos_token})
    found.pad_token = found.eos_token
    if found.eos_token_id != end or found(found.eos_token)["input_ids"] != [end]:
        raise RuntimeError(f"{folder}: the end-of-text token is {found(found.eos_token)['input_ids']}, not {end}")
    found.chat_template = template
    return found


def lora(rank: int) -> Any:
    """The configuration of LoRA for all linear layers, with alpha twice the rank (Hu et al., arXiv 2106.09685)."""
    import peft  # here, because it takes seconds

    return peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=_ADAPTED,
        fan_in_fan_out=True,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model of transformers with our names and orientation, float32 on the CPU, adapters merged."""
    state: dict[str, Tensor] = {}
    adapted = {name: module for name, module in model.named_modules() if adapters.adapts(module)}
    for name, value in model.named_parameters():
        if ".lora_" in name:
            continue
        layer = adapted.get(name.removesuffix(f"{adapters.BASE}.weight"))
        if layer is not None:
            value = adapters.merged(layer).weight
        plain = name.replace(f"{adapters.BASE}.", ".").partition(_PREFIX)[2]
        if plain:  # the head is tied to the embedding
            value = value.t() if plain.endswith(_CONV1D) else value
            state[plain] = value.detach().to("cpu", torch.float32).contiguous()
    return state

"""The model card of an exported run: README.md with the header that the Hugging Face hub reads."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt2.weights.facts import Facts, command
from lib.record import lineage, scores
from lib.terminal import view

_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[0-9a-f]+)?", re.ASCII)


def card(facts: Facts) -> str:
    """The text of README.md. It says only what the run recorded, and what was not measured."""
    parts = [
        _header(facts),
        f"# {_code(facts.identity.name)}",
        _what(facts),
        "## Training",
        _table(("", ""), list(_training(facts))),
        "## Results",
        _results(facts),
    ]
    if facts.zeros:
        parts += ["## Sparsity", _sparsity(facts)]
    parts += ["## Use", _use(facts), "## Repeat", _repeat(facts), "## Limits", _limits(facts), "## Licence"]
    return "\n\n".join([*parts, _licence(facts)]) + "\n"


def _header(facts: Facts) -> str:
    """YAML. JSON is valid YAML, so values that may need quotes are written as JSON."""
    method = facts.config.get("pruning_method")
    tags = ["gpt2", "espalier", *(["pruned", "sparse", f"pruning-{method}"] if facts.zeros else [])]
    lines = {
        "license": "other" if facts.foreign else "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    if facts.foreign:
        lines["license_name"] = "licence-of-the-starting-weights"
        if models := [name.partition("@")[0] for name in facts.foreign if _ON_THE_HUB.fullmatch(name)]:
            lines["base_model"] = models
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in lines.items()), "---"])


def _what(facts: Facts) -> str:
    shape = facts.source.shape
    count = f"{facts.parameters:,} parameters"
    text = (
        f"A GPT-2 with {shape.n_layer} layers, {shape.n_head} heads, width {shape.n_embd}"
        + (f", {shape.mlp_widths} neurons in each MLP" if shape.mlp_widths else "")
        + f" and a context of {shape.block_size} tokens ({count}). Its tokenizer is "
        + ("GPT-2's byte-pair encoding." if facts.source.tokenizer == "gpt2" else "one token for each byte of UTF-8.")
    )
    if facts.zeros:
        text += (
            f" {facts.sparsity:.2%} of the weights that pruning covers are exactly zero. They are stored as zeros in "
            "`model.safetensors`. `masks.safetensors` has the masks as packed bits."
        )
    return f"{text} It was made with Espalier, which trains and prunes GPT-2."


def _training(facts: Facts) -> Iterator[tuple[str, str]]:
    config = facts.config
    data = ", ".join(str(config[name]) for name in ("dataset", "dataset_source", "dataset_subset") if config.get(name))
    yield "run", f"{_code(facts.identity.name)}, id {_code(facts.identity.run_id)}"
    yield "checkpoint", f"after {'block' if facts.is_oneshot else 'step'} {facts.step:,}"
    yield "data", _code(data)
    if init := facts.origin("init"):
        yield "first weights", _code(_origin(init))
    if masks := facts.origin("masks"):
        yield "masks", _code(_origin(masks))
    if teacher := facts.origin("teacher"):
        yield "teacher", _code(_origin(teacher))
    yield "tokens of this run", f"{facts.own_tokens:,}"
    unknown = f"not known, because those of {', '.join(map(_code, facts.unknown))} are not"
    yield "tokens of the whole chain", unknown if facts.total_tokens is None else f"{facts.total_tokens:,}"
    if facts.is_finetuned:
        yield "fine-tuned by", _code(f"{config['finetune_recipe']} of TRL on {config['finetune_data']}")
    if not facts.is_oneshot:
        yield "optimizer", _code(str(config["optimizer"]))
    if facts.zeros:
        names = ("pruning_method", "pruning_dynamics", "pruning_distribution")
        yield "pruning", _code(", ".join(str(config[name]) for name in names if config.get(name)))
    yield "seed", f"{config['seed']}"
    yield "code", _code(facts.code) if facts.code else "not known"


def _origin(part: Mapping[str, Any]) -> str:
    """What the start event says about `init`, `masks` or `teacher`, in a few words."""
    words = [str(part["from"]), *(f"{key} {part[key]}" for key in ("revision", "step") if part.get(key))]
    return ", ".join([*words, f"sha256 {part['sha256'][:12]}"])


def _results(facts: Facts) -> str:
    rows = []
    if facts.loss is not None:
        rows.append(("these weights", f"{facts.step:,}", f"{facts.loss:.4f}"))
    if facts.best:
        rows.append(("best of the run up to here", f"{facts.best.step:,}", f"{facts.best.val_loss:.4f}"))
    if not rows:
        text = "The run did not evaluate its validation loss."
    else:
        config, bits = facts.config, ""
        if facts.bits_per_byte is not None:
            bits = f" The loss of these weights is {facts.bits_per_byte:.4f} bits per byte of text."
        text = (
            f"{_table(('validation loss of', 'step', 'nats per token'), rows)}\n\n"
            f"n: all windows of {config['block_size']:,} tokens of the validation split, or {config['eval_samples']:,} "
            f"of them, evenly spread, if it has more.{bits} One run with one seed: differences between seeds were not "
            "measured here."
        )
    if not facts.tasks:
        return text
    rows = [scores.cells(score, view.number)[:5] for score in scores.scores(facts.tasks)]
    return f"{text}\n\n{_table(('measured later, on these weights', *scores.TITLES[1:5]), rows)}"


def _sparsity(facts: Facts) -> str:
    rows = [(_code(f"transformer.{name}"), f"{w:,}", f"{z:,}", f"{z / w:.2%}") for name, (z, w) in facts.zeros.items()]
    zeros, weights = (sum(counts) for counts in zip(*facts.zeros.values(), strict=True))
    rows.append(("all of these", f"{weights:,}", f"{zeros:,}", f"{zeros / weights:.2%}"))
    share = f"{zeros:,} of all {facts.parameters:,} parameters: {zeros / facts.parameters:.2%}."
    return f"{_table(('tensor', 'weights', 'zeros', 'sparsity'), rows)}\n\n{share}"


def _use(facts: Facts) -> str:
    block = facts.source.shape.block_size
    new = max(1, min(40, block // 2))
    return f"""```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
# Every document begins with the end-of-text token, as in training.
prompt = torch.tensor([[tokenizer.eos_token_id, *tokenizer("def ")["input_ids"]]])
output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens={new}, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```

Prompt and new tokens together have at most {block:,} tokens. The tokenizer reads an end-of-text token in a text as
ordinary text, as it was in training."""


def _repeat(facts: Facts) -> str:
    commit, _, changes = facts.code.partition(" with ")
    where = f" at commit {_code(commit)}{changes and f' with {changes}'}" if commit else ""
    text = (
        f"In a clone of Espalier{where}:\n\n```sh\n{command(facts)}\n```\n\n`KCONFIG_CONFIG={os.devnull}` leaves out "
        "the `.config` of the clone. "
    )
    if any(map(facts.origin, lineage.OPTIONS)):
        text += "The starting weights, masks and teacher must lie where the command names them. "
    if not facts.is_one_session:
        text += "A resume of the run changed options, so one training with the last ones gives another result. "
    if not facts.is_oneshot and not facts.is_finetuned:
        text += "With the run's folder, `make reproduce RUN=<folder>` repeats it and compares all records and weights. "
    return (
        f"{text}Paths that are absolute or contain `..` are shortened to their last part. `espalier.json` has all "
        "options."
    )


def _limits(facts: Facts) -> str:
    missing = []
    if not any("lm_eval" in record for record in facts.tasks):
        missing.append("Scores on tasks were not measured.")
    if facts.zeros and not any(record["task"] == "speed" for record in facts.tasks):
        missing.append("Whether the zeros make inference faster was not measured.")
    return " ".join(
        [
            *missing,
            "Bias, toxicity, factual correctness and memorised training text were not examined. This is a model for "
            "research: do not rely on what it writes.",
        ]
    )


def _licence(facts: Facts) -> str:
    if facts.foreign:
        names = ", ".join(map(_code, facts.foreign))
        began = "began from, or learned from," if facts.origin("teacher") else "began from"
        return f"The weights {began} {names}, whose licence holds. See there."
    return "MIT for the weights. The training data has its own licence, which this does not change."


def _code(text: str) -> str:
    """Text as code of Markdown, in one line, whatever it contains."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

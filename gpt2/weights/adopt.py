"""Gives a configuration the shape, activation and tokenizer of the weights that INIT_FROM names."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gpt2.data import tokenizer as tokenizers
from gpt2.weights import source
from gpt2.weights.source import Source
from lib.base.errors import UsageError
from lib.config.config_file import ConfigError, Problem
from lib.config.kconf import Schema

_SIZES = ("N_LAYER", "N_HEAD", "N_EMBD")  # MODEL_NAME decides them, unless it is custom
_REST = ("MLP_WIDTHS", "HEAD_COUNTS", "BLOCK_SIZE", "ACTIVATION", "TOKENIZER")
_ADOPTED = ("MODEL_NAME", *_SIZES, *_REST)


def adopt(schema: Schema, find: Callable[[str, str], Source] = source.find) -> Source | None:
    """Set shape, activation and tokenizer to those of INIT_FROM; returns the source, or None if it is empty.

    Values from files are replaced, with one note in `schema.warnings`. Raises ConfigError if a value that was given as
    a flag, as NAME=value or in the environment differs. Only a smaller BLOCK_SIZE may be given so: it cuts positions.
    `find` finds the source of a name in an OUTPUT_DIR.
    """
    given = schema["INIT_FROM"]
    if not given:
        return None
    found = find(given, schema["OUTPUT_DIR"])
    if not found.tokenizer:
        known = " and ".join(f"{name} has {tokenizers.vocab_size(name):,}" for name in ("gpt2", "bytes"))
        raise UsageError(
            f"{given}: its vocabulary of {found.shape.vocab_size:,} tokens fits no tokenizer here: {known}; start from "
            "other weights"
        )
    theirs, cut = _theirs(schema, found), ""
    if "BLOCK_SIZE" in schema.given and schema["BLOCK_SIZE"] < found.shape.block_size:
        del theirs["BLOCK_SIZE"]
        cut = f"BLOCK_SIZE={schema['BLOCK_SIZE']} keeps the first of its {found.shape.block_size:,} positions"
    differ = [name for name, text in theirs.items() if name in schema.sources and schema.options[name].text != text]
    if problems := list(_contradictions(schema, theirs, differ, given)):
        raise ConfigError(problems)
    if note := _note(schema, given, differ, cut):
        schema.warnings.append(note)
    _set(schema, theirs, f"INIT_FROM={given}")
    return found


def follow(schema: Schema, folder: Path) -> bool:
    """Set shape, activation and tokenizer to those of the run in `folder`, if it began with the INIT_FROM of `schema`.

    So the run continues without the weights that it began with. Values that were given beside files stay, and are
    compared with those of the run. Returns whether the run has this INIT_FROM.
    """
    there = Schema()
    there.load(folder / ".config", ranges=False)
    if not schema["INIT_FROM"] or schema["INIT_FROM"] != there["INIT_FROM"]:
        return False
    kept = {name: there.options[name].text for name in _ADOPTED if name not in schema.given}
    _set(schema, kept, f"{folder / '.config'}")
    return True


def reshape(schema: Schema, mlp_widths: str, head_counts: str) -> None:
    """Give `schema` the shape of its own model without some neurons and heads; see the options of these names."""
    sizes = {name: schema.options[name].text for name in _SIZES}
    _set(schema, {"MODEL_NAME": "custom", **sizes, "MLP_WIDTHS": mlp_widths, "HEAD_COUNTS": head_counts}, "make shrink")


def _theirs(schema: Schema, found: Source) -> dict[str, str]:
    """Option -> its value as text for the weights. MODEL_NAME=custom stays if the user gave it: it fits any shape."""
    shape = found.shape
    sizes = {"N_LAYER": str(shape.n_layer), "N_HEAD": str(shape.n_head), "N_EMBD": str(shape.n_embd)}
    custom = "MODEL_NAME" in schema.given and schema["MODEL_NAME"] == "custom"
    custom |= bool(shape.mlp_widths or shape.head_counts)  # no published model lacks neurons or heads
    name = next((name for name, published in _published() if published == sizes and not custom), "custom")
    return {
        "MODEL_NAME": name,
        **sizes,
        "MLP_WIDTHS": shape.mlp_widths,
        "HEAD_COUNTS": shape.head_counts,
        "BLOCK_SIZE": str(shape.block_size),
        "ACTIVATION": found.activation,
        "TOKENIZER": found.tokenizer,
    }


def _published() -> Iterator[tuple[str, dict[str, str]]]:
    """The names of the published models, each with its sizes as Kconfig has them."""
    schema = Schema()
    for name in schema.options["MODEL_NAME"].members:
        if name != "custom":
            schema.override([("MODEL_NAME", name, "")])
            yield name, {size: schema.options[size].text for size in _SIZES}


def _contradictions(schema: Schema, theirs: Mapping[str, str], differ: Iterable[str], given: str) -> Iterator[str]:
    """A sentence for each value that the user gave beside files, and that is not that of the weights."""
    for name in differ:
        if name in schema.given:
            advice = "leave it out, or give at most that number" if name == "BLOCK_SIZE" else "leave it out"
            predicate = f"does not fit INIT_FROM={given}, which has {theirs[name]}; {advice}"
            yield str(Problem(schema.sources[name], name, f"={schema.options[name].text}", predicate))


def _note(schema: Schema, given: str, passed_over: Iterable[str], cut: str) -> str:
    """What the user may not expect; "" if there is nothing."""
    values = [f"{name}={schema.wanted[name]} ({schema.sources[name]})" for name in passed_over]
    if values:
        more = f", and {cut}" if cut else ""
        return f"INIT_FROM={given} decides shape, activation and tokenizer, so it replaces {', '.join(values)}{more}"
    return f"INIT_FROM={given}: {cut}" if cut else ""


def _set(schema: Schema, theirs: Mapping[str, str], source: str) -> None:
    for name in _SIZES:
        if name in theirs and schema.options[name].text != theirs[name]:
            schema.forget(name)  # a published model decides it
    # The sizes can be set when the name is custom.
    sizes = _SIZES if theirs.get("MODEL_NAME", schema["MODEL_NAME"]) == "custom" else ()
    for names in (("MODEL_NAME",), (*sizes, *_REST)):
        present = [name for name in names if name in theirs and schema.options[name].text != theirs[name]]
        schema.override([(name, theirs[name], source) for name in present])

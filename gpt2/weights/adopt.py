"""Gives a configuration the shape and the tokenizer of the weights that INIT_FROM names."""

from gpt2.weights.source import Source
from lib.config.kconf import Schema


def adopt(schema: Schema) -> Source | None:
    """Set the options of shape and tokenizer to those of INIT_FROM; returns the source, or None if it is empty.

    Values from files are replaced, with one note in `schema.warnings`. Raises UsageError if a value that was given as
    a flag, as NAME=value or in the environment differs. A smaller BLOCK_SIZE stays, wherever it was set: positions are
    cut.
    """
    raise NotImplementedError

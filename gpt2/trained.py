"""Builds the model that a source of weights holds, for the programs that sample, measure, prune or export it."""

import dataclasses

from gpt2.data import tokenizer as tokenizers
from gpt2.model import GPT2
from gpt2.shape import ShapeOptions
from gpt2.weights.source import Source, Weights, read
from lib.config.kconf import Schema
from lib.machine import device


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with its weights, on the device that the options choose."""

    model: GPT2
    tokenizer: tokenizers.Tokenizer
    machine: device.Machine
    weights: Weights


def load(source: Source, schema: Schema) -> Trained:
    """Build the model that `schema` describes, with the weights of `source`; raises UserError if they do not fit.

    `schema` has the shape of the source: it is the configuration of the run, or went through `adopt`.
    """
    machine = device.choose(schema.bind(device.SystemOptions))
    tokenizer = tokenizers.load(schema["TOKENIZER"])
    options = schema.bind(ShapeOptions)
    weights = read(source, options.block_size, tokenizer.vocab_size)
    model = GPT2(options, tokenizer.vocab_size)
    model.load(weights.state)
    return Trained(model.to(machine.device), tokenizer, machine, weights)

"""Continue a prompt with a trained model, as in `python gpt2/sample.py --run RUN_FOLDER --prompt 'def '`."""

import argparse
import codecs
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from lib.base.signals import end_at_once

    end_at_once()

import torch

from gpt2 import trained
from gpt2.data import tokenizer as tokenizers
from gpt2.model import GPT2
from gpt2.weights import source
from lib.base.errors import UserError, run_program, shown
from lib.config import command_line
from lib.config.kconf import Options
from lib.machine import device
from lib.record import checkpoint_file, run


@dataclasses.dataclass(frozen=True)
class SampleOptions(Options):
    """What to sample, and how to draw tokens."""

    prompt: str
    sample_tokens: int
    temperature: float
    top_k: int  # 0: all tokens
    seed: int


@torch.no_grad()
def generate(model: GPT2, tokens: list[int], machine: device.Machine, options: SampleOptions) -> Iterator[int]:
    """Yield `sample_tokens` further tokens, each drawn from the model's distribution after the tokens before it.

    The model sees the last `block_size` tokens. The same seed draws the same tokens.
    """
    tokens = list(tokens)
    generator = torch.Generator().manual_seed(options.seed)  # its own, so that training's random state stays as it is
    for _ in range(options.sample_tokens):
        window = torch.tensor([tokens[-model.options.block_size :]], device=machine.device)  # (1, T)
        with machine.autocast():
            logits = model(window)[0, -1].float().cpu()  # (V,)
        token = draw(logits, options.temperature, options.top_k, generator)
        tokens.append(token)
        yield token


def draw(logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """Draw a token from softmax(logits / temperature) of the `top_k` largest logits (V,); with 0, take the largest."""
    if temperature == 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        smallest = torch.topk(logits, top_k).values[-1]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    # The largest logit becomes 0, so a small temperature does not overflow.
    logits = (logits - logits.max()).double() / temperature
    return int(torch.multinomial(torch.softmax(logits, 0), 1, generator=generator))


def text(
    model: GPT2,
    tokenizer: tokenizers.Tokenizer,
    machine: device.Machine,
    options: SampleOptions,
    asked: Callable[[], bool] = lambda: False,
) -> str | None:
    """Return a sample as text, prompt included; None if `asked` to stop meanwhile."""
    pieces = []
    for piece in stream(model, tokenizer, machine, options):
        if asked():
            return None
        pieces.append(piece)
    return "".join(pieces)


def stream(
    model: GPT2, tokenizer: tokenizers.Tokenizer, machine: device.Machine, options: SampleOptions
) -> Iterator[str]:
    """Yield the prompt, then the text of each token as it is drawn; stops early at the end-of-text token."""
    was_training, decoder = model.training, codecs.getincrementaldecoder("utf-8")(errors="replace")
    model.eval()
    try:
        prompt = tokenizer.encode_batch([options.prompt])[0].tolist()
        yield options.prompt
        for token in generate(model, [tokenizer.end_of_text, *prompt], machine, options):
            if token == tokenizer.end_of_text:
                break
            yield decoder.decode(tokenizer.decode([token]))
        yield decoder.decode(b"", final=True)
    finally:
        model.train(was_training)


def main() -> int:
    """Print a sample as it is drawn."""

    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--run",
            metavar="RUN",
            help="the folder of the run to sample from, or one of its checkpoints (default: the latest run)",
        )
        parser.add_argument(
            "--checkpoint",
            metavar="newest|best|STEP",
            help="which checkpoint of the run to use (default: newest)",
        )

    def own_configuration(args: argparse.Namespace) -> Path:
        found = run.named(args.run, sys.argv[1:])
        args.run, args.checkpoint = found.folder, found.chosen(args.checkpoint)
        return run.configuration(args.run)

    schema, args = command_line.resolve(__doc__, sys.argv[1:], arguments=arguments, base=own_configuration)
    for warning in schema.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    path = checkpoint_file.chosen(args.run, args.checkpoint)
    if not schema["SAMPLE_TOKENS"]:
        print(
            "note: SAMPLE_TOKENS=0 samples nothing; set the number of tokens, as in SAMPLE_TOKENS=200", file=sys.stderr
        )
        return 0
    try:
        found = trained.load(source.find(str(path)), schema)
        print(f"{args.run}, {path.stem}", file=sys.stderr)
        for piece in stream(found.model, found.tokenizer, found.machine, schema.bind(SampleOptions)):
            print(shown(piece), end="", flush=True)
    except (RuntimeError, MemoryError) as error:
        if not device.is_out_of_memory(error):
            raise
        raise UserError(
            f"{path}: not enough memory to load this model and sample from it; free some memory, or set DEVICE=cpu if "
            "a GPU is full"
        ) from None
    print()
    return 0


if __name__ == "__main__":
    run_program(main, only_prints=True)

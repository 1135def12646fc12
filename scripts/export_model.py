"""Write a run's model as a Hugging Face folder, read it back and compare it, and upload it if asked.

The folder loads offline, with transformers' AutoModelForCausalLM and AutoTokenizer. It has the weights in float32, the
tokenizer, the masks of a pruned run, what the run recorded (espalier.json), and a model card. An earlier export in the
same place is replaced. As in:

  make export-model RUN=runs/name CHECKPOINT=best OUT=folder PUSH=user/name ARGS=--public
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from lib.base.signals import end_at_once

    end_at_once()

import torch

from gpt2 import trained
from gpt2.weights import export, facts, push, source
from lib.base import files, signals
from lib.base.errors import UsageError, UserError, run_program, shown
from lib.config.kconf import Schema
from lib.machine import device
from lib.record import run
from lib.terminal.console import say


def main() -> int:
    """Export, and push if asked. Returns 0, or the exit code after a signal."""
    args = _parser().parse_args()
    if args.push is not None:
        push.check(args.push)
    elif args.public:
        raise UsageError("--public is about a repository; name it, as in PUSH=me/gpt2")
    _check_words(args.words)
    named = run.named(args.words[0] if args.words else None)
    folder, checkpoint = named.folder, named.chosen(args.checkpoint)
    schema = _configuration(folder)
    out = files.named(args.out) if args.out else folder / "export"
    out = out if out.name else out.absolute()  # "." has no name
    export.check(out)
    found = source.find(f"{folder}@{checkpoint}")
    export.check_shape(found.shape)
    with signals.StopSignals("stopping; what is not complete is removed") as asked:
        try:
            asked.break_off()
            _export(folder, found, schema, out)
            if args.push is not None:
                say(f"uploading to {args.push}")
                say(f"uploaded         {push.push(out, args.push, not args.public)}")
        except KeyboardInterrupt:
            if not asked():
                raise
        except (RuntimeError, MemoryError) as error:
            if not device.is_out_of_memory(error):
                raise
            raise UserError(f"{found.path}: not enough memory to export this model; free some memory") from None
    return asked.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", metavar="run", help="folder of a run, its name, or one of its checkpoints [the latest run]"
    )
    parser.add_argument("--checkpoint", metavar="newest|best|STEP", help="which checkpoint to export [newest]")
    parser.add_argument("--out", metavar="FOLDER", help="where to write it [<run>/export]")
    parser.add_argument(
        "--push",
        metavar="USER/NAME",
        help="also upload it to this repository of the Hugging Face hub, which is made if it is missing; the token is "
        "that of HF_TOKEN or of `hf auth login`",
    )
    parser.add_argument("--public", action="store_true", help="a repository that --push makes is public [private]")
    return parser


def _check_words(words: list[str]) -> None:
    """Raise UsageError for words that do not name one run, such as options: make passes them on."""
    options = [word for word in words if "=" in word and not Path(word).exists()]
    if wrong := options[:1] or words[1:2]:
        raise UsageError(
            f"{wrong[0]}: export-model takes RUN=, CHECKPOINT=, OUT=, PUSH= and ARGS=--public; name the model with RUN="
        )


def _configuration(folder: Path) -> Schema:
    """The configuration of a run, and warnings about it on standard error."""
    schema = Schema()
    schema.load(run.configuration(folder), ranges=False)  # an earlier version may have had wider ranges
    for warning in schema.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return schema


def _export(folder: Path, found: source.Source, schema: Schema, out: Path) -> None:
    """Write the folder `out`, read it back, and print what is in it."""
    here = Schema()
    here.load(run.configuration(folder), ranges=False)
    here.override([("DEVICE", "cpu", "export"), ("DTYPE", "float32", "export")])  # as transformers computes
    with export.folder(out) as draft:
        _show(f"reading {found.path}")
        made = trained.load(found, here)
        weights = made.weights
        with torch.no_grad():
            logits = made.model.eval()(export.window(found))[0]
        del made  # transformers needs as much memory for its model
        _show("writing")
        export.write(draft, found, weights, facts.collect(folder, found, weights, schema))
        _show("reading back")
        compared = export.read_back(draft, found, weights, logits)
        _show("")
    size = sum(path.stat().st_size for path in out.iterdir())
    say(f"exported         {found.path}\nread back        {compared}\nfolder           {out} ({size / 1e6:,.1f} MB)")


def _show(text: str) -> None:
    """Replace the line that says what is being done, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{shown(text)}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_program(main)

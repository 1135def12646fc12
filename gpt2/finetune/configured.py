"""The configuration of a fine-tuning: which options come from the run that is fine-tuned, and which from .config."""

import argparse
from pathlib import Path

from lib.base.errors import UsageError
from lib.config import command_line
from lib.config.kconf import Schema
from lib.config.option import Option
from lib.record import given_model, run

_MENUS = ("Training", "Optimizer", "Pruning", "Fine-tuning")
_OF_THE_RUN = ("BATCH_SIZE", "EVALUATE", "EVAL_SAMPLES", "LOG_INTERVAL", "GRAD_CLIP")  # of these menus
# Options whose values are for one run only, so that a new run does not take them from the run that it begins from.
_OF_ITS_RUN = ("INIT_FROM", "CHECKPOINT_AT", "TRACKER_RUN_NAME", "JSON_OUTPUT", "EVAL_TASKS", "SAMPLE_AT_EVAL")


def _arguments(parser: argparse.ArgumentParser) -> None:
    given_model.arguments(parser, "fine-tuned")
    parser.add_argument("--resume", metavar="RUN", help="continue this run of fine-tuning from its last checkpoint")


def _left_out(option: Option) -> bool:
    return (option.menu[0] in _MENUS and option.name not in _OF_THE_RUN) or option.name in _OF_ITS_RUN


def configuration(words: list[str], about: str = "") -> tuple[Schema, Path | None]:
    """The configuration of the run, and its folder if it is continued; raises UsageError for words that name none.

    `about` describes the program, for --help.
    """

    def base(args: argparse.Namespace) -> Path | None:
        if args.resume:
            args.resume, _ = run.named(args.resume, words, trains=True)
            return run.configuration(args.resume)
        return given_model.base(args, words)

    resumes = any(word.partition("=")[0] == "--resume" for word in words)
    left_out = (lambda option: False) if resumes else _left_out
    schema, args = command_line.resolve(about, words, arguments=_arguments, base=base, left_out=left_out)
    if schema["FINETUNE_RECIPE"] == "none":
        if args.resume:
            raise UsageError(f"{args.resume}: is no run of make finetune; continue it with make resume")
        where = "with RUN, the menu Fine-tuning of .config does not count" if args.run else "or choose it in the menu"
        raise UsageError(f"make finetune needs a recipe: name one, as in FINETUNE_RECIPE=sft (or dpo, grpo); {where}")
    if args.resume:
        return schema, args.resume
    if schema["PRUNING_METHOD"] != "none" and "PRUNING_METHOD" not in schema.given:
        was = f"PRUNING_METHOD={schema['PRUNING_METHOD']} ({schema.sources['PRUNING_METHOD']})"
        schema.warnings.append(f"{was} is for training; make finetune holds the zeros that the model has")
        schema.override([("PRUNING_METHOD", "none", "make finetune")])
    given_model.name(schema, args)
    return schema, None

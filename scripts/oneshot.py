"""Prune a finished model at once, block by block, as in `scripts/oneshot.py --run RUN PRUNING_METHOD=sparsegpt`.

The model is a checkpoint of a run, or what INIT_FROM names. With --run (also without both: the latest run), options
that are not given are those of the run. The menu Pruning is an exception: what is not given has its default, and
neither that menu of .config nor that of the run is used. With INIT_FROM, options that are not given are those of
.config. The result is a new run, whose steps are the blocks: it can be evaluated, exported, compared and trained on.
The validation loss is measured before the first block and after each; EVAL_INTERVAL=0 measures it only before and
after all. PRUNING_METHOD=shrink, which is make shrink, removes neurons and heads that are zero from the model instead.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from lib.base.signals import end_at_once

    end_at_once()

from lib import track
from lib.base import launch, load, signals, spinning
from lib.base.errors import UsageError, run_program
from lib.config import command_line
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.config.option import Option
from lib.record import given_model

_BEGAN = load.read()
_ONESHOT, _MENU = "PRUNING_DYNAMICS=oneshot", "Pruning"
_METHODS = "make oneshot prunes by magnitude, wanda, sparsegpt or random: name one, as in PRUNING_METHOD=sparsegpt"
# Options whose values are for one run only, so that a new run does not take them from the run that it prunes.
_OF_ITS_RUN = ("INIT_FROM", "MAX_ITERS", "EVAL_INTERVAL", "CHECKPOINT_AT", "TRACKER_RUN_NAME", "JSON_OUTPUT")


def _arguments(parser: argparse.ArgumentParser) -> None:
    given_model.arguments(parser, "pruned")


def _of_its_run(option: Option) -> bool:
    return option.menu[0] == _MENU or option.name in _OF_ITS_RUN


def configuration(words: list[str]) -> Schema:
    """The configuration of the new run; raises UsageError for words that do not describe one."""
    try:  # the first word, so that another value of the user counts
        schema, args = command_line.resolve(
            __doc__,
            [_ONESHOT, *words],
            arguments=_arguments,
            base=lambda args: given_model.base(args, words),
            left_out=_of_its_run,
        )
    except ConfigError as error:
        sentences = [_METHODS if problem.startswith(f"{_ONESHOT} ") else problem for problem in error.problems]
        raise ConfigError(sentences) from None
    if (dynamics := schema["PRUNING_DYNAMICS"]) != "oneshot":
        raise UsageError(f"PRUNING_DYNAMICS={dynamics}: make oneshot sets PRUNING_DYNAMICS=oneshot; leave it out")
    if args.run:
        _tell_of_unused(schema)
    given_model.name(schema, args)
    return schema


def _tell_of_unused(schema: Schema) -> None:
    """Print a note if the menu Pruning of .config has other values than `schema`: they count only with INIT_FROM."""
    path, there = command_line.config_path(os.environ), Schema()
    if not path.is_file():
        return
    try:
        there.load(path, ranges=False)
    except ConfigError:  # nothing of this file is used, so its mistakes are no concern
        return
    ours = [option for option in there.differing() if option.menu[0] == _MENU and schema.options[option.name].active]
    if words := " ".join(f"{option.name}={option.text}" for option in ours if option.value != schema[option.name]):
        note = f"with RUN, the menu Pruning of {path} is not used ({words}); give what you want of it as words"
        print(f"note: {note}", file=sys.stderr)


def main() -> int:
    """Prune as the command line says; returns the exit code."""
    words = sys.argv[1:]
    if (count := launch.found(os.environ).size) > 1:
        raise UsageError(f"make oneshot prunes in one process, and {count} were started; start it without a launcher")
    schema = configuration(words)
    track.names(schema["TRACKER"], schema.values())  # refuses a tracker that cannot be used here
    spinning.choose(_BEGAN)
    with signals.ending_at_once():
        from gpt2.oneshot import start  # imports torch, which takes seconds: --help and mistakes come first

    return start.start(schema, [__file__, *words])


if __name__ == "__main__":
    run_program(main)

"""What each option affects: the one table that resumes, sweeps, comparisons and reproductions use."""

import dataclasses
from collections.abc import Callable

from lib.config.kconf import Schema
from lib.config.option import Option

METHOD_MENUS = ("Optimizer", "Pruning")  # their options make a method, which sweeps and comparisons compare
# Each method may need its own value of these options; tables show the values where they differ.
TUNED = ("LEARNING_RATE", "MIN_LR", "GRAD_CLIP")
_OUTPUT_MENUS = ("Experiment tracking", "Output")  # their options decide what a run writes and whom it informs

KEPT = "kept"  # a change would make it another run, so a resume refuses it
RECORDED = "recorded"  # a change acts on the remaining steps, so the journal records it
IGNORED = "ignored"  # a change does not affect what is learned


@dataclasses.dataclass(frozen=True)
class Group:
    """Options for which all of the questions below have the same answers."""

    why: str
    on_resume: str  # KEPT, RECORDED or IGNORED
    options: tuple[str, ...] = ()
    menus: tuple[str, ...] = ()  # outermost menus: the options in them that no group names are in this group
    equal_in_sweep: bool = True  # must be the same in all configurations of a sweep
    equal_in_comparison: bool = True  # must be the same in two runs before one is called better
    same_when_sweep_continues: bool = True  # a sweep that continues refuses a run that was begun with another value
    acts_on_steps: bool = True  # so a new value is useless once all steps are done
    same_in_reproduction: bool = True  # sessions with different values cannot be repeated by one training


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GROUPS = {
    "run": Group(
        "The model, its data and its evaluation: with other values, the steps so far mean nothing.",
        KEPT,
        _words("MODEL_NAME N_LAYER N_HEAD N_EMBD BLOCK_SIZE ACTIVATION DATASET TOKENIZER EVAL_SAMPLES"),
    ),
    "start": Group(
        "The first weights. Retraining compares models that were pruned in different ways.",
        KEPT,
        ("INIT_FROM",),
        equal_in_sweep=False,
        equal_in_comparison=False,
    ),
    "evaluation": Group(
        "Without evaluations a run has no result to compare, so it keeps them from its beginning to its end.",
        KEPT,
        ("EVALUATE",),
        equal_in_comparison=False,
    ),
    "state of the method": Group(
        "The optimizer's state and the masks fit only the method that made them.",
        KEPT,
        _words("OPTIMIZER ADAMWPRUNE_BASE_OPTIMIZER_NAME ADAMWADV_AMSGRAD SPAM_DENSITY"),
        menus=("Pruning",),
        equal_in_sweep=False,
        equal_in_comparison=False,
    ),
    "method": Group(
        "Numbers of the method, which later steps can use with the same state.",
        RECORDED,
        menus=("Optimizer",),
        equal_in_sweep=False,
        equal_in_comparison=False,
    ),
    "tuned": Group(
        "Part of a method, because each method needs its own value.",
        RECORDED,
        TUNED,
        equal_in_sweep=False,
        equal_in_comparison=False,
    ),
    "budget": Group(
        "What all methods must have in common: regularisation, data, steps, batch, treatment of bad steps.",
        RECORDED,
        menus=("Model", "Dataset", "Training"),
    ),
    "seed": Group(
        "It decides the initial weights and the order of the data. A sweep has a line for seeds.",
        KEPT,
        ("SEED",),
        equal_in_comparison=False,
        acts_on_steps=False,
    ),
    "arithmetic": Group(
        "It changes rounding, on which results depend; another machine may make the last evaluation.",
        RECORDED,
        menus=("System",),
        acts_on_steps=False,
    ),
    "device": Group(
        "It changes times and the last bits of losses, but not the budget.",
        RECORDED,
        ("DEVICE", "COMPILE"),
        equal_in_comparison=False,
        acts_on_steps=False,
    ),
    "threads": Group(
        "Like the device. A sweep may also continue on a machine with another number of cores.",
        RECORDED,
        ("THREADS",),
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        acts_on_steps=False,
    ),
    "rhythm of records": Group(
        "It decides which steps are recorded, not what they learn.",
        IGNORED,
        ("LOG_INTERVAL", "EVAL_INTERVAL"),
        equal_in_comparison=False,
    ),
    "beside": Group(
        "Where the data lies and when to warn: neither changes what is learned.",
        IGNORED,
        ("DATA_DIR", "LOSS_SPIKE_SIGMA"),
        equal_in_comparison=False,
        same_in_reproduction=False,
    ),
    "name": Group(
        "The run's name in its folder and in trackers.",
        KEPT,
        ("TRACKER_PROJECT", "TRACKER_RUN_NAME"),
        equal_in_sweep=False,
        equal_in_comparison=False,
        same_when_sweep_continues=False,
    ),
    "folder": Group(
        "A sweep has one folder, so its configurations share the folder of its runs.",
        IGNORED,
        ("OUTPUT_DIR",),
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        same_in_reproduction=False,
    ),
    "output": Group(
        "What a run writes and shows.",
        IGNORED,
        menus=_OUTPUT_MENUS,
        equal_in_sweep=False,
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        same_in_reproduction=False,
    ),
}
_BY_OPTION = {name: group for group in GROUPS.values() for name in group.options}
_BY_MENU = {menu: group for group in GROUPS.values() for menu in group.menus}


def group(option: Option) -> Group:
    """The group of an option: the one that names it, else that of its outermost menu."""
    return _BY_OPTION.get(option.name) or _BY_MENU[option.menu[0]]


def names(schema: Schema, wanted: Callable[[Group], bool]) -> set[str]:
    """The options whose group is `wanted`."""
    return {name for name, option in schema.options.items() if wanted(group(option))}


def decisive(schema: Schema) -> set[str]:
    """The options that decide what is learned, or that a resumed run keeps."""
    return names(schema, lambda group: group.on_resume != IGNORED)

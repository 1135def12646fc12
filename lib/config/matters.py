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
    same_in_reuse: bool = True  # a finished run with another value is not the run that a sweep asks for


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GROUPS = {
    "run": Group(
        "The model, its data and its evaluation: with other values, the steps so far mean nothing.",
        KEPT,
        _words("BLOCK_SIZE ACTIVATION DATASET TOKENIZER EVAL_SAMPLES"),
    ),
    "size": Group(
        "Part of the model. A sweep may compare sizes; it ranks only configurations whose matched quantity is equal.",
        KEPT,
        _words("MODEL_NAME N_LAYER N_HEAD N_EMBD MLP_WIDTHS HEAD_COUNTS"),
        equal_in_sweep=False,
    ),
    "steps": Group(
        "Part of the budget. A sweep may have configurations of several lengths; it ranks only equal ones.",
        RECORDED,
        ("MAX_ITERS",),
        equal_in_sweep=False,
    ),
    "limit": Group(
        "When a run stops before its end. It does not change what the steps learn, and a short run is never ranked.",
        IGNORED,
        ("RUN_TIME",),
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        same_in_reproduction=False,
        same_in_reuse=False,
    ),
    "search": Group(
        "What it finds are values of other options. It is off in what a run records.",
        IGNORED,
        ("AUTO_BATCH",),
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        same_in_reproduction=False,
        same_in_reuse=False,
    ),
    "start": Group(
        "The first weights. Retraining compares models that were pruned in different ways.",
        KEPT,
        ("INIT_FROM",),
        equal_in_sweep=False,
        equal_in_comparison=False,
        same_in_reuse=False,  # a path: the sha256 of what it names is compared
    ),
    "given masks": Group(
        "Masks that exist already. They are a part of the method.",
        KEPT,
        ("INIT_MASKS",),
        equal_in_sweep=False,
        equal_in_comparison=False,
        same_in_reuse=False,  # like the first weights
    ),
    "teacher": Group(
        "Whose predictions a run learns. It is a part of the method.",
        KEPT,
        ("DISTILL_FROM",),
        equal_in_sweep=False,
        equal_in_comparison=False,
        same_in_reuse=False,  # like the first weights
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
        _words("DISTILL_WEIGHT DISTILL_TEMPERATURE"),
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
        same_in_reuse=False,
    ),
    "threads": Group(
        "Like the device. A sweep may also continue on a machine with another number of cores.",
        RECORDED,
        ("THREADS", "KERNELS"),
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        acts_on_steps=False,
        same_in_reuse=False,
    ),
    "fine-tuning": Group(
        "Recipe, examples and steps: a learning rate that falls to 0 leaves no room for others.",
        KEPT,
        menus=("Fine-tuning",),
    ),
    "rhythm of evaluations": Group(
        "It decides which steps are evaluated, and so which one is the best, but not what they learn.",
        IGNORED,
        ("EVAL_INTERVAL",),
        equal_in_comparison=False,
    ),
    "rhythm of records": Group(
        "It decides which steps are recorded, not what they learn.",
        IGNORED,
        ("LOG_INTERVAL",),
        equal_in_comparison=False,
        same_in_reuse=False,
    ),
    "beside": Group(
        "Where the data lies and when to warn: neither changes what is learned.",
        IGNORED,
        ("DATA_DIR", "LOSS_SPIKE_SIGMA"),
        equal_in_comparison=False,
        same_in_reproduction=False,
        same_in_reuse=False,
    ),
    "copy": Group(
        "Where a copy of the data lies: it has the same tokens.",
        IGNORED,
        ("DATA_CACHE_DIR",),
        equal_in_sweep=False,
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        same_in_reproduction=False,
        same_in_reuse=False,
    ),
    "name": Group(
        "The run's name in its folder and in trackers.",
        KEPT,
        ("TRACKER_PROJECT", "TRACKER_RUN_NAME"),
        equal_in_sweep=False,
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        same_in_reuse=False,
    ),
    "folder": Group(
        "A sweep has one folder, so its configurations share the folder of its runs.",
        IGNORED,
        ("OUTPUT_DIR",),
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        same_in_reproduction=False,
        same_in_reuse=False,
    ),
    "output": Group(
        "What a run writes and shows.",
        IGNORED,
        menus=_OUTPUT_MENUS,
        equal_in_sweep=False,
        equal_in_comparison=False,
        same_when_sweep_continues=False,
        same_in_reproduction=False,
        same_in_reuse=False,
    ),
}
# What the code learns, in numbers: each part has one, which a run records. A commit that changes golden losses of a
# part (tests/golden/) raises its number. Finished runs that used the part are then no longer what a sweep asks for.
# The value of an option in _MODULES is a part too, such as OPTIMIZER=muon. Its number is 1 unless it is listed here.
NUMBERS = {
    "training": 1,  # model, order of the data, loss, loop, learning rate and evaluation
    "pruning": 1,  # masks, schedule and scope, which all criteria share
    "distillation": 1,  # the loss of runs with a teacher
    "PRUNING_DISTRIBUTION=global-rms": 2,
    "PRUNING_METHOD=movement": 2,
}
_MODULES = _words(
    "OPTIMIZER ADAMWPRUNE_BASE_OPTIMIZER_NAME LR_SCHEDULE PRUNING_METHOD PRUNING_STATE PRUNING_DYNAMICS "
    "PRUNING_DISTRIBUTION"
)
_SAME_MODULES = {"ADAMWPRUNE_BASE_OPTIMIZER_NAME": "OPTIMIZER"}  # its values name the same modules
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


def learns(schema: Schema) -> dict[str, int]:
    """The parts of the code that decide what a run of this configuration learns, with their numbers."""
    pruned = schema["PRUNING_METHOD"] != "none"
    values = [(_SAME_MODULES.get(name, name), schema[name]) for name in _MODULES if schema.options[name].active]
    parts = ["training", *["pruning"] * pruned, *["distillation"] * bool(schema["DISTILL_FROM"])]
    parts += [f"{name}={value}" for name, value in values if pruned or not name.startswith("PRUNING_")]
    return {part: NUMBERS.get(part, 1) for part in parts}

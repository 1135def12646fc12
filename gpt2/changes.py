"""What may change when a run is resumed: nothing that makes it another run, and what changes its course is recorded."""

from collections.abc import Mapping
from pathlib import Path

from lib.base.errors import UsageError
from lib.compare.sweep import BESIDE, FREE
from lib.config.kconf import Schema
from lib.record import checkpoint_file

# Changing these, or an option of the menu Pruning, would make it another run.
FIXED = set(
    "MODEL_NAME N_LAYER N_HEAD N_EMBD BLOCK_SIZE DATASET TOKENIZER OPTIMIZER ADAMWPRUNE_BASE_OPTIMIZER_NAME "
    "ADAMWADV_AMSGRAD SPAM_DENSITY SEED EVAL_SAMPLES TRACKER_PROJECT TRACKER_RUN_NAME".split()
)


def harmless(schema: Schema) -> set[str]:
    """The options of which a change does not change what is learned."""
    return {name for name, option in schema.options.items() if option.menu[0] in FREE or name in BESIDE} - FIXED


def of_course(schema: Schema, folder: Path) -> dict[str, list[str]]:
    """Option -> [value before, value now], of the options that change the course of the run in `folder`.

    Raises UsageError for changes that would make it another run.
    """
    before = Schema()
    before.load(folder / ".config", ranges=False)  # an earlier version may have had wider ones
    old, new = ({name: entry["value"] for name, entry in s.provenance().items()} for s in (before, schema))
    differ = {n: [old.get(n, ""), new.get(n, "")] for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)}
    pruning = {name for name, option in schema.options.items() if option.menu[0] == "Pruning"}
    if fixed := sorted(differ.keys() & (FIXED | pruning)):
        values = words({name: differ[name] for name in fixed})
        raise UsageError(f"{folder}: a run keeps what it was begun with ({values}); start a new run for that")
    if _windows_per_step(before) != _windows_per_step(schema):
        raise UsageError(
            f"{folder}: a run keeps its BATCH_SIZE x GRADIENT_ACCUMULATION, on which the order of its data rests "
            f"({_windows_per_step(before)} -> {_windows_per_step(schema)}); start a new run for that"
        )
    return {name: differ[name] for name in sorted(differ.keys() - harmless(schema))}


def check_in_time(schema: Schema, folder: Path, changed: dict[str, list[str]]) -> None:
    """Raise UsageError if the run in `folder` has no step left to make and `changed` has options that act on steps.

    The run's configuration would then say what none of its steps was made with. The options of the menu System may
    change: the last evaluation may still be missing, and another device may make it.
    """
    if not is_made(schema, folder, changed):
        return
    last = schema["MAX_ITERS"]
    if "MAX_ITERS" in changed:
        raise UsageError(
            f"{folder}: is at step {last} on the way to MAX_ITERS={changed['MAX_ITERS'][0]}, so with MAX_ITERS={last} "
            "nothing would be trained; choose more, or use its checkpoint as it is"
        )
    timeless = {name for name, option in schema.options.items() if option.menu[0] == "System"}
    if late := sorted(changed.keys() - timeless):
        values = words({name: changed[name] for name in late})
        raise UsageError(
            f"{folder}: has made its {last:,} steps, so it is too late to change {values}; raise MAX_ITERS to train on "
            "with that, or start a new run"
        )


def is_made(schema: Schema, folder: Path, changed: dict[str, list[str]]) -> bool:
    """Whether the run in `folder` has no step left to make."""
    if found := checkpoint_file.find(folder / "checkpoints"):
        return found[-1].name >= checkpoint_file.name(schema["MAX_ITERS"])
    return (folder / "summary.json").exists() and "MAX_ITERS" not in changed


def words(differ: Mapping[str, list[str]]) -> str:
    """`LEARNING_RATE 6e-4 -> 1e-4, MIN_LR unset -> 1e-5`."""
    return ", ".join(f"{name} {was or 'unset'} -> {now or 'unset'}" for name, (was, now) in differ.items())


def _windows_per_step(schema: Schema) -> int:
    return schema["BATCH_SIZE"] * schema["GRADIENT_ACCUMULATION"]

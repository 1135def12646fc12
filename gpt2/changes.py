"""What may change when a run is resumed: nothing that makes it another run, and what changes its course is recorded."""

from pathlib import Path

from lib.errors import UsageError
from lib.kconf import Schema
from lib.sweep import BESIDE, FREE

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
    before.load(folder / ".config")
    old, new = ({name: entry["value"] for name, entry in s.provenance().items()} for s in (before, schema))
    differ = {n: [old.get(n, ""), new.get(n, "")] for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)}
    pruning = {name for name, option in schema.options.items() if option.menu[0] == "Pruning"}
    if fixed := sorted(differ.keys() & (FIXED | pruning)):
        values = ", ".join(f"{was} -> {now}" for was, now in map(differ.get, fixed))
        raise UsageError(f"{folder}: a run keeps its {', '.join(fixed)} ({values}); start a new run for that")
    if _windows_per_step(before) != _windows_per_step(schema):
        raise UsageError(
            f"{folder}: a run keeps its BATCH_SIZE x GRADIENT_ACCUMULATION, on which the order of its data rests "
            f"({_windows_per_step(before)} -> {_windows_per_step(schema)}); start a new run for that"
        )
    return {name: differ[name] for name in sorted(differ.keys() - harmless(schema))}


def _windows_per_step(schema: Schema) -> int:
    return schema["BATCH_SIZE"] * schema["GRADIENT_ACCUMULATION"]

"""Which options a resume changes. Some changes are refused; those that act on the steps are recorded."""

from collections.abc import Mapping
from pathlib import Path

from lib.base.errors import UsageError
from lib.config import matters
from lib.config.kconf import Schema
from lib.record import checkpoint_file


def find(schema: Schema, folder: Path) -> dict[str, list[str]]:
    """Option -> [value before, value now], of the options that decide what the run in `folder` learns from now on.

    The result is empty for a run that was killed before its configuration was written. Raises UsageError for a change
    that would make it another run.
    """
    if not (folder / ".config").exists():
        return {}
    before = Schema()
    before.load(folder / ".config", ranges=False)  # an earlier version may have had wider ranges
    old, new = ({name: entry["value"] for name, entry in s.provenance().items()} for s in (before, schema))
    differ = {n: [old.get(n, ""), new.get(n, "")] for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)}
    if kept := sorted(differ.keys() & matters.names(schema, lambda group: group.on_resume == matters.KEPT)):
        values = words({name: differ[name] for name in kept})
        raise UsageError(f"{folder}: a resumed run keeps the options it began with ({values}); start a new run instead")
    if _windows_per_step(before) != _windows_per_step(schema):
        raise UsageError(
            f"{folder}: a resumed run keeps BATCH_SIZE x GRADIENT_ACCUMULATION, which decides the order of its data "
            f"({_windows_per_step(before)} -> {_windows_per_step(schema)}); start a new run instead"
        )
    return {name: differ[name] for name in sorted(differ.keys() & matters.decisive(schema))}


def check_in_time(schema: Schema, folder: Path, changed: dict[str, list[str]]) -> None:
    """Raise UsageError if `changed` has options that act on steps, and the run in `folder` has made all its steps.

    Otherwise its configuration would have values that no step used. Options of the machine may still change: the last
    evaluation may be missing, and another device may make it.
    """
    if not has_all_steps(schema, folder, changed):
        return
    last = schema["MAX_ITERS"]
    if "MAX_ITERS" in changed:
        raise UsageError(
            f"{folder}: is at step {last} of MAX_ITERS={changed['MAX_ITERS'][0]}, so MAX_ITERS={last} leaves no step "
            "to train; choose a larger number, or use the checkpoint as it is"
        )
    if late := sorted(changed.keys() & matters.names(schema, lambda group: group.acts_on_steps)):
        values = words({name: changed[name] for name in late})
        raise UsageError(
            f"{folder}: has made all of its {last:,} steps, so it is too late to change {values}; raise MAX_ITERS to "
            "continue training with this change, or start a new run"
        )


def has_all_steps(schema: Schema, folder: Path, changed: dict[str, list[str]]) -> bool:
    """Whether the run in `folder` has made all of its steps."""
    if found := checkpoint_file.find(folder / "checkpoints"):
        return found[-1].name >= checkpoint_file.name(schema["MAX_ITERS"])
    return (folder / "summary.json").exists() and "MAX_ITERS" not in changed


def words(changed: Mapping[str, list[str]]) -> str:
    """`LEARNING_RATE 6e-4 -> 1e-4, MIN_LR unset -> 1e-5`."""
    return ", ".join(f"{name} {was or 'unset'} -> {now or 'unset'}" for name, (was, now) in changed.items())


def _windows_per_step(schema: Schema) -> int:
    return schema["BATCH_SIZE"] * schema["GRADIENT_ACCUMULATION"]

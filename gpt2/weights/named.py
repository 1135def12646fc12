"""What INIT_FROM, INIT_MASKS and DISTILL_FROM name: a run, a folder, a file or a model on the hub. Needs no PyTorch."""

from pathlib import Path

from gpt2.weights import hub
from lib.base import files
from lib.base.errors import UsageError
from lib.config.option import nearest
from lib.record import checkpoint_file, run


def of_run(given: str, output_dir: str) -> run.Named | None:
    """The run and the checkpoint that `given` names, or None if it is something else."""
    path = files.named(given)
    if not checkpoint_file.may_be_run(path):
        return None
    name, at, which = (given, "", "") if path.exists() else given.rpartition("@")
    if at and not (name and which):
        raise UsageError(f"{given}: lacks a {'checkpoint after' if name else 'run before'} the @, as in runs/name@200")
    words = [f"OUTPUT_DIR={output_dir}"] if output_dir else []
    folder, checkpoint_name = run.named(name if at else given, words)
    if not (folder / "run.json").exists():
        return None
    return run.Named(folder, which if at else checkpoint_name)


def resolved(given: str, output_dir: str) -> str:
    """`given` with the folder of a run in place of its name in `output_dir`, so that every program finds the same."""
    found = of_run(given, output_dir)
    if found is None:
        return given
    return f"{found.folder}@{found.checkpoint}" if found.checkpoint else str(found.folder)


def check(given: str, output_dir: str) -> None:
    """Raise UsageError if nothing here has this name, and it is none of the hub either. Asks no server."""
    if found := of_run(given, output_dir):
        checkpoint_file.chosen(found.folder, found.checkpoint or "newest")
        return
    if files.named(given).exists():
        return
    _check_may_be_on_the_hub(given, output_dir)
    hub.repository(given)


def check_masks(given: str, output_dir: str) -> None:
    """As `check`, of INIT_MASKS, which may also name a file of masks."""
    path = files.named(given)
    if path.suffix != ".safetensors":
        check(given, output_dir)
    elif not path.is_file():
        raise UsageError(f"{path}: there is no such file; check the name")


def _check_may_be_on_the_hub(given: str, output_dir: str) -> None:
    """Raise UsageError if `given`, which is not here, is no name of the hub, or names a place where runs are."""
    path, name = files.named(given), given.partition("@")[0]
    if name in hub.PUBLISHED:
        return
    beside = run.folders(path.parent if "/" in given else Path(output_dir or "."))
    hint = nearest(Path(name).name, [folder.name for folder in beside])
    local = given.startswith((".", "/", "~")) or given.count("/") > 1 or given.endswith(".pt")
    local = local or ("/" in given and path.parent == files.named(output_dir or "runs"))
    if local or (beside if "/" in given else hint):
        raise UsageError(f"{path}: there is no such run, folder or file{hint or '; check the name'}")

"""Train a run again from the files in its folder, and compare losses and weights bit for bit.

The run's commit is checked out into a temporary worktree, and its uncommitted changes are applied. This code trains
with the run's own configuration, first weights and data, on this machine and with this Python, without trackers. Then
all training and evaluation records are compared, except values that depend on the clock, and so are the final weights.
The exit code is 0 if all are identical, else 1. Ctrl-C removes the worktree too, and keeps the run folder of the
reproduction.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib.base import files
from lib.base.errors import UsageError, UserError, run_program
from lib.config import matters
from lib.config.command_line import unconfigured
from lib.config.kconf import ROOT, Schema, present_values
from lib.record import history, journal, lineage, provenance, run
from lib.record.provenance import GitError, git
from lib.terminal.console import say, table

History = Mapping[tuple[str, int], journal.Record]

# Options that a reproduction sets itself, if the run's code has them.
_OWN = {"tracker": "none", "json_output": "", "sample_tokens": "0", "eval_tasks": ""}
_MACHINE = ("python", "platform", "cpu", "processors", "gpus", "gpu_driver")  # entries of `provenance.environment`


def main() -> int:
    """Reproduce a run; returns 0 if everything is identical, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="folder of the run [the latest in the output folder]")
    parser.add_argument("--to", type=files.named, help="folder of the reproduction [<run>-reproduced, beside the run]")
    parser.add_argument("--keep", action="store_true", help="keep the worktree")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda n, _: sys.exit(128 + n))  # an exception, so that the worktree is removed
    folder = run.whole(args.run).resolve()
    identity, made, config = run.Identity.load(folder), kept(folder), configuration(folder)
    patch, begun = changes(folder, made), beginning(folder)
    copy = destination(folder, identity.name, args.to)
    facts = {"run": folder, "commit": made["commit"] + (f" with {patch.name}" if patch else ""), "reproduction": copy}
    if patch:
        facts["runs now"] = f"{patch}: code from the author of the run; read it first unless it is your own"
    say(table(facts))
    for sentence in itertools.chain(differences(made, provenance.environment()), remarks(folder, made)):
        say(f"note: {sentence}")
    with worktree(made["commit"], patch, args.keep) as tree:
        train(tree, folder, config, copy, start_of_paths(folder, made), begun)
    return verdict(folder, copy, config["max_iters"])


# ---- what is repeated ------------------------------------------------------------------------------------------------


def kept(folder: Path) -> dict[str, Any]:
    """The provenance of a run; raises UserError if it is not enough for a reproduction."""
    made = history.provenance(folder / "provenance.json")
    if not made.keys() >= {"commit", "uncommitted_changes", "packages"}:
        raise UserError(f"{folder}/provenance.json: does not name the code and the packages that made the run")
    if not made["commit"]:
        why = made.get("commit_unknown") or "it was made outside of a git clone, or git could not read the clone"
        raise UserError(f"{folder}: its commit was not known when it was trained, so it cannot be reproduced ({why})")
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(made["commit"])):  # git could read it as an option
        raise UserError(f"{folder}/provenance.json: names a commit that is not a hash")
    return made


def configuration(folder: Path) -> dict[str, Any]:
    """The options of a finished run by name in lower case; raises UserError if a single training cannot repeat it."""
    sessions = [record for record in journal.read(folder) if record["event"] in ("start", "resume")]
    if not sessions or not all({"max_iters", "block_size"} <= one.get("config", {}).keys() for one in sessions):
        raise UserError(f"{folder}: the journal does not say how the run was started")
    config, name = sessions[0]["config"], shlex.quote(str(folder))
    if config.get("pruning_dynamics") == "oneshot":
        raise UserError(
            f"{folder}: is a one-shot run, which no training repeats; repeat it with: {_oneshot(folder, config)}"
        )
    if config.get("finetune_recipe", "none") != "none":
        again = _finetuned(folder, config)
        raise UserError(f"{folder}: was fine-tuned, which no training repeats; repeat it with: {again}")
    first = present_values(config)
    free = matters.names(Schema(), lambda group: not group.same_in_reproduction)
    for one in sessions[1:]:
        now = present_values(one["config"])  # a resume with other code may lack options, or have new ones
        both = sorted((first.keys() & now.keys()) - {option.lower() for option in free})
        if changed := [f"{name.upper()} {first[name]} -> {now[name]}" for name in both if first[name] != now[name]]:
            raise UserError(
                f"{folder}: was resumed after step {one['step']} with other options ({', '.join(changed)}), which a "
                "single training cannot repeat; reproduce a run whose options never changed"
            )
    if journal.final(folder, config["max_iters"]) is None:
        raise UserError(f"{folder}: has not finished its {config['max_iters']:,} steps; first: make resume RUN={name}")
    return config


def _oneshot(folder: Path, config: Mapping[str, Any]) -> str:
    """The command that repeats a one-shot run."""
    return _from_weights(folder, config, "make oneshot", "pruned")


def _finetuned(folder: Path, config: Mapping[str, Any]) -> str:
    """The command that repeats a run of fine-tuning."""
    return _from_weights(folder, config, "make finetune", "began with")


def _from_weights(folder: Path, config: Mapping[str, Any], command: str, what: str) -> str:
    begun = lineage.origin(folder)
    if "init" not in begun:
        raise UserError(f"{folder}: the journal does not say which weights it {what}; restore its first line")
    own, source = str(folder / ".config"), lineage.exactly(begun["init"])
    # The file does not cut the weights' positions; a word does.
    words = {"INIT_FROM": source, "BLOCK_SIZE": str(config["block_size"])}
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in words.items())
    return f"KCONFIG_CONFIG={shlex.quote(own)} {command} {given}"


def changes(folder: Path, made: Mapping[str, Any]) -> Path | None:
    """The patch to apply to the run's commit, if it had uncommitted changes; raises UserError if it is not intact."""
    changed = made["uncommitted_changes"]
    if not changed:
        return None
    if isinstance(changed, str):
        raise UserError(
            f"{folder}: an older version made it and did not keep all of its uncommitted changes; train it again"
        )
    if not changed["file"]:
        return None
    path = folder / changed["file"]
    if path.parent != folder:
        raise UserError(f"{folder}/provenance.json: names uncommitted changes outside of the run's folder")
    try:
        same = hashlib.sha256(path.read_bytes()).hexdigest() == changed["sha256"]
    except OSError as error:
        raise UserError(f"{path}: the run's uncommitted changes cannot be read: {error.strerror}") from None
    if not same:
        raise UserError(f"{path}: has changed since the run was made: its sha256 differs; restore the original file")
    return path


def beginning(folder: Path) -> dict[str, str]:
    """Option -> value that names the weights and masks with which the run began, for those that it did not make itself.

    Raises UserError if they are gone or have changed.
    """
    recorded = lineage.origin(folder)
    if not recorded:
        return {}
    from gpt2.beginning import exact  # here, because it imports torch, which takes seconds

    return exact(recorded)


def start_of_paths(folder: Path, made: Mapping[str, Any]) -> Path:
    """The folder from which a run's relative paths start; the current folder if the run does not record it."""
    output = made.get("options", {}).get("OUTPUT_DIR", {}).get("value", "/")  # not recorded: no folder follows from it
    return next(iter(history.places(folder, output, made.get("folder", ""))), Path.cwd())


def destination(folder: Path, name: str, wanted: Path | None) -> Path:
    """The folder of the reproduction, which must not exist: the `wanted` one, or a free one beside the run."""
    if wanted is None:
        names = itertools.chain([f"{name}-reproduced"], (f"{name}-reproduced-{n}" for n in itertools.count(2)))
        return next(path for one in names if not (path := folder.parent / run.folder_name(one)).exists())
    wanted = wanted.absolute()
    if wanted.exists() or run.folder_name(wanted.name) != wanted.name:
        raise UsageError(f"--to {wanted}: exists already, or is not a valid name for a run's folder; choose another")
    return wanted


def differences(made: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """How machine and packages differ from those of the run, such as `torch 2.13.0 -> 2.14.0`."""
    for name in _MACHINE:
        if name in made and made[name] != now[name]:
            yield f"{name} {made[name]} -> {now[name]}"
    before, after = made["packages"], now["packages"]
    for name, version in before.items():
        if version != after.get(name):
            yield f"{name} {version} -> {after.get(name, 'not installed')}"
    if added := len(after.keys() - before.keys()):
        yield f"packages that were not installed, or not recorded, when the run was made: {added}"


def remarks(folder: Path, made: Mapping[str, Any]) -> Iterator[str]:
    """Other reasons why a reproduction may not be identical, a sentence each."""
    if made.get("folder") and (start := start_of_paths(folder, made)) != Path(made["folder"]):
        yield f"{made['folder']}, where it was trained, does not exist: relative paths start from {start}"
    if made["uncommitted_changes"] and made["uncommitted_changes"]["note"]:
        yield made["uncommitted_changes"]["note"]
    for path in sorted(folder.glob("provenance-*.json")):
        later = history.provenance(path)
        if not later.get("commit"):
            why = later.get("commit_unknown") or "git did not report it"
            yield f"it was resumed with code whose commit is not known ({why}), see {path.name}"
        elif any(later.get(key) != made[key] for key in ("commit", "uncommitted_changes")):
            yield f"it was resumed with other code, see {path.name}; now the code of its start trains all steps"
    sessions = [record for record in journal.read(folder) if record["event"] in ("start", "resume")]
    ranks = [machine.ranks for one in sessions if (machine := history.machine(one))]
    if several := [count for count in ranks if count > 1]:
        yield f"{several[0]} processes trained it, now one does; sums of gradients are rounded differently"
    if lines := journal.damaged(folder):
        yield f"lines {', '.join(map(str, lines))} of its journal are damaged, so their records are missing"


# ---- training again --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def worktree(commit: str, patch: Path | None, keep: bool) -> Iterator[Path]:
    """A temporary checkout of a commit with a patch applied; yields the folder in it that corresponds to ROOT."""
    if why := provenance.unknown(ROOT):
        raise UserError(f"the run's code cannot be checked out: {why}")
    prefix = os.fsdecode(git(ROOT, "rev-parse", "--show-prefix")).strip()  # ROOT may be a folder of a larger clone
    try:
        git(ROOT, "cat-file", "-e", f"{commit}^{{commit}}")
    except GitError:
        raise UserError(f"commit {commit} is not in the clone at {ROOT}; fetch it first") from None
    try:
        scratch = Path(tempfile.mkdtemp(prefix="espalier-reproduce-"))
    except OSError as error:
        raise UserError(f"cannot create a folder for the run's code ({error.strerror}); set TMPDIR") from None
    tree = scratch / ROOT.name
    try:
        _check_out(tree, commit, patch)
        yield tree / prefix
    finally:
        if keep and tree.exists():
            say(f"kept: {tree}; remove it with: git worktree remove --force {shlex.quote(str(tree))}")
        else:
            with contextlib.suppress(GitError):  # if the worktree does not exist
                # --force twice also removes a locked worktree: git locks it while it creates it.
                git(ROOT, "worktree", "remove", "--force", "--force", str(tree))
            shutil.rmtree(scratch, ignore_errors=True)


def _check_out(tree: Path, commit: str, patch: Path | None) -> None:
    try:
        git(ROOT, "worktree", "add", "--quiet", "--detach", str(tree), commit)
        if patch:
            git(tree, "apply", "--binary", "--whitespace=nowarn", str(patch))
    except GitError as error:  # shortened: git names every file for which the disk had no room
        free = shutil.disk_usage(tree.parent).free
        raise UserError(f"{str(error)[:300]}; {free:,} bytes are free there, and TMPDIR names another place") from None


def chosen(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Words NAME=value for what `auto` chose on the run's machine, as far as its code has options for it."""
    start = next(record for record in journal.read(folder) if record["event"] == "start")
    if not (use := history.machine(start)) or use.device != "cpu":
        return []
    values = {"threads": use.threads, "kernels": use.kernels}
    return [f"{name.upper()}={value}" for name, value in values.items() if value and name in config]


def train(
    tree: Path, folder: Path, config: Mapping[str, Any], copy: Path, where: Path, begun: Mapping[str, str]
) -> None:
    """Train in the folder `where` with the code in `tree`, into the folder `copy`; raises UserError if that fails.

    `begun` are the options of `beginning`.
    """
    own = {"output_dir": copy.parent, "tracker_run_name": copy.name} | {n: v for n, v in _OWN.items() if n in config}
    own |= begun
    if "init_from" in begun:
        own["block_size"] = config["block_size"]  # the file does not cut the weights' positions; a flag does
    flags = itertools.chain.from_iterable((f"--{name.replace('_', '-')}", str(value)) for name, value in own.items())
    command = [sys.executable, str(tree / "gpt2" / "train.py"), "--config", str(folder / ".config"), *flags]
    command += chosen(folder, config)
    # In its own session, so that Ctrl-C reaches it only once: through the signal that is sent below.
    trainer = subprocess.Popen(command, cwd=where, env=unconfigured(os.environ), start_new_session=True)
    try:
        code = trainer.wait()
    except BaseException:
        trainer.send_signal(signal.SIGINT)  # the trainer then saves and ends
        try:
            trainer.wait()
        finally:
            trainer.kill()
        raise
    if code:
        raise UserError(f"the training ended with exit code {code}, so there is nothing to compare with {folder}")


# ---- comparing -------------------------------------------------------------------------------------------------------


def verdict(folder: Path, copy: Path, step: int) -> int:
    """Print whether two runs have the same records, and the same weights after `step`; returns 0 if they do, else 1."""
    before, after = journal.history(folder), journal.history(copy)
    found = list(unlike(before, after))
    same, words = weights(folder, copy, step)
    if not found and same is not False:
        say(f"bit-identical: {len(before):,} records, {'weights too' if same else words}")
        return 0
    found += ["the weights are bit-identical" if same else words, *other_machine(folder, copy)]
    say("\n".join(["not identical", *found]))
    return 1


def unlike(before: History, after: History) -> Iterator[str]:
    """How the records of two runs differ, except in values that depend on the clock."""
    keys = sorted(before.keys() | after.keys(), key=lambda key: (key[1], key[0] == "eval"))  # as a trainer writes them
    was, now = ({key: journal.lasting(row["metrics"]) for key, row in rows.items()} for rows in (before, after))
    wrong = [key for key in keys if was.get(key) != now.get(key)]
    if not wrong:
        return
    event, step = wrong[0]
    one, other = was.get(wrong[0], {}), now.get(wrong[0], {})
    names = [name for name in one | other if one.get(name) != other.get(name)]
    values = ", ".join(f"{name} {one.get(name, 'missing')} -> {other.get(name, 'missing')}" for name in names)
    yield f"{len(wrong):,} of {len(keys):,} records differ, the first at step {step} ({event}: {values})"
    far = [
        (abs(a - b), name, key[1])
        for key in wrong
        for name, a in was.get(key, {}).items()
        if name.endswith("loss") and isinstance(b := now.get(key, {}).get(name), float) and isinstance(a, float)
    ]
    gap, name, step = max(far, default=(0.0, "", 0))
    yield f"the largest difference of a loss is {gap:.3g} ({name} of step {step})" if gap else "no loss differs"


def other_machine(folder: Path, copy: Path) -> Iterator[str]:
    """How the two runs used their machines differently: device, dtype, threads, compiling."""
    starts = (next(record for record in journal.read(one) if record["event"] == "start") for one in (folder, copy))
    one, other = (
        machine.words(reasons=False) if (machine := history.machine(start)) else "unknown" for start in starts
    )
    if one != other:
        yield f"machine: {one} -> {other}"


def weights(folder: Path, copy: Path, step: int) -> tuple[bool | None, str]:
    """Whether two runs have the same weights after `step` (None: unknown), and why they do not or why it is unknown."""
    from lib.record import checkpoint  # here, because it imports torch, which takes seconds

    paths = [one / "checkpoints" / checkpoint.name(step) for one in (folder, copy)]
    if not paths[0].exists():
        return None, f"no weights to compare ({paths[0]} is missing)"
    one, other = map(checkpoint.load, paths)
    if one["data"] != other["data"]:
        return False, "the reproduction was trained on other data"
    one, other = one["model"], other["model"]
    if {name: one[name].shape for name in one} != {name: other[name].shape for name in other}:
        return False, "the models have weights with other names or shapes"
    wrong = [name for name in one if not same_bits(one[name], other[name])]
    if not wrong:
        return True, ""
    gap = max((one[name].double() - other[name].double()).abs().max().item() for name in wrong)
    return False, f"{len(wrong)} of {len(one)} weight tensors differ, by {gap:.3g} at most"


def same_bits(one: Any, other: Any) -> bool:
    """Whether two tensors of the same shape have the same type and bytes."""
    import torch

    return one.dtype == other.dtype and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, other)))


if __name__ == "__main__":
    run_program(main)

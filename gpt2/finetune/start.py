"""Begins a run of fine-tuning, or continues one: completes the configuration, and makes the folder and the parts."""

import dataclasses
import fnmatch
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2 import beginning
from gpt2.announce import Start
from gpt2.data import tokenizer as tokenizers
from gpt2.finetune import model as models
from gpt2.finetune import options as checks
from gpt2.finetune import rewards, trainers
from gpt2.finetune.examples import Examples
from gpt2.finetune.options import FinetuneOptions
from gpt2.finetune.run import START, FineTuning, Parts
from gpt2.weights import form, masks, source
from gpt2.weights.adopt import adopt
from gpt2.weights.source import Source, Weights
from lib.base.errors import UsageError, UserError
from lib.base.launch import Launch
from lib.config.kconf import Schema
from lib.machine import device
from lib.record import history, lineage, option_changes, run, trl_checkpoints
from lib.terminal.console import say

_NEAR = 1e-3  # fewer zeros than this share are there by chance


def start(schema: Schema, command: list[str], launch: Launch, examples: Examples) -> int:
    """Fine-tune the model that INIT_FROM names, in a new run; returns the exit code. `command` is for the record."""
    trainers.quiet()
    given = set(schema.given)
    machine = device.choose(schema.bind(device.SystemOptions), launch)
    first = machine.ranks.first
    with device.errors_for_users(), machine.ranks:
        options = schema.bind(run.RunOptions)
        first(lambda: run.check_place(options))
        found = first(lambda: adopt(schema))
        if machine.ranks.rank:
            adopt(schema, lambda name, output_dir: found)
        kept, weights, begun = _masks(schema, found, given)
        _warn(schema, machine)
        checks.check(schema.bind(FinetuneOptions), machine.ranks.size)
        steps = _count_steps(schema, given, examples, machine)
        parts = Parts(machine, examples, rewards.load(schema["FINETUNE_REWARD"] or "exact"), begun)
        # Beside the runs: a run that cannot be built leaves no folder.
        draft = Path(first(lambda: tempfile.mkdtemp(prefix=".finetune-", dir=_made(options.output_dir))))
        try:
            first(lambda: models.write(draft, found, weights.state, kept, schema["DROPOUT"]))
            made = FineTuning(schema, parts, draft, steps, None)
            folder = first(lambda: _new(schema, options, launch, draft))
        finally:
            first(lambda: shutil.rmtree(draft, ignore_errors=True))
        return made.train(Start(folder, command, {}))


def resume(schema: Schema, command: list[str], launch: Launch, folder: Path, examples: Examples) -> int:
    """Continue the run in `folder` from its newest complete checkpoint of TRL; returns the exit code."""
    trainers.quiet()
    machine = device.choose(schema.bind(device.SystemOptions), launch)
    first = machine.ranks.first
    with device.errors_for_users(), machine.ranks:
        changed = first(lambda: option_changes.find(schema, folder))
        if first(lambda: (folder / "summary.json").exists()):
            first(lambda: _say_finished(folder, changed))
            return 0
        checks.check(schema.bind(FinetuneOptions), machine.ranks.size)
        then = first(lambda: _recorded(folder))
        loaded = rewards.load(schema["FINETUNE_REWARD"] or "exact", folder, then["rewards"])
        parts = Parts(machine, examples, loaded, first(lambda: lineage.origin(folder)))
        before = first(lambda: _check_same(folder, parts, then, schema["FINETUNE_TEMPLATE_FILE"]))
        made = FineTuning(schema, parts, folder / START, schema["MAX_ITERS"], before)
        return made.train(Start(folder, command, changed))


def _say_finished(folder: Path, changed: dict[str, list[str]]) -> None:
    """Say that the run in `folder` has nothing to do; raises UsageError if the user wants it to go on differently."""
    further = f"to train its model further: make finetune RUN={shlex.quote(str(folder))}"
    if changed:
        raise UsageError(f"{folder}: is finished, too late to change {option_changes.words(changed)}; {further}")
    say(f"{folder} is finished: see {folder / 'summary.json'}; {further}")


def _warn(schema: Schema, machine: device.Machine) -> None:
    for warning in schema.warnings if machine.ranks.rank == 0 else ():
        print(f"warning: {warning}", file=sys.stderr)


def _made(output_dir: str) -> Path:
    path = Path(output_dir)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _new(schema: Schema, options: run.RunOptions, launch: Launch, draft: Path) -> Path:
    """Make the run's folder, and move the model there."""
    wanted = options.tracker_run_name or f"gpt2_{schema['FINETUNE_RECIPE']}_{time.strftime('%Y%m%d-%H%M%S')}"
    named = dataclasses.replace(options, tracker_run_name=wanted)
    folder, identity = run.create(named, run.job_id(options, launch), lambda new: schema.write(new / ".config"))
    shutil.move(draft, folder / START)
    (folder / START).chmod(0o755)
    if identity.name != wanted:
        say(f"note: {folder.parent / run.folder_name(wanted)} exists, so this run is called {identity.name}")
    return folder


def _count_steps(schema: Schema, given: set[str], examples: Examples, machine: device.Machine) -> int:
    """Set MAX_ITERS to the steps of the run; raises UsageError if it was given as another number."""
    steps = schema.bind(FinetuneOptions).steps(len(examples.train), machine.ranks.size)
    if "MAX_ITERS" in given and schema["MAX_ITERS"] != steps:
        raise UsageError(
            f"MAX_ITERS={schema['MAX_ITERS']}: the options of the menu Fine-tuning make {steps} steps; leave it out, "
            "and set FINETUNE_STEPS or FINETUNE_EPOCHS"
        )
    schema.override([("MAX_ITERS", str(steps), "the steps of fine-tuning")])
    return steps


def _masks(schema: Schema, found: Source, given: set[str]) -> tuple[dict[str, Tensor], Weights, dict[str, Any]]:
    """The masks that hold ({}: none), the first weights, and what the journal says of both.

    Without PRUNING_METHOD on the command line, the masks of the weights hold if they have some, else their zeros if
    these are more than a few. Sets PRUNING_METHOD and PRUNING_SCOPE.
    """
    weights = source.read(found, schema["BLOCK_SIZE"], tokenizers.vocab_size(schema["TOKENIZER"]))
    begun = {"init": beginning.init(found, weights)}
    if schema["INIT_MASKS"] not in (None, "zeros"):
        kept, about = masks.read(schema["INIT_MASKS"], schema["OUTPUT_DIR"])
        begun["masks"] = about | {"path": str(Path(about["path"]).absolute())}
        return form.cut(kept, schema["BLOCK_SIZE"], weights.state["wte.weight"].shape[0]), weights, begun
    if "PRUNING_METHOD" in given and schema["PRUNING_METHOD"] != "given":
        return {}, weights, begun  # the user wants it dense, or what `check` refuses
    kept = weights.masks or _zeros(weights.state)
    few = sum(int((mask == 0).sum()) for mask in kept.values()) <= _NEAR * sum(mask.numel() for mask in kept.values())
    if few and "PRUNING_METHOD" in given:
        raise UsageError(f"PRUNING_METHOD=given: {found.given} has no zeros to hold; name a pruned model")
    why = f"the zeros of INIT_FROM={found.given}"
    schema.override([("PRUNING_METHOD", "none" if few else "given", why)])
    if not few and not all(_matches(name, schema["PRUNING_SCOPE"]) for name in kept):
        schema.override([("PRUNING_SCOPE", ",".join(kept), why)])
    return {} if few else kept, weights, begun


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern.strip()) for pattern in patterns.split(","))


def _zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks that the zeros of the blocks' matrices imply."""
    names = [name for name, value in state.items() if name.startswith("h.") and value.dim() == 2]
    return masks.zeros({name: state[name] for name in names})


def _recorded(folder: Path) -> dict[str, Any]:
    """What the start event says of the fine-tuning; raises UserError if the run did not begin to train."""
    sessions = history.load(folder).sessions
    if not (folder / START).is_dir() or not sessions:
        raise UserError(f"{folder}: was stopped before it began to train; start it again with make finetune")
    found = sessions[0].get("finetune")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in ("examples", "rewards")):
        raise UserError(f"{folder}: the journal's first line is damaged: it does not say what the run was trained on")
    return found


def _check_same(folder: Path, parts: Parts, then: dict[str, Any], template_file: str) -> Path | None:
    """The checkpoint of TRL to continue from, or None; raises UserError if it would not be the same run."""
    known, now = then["examples"], parts.examples.facts(template_file)
    if other := {name for name in known.keys() | now.keys() if known.get(name) != now.get(name)}:
        what, option = "its examples have", "FINETUNE_DATA"
        if other == {"template"}:
            what, option = "the chat template has", "FINETUNE_TEMPLATE_FILE"
        raise UserError(f"{folder}: {what} changed since it began (see {option}); restore it, or start a new run")
    before = trl_checkpoints.newest(folder)
    if before and (ranks := trl_checkpoints.about(before)["ranks"]) != parts.machine.ranks.size:
        raise UsageError(
            f"{folder}: was trained by {ranks} processes, and these are {parts.machine.ranks.size}; "
            f"start as many: make resume RUN={shlex.quote(str(folder))} NPROC={ranks}"
        )
    return before

"""What a session records and says before its first step: what is trained, on what, and what a resumed run changes."""

import dataclasses
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2 import flops, pace
from gpt2.data.windows import Data
from gpt2.model import GPT2
from gpt2.training import Training
from lib.config import matters
from lib.config.kconf import Schema
from lib.config.parameters import parameters
from lib.machine.device import Machine
from lib.machine.use import Use
from lib.record import journal, option_changes, run
from lib.schedule import Schedule
from lib.terminal.console import Console, table


@dataclasses.dataclass(frozen=True)
class Start:
    """How a session starts."""

    folder: Path  # of the run
    command: list[str]  # the words of the command line, for the record
    changed: dict[str, list[str]]  # option -> [value before, value now], of a run that continues with other options
    retry: int = 0  # the number of this retry; 0 for none


def begin(
    start: Start,
    book: journal.Journal,
    console: Console,
    training: Training,
    max_iters: int,
    facts: dict[str, Any],
    begun: dict[str, Any],
) -> None:
    """Put the start or resume of a session into the journal. `facts` are its configuration, machine and identity.

    `begun` is what the start says of the first weights, masks and teacher.
    """
    step = training.step
    if book.seq == 0:
        book.write("start", step, schema=journal.SCHEMA, **facts, **begun)
        return
    repeats = 0 if start.changed else book.expect(step)
    if start.changed or not book.ended(max_iters) or step < max_iters:
        retry = {"retry": start.retry} if start.retry else {}
        book.write("resume", step, changed=start.changed, **retry, **facts)
    repeating = f", repeating {repeats} recorded events" * bool(repeats)
    console.say(f"resuming {start.folder} after step {step}{repeating}")


def about(identity: run.Identity, model: GPT2, schema: Schema) -> dict[str, str]:
    """What the headers of checkpoints say about the run."""
    return {
        "run": identity.name,
        "run_id": identity.run_id,
        "project": identity.project,
        "model": model_words(model),
        "optimizer": schema["OPTIMIZER"],
        "pruning": schema["PRUNING_METHOD"],
        "dataset": f"{schema['DATASET']}-{schema['TOKENIZER']}",
    }


def facts(schema: Schema, use: Use, identity: run.Identity, data: Data, training: Training) -> dict[str, Any]:
    """What the start event of a session says of its configuration, code, data, machine, operations and the run."""
    found = {"config": schema.values(), "learns": matters.learns(schema), "data": data.fingerprint}
    found |= {"machine": dataclasses.asdict(use), **dataclasses.asdict(identity)}
    found["flops"] = flops.facts(training.model, training.pruner, training.teacher_flops())
    if schema["TRACKER_CONFIG"] == "learned":
        found["parameters"] = parameters(schema)
    return found


def show_changes(
    start: Start,
    book: journal.Journal,
    console: Console,
    training: Training,
    retries: int,
    rate: str,
) -> None:
    """Tell the user what a resumed run does differently.

    `retries` (the most retries) and `rate` (the learning rate) are shown if this is a retry.
    """
    if book.damaged:
        lines = ", ".join(map(str, book.damaged[:9]))
        console.say(f"note: {book.path}: left out, because they are damaged: lines {lines}")
    for name, values in start.changed.items():
        console.say(f"changed: {option_changes.words({name: values})}")
    for note in training.notes:
        console.say(f"note: {note}")
    if start.retry:
        text = f"retry {start.retry} of {retries} continues after step {training.step}, with LEARNING_RATE={rate}"
        record = book.write("alert", training.step, kind=f"retry-{start.retry}", level="warn", message=text)
        console.show(record)


def show_facts(
    console: Console,
    folder: Path,
    training: Training,
    data: Data,
    machine: str,
    pruning: str,
    plan: Schedule,
    seconds: float | None,
    begun: dict[str, str],
) -> None:
    """Show what is trained, on what, where, and for about how many `seconds` (None: not known).

    `begun` says what the run began with.
    """
    facts = {
        "model": model_words(training.model),
        **begun,
        "data": data.description,
        "machine": machine,
        "training": f"{plan.max_iters:,} steps of {data.tokens_per_step:,} tokens{pace.words(seconds, training, plan)}",
        "run folder": folder,
    }
    if pruning != "none":
        facts["pruning"] = f"{pruning}, {training.pruner.total:,} weights in scope; see make prune-report"
    console.say(table(facts))


def notes(machine: Machine, monitored: bool) -> Iterator[str]:
    """What the user may not expect: GPUs without work, and machines that system metrics (`monitored`) leave out."""
    if machine.ranks.size == 1 and machine.gpus > 1:
        yield (
            f"this process uses 1 of {machine.gpus} GPUs; to use all, give the same options to make train "
            f"NPROC={machine.gpus}"
        )
    if monitored and machine.machines > 1:
        yield (
            f"system metrics are those of {platform.node()}, the machine of rank 0, and of all its GPUs; the others "
            f"of the {machine.machines} machines are not measured"
        )


def model_words(model: GPT2) -> str:
    """`gpt2, 124.44 M parameters`."""
    return f"{model.options.model_name}, {model.count_parameters() / 1e6:.2f} M parameters"

"""How a session ends: a function for each way. Each leaves the run's last record and says what the user can do next."""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt2 import flops
from gpt2.alerts import worse_since
from gpt2.data.windows import Data
from gpt2.divergence import Diverged
from gpt2.evaluation import result, tasks
from gpt2.evaluation.harness import Answers
from gpt2.evaluation.result import Result
from gpt2.recorder import Recorder, Unrecorded
from gpt2.training import Training
from lib.base import files, launch
from lib.base.errors import UsageError, UserError
from lib.base.redact import hide
from lib.base.signals import StopSignals
from lib.config.kconf import Options
from lib.machine import device
from lib.machine.dist import Ranks
from lib.prune.census import EVER_ACTIVE
from lib.prune.sample import sampled_masks
from lib.prune.select import PruningError
from lib.record import checkpoint, journal, lineage
from lib.record.best import best, dense_best, evaluations
from lib.terminal.console import duration, say, table


def finished(
    training: Training, data: Data, recorder: Recorder, json_output: str, artifact: str, asked: Callable[[], bool]
) -> dict[str, Any]:
    """Record that the run has made all its steps. Returns its summary, which is also in summary.json.

    `artifact` names the checkpoint that trackers get: `last`, `best` or `none`. A run that is `asked` to stop draws no
    pictures.
    """
    step, folder = training.step, recorder.folder
    known = evaluations(journal.history(folder).values())
    losses = {}
    if known:  # EVALUATE=y
        losses = {"final_val_loss": known[-1].val_loss, "best_val_loss": (best(known) or known[-1]).val_loss}
    final = journal.final(folder, step) or losses | {"total_time_seconds": recorder.seconds()}
    tokens = step * data.tokens_per_step
    pruned = training.pruner.metrics(step)
    costs = costs_of(training, folder, tokens, pruned["average_nonzeros"], pruned["sparsity"])
    if not recorder.journal.ended(step):  # an earlier session may have ended it, and been killed before the summary
        if not asked():
            recorder.draw(step)
        recorder.keep_artifact(artifact, step)
        recorder.write("finish", step, final, status="finished", flops=costs, **sampled_masks(training.pruner))
    recorder.console.close()
    if dense := dense_best(known):
        final |= {"dense_best_val_loss": dense.val_loss}
    total = lineage.total_tokens(folder, step) if lineage.ancestors(folder) else None
    summary = {
        "run": str(folder),
        "status": "finished",
        "steps": step,
        **final,
        "tokens": tokens,
        **({} if total is None else {"total_tokens": total}),
        "tokens_per_second": tokens / training.train_seconds,
        "sparsity": pruned["sparsity"],
        "average_nonzeros": pruned["average_nonzeros"],
        **({EVER_ACTIVE: pruned[EVER_ACTIVE]} if EVER_ACTIVE in pruned else {}),
        "weights_in_scope": training.pruner.total,
        "parameters": training.model.count_parameters(),
        **costs,
    }
    files.write_json(folder / "summary.json", summary)
    if json_output:
        files.write_json(Path(json_output), summary)
    return summary


def costs_of(training: Training, folder: Path, tokens: int, average: float, sparsity: float) -> dict[str, float]:
    """The operations of a run and its final non-zeros, with those of the runs before it if there are any.

    The totals are left out if the operations of an ancestor are unknown.
    """
    known = flops.facts(training.model, training.pruner, training.teacher_flops())
    found = flops.summary(known, tokens, average, round(training.pruner.total * (1 - sparsity)))
    if lineage.ancestors(folder):
        own = [found["training_flops"], found["training_flops_nonzeros"]]
        if (total := lineage.total_flops(folder, own)) is not None:
            found |= {"total_training_flops": total[0], "total_training_flops_nonzeros": total[1]}
    return found


@dataclasses.dataclass(frozen=True)
class TaskOptions(Options):
    """What a run measures at its end."""

    eval_tasks: str  # separated by commas; empty: nothing
    task_data: str
    eval_limit: int
    batch_size: int
    seed: int


def measure_tasks(
    training: Training,
    data: Data,
    machine: device.Machine,
    recorder: Recorder,
    options: TaskOptions,
    asked: StopSignals,
) -> None:
    """Measure and record EVAL_TASKS with the weights of the end.

    A signal breaks off the measurement, and a task that cannot be measured is told. The run stays finished either way.
    """
    if not tasks.names(options.eval_tasks):
        return
    model, step = training.model, training.step
    about = {"checkpoint": checkpoint.name(step), "dtype": str(machine.dtype).removeprefix("torch.")}
    answers = Answers(model, data.tokenizer, machine, options.batch_size, options.seed)
    results = tasks.measure(answers, options.eval_tasks, options.task_data, options.eval_limit)
    later = f"measure them with: make evaluate RUN={shlex.quote(str(recorder.folder))} TASKS={options.eval_tasks}"
    found = []
    model.eval()
    for one in _until_asked(results, asked, later):
        recorder.write("task", step, one.metrics, **one.fields(about))
        found.append(one)
    model.train()
    if found:
        say(f"\ntasks by lm-eval {tasks.version()}, {about['dtype']}, after step {step}:")
        result.show([one.record(step, about) for one in found], found, say)
        folder = recorder.folder
        say(f"recorded in {folder / journal.FILE}; see make show RUN={shlex.quote(str(folder))}")


def _until_asked(results: Iterator[Result], asked: StopSignals, later: str) -> Iterator[Result]:
    """The results up to a signal or an error, which is told. A signal never interrupts what the caller does."""
    what = "the tasks were not measured"
    while True:
        try:
            asked.break_off()
            with device.errors_for_users():
                one = next(results, None)
        except KeyboardInterrupt:
            say(f"{what}; {later}")
            return
        except UserError as error:
            say(f"note: {what}: {error}; {later}")
            return
        finally:
            asked.hold_out()
        if one is None:
            return
        yield one
        what = "not all tasks were measured"


def show(summary: dict[str, Any], sample: str, trackers: list[str], sample_words: str) -> None:
    """Print the summary after a sample (empty: none). `sample_words` are NAME=value words for `make sample`."""
    if sample:
        width = min(shutil.get_terminal_size().columns, 100)
        say(f"\n{' a sample the model wrote '.center(width, '-')}\n{sample}\n{'-' * width}")
    folder = shlex.quote(summary["run"])
    deliver = "" if "trackio" in trackers else f"make sync RUN={folder} TRACKER=trackio && "
    zeros = f"{summary['sparsity']:.2%} of the weights in scope; {summary['average_nonzeros']:,.0f} kept on average"
    facts = {}
    if "final_val_loss" in summary:
        losses = "{final_val_loss:.4f} final, {best_val_loss:.4f} best, in nats per token"
        facts["validation loss"] = losses.format(**summary)
    if "total_tokens" in summary:
        facts["tokens"] = "{tokens:,}, and {total_tokens:,} with those of the runs before".format(**summary)
    facts |= {
        **({"zero": zeros} if summary["sparsity"] else {}),
        "speed": f"{summary['tokens_per_second']:,.0f} tokens/s",
        "time": duration(summary["total_time_seconds"]),
        "run folder": summary["run"],
        "look at it": f"{deliver}make dashboard RUN={folder}",
        "sample from it": f"make sample RUN={folder}{sample_words}",
    }
    say(table(facts))


def stopped(recorder: Recorder | Unrecorded, step: int, save: bool = True, run_time: str = "") -> None:
    """Record that the user, or the limit `run_time`, stopped the run after this step.

    With `save`, its checkpoint is written first.
    """
    if save and not recorder.has_checkpoint(step):
        recorder.save(step)
        recorder.settle()
    recorder.interrupt(step, run_time)


def diverged(
    error: Diverged, retries: int, training: Training, recorder: Recorder | Unrecorded, ranks: Ranks, vocab_size: int
) -> UserError:
    """Record that the run has diverged after `retries` retries. Returns the error, which says what to do.

    The weights are saved if they are good.
    """
    step, finite = training.step, training.is_finite()
    good = error.good and finite
    try:
        if good:
            recorder.save(step)
        recorder.settle()
    finally:
        recorder.write("finish", step, {}, status="diverged")
    since = ranks.first(lambda: worse_since(recorder.folder, vocab_size))
    saved = ranks.first(lambda: checkpoint.find(recorder.folder / "checkpoints"))
    again = launch.resume(recorder.folder, "LEARNING_RATE=...")
    untrusted = checkpoint.name(int(min(since, step + 1)))
    if saved and not good and saved[-1].name < untrusted:
        advice = f"continue from its last checkpoint, {saved[-1].name}, with: {again}"
    elif since <= step:
        advice = f"since step {since} its losses are worse than guessing; start a new run with a lower LEARNING_RATE"
    elif good:
        advice = f"continue from its last good weights with: {again}"
    else:
        advice = "it has no checkpoint; start a new run with a lower LEARNING_RATE"
    tried = f", retries made: {retries}" if retries else ""
    lost = "" if finite else f", and the weights after step {step} are NaN or infinite, so they are not saved"
    return UserError(f"the run has diverged{tried}{lost}; {advice}")


def failed(error: Exception, training: Training, recorder: Recorder | Unrecorded) -> None:
    """Record why the run failed; the caller raises `error` again.

    Recording may fail for the same reason, such as a full disk. Then `error` is still what the user reads.
    """
    with contextlib.suppress(UserError):
        if isinstance(error, PruningError) and training.is_finite():  # raised before the step changed a weight
            training.guard.look(recorder.alert)
            recorder.save(training.step)
    with contextlib.suppress(UserError):
        words = hide(device.trouble(error) or str(error))
        recorder.write("finish", training.step, {}, status="failed", message=words)


def displaced(recorder: Recorder, step: int) -> UserError:
    """Save a run whose folder was removed or moved. Returns the error, which says what happened and how to continue."""
    before = recorder.folder
    happened = recorder.rescue(step)
    return UserError(f"{before}: {happened}; continue after step {step} with: {launch.resume(recorder.folder)}")


def check_output(path: Path, entry: str = "total_time_seconds", other: str = "is not a summary of a run") -> None:
    """Raise UsageError now if JSON_OUTPUT could not be written at the end.

    A file there may be replaced if it has this `entry`; `other` says what a file without it is.
    """
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"JSON_OUTPUT={path}: cannot be written; name a file in a folder that exists and is writable")
    if path.is_file() and path.stat().st_size:  # the option may come with another person's configuration
        try:
            ours = entry in json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise UsageError(f"JSON_OUTPUT={path}: exists and {other}; name another file")

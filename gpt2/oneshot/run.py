"""A run of one-shot pruning: from finished weights to a run folder with journal, checkpoint and summary.

A step of such a run is a pruned block: step 0 is before the first, step k after block k. Nothing is trained.
"""

import contextlib
import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2 import announce, ending, loop, preflight, trained
from gpt2.alerts import AlertOptions, Watch
from gpt2.data import prepare, windows
from gpt2.divergence import Diverged, DivergenceOptions
from gpt2.evaluation import tasks
from gpt2.oneshot import blocks
from gpt2.recorder import Recorder
from gpt2.training import Training
from gpt2.weights.adopt import adopt
from gpt2.weights.source import Source, Weights
from lib import optim, track
from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.base.redact import hide
from lib.base.signals import StopSignals
from lib.config.config_file import names
from lib.config.kconf import Options, Schema
from lib.config.parameters import parameters
from lib.machine import device
from lib.prune import scope
from lib.prune.mask import MaskOptions, ones
from lib.prune.pruner import SPARSITY, Pruner
from lib.prune.schedule import Plan
from lib.prune.score import Criterion
from lib.prune.weight import Weight
from lib.record import checkpoint, journal, monitor, provenance, run
from lib.record.best import best
from lib.terminal.console import Console, duration, say, table
from lib.track import waiting

_NEAR = 1e-3  # a target this far below the present sparsity is the same: a few weights may be zero by chance


def start(schema: Schema, command: list[str]) -> int:
    """Prune the model that INIT_FROM names, in a new run; returns the exit code. `command` is for the record."""
    source = adopt(schema)
    for warning in schema.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    _count_blocks(schema)
    options = schema.bind(run.RunOptions)
    with _memory_for_users(schema):
        run.check_place(options)
        pruning = Pruning(schema, source)  # before the folder: a run that cannot be built leaves no folder
        wanted = options.tracker_run_name or f"gpt2_{schema['PRUNING_METHOD']}_{time.strftime('%Y%m%d-%H%M%S')}"
        named = dataclasses.replace(options, tracker_run_name=wanted)
        folder, identity = run.create(named, begin=lambda new: schema.write(new / ".config"))
        if identity.name != wanted:
            say(f"note: {folder.parent / run.folder_name(wanted)} exists, so this run is called {identity.name}")
        return pruning.prune(folder, identity, command)


def _count_blocks(schema: Schema) -> None:
    """Set MAX_ITERS to the number of blocks, and evaluate after each block unless EVAL_INTERVAL was given."""
    steps = schema["N_LAYER"]
    if _given(schema, "MAX_ITERS") and schema["MAX_ITERS"] != steps:
        raise UsageError(
            f"MAX_ITERS={schema['MAX_ITERS']}: the steps of make oneshot are the {steps} blocks of the model; leave it "
            "out"
        )
    changes = [("MAX_ITERS", str(steps), "the number of blocks")]
    if schema["EVALUATE"] and not _given(schema, "EVAL_INTERVAL"):
        changes.append(("EVAL_INTERVAL", "1", "make oneshot"))
    schema.override(changes)


def _given(schema: Schema, name: str) -> bool:
    """Whether an option was given as a word, a flag or in the environment, and not in a file."""
    return names(schema.sources.get(name, ""), name)


@contextlib.contextmanager
def _memory_for_users(schema: Schema):
    """Turn the failures of torch that a user can mend into UserError."""
    try:
        yield
    except Exception as error:
        if sentence := _trouble(error, schema):
            raise UserError(sentence) from None
        raise


def _trouble(error: Exception, schema: Schema) -> str:
    """What is wrong and what to do about a failure of torch; "" if it is unknown or already a UserError."""
    if isinstance(error, UserError) or not device.is_out_of_memory(error):
        return device.trouble(error)
    samples = schema["CALIBRATION_SAMPLES"] if schema.options["CALIBRATION_SAMPLES"].active else None
    fewer = f"lower CALIBRATION_SAMPLES={samples} or " if samples else ""
    return (
        f"memory does not suffice to prune this model: {fewer}lower BATCH_SIZE={schema['BATCH_SIZE']}, which only "
        "evaluations use; set DEVICE=cpu if a GPU is full"
    )


@dataclasses.dataclass(frozen=True)
class OneshotRunOptions(Options):
    """What a run of one-shot pruning needs beside the options of its parts."""

    seed: int
    optimizer: str
    pruning_method: str
    calibration_samples: int | None  # None: no inputs are measured
    dataset: str
    tokenizer: str
    max_iters: int  # blocks
    eval_interval: int | None  # blocks; None: nothing is evaluated
    tracker: tuple[str, ...]
    json_output: str  # file; empty: none
    tracker_config: str
    tracker_artifacts: str


class Pruned(Pruner):
    """The masks of a model that is pruned at once. Until `take` has them, zeros are counted in the weights."""

    def __init__(self, weights: Sequence[Weight], target: float, distribution: MaskOptions):
        super().__init__(weights, Criterion(), Plan(0, 0, 1, "one-shot"), target, distribution)

    @torch.no_grad()
    def take(self, masks: Mapping[str, Tensor]) -> None:
        """Keep the masks with which the weights were pruned. Weights that were zero before count as pruned too."""
        for weight in self.weights:
            torch.mul(masks[weight.name], weight.value != 0, out=weight.mask)
            self.forget(weight)
        self.kept = sum(ones(weight.mask) for weight in self.weights)

    def layers(self) -> dict[str, float]:
        """The sparsity of the model and of each tensor: no training event records the former in such a run."""
        return {SPARSITY: self.sparsity(), **super().layers()}


class Pruning:
    """The parts that prune a model. They are built without the run's folder, and `prune` uses them once."""

    def __init__(self, schema: Schema, source: Source):
        """Load the model, and prepare the data if it is missing; raises UserError for what cannot be pruned."""
        self.schema, self.options = schema, schema.bind(OneshotRunOptions)
        if self.options.json_output:
            ending.check_output(Path(self.options.json_output))
        preflight.check_evaluation(schema.bind(preflight.EvaluationOptions))
        self.tasks = schema.bind(ending.TaskOptions)
        tasks.check(self.tasks.eval_tasks, self.tasks.task_data)
        self.oneshot = schema.bind(blocks.OneshotOptions)
        torch.manual_seed(self.options.seed)
        loaded = trained.load(source, schema)
        self.machine, self.init = loaded.machine, _origin(source, loaded.weights)
        blocks.check(loaded.model, self.oneshot)
        optimizer = optim.build(loaded.model, schema.bind)
        weights = [
            Weight(name, parameter, torch.ones_like(parameter[:rows], dtype=torch.uint8), optimizer)
            for name, parameter in scope.select(loaded.model, self.oneshot.pruning_scope).items()
            for rows in [loaded.model.used_rows().get(parameter)]
        ]
        pruner = Pruned(weights, self.oneshot.sparsity, schema.bind(MaskOptions))
        _check_target(pruner, self.oneshot)
        data_options = schema.bind(windows.DataOptions)
        prepare.ensure(data_options)
        self.data = windows.load(data_options, pin=self.machine.device.type == "cuda")
        count = self.options.calibration_samples
        self.windows = None if count is None else self.data.calibration(count)
        divergence = schema.bind(DivergenceOptions)
        self.training = Training(loaded.model, optimizer, pruner, self.machine, divergence, self.data.sums)

    def prune(self, folder: Path, identity: run.Identity, command: list[str]) -> int:
        """Prune all blocks, or until a signal or a failure; returns the exit code. The journal is closed in any case.

        Only a model whose blocks are all pruned leaves a checkpoint.
        """
        with ExitStack() as stack:
            with StopSignals("stopping; the blocks that are pruned are not saved") as asked:
                recorder = self._record(folder, identity, command, stack, asked)
                if not self._all_blocks(recorder, asked):
                    return asked.exit_code
            with StopSignals("recording the end of the run") as later:
                self._finish(recorder, later)
            return asked.exit_code or later.exit_code

    def _record(
        self, folder: Path, identity: run.Identity, command: list[str], stack: ExitStack, asked: StopSignals
    ) -> Recorder:
        """Record and announce the start; `stack` closes what records it."""
        schema, options, training = self.schema, self.options, self.training
        stack.enter_context(files.held(folder, "pruning in this run"))
        book = journal.Journal(folder)
        stack.callback(book.close)
        asked.last_words = lambda: book.last_word(training.step, "interrupted")
        console = Console(options.max_iters, 0, lambda: training.evaluations)
        stack.callback(console.close)
        if note := provenance.save(schema, folder, command):
            console.say(f"note: {note}")
        schema.write(folder / "defconfig", minimal=True)
        use = self.machine.use(False, "one-shot pruning does not compile")
        facts = {"config": schema.values(), "machine": dataclasses.asdict(use), **dataclasses.asdict(identity)}
        if options.tracker_config == "learned":
            facts["parameters"] = parameters(schema)
        book.write("start", 0, schema=journal.SCHEMA, init=self.init, **facts)
        console.say(table(self._facts(folder, use.words())))

        sigma = schema.bind(AlertOptions).loss_spike_sigma
        watch = Watch(self.data.vocab_size, training.pruner.goal(), True, sigma)
        keeping, trackers = schema.bind(checkpoint.Keeping), track.names(options.tracker)
        patience = waiting.patience(schema.bind(waiting.WaitOptions).tracker_wait)
        about = {
            "run": identity.name,
            "run_id": identity.run_id,
            "project": identity.project,
            "model": announce.model_words(training.model),
            "optimizer": options.optimizer,
            "pruning": options.pruning_method,
            "dataset": f"{options.dataset}-{options.tokenizer}",
        }
        recorder = Recorder(folder, book, console, trackers, training, watch, keeping, about, None, patience)
        stack.enter_context(recorder)
        interval = schema.bind(monitor.MonitorOptions).system_metrics_interval
        write = functools.partial(book.write, "system")
        stack.enter_context(monitor.Monitor(interval, lambda: training.step, write, 0))
        return recorder

    def _facts(self, folder: Path, machine: str) -> dict[str, object]:
        """What is pruned, how, and on what."""
        pruner, count = self.training.pruner, self.options.calibration_samples
        size = self.data.options.block_size
        facts = {
            "model": f"{announce.model_words(self.training.model)}, from {self.init['from']}",
            "pruning": f"{self.options.pruning_method}, {pruner.target:.2%} of {pruner.total:,} weights in scope",
            "data": self.data.description,
            "calibration": f"{count:,} training windows of {size:,} tokens" if count else "",
            "machine": machine,
            "run folder": folder,
        }
        return {name: value for name, value in facts.items() if value}

    # ---- pruning and after -----------------------------------------------------------------------------------------

    def _all_blocks(self, recorder: Recorder, asked: StopSignals) -> bool:
        """Prune all blocks and save the model; returns False if the user stopped it. Raises if anything else does."""
        training = self.training
        path = recorder.writer.folder / checkpoint.name(self.options.max_iters)
        try:
            checkpoint.require_room(path, checkpoint.size(training.state_dict()))  # now, not after all the work
            self._evaluate(recorder, asked)
            with recorder.busy("pruning"):
                done = functools.partial(self._done, recorder, asked)
                masks = blocks.prune(training.model, self.windows, self.machine, self.oneshot, done, asked)
            if not asked():
                training.pruner.take(masks)
                recorder.save(training.step)
                recorder.settle()
                return True
        except KeyboardInterrupt:
            if not asked():
                raise
        except Exception as error:
            with contextlib.suppress(UserError):  # such as a full disk; the user reads the first error
                words = hide(_trouble(error, self.schema) or str(error))
                recorder.write("finish", training.step, {}, status="failed", message=words)
            raise
        recorder.hurry()
        recorder.write("finish", training.step, {}, status="interrupted")
        recorder.console.close()
        say(f"stopped after block {training.step} of {self.options.max_iters}; nothing is saved, so prune again")
        return False

    def _done(self, recorder: Recorder, asked: Callable[[], bool], block: int) -> None:
        """Record that this block (1 is the first) is pruned."""
        self.training.step = block
        recorder.tick()
        if loop.evaluation_due(block, self.options.max_iters, self.options.eval_interval):
            self._evaluate(recorder, asked)

    def _evaluate(self, recorder: Recorder, asked: Callable[[], bool]) -> None:
        """Record the validation loss, if losses are measured, and leave the model in evaluation mode."""
        try:
            if self.options.eval_interval is not None:
                loop.evaluate(self.training, self.data, self.machine, recorder, asked)
        except Diverged:
            raise UserError(
                f"after block {self.training.step} the validation loss is NaN or infinite, so nothing is saved; use "
                "DTYPE=float32, or lower TARGET_SPARSITY"
            ) from None
        finally:
            self.training.model.eval()

    def _finish(self, recorder: Recorder, asked: StopSignals) -> None:
        """Record the end, write the summary and show it; if `asked` to stop, without pictures."""
        training, pruner, folder, step = self.training, self.training.pruner, recorder.folder, self.training.step
        known, losses = training.evaluations, {}
        if known:  # EVALUATE=y
            losses = {"final_val_loss": known[-1].val_loss, "best_val_loss": (best(known) or known[-1]).val_loss}
        final = losses | {"total_time_seconds": recorder.seconds()}
        if not asked():
            recorder.draw(step)
        recorder.keep_artifact(self.options.tracker_artifacts, step)
        recorder.write("finish", step, final, status="finished")
        recorder.console.close()
        summary = {
            "run": str(folder),
            "status": "finished",
            "steps": step,
            **({"initial_val_loss": known[0].val_loss} if known else {}),
            **final,
            "tokens": 0,  # nothing is trained
            "calibration_tokens": 0 if self.windows is None else self.windows.numel(),
            "sparsity": pruner.sparsity(),
            "average_nonzeros": pruner.kept,
            "weights_in_scope": pruner.total,
            "parameters": training.model.count_parameters(),
        }
        files.write_json(folder / "summary.json", summary)
        if self.options.json_output:
            files.write_json(Path(self.options.json_output), summary)
        ending.measure_tasks(training, self.data, self.machine, recorder, self.tasks, asked)
        if asked():
            recorder.hurry()
        show(summary)


def show(summary: dict[str, Any]) -> None:
    """Print the summary, and what can be done with the model."""
    folder, facts = shlex.quote(summary["run"]), {}
    if "final_val_loss" in summary:
        losses = "{initial_val_loss:.4f} before, {final_val_loss:.4f} after, in nats per token"
        facts["validation loss"] = losses.format(**summary)
    facts |= {
        "zero": f"{summary['sparsity']:.2%} of the {summary['weights_in_scope']:,} weights in scope",
        "time": duration(summary["total_time_seconds"]),
        "run folder": summary["run"],
        "look at it": f"make show RUN={folder}",
        "train it on": f"make train INIT_FROM={folder} PRUNING_METHOD=given",
        "evaluate it": f"make evaluate RUN={folder}",
        "export it": f"make export-model RUN={folder}",
    }
    say(table(facts))


def _origin(source: Source, weights: Weights) -> dict[str, Any]:
    """What the journal says of the weights that were pruned; see lib.record.lineage."""
    return {
        "from": source.given,
        "kind": source.kind,
        "path": str(source.path.absolute()),
        "sha256": weights.sha256,
        "revision": source.revision,
        "step": source.step,
        "ancestors": source.ancestors,
    }


def _check_target(pruner: Pruned, options: blocks.OneshotOptions) -> None:
    """Raise UsageError for a target below the sparsity that the weights have: zeros stay zeros."""
    present = pruner.sparsity()
    if options.target_sparsity is not None and present > options.target_sparsity + _NEAR:
        raise UsageError(
            f"TARGET_SPARSITY={options.target_sparsity:g}: {present:.2%} of the weights in scope are zero already, and "
            "zeros stay; raise it"
        )

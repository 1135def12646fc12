"""A run of one-shot pruning: from finished weights to a run folder with journal, checkpoint and summary.

A step of such a run is a pruned block: step 0 is before the first, step k after block k. Nothing is trained.
"""

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from gpt2 import announce, beginning, ending, loop, preflight, trained
from gpt2.alerts import AlertOptions, Watch
from gpt2.data import prepare, windows
from gpt2.divergence import Diverged, DivergenceOptions
from gpt2.evaluation import tasks
from gpt2.model import GPT2
from gpt2.oneshot import blocks, pruned
from gpt2.recorder import Recorder
from gpt2.training import Training
from gpt2.weights.source import Source
from lib import optim, track
from lib.base import files
from lib.base.errors import UserError
from lib.base.redact import hide
from lib.base.signals import StopSignals
from lib.config.kconf import Options, Schema
from lib.machine import device
from lib.prune import mask
from lib.prune.sample import sampled_masks
from lib.record import checkpoint, journal, lineage, monitor, provenance, run
from lib.record.best import best
from lib.terminal.console import Console, duration, say, table
from lib.track import waiting


@dataclasses.dataclass(frozen=True)
class OneshotRunOptions(Options):
    """What a run of one-shot pruning needs beside the options of its parts."""

    seed: int
    pruning_method: str
    calibration_samples: int | None  # None: no inputs are measured
    max_iters: int  # blocks
    eval_interval: int | None  # blocks; None: nothing is evaluated
    tracker: tuple[str, ...]
    json_output: str  # file; empty: none
    tracker_artifacts: str


@contextlib.contextmanager
def memory_for_users(schema: Schema) -> Iterator[None]:
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
        torch.manual_seed(self.options.seed)
        loaded = trained.load(source, schema)
        self.machine, self.begun = loaded.machine, {"init": beginning.init(source, loaded.weights)}
        model, optimizer, pruner = self._prepare(loaded.model)
        data_options = schema.bind(windows.DataOptions)
        prepare.ensure(data_options)
        self.data = windows.load(data_options, pin=self.machine.device.type == "cuda")
        count = self.options.calibration_samples
        self.windows = None if count is None else self.data.calibration(count)
        self.divergence = schema.bind(DivergenceOptions)
        self.training = Training(model, optimizer, pruner, self.machine, self.divergence, self.data.sums)

    def _prepare(self, model: GPT2) -> tuple[GPT2, torch.optim.Optimizer, pruned.Pruned]:
        """The model that the run saves, its optimizer and pruner; raises UserError for what cannot be pruned."""
        self.oneshot = self.schema.bind(blocks.OneshotOptions)
        blocks.check(model, self.oneshot)
        optimizer = optim.build(model, self.schema.bind)
        return model, optimizer, pruned.build(model, optimizer, self.oneshot, self.schema.bind(mask.MaskOptions))

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
        # No evaluation is the best, because each block has its own sparsity.
        console = Console(options.max_iters, 0, tuple)
        stack.callback(console.close)
        if note := provenance.save(schema, folder, command, begun=self.begun):
            console.say(f"note: {note}")
        schema.write(folder / "defconfig", minimal=True)
        use = self.machine.use(False, "one-shot pruning does not compile")
        facts = announce.facts(schema, use, identity, self.data, training)
        book.write("start", 0, schema=journal.SCHEMA, **facts, **self.begun)
        console.say(table(self._facts(folder, use.words())))

        sigma = schema.bind(AlertOptions).loss_spike_sigma
        watch = Watch(self.data.vocab_size, training.pruner.goal(), True, sigma)
        keeping, trackers = schema.bind(checkpoint.Keeping), track.names(options.tracker)
        patience = waiting.patience(schema.bind(waiting.WaitOptions).tracker_wait)
        about = announce.about(identity, training.model, schema)
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
            "model": announce.model_words(self.training.model),
            **lineage.described(self.begun),
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
            self._work(recorder, asked)
            if not asked():
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

    def _work(self, recorder: Recorder, asked: Callable[[], bool]) -> None:
        """Prune the blocks, and record the losses between them."""
        training = self.training
        self._evaluate(recorder, asked, training)
        with recorder.busy("pruning"):
            done = functools.partial(self._done, recorder, asked)
            masks = blocks.prune(training.model, self.windows, self.machine, self.oneshot, done, asked)
        if not asked():
            training.pruner.take(masks)

    def _done(self, recorder: Recorder, asked: Callable[[], bool], block: int) -> None:
        """Record that this block (1 is the first) is pruned."""
        self.training.step = block
        recorder.tick()
        if loop.evaluation_due(block, self.options.max_iters, self.options.eval_interval):
            self._evaluate(recorder, asked, self.training)

    def _evaluate(self, recorder: Recorder, asked: Callable[[], bool], training: Training) -> None:
        """Record the validation loss, if losses are measured, and leave the model in evaluation mode."""
        try:
            if self.options.eval_interval is not None:
                loop.evaluate(training, self.data, self.machine, recorder, asked)
        except Diverged:
            raise UserError(
                f"after block {training.step} the validation loss is NaN or infinite, so nothing is saved; use "
                "DTYPE=float32, or lower TARGET_SPARSITY"
            ) from None
        finally:
            training.model.eval()

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
        costs = ending.costs_of(training, folder, 0, pruner.kept, pruner.sparsity())
        recorder.write("finish", step, final, status="finished", flops=costs, **sampled_masks(pruner))
        recorder.console.close()
        if more := pruner.total - pruner.kept - mask.count(pruner.target, pruner.total):
            say(f"note: {more:,} more weights are zero than {pruner.target:.2%}: zeros of the model before stay zero")
        total = lineage.total_tokens(folder, step)
        summary = {
            "run": str(folder),
            "status": "finished",
            "steps": step,
            **({"initial_val_loss": known[0].val_loss} if known else {}),
            **final,
            "tokens": 0,  # nothing is trained
            **({} if total is None else {"total_tokens": total}),
            "calibration_tokens": 0 if self.windows is None else self.windows.numel(),
            "sparsity": pruner.sparsity(),
            "average_nonzeros": pruner.kept,
            "weights_in_scope": pruner.total,
            "parameters": training.model.count_parameters(),
            **costs,
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
        **({"tokens": f"{summary['total_tokens']:,} of the runs before"} if "total_tokens" in summary else {}),
        "time": duration(summary["total_time_seconds"]),
        "run folder": summary["run"],
        "look at it": f"make show RUN={folder}",
        "train it on": f"make train INIT_FROM={folder}" + " PRUNING_METHOD=given" * bool(summary["sparsity"]),
        "evaluate it": f"make evaluate RUN={folder}",
        "export it": f"make export-model RUN={folder}",
    }
    say(table(facts))

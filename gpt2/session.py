"""A session of a run, new or resumed: builds the parts, lets the loop train, and closes everything in order."""

import contextlib
import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpt2 import changes, loop, prepare_data, sample
from gpt2 import data as datasets
from gpt2 import model as models
from gpt2.recorder import Recorder
from lib import checkpoint, device, files, journal, optim, prune, run, schedule, track
from lib.console import Console, duration, say, table
from lib.errors import UsageError, UserError
from lib.kconf import Options, Schema
from lib.prune.select import PruningError
from lib.signals import StopSignals

_DELIVERY_SECONDS = 30.0  # to wait for the trackers at the end; they go on by themselves after that


@dataclasses.dataclass(frozen=True)
class SessionOptions(Options):
    """What a session needs beside its parts."""

    seed: int
    eval_interval: int
    pruning_method: str
    compile: str
    tracker: tuple[str, ...]
    json_output: str  # file; empty: none


def start(schema: Schema) -> int:
    """Train a new run; returns the exit code."""
    with _memory_errors():
        session = Session(schema)  # before the folder is made: what cannot be built leaves none behind
        folder, _ = run.create(schema.bind(run.RunOptions))
        return session.train(folder, changed={})


def resume(schema: Schema, folder: Path) -> int:
    """Continue the run in `folder` from its last checkpoint; returns the exit code."""
    changed = changes.of_course(schema, folder)
    summary = folder / "summary.json"
    if not changed and summary.exists():
        if output := schema["JSON_OUTPUT"]:
            _check_output(Path(output))
            shutil.copyfile(summary, output)
        say(f"{folder} is finished: see {summary}; to train on, raise MAX_ITERS")
        return 0
    with _memory_errors():
        return Session(schema).train(folder, changed)


class Session:
    """The parts of a run that do not need its folder, and what is done with them."""

    def __init__(self, schema: Schema):
        """Build the parts; raises UserError for what cannot be built. Data is prepared if it is missing."""
        self.schema, self.options = schema, schema.bind(SessionOptions)
        system, shape = schema.bind(device.SystemOptions), schema.bind(models.ModelOptions)
        models.check(shape)
        if self.options.json_output:
            _check_output(Path(self.options.json_output))
        self.machine = device.choose(system)
        prepare_data.ensure(schema)
        self.data = datasets.load(schema.bind(datasets.DataOptions), pin=self.machine.device.type == "cuda")
        torch.manual_seed(self.options.seed)
        self.model = models.GPT2(shape, self.data.vocab_size).to(self.machine.device)
        optimizer = optim.build(self.model, schema)
        pruner = prune.build(self.model, optimizer, schema)
        self.schedule = schema.bind(schedule.ScheduleOptions)
        self.training = loop.Training(self.model, optimizer, pruner, self.machine)
        self.compiled = self._compile(None)

    def train(self, folder: Path, changed: dict[str, list[str]]) -> int:
        """Train to the end of the schedule, a signal or a failure; journal and trackers are closed in every case.

        `changed` is what a resumed run does otherwise from now on (see `changes.of_course`).
        """
        with contextlib.ExitStack() as stack:
            with StopSignals() as stopped:
                stack.enter_context(files.held(folder, "training this run"))
                book = journal.Journal(folder)
                stack.callback(book.close)
                self._restore(folder)
                console = Console(self.schedule.max_iters, self.training.step, self.training.best_val_loss)
                stack.callback(console.close)
                self._announce(folder, book, console, changed)
                lanes = track.Lanes(folder, self.options.tracker)
                stack.callback(_close_trackers, lanes)
                recorder = Recorder(folder, book, console, lanes, self.training)
                stack.enter_context(recorder.writer)
                self._loop(recorder, stopped)
            if stopped():
                again = f"make resume RUN={shlex.quote(str(folder))}"
                say(f"stopped after step {self.training.step}; continue with: {again}")
                return stopped.exit_code
            self._finish(recorder)
            return 0

    def _compile(self, before: bool | None) -> str:
        """Compile the model or not, as configured; says which. `before` is what a run that goes on did."""
        flops = self.model.flops_per_token() * self.data.tokens_per_step * self.schedule.max_iters
        compiled, words = device.compiles(self.options.compile, self.machine, flops, before)
        self.training.compile(compiled)
        return words

    def _restore(self, folder: Path) -> None:
        """Continue from the newest checkpoint, if there is one; raises UserError when the run cannot go on from it."""
        if found := checkpoint.find(folder / "checkpoints"):
            state = checkpoint.load(found[-1], self.machine.device)
            self.training.load_state_dict(state)
            self.compiled = self._compile(state.get("compiled"))
            if state.get("data") != self.data.fingerprint:
                raise UserError(
                    f"{folder}: was trained on other data than what {self.data.folder} holds; put that back"
                )
        self.training.data_fingerprint = self.data.fingerprint
        if self.training.step > self.schedule.max_iters:
            raise UsageError(
                f"{folder}: is at step {self.training.step}, beyond MAX_ITERS={self.schedule.max_iters}; raise that"
            )

    def _announce(self, folder: Path, book: journal.Journal, console: Console, changed: dict[str, list[str]]) -> None:
        """Record the start of the session, in the journal and for the user."""
        step, resumed = self.training.step, book.seq > 0
        repeats = 0 if changed else book.expect(step)
        provenance = f"provenance-{book.seq}.json" if resumed else "provenance.json"
        run.save_configuration(self.schema, folder, sys.argv, provenance)
        (folder / "summary.json").unlink(missing_ok=True)  # of an end that is none any more
        machine = f"{self.machine.name}, {self.compiled}"
        details = {"config": self.schema.values(), "machine": machine, **dataclasses.asdict(run.Identity.load(folder))}
        if resumed:
            book.write("resume", step, changed=changed, **details)
            console.say(
                f"resuming {folder} after step {step}{f', repeating {repeats} recorded events' * bool(repeats)}"
            )
        else:
            book.write("start", step, schema=journal.SCHEMA, **details)
        for name, (before, now) in changed.items():
            console.say(f"changed: {name} {before} -> {now}")
        if changed and self.options.tracker:
            console.say(f"note: trackers cannot take back what they were sent beyond step {step}; the journal does")
        facts = {
            "model": f"{self.model.options.model_name}, {self.model.count_parameters() / 1e6:.2f} M parameters",
            "data": self.data.description,
            "machine": machine,
            "training": f"{self.schedule.max_iters:,} steps of {self.data.tokens_per_step:,} tokens",
            "run folder": folder,
        }
        if self.options.pruning_method != "none":
            facts["pruning"] = (
                f"{self.options.pruning_method}, {self.training.pruner.total:,} weights in scope; see make prune-report"
            )
        console.say(table(facts))

    def _loop(self, recorder: Recorder, stopped: StopSignals) -> None:
        """Train, and leave a checkpoint behind and a `finish` event for what ends a session before the schedule."""
        training = self.training
        try:
            self._evaluate_if_missing(recorder, stopped)
            options = self.schema.bind(loop.LoopOptions)
            loop.train(training, self.data, self.machine, options, self.schedule, recorder, stopped)
            recorder.settle()
            self._evaluate_if_missing(recorder, stopped)
        except loop.Diverged as error:
            recorder.write("alert", training.step, {}, message=str(error))
            try:
                recorder.save(training.step)
                recorder.settle()
            finally:
                recorder.write("finish", training.step, {}, status="diverged")
            again = f"make resume RUN={shlex.quote(str(recorder.folder))} LEARNING_RATE=..."
            raise UserError(f"the run has diverged; go on from its last good weights with: {again}") from None
        except Exception as error:
            with contextlib.suppress(UserError):  # the journal or the disk may be what failed
                if isinstance(error, PruningError):  # before the step changed a weight
                    recorder.save(training.step)
            with contextlib.suppress(UserError):
                recorder.write("finish", training.step, {}, status="failed", message=str(error))
            raise
        if stopped():
            if not (recorder.folder / "checkpoints" / checkpoint.name(training.step)).exists():
                recorder.save(training.step)
                recorder.settle()
            recorder.write("finish", training.step, {}, status="interrupted")
            recorder.console.close()

    def _evaluate_if_missing(self, recorder: Recorder, stopped: StopSignals) -> None:
        """Measure the validation loss where the schedule has one that the journal lacks: at the start, after a stop."""
        step = self.training.step
        wanted = step in (0, self.schedule.max_iters) or loop.due(step, self.options.eval_interval)
        if wanted and ("eval", step) not in journal.history(recorder.folder):
            loop.evaluate(self.training, self.data, self.machine, recorder, stopped)

    def _finish(self, recorder: Recorder) -> None:
        """Record the end of the run, write its summary and show it."""
        step, folder = self.training.step, recorder.folder
        history = journal.history(folder)
        evaluations = [journal.numbers(r)["val_loss"] for (event, _), r in history.items() if event == "eval"]
        final = journal.final(folder, step) or {
            "final_val_loss": evaluations[-1],
            "best_val_loss": min(evaluations),
            "total_time_seconds": recorder.seconds(),
        }
        recorder.write("finish", step, final, status="finished")
        recorder.console.close()
        tokens = step * self.data.tokens_per_step
        speed = {"tokens": tokens, "tokens_per_second": tokens / self.training.train_seconds}
        pruned = self.training.pruner.metrics(step)
        sparsity = {name: pruned[name] for name in ("sparsity", "average_nonzeros")}
        summary = {"run": str(folder), "status": "finished", "steps": step, **final, **speed, **sparsity}
        files.write_json(folder / "summary.json", summary)
        if self.options.json_output:
            files.write_json(Path(self.options.json_output), summary)
        self._show(summary)

    def _show(self, summary: dict[str, Any]) -> None:
        text = sample.text(self.model, self.data.tokenizer, self.machine, self.schema.bind(sample.SampleOptions))
        if text:
            width = min(shutil.get_terminal_size().columns, 100)
            say(f"\n{' a sample the model wrote '.center(width, '-')}\n{text}\n{'-' * width}")
        folder = shlex.quote(summary["run"])
        deliver = "" if "trackio" in self.options.tracker else f"make sync RUN={folder} TRACKER=trackio && "
        zeros = f"{summary['sparsity']:.2%} of the weights in scope; {summary['average_nonzeros']:,.0f} kept on average"
        facts = {
            "validation loss": f"{summary['final_val_loss']:.4f} final, {summary['best_val_loss']:.4f} best, "
            "in nats per token",
            **({"zero": zeros} if summary["sparsity"] else {}),
            "speed": f"{summary['tokens_per_second']:,.0f} tokens/s",
            "time": duration(summary["total_time_seconds"]),
            "run folder": summary["run"],
            "look at it": f"{deliver}make dashboard RUN={folder}",
            "sample from it": f"make sample RUN={folder} PROMPT='def '",
        }
        say(table(facts))


def _close_trackers(lanes: track.Lanes) -> None:
    """Wait a while for the trackers and say what each has; they never change the exit code."""
    lanes.close()
    with contextlib.suppress(KeyboardInterrupt):  # a wish not to wait, which the trackers survive
        if not lanes.wait(1.0):
            say(f"waiting up to {_DELIVERY_SECONDS:.0f} s for the trackers (Ctrl-C leaves them to it)")
            lanes.wait(_DELIVERY_SECONDS)
    if deliveries := lanes.deliveries():
        say(track.table(deliveries))


def _check_output(path: Path) -> None:
    """Raise UsageError now if JSON_OUTPUT could not be written at the end."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"JSON_OUTPUT={path}: cannot be written; name a file in a folder that is there and writable")


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn torch's ways of saying that memory is short into a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not device.is_out_of_memory(error):
            raise
        raise UserError(
            "memory does not suffice: halve BATCH_SIZE and double GRADIENT_ACCUMULATION, which learns the same, or "
            "choose a smaller model or BLOCK_SIZE"
        ) from None

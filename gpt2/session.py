"""A session of a run, new or resumed: builds the parts, lets the loop train, and closes everything in order."""

import contextlib
import dataclasses
import functools
import shlex
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from gpt2 import changes, ending, footprint, loop, pace, preflight, prepare_data
from gpt2 import model as models
from gpt2.alerts import AlertOptions, Watch, worse_since
from gpt2.data import shards, windows
from gpt2.divergence import Diverged, DivergenceOptions
from gpt2.recorder import Recorder, Unrecorded
from gpt2.training import Training
from lib import optim, prune, track
from lib.base import files
from lib.base.errors import UserError
from lib.base.redact import hide
from lib.base.signals import StopSignals
from lib.config.kconf import Options, Schema
from lib.machine import device
from lib.optim import schedule
from lib.prune.select import PruningError
from lib.record import checkpoint, journal, monitor, provenance, retries, run
from lib.terminal.console import Console, say, table

_DELIVERY_SECONDS = 30.0  # to wait for the trackers at the end; they go on by themselves after that
_STOPPED_SECONDS = 5.0  # the same after a signal: schedulers kill what is there 30 s after it


@dataclasses.dataclass(frozen=True)
class SessionOptions(Options):
    """What a session needs beside its parts."""

    seed: int
    eval_interval: int
    pruning_method: str
    compile: str
    tracker: tuple[str, ...]
    json_output: str  # file; empty: none


class Session:
    """The parts of a run that do not need its folder, and what is done with them."""

    def __init__(self, schema: Schema, machine: device.Machine):
        """Build the parts; raises UserError for what cannot be built. Data is prepared if it is missing."""
        self.schema, self.options, self.machine = schema, schema.bind(SessionOptions), machine
        shape, data = schema.bind(models.ModelOptions), schema.bind(windows.DataOptions)
        preflight.check(schema, machine.ranks.size)
        device.check_compiler(self.options.compile, machine)
        machine.ranks.first(self._prepare)
        self.data = windows.load(data, machine.ranks, pin=machine.device.type == "cuda")
        torch.manual_seed(self.options.seed)
        self.model = models.GPT2(shape, self.data.vocab_size).to(self.machine.device)
        optimizer = optim.build(self.model, schema)
        pruner = prune.build(self.model, optimizer, schema)
        self.schedule = schema.bind(schedule.ScheduleOptions)
        divergence = schema.bind(DivergenceOptions)
        self.training = Training(self.model, optimizer, pruner, machine, divergence, self.data.sums)
        self.compiled = self._compile(None)
        self.patience = _DELIVERY_SECONDS

    def train(self, folder: Path, words: list[str], changed: dict[str, list[str]], retry: int = 0) -> int:
        """Train to the end of the schedule, a signal or a failure; journal and trackers are closed in every case.

        `changed` is what a resumed run does otherwise from now on (see `changes.of_course`), `retry` the number of the
        retry that this is, 0 for none. Raises Diverged if the run has a retry left.
        """
        ranks = self.machine.ranks
        self.identity = ranks.first(lambda: run.Identity.load(folder))
        with ExitStack() as stack:
            with StopSignals() as signals:
                book = ranks.only_first(lambda: _open(folder, stack), None)
                if book:
                    signals.last_words = lambda: book.last_word(self.training.step, "interrupted")
                self._restore(folder)
                recorder = ranks.only_first(
                    lambda: self._record(folder, book, words, changed, retry, stack), Unrecorded(folder)
                )
                stopped = self._loop(recorder, signals)
            if stopped:
                self.patience = _STOPPED_SECONDS
                return signals.exit_code or 128 + signal.SIGTERM  # which another rank received
            ranks.first(lambda: ending.finish(self, recorder))
            return 0

    def _prepare(self) -> None:
        """What one rank does for all before anything is built."""
        if self.options.json_output:
            ending.check_output(Path(self.options.json_output))
        prepare_data.ensure(self.schema)

    def _record(
        self,
        folder: Path,
        book: journal.Journal,
        words: list[str],
        changed: dict[str, list[str]],
        retry: int,
        stack: ExitStack,
    ) -> Recorder:
        """Begin to record this session; `stack` ends it."""
        console = Console(self.schedule.max_iters, self.training.step, lambda: self.training.evaluations)
        stack.callback(console.close)
        self._announce(folder, book, console, words, changed, retry)
        self.trackers = track.names(self.options.tracker)
        lanes = track.Lanes(folder, self.trackers)
        stack.callback(lambda: _close_trackers(lanes, self.patience))
        pruner = self.training.pruner
        sigma = self.schema.bind(AlertOptions).loss_spike_sigma
        watch = Watch(self.data.vocab_size, pruner.goal(), reached="alert sparsity" in book.reached, sigma=sigma)
        watch.recall(folder, self.training.step)
        keeping = self.schema.bind(checkpoint.Keeping)
        recorder = Recorder(folder, book, console, lanes, self.training, watch, keeping, self._about())
        recorder.tidy()
        saves = self.training.step < self.schedule.max_iters  # else no checkpoint is written any more
        if saves and (note := footprint.shortage(recorder.writer.folder, self.training, self.schema)):
            console.say(f"note: {note}")
        stack.enter_context(recorder.writer)
        seconds = self.schema.bind(monitor.MonitorOptions).system_metrics_interval
        record, after = functools.partial(book.write, "system"), book.reached.get("system", 0)
        stack.enter_context(monitor.Monitor(seconds, lambda: self.training.step, record, after))
        return recorder

    def _compile(self, before: bool | None) -> str:
        """Compile the model or not, as configured; says which. `before` is what a run that goes on did."""
        tokens = self.data.tokens_per_step * self.schedule.max_iters / self.machine.ranks.size
        flops = self.model.flops_per_token() * tokens
        compiled, words = device.compiles(self.options.compile, self.machine, flops, before)
        self.training.compile(compiled)
        return words

    def _restore(self, folder: Path) -> None:
        """Continue from the newest checkpoint, if there is one; raises UserError when the run cannot go on from it."""
        ranks = self.machine.ranks
        if ranks.first(lambda: bool(checkpoint.find(folder / "checkpoints"))):
            expected = {
                "run_id": self.identity.run_id,
                "shapes": checkpoint.shapes(self.model.state_dict()),
            }
            state = checkpoint.load_newest(folder, self.machine.device, expected)
            self.training.load_state_dict(state)
            self.compiled = self._compile(state.get("compiled"))
            if changed := shards.differing(self.training.data_before, self.data.sums()):
                raise UserError(
                    f"{folder}: was trained on other data than what {self.data.folder} holds ({changed}); put that back"
                )
        options = {name: entry["value"] for name, entry in self.schema.provenance().items()}
        harmless = changes.harmless(self.schema)
        decisive = {name: value for name, value in options.items() if name not in harmless}
        ranks.check_same({**decisive, "the data": self.data.fingerprint, "the step": self.training.step})
        ranks.reseed(self.options.seed, self.training.step)

    def _about(self) -> dict[str, str]:
        """What the headers of checkpoints say of the run."""
        words = self.schema.options
        return {
            "run": self.identity.name,
            "run_id": self.identity.run_id,
            "project": self.identity.project,
            "model": self._model,
            "optimizer": words["OPTIMIZER"].text,
            "pruning": self.options.pruning_method,
            "dataset": f"{words['DATASET'].text}-{words['TOKENIZER'].text}",
        }

    @property
    def _model(self) -> str:
        """The model in a few words."""
        return f"{self.model.options.model_name}, {self.model.count_parameters() / 1e6:.2f} M parameters"

    def _announce(
        self,
        folder: Path,
        book: journal.Journal,
        console: Console,
        words: list[str],
        changed: dict[str, list[str]],
        retry: int,
    ) -> None:
        """Record the start of the session, in the journal and for the user."""
        step, resumed = self.training.step, book.seq > 0
        repeats = 0 if changed else book.expect(step)
        file = f"provenance-{book.seq}.json" if resumed else "provenance.json"
        if note := provenance.save(self.schema, folder, words, file):
            console.say(f"note: {note}")
        machine = f"{self.machine.name}, {self.compiled}"
        details = {"config": self.schema.values(), "machine": machine, **dataclasses.asdict(self.identity)}
        if resumed:
            if changed or not book.ended(self.schedule.max_iters) or step < self.schedule.max_iters:
                book.write("resume", step, changed=changed, **({"retry": retry} if retry else {}), **details)
            console.say(
                f"resuming {folder} after step {step}{f', repeating {repeats} recorded events' * bool(repeats)}"
            )
        else:
            book.write("start", step, schema=journal.SCHEMA, **details)
        # Not before the journal has it: what a kill or a full disk leaves is then a run that has not changed.
        (folder / "summary.json").unlink(missing_ok=True)  # of an end that is none any more
        self.schema.write(folder / ".config")
        self.schema.write(folder / "defconfig", minimal=True)
        if book.damaged:
            lines = ", ".join(map(str, book.damaged[:9]))
            console.say(f"note: {book.path}: damaged and passed over: line {lines}")
        for name, values in changed.items():
            console.say(f"changed: {changes.words({name: values})}")
        for note in self.training.notes:
            console.say(f"note: {note}")
        if retry:
            allowed, rate = self.schema["RETRIES"], self.schema.options["LEARNING_RATE"].text
            text = f"retry {retry} of {allowed} goes on after step {step}, with LEARNING_RATE={rate}"
            console.show(book.write("alert", step, kind=f"retry-{retry}", level="warn", message=text))
        took = pace.seconds_left(self.training, self.data, self.machine, self.schedule, self.options.eval_interval)
        facts = {
            "model": self._model,
            "data": self.data.description,
            "machine": machine,
            "training": f"{self.schedule.max_iters:,} steps of {self.data.tokens_per_step:,} tokens"
            f"{pace.words(took, self.training, self.schedule)}",
            "run folder": folder,
        }
        if self.options.pruning_method != "none":
            facts["pruning"] = (
                f"{self.options.pruning_method}, {self.training.pruner.total:,} weights in scope; see make prune-report"
            )
        console.say(table(facts))
        if note := pace.advice(took, self.machine):
            console.say(f"note: {note}")

    def _loop(self, recorder: Recorder | Unrecorded, asked: StopSignals) -> bool:
        """Train; whether some rank was asked to stop.

        Leaves a checkpoint behind and a `finish` event for what ends a session before the schedule.
        """
        training = self.training
        try:
            with self._compiling(asked):
                self._evaluate_if_missing(recorder, asked)
                _until_asked(recorder.ready, asked)
                options = self.schema.bind(loop.LoopOptions)
                loop.train(training, self.data, self.machine, options, self.schedule, recorder, asked)
                recorder.settle()
                self._evaluate_if_missing(recorder, asked)
            stopped = self.machine.ranks.any(asked())
            if stopped:
                recorder.stop(training.step)
        except journal.Displaced:
            raise recorder.rescue(training.step) from None
        except Diverged as error:
            error.advise(self.machine.dtype)
            recorder.alert("nan", "error", str(error), training.step)
            made = self.machine.ranks.first(lambda: retries.made(recorder.folder))
            if made < self.schema.bind(retries.RetryOptions).retries and not self.machine.ranks.any(asked()):
                raise
            raise self._diverged(recorder, error.good, f", retries made: {made}" if made else "") from None
        except Exception as error:
            if asked() and device.is_compilers(error):  # Ctrl-C ends the compiler that torch.compile has called too
                recorder.leave(training.step)
                return True
            with contextlib.suppress(UserError):  # the journal or the disk may be what failed
                if isinstance(error, PruningError) and training.is_finite():  # before the step changed a weight
                    training.guard.look(recorder.alert)
                    recorder.save(training.step)
            with contextlib.suppress(UserError):
                words = hide(device.trouble(error) or str(error))
                recorder.write("finish", training.step, {}, status="failed", message=words)
            raise
        return stopped

    def _compiling(self, asked: StopSignals) -> contextlib.AbstractContextManager[None]:
        """A context in which a signal does not wait for the compiler, which may take minutes; ranks stop together."""
        if not self.training.compiled or self.machine.ranks.size > 1:
            return contextlib.nullcontext()
        return device.while_compiling(asked.break_off, asked.hold_out)

    def _diverged(self, recorder: Recorder | Unrecorded, good: bool, tried: str) -> UserError:
        """Leave the weights behind if they are `good`, and the word that the run has diverged; returns what to do."""
        step = self.training.step
        finite = self.training.is_finite()
        good = good and finite
        try:
            if good:
                recorder.save(step)
            recorder.settle()
        finally:
            recorder.write("finish", step, {}, status="diverged")
        since = self.machine.ranks.first(lambda: worse_since(recorder.folder, self.data.vocab_size))
        saved = self.machine.ranks.first(lambda: checkpoint.find(recorder.folder / "checkpoints"))
        again = f"make resume RUN={shlex.quote(str(recorder.folder))} LEARNING_RATE=..."
        untrusted = checkpoint.name(int(min(since, step + 1)))
        if saved and not good and saved[-1].name < untrusted:
            advice = f"go on from its last checkpoint, {saved[-1].name}, with: {again}"
        elif since <= step:
            advice = f"since step {since} its losses are worse than guessing's; begin anew with a lower LEARNING_RATE"
        elif good:
            advice = f"go on from its last good weights with: {again}"
        else:
            advice = "it has no checkpoint; begin anew with a lower LEARNING_RATE"
        lost = "" if finite else f", and the weights after step {step} are NaN or infinite, so they are not saved"
        return UserError(f"the run has diverged{tried}{lost}; {advice}")

    def _evaluate_if_missing(self, recorder: Recorder | Unrecorded, asked: StopSignals) -> None:
        """Measure the validation loss where the schedule has one that the journal lacks: at the start, after a stop."""
        step = self.training.step
        wanted = step in (0, self.schedule.max_iters) or loop.due(step, self.options.eval_interval)
        if not wanted:
            return
        known = self.machine.ranks.first(lambda: recorder.val_loss(step))
        if known is None:
            loop.evaluate(self.training, self.data, self.machine, recorder, asked)
        else:  # what a kill took with the checkpoint that knew of it
            self.training.note(known)


def _until_asked(work: Callable[[], object], asked: StopSignals) -> None:
    """Do something that a signal need not wait for."""
    with contextlib.suppress(KeyboardInterrupt):
        asked.break_off()
        try:
            work()
        finally:
            asked.hold_out()


def _open(folder: Path, stack: ExitStack) -> journal.Journal:
    """The journal of the run in `folder`, which nobody else trains until `stack` is closed."""
    stack.enter_context(files.held(folder, "training this run"))
    book = journal.Journal(folder)
    stack.callback(book.close)
    return book


def _close_trackers(lanes: track.Lanes, seconds: float) -> None:
    """Wait a while for the trackers and say what each has; they never change the exit code."""
    lanes.close()
    with contextlib.suppress(KeyboardInterrupt):  # a wish not to wait, which the trackers survive
        if not lanes.wait(1.0):
            say(f"waiting up to {seconds:.0f} s for the trackers (Ctrl-C leaves them to it)")
            lanes.wait(seconds)
    if deliveries := lanes.deliveries():
        say(track.table(deliveries))

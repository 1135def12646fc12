"""A session trains a run from its present step to its end, a signal or a failure: train.py -> session -> loop.

The session builds the parts from the configuration and closes them in order. The parts do not
see the configuration, only their own options.
"""

import contextlib
import dataclasses
import functools
import gc
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from gpt2 import (
    announce,
    beginning,
    ending,
    first_batches,
    footprint,
    kernels,
    limit,
    loop,
    micro_batches,
    pace,
    preflight,
    resume,
    sample,
)
from gpt2.alerts import AlertOptions, Watch
from gpt2.announce import Start
from gpt2.data import prepare, shards, windows
from gpt2.data import tokenizer as tokenizers
from gpt2.distillation import DistillOptions, Teacher
from gpt2.divergence import Diverged, DivergenceOptions
from gpt2.evaluation import tasks
from gpt2.kernels import KernelOptions
from gpt2.model import GPT2
from gpt2.recorder import Recorder, Unrecorded
from gpt2.shape import ShapeOptions
from gpt2.training import Training
from lib import optim, prune, schedule, track
from lib.base import durations, files
from lib.base.errors import UsageError, UserError
from lib.base.launch import Launch
from lib.base.signals import ANSWER, StopSignals
from lib.config import matters
from lib.config.kconf import Options, Schema
from lib.machine import device
from lib.machine.use import Use
from lib.record import checkpoint, history, journal, lineage, monitor, option_changes, provenance, retries, run
from lib.terminal.console import Console, say
from lib.track import waiting


def train(schema: Schema, command: list[str], launch: Launch, folder: Path | None = None, missing: str = "") -> int:
    """Train a new run, or continue the run in `folder` from its last checkpoint; returns the exit code.

    Without a `folder`, a job that was started again continues the run it began. `command` is the command line, for the
    record. `missing` says what the run in `folder` lacks for training. Unless the run is finished, it is raised as
    UsageError.
    """
    options = schema.bind(run.RunOptions)
    run_id = "" if folder else run.job_id(options, launch)
    machine = device.choose(schema.bind(device.SystemOptions), launch)
    first = machine.ranks.first
    with device.errors_for_users(), machine.ranks:
        if run_id and (folder := first(lambda: run.find(options.output_dir, run_id))):
            resume.follow(schema, folder)
            first(lambda: resume.say_begun(schema, folder, launch))
        if folder:
            changed = first(lambda: resume.still_to_do(schema, folder))
            if changed is None:
                return 0
            if missing:
                raise UsageError(missing)
            origin = beginning.again(schema, folder, machine.ranks)
        else:
            changed, told = {}, len(schema.warnings)
            first(lambda: run.check_place(options))
            origin = beginning.new(schema, machine.ranks)
            if origin.weights:
                first(lambda: _warn([*schema.warnings[told:], *preflight.quick(schema.bind)]))
        if note := micro_batches.cut(schema, machine):
            first(lambda: say(f"note: {note}"))
            changed = first(lambda: option_changes.find(schema, folder)) if folder else {}
        session = Session(schema, machine, origin)  # before the folder: a run that cannot be built leaves no folder
        folder = folder or first(lambda: _new(schema, options, run_id))
        start = Start(folder, command, changed)
        while True:
            try:
                return session.train(start)
            except Diverged as error:
                since, vocab_size, compiled = error.since, session.data.vocab_size, session.training.compiled
            del session  # the next one needs its memory
            gc.collect()
            if compiled:
                torch.compiler.reset()  # it keeps the model in memory, and compiles a function at most eight times
            start = resume.retry(schema, start, machine.ranks, since, vocab_size)
            session = Session(schema, machine, beginning.again(schema, start.folder, machine.ranks))


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)


def _new(schema: Schema, options: run.RunOptions, run_id: str) -> Path:
    folder, identity = run.create(options, run_id, lambda new: schema.write(new / ".config"))
    existing = Path(options.output_dir) / run.folder_name(options.tracker_run_name)
    if note := run.renamed(options, identity, f"make resume RUN={shlex.quote(str(existing))}"):
        say(note)
    return folder


@dataclasses.dataclass(frozen=True)
class SessionOptions(Options):
    """What a session needs beside the options of its parts."""

    seed: int
    pruning_method: str
    compile: str
    dataset: str
    tokenizer: str
    eval_interval: int | None  # None: nothing is evaluated
    tracker: tuple[str, ...]
    json_output: str  # file; empty: none
    eval_tasks: str  # measured at the end
    task_data: str
    sample_tokens: int  # 0: nothing is sampled
    sample_at_eval: bool | None  # None: nothing is evaluated
    tracker_artifacts: str


class Session:
    """The parts that train a run. They are built without its folder, and `train` uses them once."""

    def __init__(self, schema: Schema, machine: device.Machine, origin: beginning.Origin = beginning.RANDOM):
        """Build the parts, and prepare the data if it is missing; raises UserError for what cannot be built.

        `schema` has the shape of the weights in `origin`.
        """
        self.schema, self.options, self.machine = schema, schema.bind(SessionOptions), machine
        preflight.check(schema.bind, machine.ranks.size)
        device.check_compiler(self.options.compile, machine)
        shape, vocab_size = schema.bind(ShapeOptions), tokenizers.vocab_size(self.options.tokenizer)
        begins = beginning.read(origin, machine.ranks, shape.block_size, vocab_size)  # preparing data may take hours
        self.begun = begins.facts
        machine.ranks.first(self._prepare)
        data_options = schema.bind(windows.DataOptions)
        self.data = windows.load(data_options, machine.ranks, pin=machine.device.type == "cuda")
        teacher = begins.teacher and Teacher(begins.teacher.to(machine.device), schema.bind(DistillOptions))
        torch.manual_seed(self.options.seed)
        self.model = GPT2(shape, self.data.vocab_size)
        if begins.state is not None:
            self.model.load(begins.state)
        self.model.to(machine.device)
        optimizer = optim.build(self.model, schema.bind)
        losses = None if origin.saved else first_batches.losses(self.model, self.data, machine)
        pruner = prune.build(self.model, optimizer, schema.bind, begins.masks, losses)
        divergence = schema.bind(DivergenceOptions)
        self.training = Training(self.model, optimizer, pruner, machine, divergence, self.data.sums, teacher)
        self.schedule = schedule.build(schema.bind)

    def train(self, start: Start) -> int:
        """Train to the end of the schedule, a signal or a failure; returns the exit code.

        The journal and the trackers are closed in every case. Raises Diverged if the run has a retry left.
        """
        ranks = self.machine.ranks
        identity = ranks.first(lambda: run.Identity.load(start.folder))
        with ExitStack() as stack:
            with self._signals() as asked:
                book = ranks.only_first(lambda: self._open(start.folder, stack, asked), None)
                use = self._restore(start.folder, identity)
                recorder = ranks.only_first(
                    lambda: self._record(start, book, identity, use, stack, asked), Unrecorded(start.folder)
                )
                if code := self._loop(recorder, asked):
                    return code
            with self._signals("recording the end of the run") as asked:
                ranks.first(lambda: self._finish(recorder, asked))
                if ranks.rank == 0:  # the others end: this may take longer than they can wait for an answer
                    options = self.schema.bind(ending.TaskOptions)
                    ending.measure_tasks(self.training, self.data, self.machine, recorder, options, asked)
            return asked.exit_code

    def _signals(self, answer: str = ANSWER) -> StopSignals:
        """A context that notes signals. Only rank 0 answers them."""
        return StopSignals("" if self.machine.ranks.rank else answer)

    # ---- before the loop -------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """What rank 0 does for all ranks before anything is built."""
        if self.options.json_output:
            ending.check_output(Path(self.options.json_output))
        tasks.check(self.options.eval_tasks, self.options.task_data)
        prepare.ensure(self.schema.bind(windows.DataOptions))

    def _open(self, folder: Path, stack: ExitStack, asked: StopSignals) -> journal.Journal:
        """The journal of the run in `folder`. No other process trains this run until `stack` is closed."""
        stack.enter_context(files.held(folder, "training this run"))
        book = journal.Journal(folder)
        stack.callback(book.close)
        asked.last_words = lambda: book.last_word(self.training.step, "interrupted")
        return book

    def _restore(self, folder: Path, identity: run.Identity) -> Use:
        """Continue from the newest checkpoint, if there is one. Returns how the machine is used.

        Raises UserError if the run cannot continue from the checkpoint, or if ranks differ.
        """
        ranks, state = self.machine.ranks, {}
        if ranks.first(lambda: bool(checkpoint.find(folder / "checkpoints"))):
            expected = {"run_id": identity.run_id, "shapes": checkpoint.shapes(self.model.state_dict())}
            state = checkpoint.load_newest(folder, self.machine.device, expected)
            self.training.load_state_dict(state)
            if changed := shards.differing(self.training.data_before, self.data.sums()):
                raise UserError(
                    f"{folder}: was trained on other data than {self.data.folder} holds ({changed}); restore that data"
                )
        use = self._choose(state)
        options = {name: entry["value"] for name, entry in self.schema.provenance().items()}
        decisive = matters.decisive(self.schema)
        values = {name: value for name, value in options.items() if name in decisive}
        first = {f"the sha256 of {part}": about["sha256"] for part, about in self.begun.items()}
        ranks.check_same({**values, **first, "the data": self.data.fingerprint, "the step": self.training.step})
        ranks.reseed(self.options.seed, self.training.step)
        return use

    def _choose(self, state: dict[str, Any]) -> Use:
        """Choose how to compute, for a resumed run as in the `state` of its checkpoint; returns the machine's use."""
        tokens = self.data.tokens_per_step * self.schedule.max_iters / self.machine.ranks.size
        flops = self.training.flops_per_token() * tokens
        options, batch, before = self.schema.bind(KernelOptions), self.schema["BATCH_SIZE"], state.get("kernels")
        choice = kernels.choose(options, self.machine, self.model.options, batch, flops, before)
        choice.apply(self.model, self.training.optimizer)
        if self.training.teacher:
            choice.apply(self.training.teacher.model)
        self.training.kernels = choice.kept()
        before = state.get("compiled")
        compiled, reason = device.compiles(self.options.compile, self.machine, flops, before, choice.rate)
        self.training.compile(compiled)
        use = self.machine.use(compiled, reason)
        return dataclasses.replace(use, kernels=choice.kernels, kernels_reason=choice.reason)

    def _record(
        self,
        start: Start,
        book: journal.Journal,
        identity: run.Identity,
        use: Use,
        stack: ExitStack,
        asked: StopSignals,
    ) -> Recorder:
        """Record and announce the start of this session; `stack` closes what records it."""
        schema, training, folder, max_iters = self.schema, self.training, start.folder, self.schedule.max_iters
        console = Console(max_iters, training.step, lambda: training.evaluations)
        stack.callback(console.close)
        file = f"provenance-{book.seq}.json" if book.seq else "provenance.json"
        if note := provenance.save(schema, folder, start.command, file, self.begun):
            console.say(f"note: {note}")
        facts = announce.facts(schema, use, identity, self.data, training)
        announce.begin(start, book, console, training, max_iters, facts, self.begun)
        # Only after the journal has the start. A kill or a full disk before this leaves the run as it was.
        (folder / "summary.json").unlink(missing_ok=True)  # of an earlier end
        schema.write(folder / ".config")
        schema.write(folder / "defconfig", minimal=True)
        rate = schema.options["LEARNING_RATE"].text
        announce.show_changes(start, book, console, training, schema["RETRIES"], rate)
        seconds = pace.seconds_left(training, self.data, self.machine, self.schedule, self.options.eval_interval)
        training.begin_compiling()
        pruning = self.options.pruning_method
        begun = lineage.described(self.begun)
        announce.show_facts(console, folder, training, self.data, use.words(), pruning, self.schedule, seconds, begun)
        if advice := pace.advice(seconds, self.machine):
            console.say(f"note: {advice}")
        interval = schema.bind(monitor.MonitorOptions).system_metrics_interval
        for note in announce.notes(self.machine, interval > 0):
            console.say(f"note: {note}")

        sigma = schema.bind(AlertOptions).loss_spike_sigma
        reached = pruning == "given" or "alert sparsity" in book.reached  # given masks are no news
        watch = Watch(self.data.vocab_size, training.pruner.goal(), reached, sigma, training.pruner.ends())
        watch.recall(folder, training.step)
        named = [session.get("config", {}).get("checkpoint_at") for session in history.skim(folder).sessions]
        keeping, trackers = schema.bind(checkpoint.Keeping).and_earlier(named), track.names(self.options.tracker)
        samples = self.options.sample_at_eval and self.options.sample_tokens
        sampler = functools.partial(self._sample, asked) if samples else None
        patience = waiting.patience(schema.bind(waiting.WaitOptions).tracker_wait)
        about = announce.about(identity, training.model, schema)
        recorder = Recorder(folder, book, console, trackers, training, watch, keeping, about, sampler, patience)
        stack.enter_context(recorder)
        recorder.tidy()
        saves = training.step < max_iters  # a run that is at its end writes no more checkpoints
        if saves and (note := footprint.shortage(recorder.writer.folder, training, max_iters, schema.bind)):
            console.say(f"note: {note}")
        write, after = functools.partial(book.write, "system"), book.reached.get("system", 0)
        stack.enter_context(monitor.Monitor(interval, lambda: training.step, write, after))
        return recorder

    def _sample(self, asked: StopSignals) -> str | None:
        """A sample of the model as it is now; None if the run was `asked` to stop meanwhile."""
        options = self.schema.bind(sample.SampleOptions)
        return sample.text(self.model, self.data.tokenizer, self.machine, options, asked)

    # ---- the loop and after ----------------------------------------------------------------------------------------

    def _loop(self, recorder: Recorder | Unrecorded, asked: StopSignals) -> int:
        """Train. Returns the exit code if some rank was asked to stop or the time is over, else 0.

        Raises if anything else ends the run early.
        """
        training, ranks = self.training, self.machine.ranks
        late = limit.Limit(self.schema.bind(limit.LimitOptions), training, recorder.seconds).over
        try:
            with self._compiling(asked):
                self._evaluate_if_missing(recorder, asked)
                _until_asked(recorder.ready, asked)
                options = self.schema.bind(loop.LoopOptions)
                loop.train(
                    training, self.data, self.machine, options, self.schedule, recorder, lambda: asked() or late()
                )
                recorder.settle()
                self._evaluate_if_missing(recorder, asked)
            if code := ranks.highest(asked.exit_code):  # the signal may have come to another rank
                ending.stopped(recorder, training.step)
                return code
            if ranks.any(late()):
                ending.stopped(recorder, training.step, run_time=self.schema["RUN_TIME"])
                return durations.TIME_OVER
            return 0
        except journal.Displaced:
            raise ending.displaced(recorder, training.step) from None
        except Diverged as error:
            error.advise(self.machine.dtype)
            recorder.alert("nan", "error", str(error), training.step)
            made = ranks.first(lambda: retries.made(recorder.folder))
            if made < self.schema.bind(retries.RetryOptions).retries and not ranks.any(asked()):
                raise
            raise ending.diverged(error, made, training, recorder, ranks, self.data.vocab_size) from None
        except Exception as error:
            if asked() and device.is_compilers(error):  # Ctrl-C ended the compiler that torch.compile had called
                ending.stopped(recorder, training.step, save=False)
                return asked.exit_code
            ending.failed(error, training, recorder)
            raise

    def _compiling(self, asked: StopSignals) -> contextlib.AbstractContextManager[None]:
        """A context in which a signal breaks off a compilation, which may take minutes.

        Several ranks have to stop together, so for them the context does nothing.
        """
        if not self.training.compiled or self.machine.ranks.size > 1:
            return contextlib.nullcontext()
        return device.while_compiling(asked.break_off, asked.hold_out)

    def _evaluate_if_missing(self, recorder: Recorder | Unrecorded, asked: StopSignals) -> None:
        """Measure the validation loss after this step if an evaluation is due and the journal lacks it."""
        step = self.training.step
        if not loop.evaluation_due(step, self.schedule.max_iters, self.options.eval_interval):
            return
        known = self.machine.ranks.first(lambda: recorder.val_loss(step))
        if known is None:
            loop.evaluate(self.training, self.data, self.machine, recorder, asked)
        else:  # a session was killed before its checkpoint had this loss
            self.training.note(known)
            self.machine.ranks.first(lambda: recorder.has_sample(step) or recorder.sample(step))

    def _finish(self, recorder: Recorder, asked: StopSignals) -> None:
        """Record the end of the run, and show its summary and a sample; if `asked` to stop, without what takes long."""
        json_output, artifact = self.options.json_output, self.options.tracker_artifacts
        summary = ending.finished(self.training, self.data, recorder, json_output, artifact, asked)
        text = self._sample(asked) or ""
        if asked():
            recorder.hurry()
        options = self.schema.bind(sample.SampleOptions)
        more = "" if options.sample_tokens else " SAMPLE_TOKENS=200"
        more += " PROMPT='def '" if self.options.dataset == "stdlib" else ""  # the model has learned from Python code
        ending.show(summary, text, recorder.trackers, more)


def _until_asked(work: Callable[[], object], asked: StopSignals) -> None:
    """Do `work`, and break it off at a signal."""
    with contextlib.suppress(KeyboardInterrupt):
        asked.break_off()
        try:
            work()
        finally:
            asked.hold_out()

"""A session of a run, new or resumed: builds the parts, lets the loop train, and closes everything in order."""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gpt2 import data as datasets
from gpt2 import loop, sample
from gpt2.model import GPT2, ModelOptions
from lib import checkpoint, device, files, journal, optim, run, schedule, track
from lib.console import Console, duration, table
from lib.errors import UsageError, UserError
from lib.kconf import Options, Schema
from lib.signals import StopSignals

# What may change when a run is resumed without changing what it learns.
_HARMLESS = set(
    "TRACKER WANDB_OFFLINE JSON_OUTPUT PROMPT SAMPLE_TOKENS TEMPERATURE TOP_K CHECKPOINT_INTERVAL LOG_INTERVAL "
    "EVAL_INTERVAL DATA_DIR".split()
)
# What would make it another run.
_FIXED = set(
    "MODEL_NAME N_LAYER N_HEAD N_EMBD BLOCK_SIZE DATASET TOKENIZER OPTIMIZER SEED EVAL_SAMPLES OUTPUT_DIR "
    "TRACKER_PROJECT TRACKER_RUN_NAME".split()
)
_DELIVERY_SECONDS = 30.0  # to wait for the trackers at the end; they go on by themselves after that


@dataclasses.dataclass(frozen=True)
class SessionOptions(Options):
    """What a session needs beside its parts."""

    seed: int
    json_output: str  # file; empty: none


def start(schema: Schema) -> int:
    """Train a new run; returns the exit code."""
    session = Session(schema)  # before the folder is made: what is wrong with data, model or device leaves none behind
    folder, identity = run.create(schema.bind(run.RunOptions))
    return session.train(folder, identity, changed={})


def resume(schema: Schema, folder: Path) -> int:
    """Continue the run in `folder` from its last checkpoint; returns the exit code."""
    identity = run.Identity.load(folder)
    changed = _changes(schema, folder)
    if not changed and (summary := folder / "summary.json").exists():
        print(f"{folder} is finished: see {summary}; to train on, raise MAX_ITERS")
        return 0
    return Session(schema).train(folder, identity, changed)


def _changes(schema: Schema, folder: Path) -> dict[str, list[str]]:
    """Option -> [value before, value now], of what changes what is learned; raises UsageError for another run."""
    before = Schema()
    before.load(folder / ".config")
    old, new = before.provenance(), schema.provenance()
    differ = {
        name: [old.get(name, {}).get("value", ""), new.get(name, {}).get("value", "")]
        for name in old.keys() | new.keys()
        if old.get(name, {}).get("value") != new.get(name, {}).get("value")
    }
    if fixed := sorted(differ.keys() & _FIXED):
        raise UsageError(
            f"{folder}: a run keeps its {', '.join(fixed)} "
            f"({', '.join(f'{before} -> {now}' for before, now in map(differ.get, fixed))}); start a new run for that"
        )
    if before["BATCH_SIZE"] * before["GRADIENT_ACCUMULATION"] != schema["BATCH_SIZE"] * schema["GRADIENT_ACCUMULATION"]:
        raise UsageError(
            f"{folder}: a run keeps its BATCH_SIZE x GRADIENT_ACCUMULATION, on which the order of data rests"
        )
    return {name: values for name, values in sorted(differ.items()) if name not in _HARMLESS}


class Session:
    """Configuration, machine, data and model of a run, and the recorder that the loop talks to."""

    def __init__(self, schema: Schema):
        """Build everything that does not need the run's folder; raises UserError for what cannot be built."""
        self.schema, self.options = schema, schema.bind(SessionOptions)
        system = schema.bind(device.SystemOptions)
        self.machine = device.choose(system)
        self.data = datasets.load(schema.bind(datasets.DataOptions), pin=self.machine.device.type == "cuda")
        torch.manual_seed(self.options.seed)
        self.model = GPT2(schema.bind(ModelOptions), self.data.vocab_size).to(self.machine.device)
        optimizer = optim.build(self.model, schema)
        self.training = loop.Training(self.model, optimizer, self.machine, system.compile)
        self.schedule = schema.bind(schedule.ScheduleOptions)

    def train(self, folder: Path, identity: run.Identity, changed: dict[str, list[str]]) -> int:
        """Train to the end of the schedule, a signal or a failure; journal and trackers are closed in every case."""
        self.folder, began = folder, time.perf_counter()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_held(folder))
            self.journal = journal.Journal(folder)
            stack.callback(self.journal.close)
            self._restore()
            self.console = Console(self.schedule.max_iters, self.training.step)
            stack.callback(self.console.close)
            self._announce(identity, changed)
            self.lanes = track.Lanes(folder, self.schema["TRACKER"])
            stack.callback(self._close_trackers)
            self.stopped = stack.enter_context(StopSignals())
            self.before, self.began = self.training.total_seconds, began
            return self._loop()

    def _restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = checkpoint.find(self.folder / "checkpoints")
        if found:
            self.training.load_state_dict(checkpoint.load(found[-1], self.machine.device))
        self.resumed = self.journal.seq > 0

    def _announce(self, identity: run.Identity, changed: dict[str, list[str]]) -> None:
        """Record the start of the session, in the journal and for the user."""
        step, details = self.training.step, {"config": self.schema.values(), **dataclasses.asdict(identity)}
        repeats = 0 if changed else self.journal.expect(step)
        run.save_configuration(self.schema, self.folder, sys.argv)
        if self.resumed:
            self.journal.write("resume", step, changed=changed, **details)
            again = f", repeating {repeats} recorded events" if repeats else ""
            self.console.say(f"resuming {self.folder} after step {step}{again}")
        else:
            self.journal.write("start", step, schema=journal.SCHEMA, **details)
        for name, (before, now) in changed.items():
            self.console.say(f"changed: {name} {before} -> {now}")
        facts = {
            "model": f"{self.model.options.model_name}, {self.model.count_parameters() / 1e6:.2f} M parameters",
            "data": self.data.description,
            "machine": self.machine.name,
            "training": f"{self.schedule.max_iters:,} steps of {self.data.tokens_per_step:,} tokens",
            "run folder": self.folder,
        }
        self.console.say(table(facts))

    def _loop(self) -> int:
        """Train, and leave a checkpoint, a `finish` event and a summary behind, whatever ends it."""
        try:
            self._evaluate_if_missing()
            loop.train(
                self.training,
                self.data,
                self.machine,
                self.schema.bind(loop.LoopOptions),
                self.schedule,
                self,
                self.stopped,
            )
        except loop.Diverged as error:
            self.save(self.training.step)
            self.write("alert", self.training.step, {}, message=str(error))
            self.write("finish", self.training.step, {}, status="diverged")
            raise
        if self.stopped():
            return self._interrupted()
        self._evaluate_if_missing()
        self._finished()
        return 0

    def _evaluate_if_missing(self) -> None:
        """Measure the validation loss where the schedule has one that the journal lacks: at the start, after a stop."""
        step, interval = self.training.step, self.schema["EVAL_INTERVAL"]
        wanted = step in (0, self.schedule.max_iters) or loop.due(step, interval)
        if wanted and ("eval", step) not in journal.history(self.folder):
            loop.evaluate(self.training, self.data, self.machine, self, self.stopped)

    # ---- what the loop tells --------------------------------------------------------------------------------------

    def write(self, event: str, step: int, metrics: dict[str, float], **details: object) -> None:
        """Put an event into the journal, from which everything else learns of it, and show it."""
        self.console.show(self.journal.write(event, step, metrics, **details))
        for note in self.lanes.notes():
            self.console.say(note)

    def tick(self) -> None:
        """Move the progress bar."""
        self.console.tick()

    def busy(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Say what is being done while no step is made."""
        return self.console.busy(what)

    def save(self, step: int) -> None:
        """Write a checkpoint, after the journal's lines up to this step are safe."""
        self.training.total_seconds = self.before + time.perf_counter() - self.began
        with self.busy("saving"):
            self.journal.sync()
            checkpoint.save(self.folder / "checkpoints", step, self.training.state_dict())

    # ---- how a session ends ---------------------------------------------------------------------------------------

    def _interrupted(self) -> int:
        step = self.training.step
        if not (self.folder / "checkpoints" / checkpoint.name(step)).exists():
            self.save(step)
        self.write("finish", step, {}, status="interrupted")
        self.console.close()
        print(f"stopped after step {step}; continue with: make resume RUN={self.folder}")
        return self.stopped.exit_code

    def _finished(self) -> None:
        history = journal.history(self.folder)
        evaluations = [journal.numbers(r)["val_loss"] for (event, _), r in history.items() if event == "eval"]
        self.training.total_seconds = self.before + time.perf_counter() - self.began
        final = {
            "final_val_loss": evaluations[-1],
            "best_val_loss": min(evaluations),
            "total_time_seconds": self.training.total_seconds,
        }
        self.write("finish", self.training.step, final, status="finished")
        self.console.close()
        tokens = self.training.step * self.data.tokens_per_step
        summary = {
            "run": str(self.folder),
            "status": "finished",
            "steps": self.training.step,
            "tokens": tokens,
            **final,
            "tokens_per_second": tokens / self.training.train_seconds,
            "sparsity": self.training.pruner.sparsity(),
        }
        files.write_json(self.folder / "summary.json", summary)
        if self.options.json_output:
            files.write_json(Path(self.options.json_output), summary)
        self._show_summary(summary)

    def _show_summary(self, summary: dict[str, Any]) -> None:
        text = sample.text(self.model, self.data.tokenizer, self.machine, self.schema.bind(sample.SampleOptions))
        if text:
            width = min(shutil.get_terminal_size().columns, 100)
            print(f"\n{' a sample the model wrote '.center(width, '-')}\n{text}\n{'-' * width}")
        deliver = "" if "trackio" in self.schema["TRACKER"] else f"make sync RUN={self.folder} TRACKER=trackio && "
        facts = {
            "validation loss": f"{summary['final_val_loss']:.4f} final, {summary['best_val_loss']:.4f} best, "
            "in nats per token",
            "speed": f"{summary['tokens_per_second']:,.0f} tokens/s",
            "time": duration(summary["total_time_seconds"]),
            "run folder": self.folder,
            "look at it": f"{deliver}make dashboard RUN={self.folder}",
            "sample from it": f"make sample RUN={self.folder} PROMPT='def '",
        }
        print(table(facts))

    def _close_trackers(self) -> None:
        """Wait a while for the trackers and say what each has; they never change the exit code."""
        self.lanes.close()
        with contextlib.suppress(KeyboardInterrupt):  # a wish not to wait, which the trackers survive
            if not self.lanes.wait(1.0):
                print(
                    f"waiting up to {_DELIVERY_SECONDS:.0f} s for the trackers (Ctrl-C leaves them to it)", flush=True
                )
                self.lanes.wait(_DELIVERY_SECONDS)
        if deliveries := self.lanes.deliveries():
            print(track.table(deliveries))


@contextlib.contextmanager
def _held(folder: Path):
    """Hold a run's folder, so that no second trainer writes into it; raises UserError when one already does."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise UserError(f"{folder}: another process is training this run; wait for it or stop it") from None
    try:
        yield
    finally:
        os.close(fd)

"""Follows a run that another process trains, from its journal, in the form in which the trainer shows it."""

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lib.base import files
from lib.base.errors import shown
from lib.record import history, journal
from lib.record.history import History
from lib.terminal.console import Console, duration
from lib.terminal.view import number

# What a record of an earlier version has, which does not say how its metrics are shown.
_EARLIER = {"train": {"train_loss", "learning_rate", "tokens_per_second"}, "eval": {"val_loss", "val_perplexity"}}
_FIRST = 10  # lines to begin with
_POLL = 0.25  # seconds between looks at the journal
_PATIENCE = 5.0  # seconds for the trainer to begin a journal in a new folder


def follow(folder: Path, wait: bool) -> int:
    """Show a run until it ends or the user presses Ctrl-C. Returns 0 if it is finished and after Ctrl-C, else 1.

    With `wait`, a run that ended before its last step is followed until it is resumed and finished.
    """
    seen, screen = History(), None
    try:
        for batch in _batches(folder, seen, wait):
            for record in batch if screen else _skip(batch, seen):
                seen.add(record)
                screen = screen or _screen(seen)
                screen.follow(record, seen)
    except KeyboardInterrupt:
        return 0
    finally:
        if screen:
            screen.close()
    print(shown(_ending(folder, seen)))
    return 0 if seen.end and history.state(seen, folder) == "finished" else 1


def _screen(seen: History) -> "_Screen":
    """A screen for the run. In one-shot pruning each block has its own sparsity, so that no evaluation is the best."""
    is_oneshot = seen.config.get("pruning_dynamics") == "oneshot"
    return _Screen(seen.steps or 0, seen.step, tuple if is_oneshot else seen.evaluations)


class _Screen(Console):
    """Shows another process's run."""

    def say(self, text: str) -> None:
        """Print a line above the bar. Raises BrokenPipeError when nobody reads it: there is no run to protect here."""
        with self.bar.external_write_mode(file=sys.stdout):
            print(shown(text), flush=True)

    def follow(self, record: journal.Record, seen: History) -> None:
        """Show the newest record of `seen`."""
        self.move(seen.step, seen.steps or seen.step)
        if record["event"] == "resume":
            self.say(f"resumed after step {record['step']}")
        self.metrics |= seen.shown
        names = record["metrics"].keys()
        ours = _EARLIER.get(history.series(record["event"]), names) <= names or names & seen.shown.keys()
        if not ours:  # the run of another program
            values = "  ".join(f"{name} {number(value)}" for name, value in journal.numbers(record).items())
            self.say(f"step {record['step']}  {values}")
        else:
            self.show(record)


def _skip(batch: list[journal.Record], seen: History) -> list[journal.Record]:
    """Return the records from the tenth-last shown line on. `seen` takes in the records before it."""
    events = {"eval", "alert", "resume"} | (set() if sys.stderr.isatty() else {"train"})
    lines = [n for n, record in enumerate(batch) if record["event"].partition(".")[0] in events]
    first = lines[-_FIRST:][0] if lines else len(batch) - 1
    for record in batch[:first]:
        seen.add(record)
    return batch[first:]


def _batches(folder: Path, seen: History, wait: bool) -> Iterator[list[journal.Record]]:
    """Yield what is recorded, then what is new, until the run ends. The caller adds each batch to `seen`."""
    offset, old, deadline = 0, None, time.monotonic() + _PATIENCE
    while True:
        held = files.is_held(folder)  # before the journal is read, to miss nothing that was written
        records = list(journal.tail(folder, offset)) if (folder / journal.FILE).exists() else []
        if records:
            yield [record for record, _ in records]
            # If the folder is held, an end that was there at first may be that of the session before.
            old, offset = (old if offset else seen.end), records[-1][1]
        ended = seen.end is not None and (seen.end is not old or not held)
        gone = not held and not records and (seen.sessions or time.monotonic() > deadline)
        if (ended and history.state(seen, folder) == "finished") or ((ended or gone) and not wait):
            return
        time.sleep(_POLL)


def _ending(folder: Path, seen: History) -> str:
    """How the run ended, and how to continue it."""
    state = history.state(seen, folder)
    if state == "finished":
        final = journal.numbers(seen.end)
        text = f"finished after step {seen.step} in {duration(seen.seconds())}"
        if not {"final_val_loss", "best_val_loss"} <= final.keys():
            return text
        return f"{text}: val loss {final['final_val_loss']:.4f} final, {final['best_val_loss']:.4f} best"
    if not seen.sessions:
        return f"{folder}: the trainer ended before it recorded anything"
    reason = f": {seen.end['message']}" if seen.end and seen.end.get("message") else ""
    if seen.config.get("pruning_dynamics") == "oneshot":
        return f"{state} after block {seen.step}{reason}; a one-shot run cannot be continued, so prune again"
    use = history.machine(seen.sessions[-1])
    several = f" NPROC={use.ranks}" if use and use.ranks > 1 else ""
    again = f"make resume RUN={shlex.quote(str(folder))}{several}"
    return f"{state} after step {seen.step}{reason}; continue with: {again}"

"""The end of a run: its last record, its summary on the disk, and what it shows of that."""

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import sample
from gpt2.recorder import Recorder
from lib.base import files
from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.record import journal
from lib.record.best import best, dense_best, evaluations
from lib.terminal.console import duration, say, table

if TYPE_CHECKING:
    from gpt2.session import Session


def finish(session: "Session", recorder: Recorder) -> None:
    """Record the end of the run, write its summary and show it."""
    step, folder = session.training.step, recorder.folder
    known = evaluations(journal.history(folder).values())
    final = journal.final(folder, step) or {
        "final_val_loss": known[-1].val_loss,
        "best_val_loss": (best(known) or known[-1]).val_loss,
        "total_time_seconds": recorder.seconds(),
    }
    if not recorder.journal.ended(step):  # else the session before was killed while it wrote the summary
        recorder.write("finish", step, final, status="finished")
    recorder.console.close()
    tokens = step * session.data.tokens_per_step
    speed = {"tokens": tokens, "tokens_per_second": tokens / session.training.train_seconds}
    pruned = session.training.pruner.metrics(step)
    sparsity = {name: pruned[name] for name in ("sparsity", "average_nonzeros")}
    if dense := dense_best(known):
        final |= {"dense_best_val_loss": dense.val_loss}
    sparsity |= {"weights_in_scope": session.training.pruner.total, "parameters": session.model.count_parameters()}
    summary = {"run": str(folder), "status": "finished", "steps": step, **final, **speed, **sparsity}
    files.write_json(folder / "summary.json", summary)
    if session.options.json_output:
        files.write_json(Path(session.options.json_output), summary)
    _show(session, summary)


def _show(session: "Session", summary: dict[str, Any]) -> None:
    """Print the summary, after a sample of what the model writes."""
    text = sample.text(
        session.model, session.data.tokenizer, session.machine, session.schema.bind(sample.SampleOptions)
    )
    if text:
        width = min(shutil.get_terminal_size().columns, 100)
        say(f"\n{' a sample the model wrote '.center(width, '-')}\n{text}\n{'-' * width}")
    folder = shlex.quote(summary["run"])
    deliver = "" if "trackio" in session.trackers else f"make sync RUN={folder} TRACKER=trackio && "
    zeros = f"{summary['sparsity']:.2%} of the weights in scope; {summary['average_nonzeros']:,.0f} kept on average"
    facts = {
        "validation loss": f"{summary['final_val_loss']:.4f} final, {summary['best_val_loss']:.4f} best, "
        "in nats per token",
        **({"zero": zeros} if summary["sparsity"] else {}),
        "speed": f"{summary['tokens_per_second']:,.0f} tokens/s",
        "time": duration(summary["total_time_seconds"]),
        "run folder": summary["run"],
        "look at it": f"{deliver}make dashboard RUN={folder}",
        "sample from it": f"make sample RUN={folder}{_beginning(session.schema)}",
    }
    say(table(facts))


def _beginning(schema: Schema) -> str:
    """What a sample may begin with: code where the model learned from code, and elsewhere what the model likes."""
    tokens = "" if schema["SAMPLE_TOKENS"] else " SAMPLE_TOKENS=200"
    return tokens + (" PROMPT='def '" if schema["DATASET"] == "stdlib" else "")


def check_output(path: Path) -> None:
    """Raise UsageError now if JSON_OUTPUT could not be written at the end."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"JSON_OUTPUT={path}: cannot be written; name a file in a folder that is there and writable")
    if path.is_file() and path.stat().st_size:  # the option may come with somebody else's configuration
        try:
            ours = "total_time_seconds" in json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise UsageError(f"JSON_OUTPUT={path}: is there and no summary of a run; name another file")

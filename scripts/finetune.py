"""Fine-tune a finished model with TRL, as in `scripts/finetune.py --run RUN FINETUNE_RECIPE=sft FINETUNE_DATA=FILE`.

The model is a checkpoint of a run, or what INIT_FROM names. Zeros of a pruned model stay zero; PRUNING_METHOD=none lets
them go. With --run, the model, its data and the trackers are those of the run. Options of the menus Training,
Optimizer, Pruning and Fine-tuning that are not given have their defaults. Without --run and INIT_FROM the run is the
latest. With INIT_FROM, options that are not given are those of .config.

The result is a new run, whose steps are those of the fine-tuning. It can be resumed, evaluated, exported, compared and
trained on. Several processes train together under `accelerate launch`.
"""

import contextlib
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from lib.base.signals import end_at_once

    end_at_once()

from gpt2.finetune import examples
from gpt2.finetune.configured import configuration
from lib import track
from lib.base import launch, load, signals, spinning
from lib.base.errors import UsageError, run_program
from lib.config import extras
from lib.record import history

_BEGAN = load.read()


def main() -> int:
    """Fine-tune as the command line says; returns the exit code."""
    words, launched = sys.argv[1:], launch.found(os.environ)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each trainer to the hub
    schema, folder = configuration(words, __doc__)
    if missing := extras.missing("trl"):
        raise UsageError(f"make finetune needs {' and '.join(missing)}; {extras.install(extras.extra('trl'))}")
    track.names(schema["TRACKER"], schema.values())  # refuses a tracker that cannot be used here
    with contextlib.chdir(_home(folder)) if folder else contextlib.nullcontext():
        rows = examples.read(schema.bind(examples.ExampleOptions))
    if launched.size == 1:  # TRL would divide a batch among all GPUs that it sees
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen
    spinning.choose(_BEGAN)
    with signals.ending_at_once():
        from gpt2.finetune import start  # imports torch and TRL, which takes seconds

    command = [__file__, *words]
    if folder is None:
        return start.start(schema, command, launched, rows)
    where = folder.resolve()
    with contextlib.chdir(_home(folder)):
        return start.resume(schema, command, launched, where, rows)


def _home(folder: Path) -> Path:
    """The folder from which relative paths of a run start: where it was begun, if that is still there."""
    made = history.provenances(folder)
    began = Path(made[0].get("folder", "")) if made else Path.cwd()
    return began if began.is_dir() else Path.cwd()


if __name__ == "__main__":
    run_program(main)

"""How much live trackers slow down training."""

import tempfile
from pathlib import Path

from bench import Bench, process
from bench.timing import Case
from lib.config.kconf import ROOT
from lib.record import journal

_TRACKERS = ("trackio", "wandb", "csv")  # those that need no optional package
_OPTIONS = {"TRACKER_RUN_NAME": "run", "SAMPLE_TOKENS": 0, "EVAL_INTERVAL": 0, "DATA_DIR": "data"}


def tracking(bench: Bench) -> None:
    """Seconds from the first record of `gpt2_tiny` to its last, with no tracker and with three; wandb stays offline."""
    preset = str(ROOT / "defconfigs" / "gpt2_tiny_defconfig")
    steps = {"MAX_ITERS": 600, "LOG_INTERVAL": 10} if bench.size == "gpt2" else {"MAX_ITERS": 20, "LOG_INTERVAL": 2}

    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as made:
        process.ours("prepare_data.py", {"DATA_DIR": "data"}, Path(made), bench.machine.device, "--config", preset)

        def train(trackers: str) -> float:
            with tempfile.TemporaryDirectory(dir=made) as output:
                options = _OPTIONS | steps | {"OUTPUT_DIR": output, "TRACKER": trackers}
                where = {"TRACKIO_DIR": str(Path(output, "trackio")), "WANDB_MODE": "offline"}
                process.ours("train.py", options, Path(made), bench.machine.device, "--config", preset, **where)
                times = [r["time"] for r in journal.read(Path(output, "run")) if r["event"] == "train"]
                return times[-1] - times[0]

        none = Case("no tracker", lambda: train("none"), reports=True)
        together = Case("three live trackers", lambda: train(",".join(_TRACKERS)), none.name, reports=True)
        bench.measure("tracking", [none, together])

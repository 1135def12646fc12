"""The time from the start of a process to its first step, and the part of it that imports torch."""

import statistics
import tempfile
from pathlib import Path

from bench import Bench, process
from bench.timing import Case
from lib.config.kconf import ROOT
from lib.record import journal

_GOAL, _OWN_GOAL = 6.0, 0.5  # seconds
_DATA = {"DATA_DIR": "data"}
_OPTIONS = {
    "MAX_ITERS": 1, "WARMUP_STEPS": 0, "SAMPLE_TOKENS": 0, "TRACKER": "none", "TRACKER_RUN_NAME": "run",
    "LOG_INTERVAL": 1,
}  # fmt: skip


def start(bench: Bench) -> None:
    """Seconds from the start of the process to the first event and step of `gpt2_tiny`, with prepared data."""
    torch, first_event = [], []
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as made:
        _program(bench, "prepare_data.py", Path(made), _DATA)

        def import_torch() -> float:
            done = process.run(["-c", "import torch; print()"], Path(made), bench.machine.device)
            torch.append(done.lines[0][0])
            return torch[-1]

        def train() -> float:
            with tempfile.TemporaryDirectory(dir=made) as output:
                done = _program(bench, "train.py", Path(made), _DATA | _OPTIONS | {"OUTPUT_DIR": output})
                times = {record["event"]: record["time"] - done.began for record in journal.read(Path(output, "run"))}
            first_event.append(times["start"])
            return times["train"]

        cases = [
            Case("import torch", import_torch, reports=True),
            Case("gpt2_tiny to its first step", train, goal=f"<= {_GOAL}", reports=True),
        ]
        bench.measure("start", cases)
    own = statistics.median(event - alone for event, alone in zip(first_event, torch, strict=True))
    row = {"seconds": own, "ratio": own / _OWN_GOAL, "to": f"{_OWN_GOAL} s", "goal": "<= 1"}
    bench.note("start, until the first event", {"without import torch": row})


def _program(bench: Bench, name: str, folder: Path, options: dict[str, object]) -> process.Finished:
    preset = str(ROOT / "defconfigs" / "gpt2_tiny_defconfig")
    return process.ours(name, options, folder, bench.machine.device, "--config", preset)

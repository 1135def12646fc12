"""The time from the start of a process to its first step, and the part of it that imports torch."""

import statistics
import tempfile
from pathlib import Path

from bench import Bench, process
from bench.timing import Case
from lib.config.kconf import ROOT
from lib.record import journal

_DATA = {"DATA_DIR": "data"}
_OPTIONS = {
    "MAX_ITERS": 1, "WARMUP_STEPS": 0, "SAMPLE_TOKENS": 0, "TRACKER": "none", "TRACKER_RUN_NAME": "run",
    "LOG_INTERVAL": 1,
}  # fmt: skip


def start(bench: Bench) -> None:
    """Seconds from the start of `gpt2_tiny` to its first step, without those of `import torch`."""
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as made:
        _program(bench, "prepare_data.py", Path(made), _DATA)

        def torch_alone() -> float:
            return process.run(["-c", "import torch; print()"], Path(made), bench.machine.device).lines[0][0]

        def first_step() -> tuple[float, dict[str, float]]:  # with what it is made from
            imported = torch_alone()
            with tempfile.TemporaryDirectory(dir=made) as output:
                done = _program(bench, "train.py", Path(made), _DATA | _OPTIONS | {"OUTPUT_DIR": output})
                times = {record["event"]: record["time"] - done.began for record in journal.read(Path(output, "run"))}
            parts = {"import torch": imported, "first event": times["start"], "first step": times["train"]}
            return times["train"] - imported, parts

        case = Case("first step", first_step, reports=True)
        bench.measure("start", [case])
    rows = {name: {"seconds": statistics.median(parts[name] for parts in case.details)} for name in case.details[0]}
    bench.note("start, all of it", rows)


def _program(bench: Bench, name: str, folder: Path, options: dict[str, object]) -> process.Finished:
    preset = str(ROOT / "defconfigs" / "gpt2_tiny_defconfig")
    return process.ours(name, options, folder, bench.machine.device, "--config", preset)

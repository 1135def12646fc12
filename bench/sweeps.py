"""How the work of a sweep grows with its runs: reading it, handing runs out, its table, and what is seen of trainers.

One run is trained. All others are copies of it with names, options and losses of their own, as a trainer would have
written them. The parts are timed once:

read           the sweep, of a fifth as many configurations as runs
first table    before any run has begun
hand out       up to 1,000 runs to an engine that does nothing
picture        of these in training on the terminal, when half of each journal is new; `next picture` without news
check          whether as many finished runs are still those of the sweep, as a sweep that goes on does
data           whether all were trained on the same
table          of all when they are finished; `next table` when another run has ended
verdicts       which the terminal shows, and `make report`; not of 10,000 runs
"""

import contextlib
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import Bench, process
from lib.base.seldom import Seldom
from lib.compare import sweep, trainers
from lib.compare.plan import Run
from lib.compare.so_far import SoFar
from lib.config.kconf import ROOT
from lib.record import journal
from lib.report import study

_SEEDS = 5
_SIZES = {"tiny": (10,), "gpt2": (200, 1_000, 10_000)}  # runs
_STEPS = {"tiny": 5, "gpt2": 240}  # of each run, each of which has a line in its journal
_AT_ONCE = 1_000  # runs in training
_MOST = 1_000  # configurations of a line


class _Engine:
    """Takes jobs and never ends one."""

    threads = 1

    def __init__(self, jobs: int):
        self.jobs = jobs

    def start(self, jobs: list[Any]) -> list[Any]:
        return [self] * len(jobs)

    def poll(self) -> None:
        """The job goes on."""


def sweeps(bench: Bench) -> None:
    """Seconds of each part of a sweep, by its number of runs."""
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as made, contextlib.chdir(made):
        model = _trained(bench)
        rows = {f"{runs:,} runs": _parts(bench.size, runs, model) for runs in _SIZES[bench.size]}
    bench.note("scale of a sweep", rows)


def _trained(bench: Bench) -> Path:
    """The folder of a run that the trainer made."""
    options = _options(bench.size) | {"OUTPUT_DIR": "runs", "TRACKER_RUN_NAME": "model"}
    preset = str(ROOT / "defconfigs" / "gpt2_tiny_defconfig")
    for program in ("prepare_data.py", "train.py"):
        process.ours(program, options, Path.cwd(), bench.machine.device, "--config", preset)
    return Path("runs/model")


def _options(size: str) -> dict[str, object]:
    """What all runs have in common."""
    return {
        "DATA_DIR": "data", "TRACKER": "none", "MAX_ITERS": _STEPS[size], "LOG_INTERVAL": 1, "WARMUP_STEPS": 0,
        "MIN_LR": 0, "EVAL_SAMPLES": 8, "SAMPLE_TOKENS": 0, "COMPILE": "n", "TRACKER_GROUP": "bench",
    }  # fmt: skip


def _parts(size: str, runs: int, model: Path) -> dict[str, float | str]:
    """Part -> seconds."""
    found: dict[str, float | str] = {"in training": min(_AT_ONCE, runs)}
    file = Path(f"of{runs}")
    lines = ["defconfig gpt2_tiny", f"seeds 1..{_SEEDS}"]
    lines.append("common " + " ".join(f"{name}={value}" for name, value in _options(size).items()))
    rates = [f"{n}e-6" for n in range(1, runs // _SEEDS + 1)]
    lines += ["matrix LEARNING_RATE=" + ",".join(rates[n : n + _MOST]) for n in range(0, len(rates), _MOST)]
    file.write_text("\n".join(lines) + "\n")
    with _timed(found, "read"):
        plan = sweep.read(file)
    plan.folder.mkdir(parents=True)
    crew = trainers.Trainers(plan, _Engine(found["in training"]))
    with _timed(found, "first table"):
        crew.record = SoFar(plan).write
        crew._record()
    crew.unrecorded = False
    with _timed(found, "hand out"):
        crew.work(stop=False)
    for one in crew.active:
        _copy(model, one.run, finished=False)
    with _timed(found, "picture"):
        crew._state()
    crew.looks = Seldom()
    with _timed(found, "next picture"):
        crew._state()
    for run in plan.runs():
        _copy(model, run)
    with _timed(found, "check"):
        for run in plan.runs()[: crew.engine.jobs]:
            run.check()
    with _timed(found, "data"):
        plan.check_data()
    keeper = SoFar(plan)
    with _timed(found, "table"):
        keeper.write()
    with _timed(found, "next table"):
        keeper.write()
    if runs <= _MOST:
        with _timed(found, "verdicts"):
            study.of_sweep(plan.folder)
    return found


@contextlib.contextmanager
def _timed(found: dict[str, float | str], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    found[part] = time.perf_counter() - began


def _copy(model: Path, run: Run, finished: bool = True) -> None:
    """Write the folder of a run as its trainer would, with the files of `model`."""
    [(_, rate, _)] = run.configuration.own
    own = {"LEARNING_RATE": f'"{rate}"', "TRACKER_RUN_NAME": f'"{run.name}"', "OUTPUT_DIR": f'"{run.parent}"'}
    config = (model / ".config").read_text()
    for name, text in {**own, "SEED": str(run.seed)}.items():
        config = re.sub(rf"^CONFIG_{name}=.*$", f"CONFIG_{name}={text}", config, flags=re.MULTILINE)
    (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run.folder / ".config").write_text(config)
    for name in ("defconfig", "lock"):
        (run.folder / name).write_bytes((model / name).read_bytes())
    made = json.loads((model / "provenance.json").read_text())
    for name, text in {**own, "SEED": str(run.seed)}.items():
        made["options"][name]["value"] = text.strip('"')
    (run.folder / "provenance.json").write_text(json.dumps(made, indent=1))
    run_id = hashlib.sha256(run.name.encode()).hexdigest()[:12]
    (run.folder / "run.json").write_text(json.dumps({"run_id": run_id, "project": "bench", "name": run.name}))
    first, *rest = (model / journal.FILE).read_text().splitlines(keepends=True)
    start = json.loads(first)
    start["config"] |= {"seed": run.seed, "tracker_run_name": run.name, "learning_rate": float(rate)}
    lines = [json.dumps(start, separators=(",", ":")) + "\n", *(rest if finished else rest[: len(rest) // 2])]
    (run.folder / journal.FILE).write_text("".join(lines))
    if finished:
        summary = json.loads((model / "summary.json").read_text())
        summary["final_val_loss"] += int(run_id[:3], 16) / 1e5  # so that losses differ
        (run.folder / "summary.json").write_text(json.dumps(summary, indent=1))

"""Ray Train with two workers, one of which is killed once: one run, each step once."""

import os
import subprocess
import sys

import pytest

from lib.record import journal
from tests.training import ROOT, TEXT, arguments

pytestmark = pytest.mark.extra("ray")

DRIVER = """
import sys
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

folder, words = Path(sys.argv[1]), sys.argv[2:]


def work(config):
    import os, signal, threading, time
    from pathlib import Path

    from ray.train import get_context

    folder = Path(config["folder"])
    os.chdir(folder)
    journal = folder / "runs/run/journal.jsonl"

    def die():
        while not journal.exists() or journal.read_text().count('"event":"train"') < 14:
            time.sleep(0.005)
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    if get_context().get_world_rank() == 1 and not (folder / "died").exists():
        threading.Thread(target=die, daemon=True).start()
    from gpt2.train import train

    assert train(config["words"]) == 0


ray.init(num_cpus=2, include_dashboard=False)
trainer = TorchTrainer(
    work,
    train_loop_config={"folder": str(folder), "words": words},
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(
        name="mine", storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=1)
    ),
)
trainer.fit()
"""


def test_workers_make_one_run_that_survives_one_of_them(tmp_path):
    (tmp_path / "corpus.txt").write_text(TEXT)
    words = arguments(dropout=0, batch_size=1, gradient_accumulation=8)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "died").exists()
    [run] = (tmp_path / "runs").iterdir()
    records = list(journal.read(run))
    assert [r["step"] for r in records if r["event"] == "train"] == list(range(1, 41))
    assert [r["event"] for r in records if r["event"] in ("start", "resume")] == ["start", "resume"]
    assert records[-1]["status"] == "finished"

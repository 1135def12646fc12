"""Chains of runs in a sweep of the real programs, which are killed and go on; and in which order runs are made."""

import json
import re
import time

from lib.base import files
from lib.compare import sweep, trainers
from tests.compare.test_sweep import COMMON, events, run, start, write

CHAIN = (
    f"common {COMMON} MAX_ITERS=120 CHECKPOINT_INTERVAL=10 EVAL_INTERVAL=0 WARMUP_STEPS=1",
    "retrained from=@wanda PRUNING_METHOD=given MAX_ITERS=10",
    "wanda from=@dense oneshot PRUNING_METHOD=wanda TARGET_SPARSITY=0.5",
    "dense",
)


def test_each_run_is_made_after_the_one_that_it_begins_from(tmp_path):
    plan = sweep.read(write(tmp_path, *CHAIN))
    assert [one.name for one in trainers.ordered(plan)] == [
        f"{name}-seed{seed}" for seed in (1, 2) for name in ("dense", "wanda", "retrained")
    ]


def test_a_chain_whose_processes_are_killed_ends_with_every_run_made_once(tmp_path):
    write(tmp_path, *CHAIN, head="defconfig gpt2_tiny\nseeds 1\n")
    home = tmp_path / "runs/few"
    process = start(tmp_path)
    checkpoint = home / "dense-seed1/checkpoints/step-000000010.pt"
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()  # its trainer goes on
    process.wait()
    assert files.is_held(home, "dense-seed1.log")
    for name in ("wanda-seed1", "retrained-seed1"):  # as if killed before the run began
        (home / name / "checkpoints").mkdir(parents=True)
        (home / name / "lock").touch()
    output = run(tmp_path)
    assert "dense-seed1  a process of an earlier sweep still works on it; waiting for it\n" in output
    lines = re.findall(r"^(\S+)  val loss \d", output, re.MULTILINE)
    assert lines == ["dense-seed1", "wanda-seed1", "retrained-seed1"]
    assert sorted(path.parent.name for path in home.glob("*/summary.json")) == sorted(lines)
    assert [path.name for path in home.iterdir() if path.is_dir() and path.name not in lines] == []
    kinds = {name: [one["event"] for one in events(home / name)] for name in lines}
    assert all(found.count("start") == 1 and found.count("finish") == 1 for found in kinds.values())
    begun = {name: events(home / name)[0]["init"]["path"] for name in lines[1:]}
    assert begun == {
        "wanda-seed1": str(home / "dense-seed1/checkpoints/step-000000120.pt"),
        "retrained-seed1": str(home / "wanda-seed1/checkpoints/step-000000002.pt"),
    }
    summary = json.loads((home / "retrained-seed1/summary.json").read_text())
    assert (summary["total_tokens"], round(summary["sparsity"], 2)) == (130 * 4 * 2 * 32, 0.5)

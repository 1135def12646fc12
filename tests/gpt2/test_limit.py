"""RUN_TIME: a run stops when its time is over, and a sweep leaves it as it is until the time is longer."""

import re

from lib.compare import sweep
from tests.compare.test_sweep import COMMON, run, write
from tests.forked import Trainer
from tests.training import ROOT, environment, records


def train(folder, *words):
    trainer = Trainer(folder, list(words), environment())
    output, _ = trainer.communicate(timeout=60)
    return trainer.returncode, output


def test_a_run_that_meets_its_limit_is_short(tmp_path):
    path = write(tmp_path, f"common {COMMON} MAX_ITERS=1000000 RUN_TIME=1s EVAL_INTERVAL=0", "dense")
    path.write_text(path.read_text().replace("seeds 1 2", "seeds 1"))
    (one,) = sweep.read(path).runs()
    code, output = train(tmp_path, "--config", str(ROOT / one.configuration.base), *one.words()[2:])
    folder = tmp_path / "runs/few/dense-seed1"
    assert code == 124, output
    step = int(re.search(r"^RUN_TIME=1s is over: stopped after step (\d+); continue with: .*", output, re.M)[1])
    (end,) = records(folder, "finish")
    assert (end["status"], end["message"], end["step"]) == ("interrupted", "RUN_TIME=1s is over", step)
    assert (folder / f"checkpoints/step-{step:09}.pt").exists()
    assert not (folder / "summary.json").exists()

    output = run(tmp_path, code=124)  # trains nothing
    assert len(records(folder, "resume")) == 0
    assert "runs/few: no run is finished yet, so there is no table" in output

    code, _ = train(tmp_path, "--resume", str(folder), "RUN_TIME=1h", f"MAX_ITERS={step + 1}")
    assert code == 0
    assert (folder / "summary.json").exists()

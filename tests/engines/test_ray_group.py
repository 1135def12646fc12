"""A run of several processes by Ray Train: a worker is killed, the user stops it, and it ends as on this machine."""

import os
import re
import signal
import socket

import psutil
import pytest

from lib.record import checkpoint, journal
from tests.engines import groups
from tests.engines.groups import finish, steps
from tests.engines.test_ray import TINY, trainers, wait_for
from tests.training import TEXT, losses, same

pytestmark = pytest.mark.extra("ray")

STEPS = 1500


@pytest.fixture
def start(tmp_path):
    """Starts a run of two processes: start("--engine=ray", "SEED=1", RAY_ADDRESS="...")."""
    (tmp_path / "corpus.txt").write_text(TEXT)

    def started(engine, *words, **environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return groups.start(tmp_path, clean | environment, [f"--engine={engine}"], *TINY.split(), *words)

    return started


def workers(folder):
    """The workers that train in this folder."""
    found = []
    for one in psutil.process_iter():
        try:
            if any("RayTrainWorker" in word for word in one.cmdline()[:1]) and one.cwd() == str(folder):
                found.append(one)
        except psutil.Error:
            pass
    return found


def test_a_run_outlives_a_killed_worker_and_ctrl_c_bit_for_bit(start, tmp_path):
    words = (f"MAX_ITERS={STEPS}", "CHECKPOINT_INTERVAL=100", "TRACKER_RUN_NAME=run")
    run = tmp_path / "runs/run"
    process = start("ray", *words)
    wait_for(lambda: steps(run) >= 250, process)
    pair = workers(tmp_path)
    assert len(pair) == 2
    pair[0].kill()
    wait_for(lambda: any(record["event"] == "resume" for record in journal.read(run)), process)
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    assert (
        "Ray on this machine: 1 node, 2 processes with 1 CPU each; their output is in runs/.jobs/run/output" in output
    )
    assert "SIGINT: the processes save and end; a second one stops at once\n" in output
    assert output.count("SIGINT: stopping after this batch, then saving\n") == 1
    found = re.search(r"stopped after step (\d+); continue with: make resume RUN=runs/run NPROC=2 ENGINE=ray\n", output)
    assert int(found[1]) < STEPS
    output = finish(start("ray", *words))
    assert f"resuming runs/run after step {found[1]}, " in output
    output = finish(start("ray", *words))
    assert "runs/run is finished: " in output and "Ray on this machine" not in output
    assert not workers(tmp_path)

    assert [r["step"] for r in journal.read(run) if r["event"] == "train"] == list(range(1, STEPS + 1))
    run.rename(tmp_path / "on ray")
    finish(start("local", *words))
    assert losses(run) == losses(tmp_path / "on ray") and len(losses(run)) == STEPS
    states = [checkpoint.load(checkpoint.find(one / "checkpoints")[-1], "cpu") for one in (run, tmp_path / "on ray")]
    assert same(states[0]["model"], states[1]["model"])


def test_a_run_that_diverges_is_tried_once(start, tmp_path):
    output = finish(start("ray", "OPTIMIZER=sgd", "LEARNING_RATE=10", "WEIGHT_DECAY=1", "MAX_ITERS=100000"), 1)
    assert output.count("error: the run has diverged") == 1
    [log] = tmp_path.glob("runs/.jobs/*/output.log")
    assert log.read_text().count("$ ") == 1
    assert not trainers(tmp_path)


def test_a_cluster_that_is_not_there_is_a_sentence(start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    output = finish(start("ray", RAY_ADDRESS=address), 1)
    assert (
        f"error: RAY_ADDRESS={address}: no Ray cluster can be joined there ([Errno 111] Connection refused); " in output
    )

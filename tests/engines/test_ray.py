"""The engine Ray with real clusters: workers, nodes and the sweep itself are killed, and every run is made once."""

import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from lib.base.errors import UserError
from lib.engines import ray
from lib.engines.engine import Wishes
from lib.engines.job import Job
from lib.record import checkpoint, journal
from tests import forking
from tests.engines.test_gpus import nvml
from tests.forked import Program
from tests.training import ROOT, TEXT, losses, same

__all__ = ["nvml"]  # a fixture

with_ray = pytest.mark.extra("ray")

TINY = (
    "MODEL_NAME=custom N_LAYER=1 N_HEAD=1 N_EMBD=8 BLOCK_SIZE=32 DATASET=files DATASET_SOURCE=corpus.txt "
    "TOKENIZER=bytes BATCH_SIZE=4 MAX_ITERS=200 WARMUP_STEPS=5 EVAL_INTERVAL=0 EVAL_SAMPLES=4 LOG_INTERVAL=1 "
    "CHECKPOINT_INTERVAL=10 DEVICE=cpu DTYPE=float32 THREADS=1 SAMPLE_TOKENS=0 TRACKER=none SYSTEM_METRICS_INTERVAL=0"
)


@pytest.fixture
def home(tmp_path):
    """A folder with a text and a sweep of eight runs."""
    (tmp_path / "corpus.txt").write_text(TEXT)
    (tmp_path / "few").write_text(f"defconfig gpt2_tiny\nseeds 1..4\ncommon {TINY}\ndense\nstill WEIGHT_DECAY=0\n")
    return tmp_path


NAMES = [f"{name}-seed{seed}" for seed in (1, 2, 3, 4) for name in ("dense", "still")]


def start(folder, *words, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/sweep.py"), "few", *words],
        cwd=folder,
        env=clean | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def steps(folder, name):
    path = folder / "runs/few" / name / "journal.jsonl"
    return path.read_text().count('"event":"train"') if path.exists() else 0


def trainers(folder):
    """The processes that train runs of the sweep in a folder now: name of the run -> process."""
    found = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if words and words[0].startswith("ray::") and process.cwd() == str(folder):
                found[words[0].removeprefix("ray::")] = process
        except psutil.Error:
            pass
    return found


def wait_for(found, process, seconds=300):
    """The first result that is true, while the sweep goes on."""
    until = time.monotonic() + seconds
    while not (result := found()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)
    return result


@with_ray
def test_workers_and_the_sweep_are_killed_and_every_run_is_made_once(home, tmp_path_factory):
    chance, killed = random.Random(4), 0
    process = start(home, "--engine", "ray", "--jobs", "2")
    while killed < 3:  # a worker at a random step of its run
        least = chance.randrange(1, 150)
        name, trainer = wait_for(
            lambda least=least: next(
                ((n, one) for n, one in trainers(home).items() if n in NAMES and least <= steps(home, n) < 200), None
            ),
            process,
        )
        trainer.send_signal(signal.SIGKILL)
        trainer.wait(10)
        killed += 1
    wait_for(lambda: any(steps(home, name) >= 20 for name in trainers(home) if name in NAMES), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    output = finish(start(home, "--engine", "ray", "--jobs", "2"))
    assert "Ray on this machine: 1 node, 2 at a time, 1 CPU for each run" in output

    other = tmp_path_factory.mktemp("local")
    for name in ("corpus.txt", "few"):
        shutil.copy(home / name, other)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finish(Program(other, "scripts/sweep.py", ["few", "--jobs", "2"], environment, forking.trainers))
    for name in NAMES:
        here, there = (folder / "runs/few" / name for folder in (home, other))
        assert losses(here) == losses(there) and len(losses(here)) == 200
        assert [r["status"] for r in journal.read(here) if r["event"] == "finish"] == ["finished"]
        states = [checkpoint.load(checkpoint.find(folder / "checkpoints")[-1], "cpu") for folder in (here, there)]
        assert same(states[0]["model"], states[1]["model"])
    resumed = sum(record["event"] == "resume" for name in NAMES for record in journal.read(home / "runs/few" / name))
    assert resumed >= 1  # a run that was killed before its first checkpoint begins again


@with_ray
def test_ctrl_c_saves_and_what_the_user_or_the_loss_broke_is_tried_once(home):
    lines = f"defconfig gpt2_tiny\nseeds 1\ncommon {TINY}\ndense MAX_ITERS=100000\n"
    (home / "few").write_text(lines + "late OPTIMIZER=sgd LEARNING_RATE=10 WEIGHT_DECAY=1 MAX_ITERS=100000\n")
    process = start(home, "--engine", "ray", "--jobs", "2")
    results = home / "runs/few/results.json"  # which is renewed once the sweep knows that a run has ended
    before = wait_for(lambda: results.exists() and results.stat().st_mtime_ns, process)
    wait_for(lambda: steps(home, "dense-seed1") > 20 and results.stat().st_mtime_ns > before, process)
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    stopped = int(re.search(r"^dense-seed1  stopped after step (\d+)  ", output, re.MULTILINE)[1])
    assert (home / f"runs/few/dense-seed1/checkpoints/step-{stopped:09}.pt").exists()
    assert re.search(r"^late-seed1  failed: the run has diverged", output, re.MULTILINE)
    log = (home / "runs/few/late-seed1.log").read_text()
    assert log.count("\n$ ") == 0 and log.startswith("$ ")
    assert not trainers(home).keys() & {"dense-seed1", "late-seed1"}


# ---- a real cluster --------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster():
    """Starts a Ray cluster of two nodes with one CPU each on this machine: cluster(words before `ray`, variables).

    Both are for the second node. Returns the variables that a program needs to join, and the second node's processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets are in it, and Linux takes 107 bytes
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "token").chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"{address_of_this_machine()}:{port}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    common = ["--num-cpus=1", "--disable-usage-stats", f"--object-store-memory={80 * 2**20}"]

    def start(before=(), **variables):
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
        ray_start((), token, *head, *common)
        first = services(folder)
        ray_start(before, token | variables, f"--address={address}", "--node-name=second", *common)
        return token | {"RAY_ADDRESS": address}, [one for one in services(folder) if one not in first]

    yield start
    for process in services(folder):
        for one in [*children(process), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    shutil.rmtree(folder, ignore_errors=True)  # what was killed may still end


def ray_start(before, variables, *words):
    command = [*before, str(Path(sys.executable).parent / "ray"), "start", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def address_of_this_machine():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("10.254.254.254", 1))  # sends nothing
        return one.getsockname()[0]


def children(process):
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def services(folder):
    """The processes of Ray that were started with this folder. Their workers have other names, and are below these."""
    found = []
    for one in psutil.process_iter():
        try:
            if str(folder) in " ".join(one.cmdline()) and "/ray/" in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:
            pass
    return found


@with_ray
def test_a_node_is_lost_in_the_middle_and_the_sweep_ends(home, cluster):
    (home / "few").write_text((home / "few").read_text().replace("1..4", "1..2"))
    given, second = cluster()
    address = given["RAY_ADDRESS"]
    process = start(home, "--engine", "ray", **given)
    workers = [raylet for raylet in second if Path(raylet.cmdline()[0]).name == "raylet"]
    there = wait_for(
        lambda: [
            name for name, one in trainers(home).items()
            if name in NAMES and one.parent() in workers and steps(home, name) > 20
        ],
        process,
    )  # fmt: skip
    for one in second:
        for each in [*children(one), one]:
            each.kill()
    output = finish(process)
    assert f"Ray at {address}: 2 nodes, 2 at a time, 1 CPU for each run" in output
    for name in NAMES[:4]:
        assert [r["status"] for r in journal.read(home / "runs/few" / name) if r["event"] == "finish"] == ["finished"]
        assert len(losses(home / "runs/few" / name)) == 200
    assert any(r["event"] == "resume" for r in journal.read(home / "runs/few" / there[0]))


@with_ray
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to hide a folder from a node")
def test_a_worker_with_another_torch_or_without_the_folders_is_told_before_the_first_run(
    home, cluster, tmp_path_factory
):
    fake = tmp_path_factory.mktemp("fake")
    about = fake / "torch-2.12.1.dist-info/METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.12.1\n")
    hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {home} && exec "$@"', "sh"]
    given, _ = cluster(hide, PYTHONPATH=str(fake))
    output = finish(start(home, "--engine", "ray", **given), 1)
    told = (
        r"error: the worker second has Python 3\.\d+ and torch 2\.12\.1, and this program has Python 3\.\d+ and torch"
    )
    assert re.search(told, output), output
    shutil.rmtree(about.parent)
    output = finish(start(home, "--engine", "ray", **given), 1)
    assert f"error: {home}: the worker second cannot train here: is not the same there (No such file" in output
    assert "the repository, the present folder, OUTPUT_DIR and DATA_DIR must be on a file system that all" in output
    assert not list(home.glob("runs/few/*.log")) and not list(home.rglob(".shared-*"))


@with_ray
def test_a_cluster_that_is_not_there_is_a_sentence(home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = finish(start(home, "--engine", "ray", RAY_ADDRESS=f"127.0.0.1:{port}"), 1)
    assert output.endswith(
        f"error: RAY_ADDRESS=127.0.0.1:{port}: no Ray cluster can be joined there ([Errno 111] Connection refused); "
        "start one by `ray start --head`, or unset RAY_ADDRESS to train on this machine\n"
    )
    output = finish(start(home, "--engine", "ray", RAY_ADDRESS="ray://127.0.0.1:10001"), 1)
    assert "error: RAY_ADDRESS=ray://127.0.0.1:10001: is an address for Ray's client" in output


@with_ray
def test_each_run_sees_the_free_gpu_that_it_gets(tmp_path, monkeypatch, nvml):
    nvml(0, 60, 0)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    (tmp_path / "show.py").write_text("import os, time\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\ntime.sleep(3)\n")
    engine = ray.Engine(Wishes(tmp_path / "runs", tmp_path / "data"), lambda text: None)
    try:
        assert (engine.jobs, engine.gpus) == (2, 1.0)
        path = os.path.relpath(tmp_path / "show.py", ROOT)
        jobs = [Job(tmp_path / name, tmp_path / f"{name}.log", path, ()) for name in ("one", "two")]
        tasks = engine.start(jobs)
        until = time.monotonic() + 60
        while not all(task.poll() for task in tasks):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert [task.poll() for task in tasks] == [(0, "")] * 2
    finally:
        engine.close()
    assert sorted(job.log.read_text().split("\n")[1] for job in jobs) == ["GPU-aaaa", "GPU-cccc"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


# ---- sizes -----------------------------------------------------------------------------------------------------------

WISHES = Wishes(Path("runs/few"), Path("data"))


@pytest.mark.parametrize(
    ("nodes", "jobs", "each"),
    [([16], 1, 16), ([16], 3, 5), ([16, 16], 2, 16), ([16, 16], 3, 8), ([16, 4], 3, 5), ([2], 9, 1)],
)
def test_cores_are_divided_within_nodes(nodes, jobs, each):
    assert ray.cpus_each(nodes, jobs) == each


def test_the_number_of_runs_follows_from_the_gpus_or_the_nodes():
    nodes = [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]
    assert ray.sized(nodes, WISHES, None) == (1.0, 8, 4)
    assert ray.sized(nodes, WISHES, 0.5) == (0.5, 16, 2)
    assert ray.sized(nodes, WISHES, 2.0) == (2.0, 4, 8)
    assert ray.sized(nodes, WISHES._replace(gpus=False), None) == (0.0, 3, 8)
    assert ray.sized(nodes, WISHES._replace(jobs=2), 0.0) == (0.0, 2, 16)


def test_what_fits_on_no_node_is_refused():
    nodes = [{"CPU": 4.0, "GPU": 1.0}]
    for wishes, each, told in (
        (WISHES, 2.0, "GPUS_PER_RUN=2: no node of the Ray cluster has so many; the most are 1"),
        (WISHES._replace(threads=8), None, "THREADS=8: no node of the Ray cluster has so many CPUs; the most are 4"),
    ):
        with pytest.raises(UserError) as caught:
            ray.sized(nodes, wishes, each)
        assert str(caught.value) == told

"""The comparison with nanoGPT, by a double that prints what nanoGPT prints: its code is not in this repository."""

import contextlib
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bench as benchmark
from bench import huggingface, nanochat, nanogpt, process, reference, whole
from bench.peer import Way
from bench.timing import Timer
from lib.base.errors import UsageError, UserError
from lib.machine import device
from tests import forked
from tests.bench.test_bench import FLOPS_PER_TOKEN
from tests.training import ROOT

DOUBLE = """\
import os, pickle, sys
flags = dict(word[2:].split("=") for word in sys.argv[1:])
data = os.path.join("data", flags["dataset"])
meta = pickle.load(open(os.path.join(data, "meta.pkl"), "rb"))
shipped = "bias" not in flags
assert meta == {"vocab_size": 65 if shipped else 256}, meta
assert shipped or flags["bias"] == "True" and os.path.getsize(os.path.join(data, "train.bin")) > 1_000_000
exec(open("configurator.py").read())
print("step 0: train loss 5.5000, val loss 5.5000")
for step in range(int(flags["max_iters"]) + 1):
    print(f"iter {step}: loss {5 - step:.4f}, time {1000 if step == 0 else 10 + step:.2f}ms, mfu -100.00%")
"""
PREPARE = """\
import pickle
text = open("input.txt").read()
assert len(text) == 1115394
pickle.dump({"vocab_size": len(set(text))}, open("meta.pkl", "wb"))
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like nanoGPT."""
    folder = tmp_path / "nanoGPT"
    folder.mkdir()
    (folder / "data" / "shakespeare_char").mkdir(parents=True)
    for name, text in zip(nanogpt.FILES, (DOUBLE, "", "", PREPARE), strict=True):
        (folder / name).write_text(text)
    return folder


def bench(checkout, tmp_path, *words):
    words = ["--dtype", "float32", "--ref", str(checkout), "--json", str(tmp_path / "bench.json"), *words]
    words = ["--size", "tiny", "--rounds", "1", "--allow-busy", "--device", "cpu", *words]
    return forked.run(tmp_path, "bench/run.py", *words)


def test_both_are_timed_as_whole_processes(checkout, tmp_path):
    done = bench(checkout, tmp_path, "--only", "peer-4x128", "peer-memory")
    assert (done.returncode, done.stderr) == (0, "")
    sections = json.loads((tmp_path / "bench.json").read_text())["sections"]
    ours, shipped, equal = sections["4x128 beside nanoGPT, float32"]["cases"]
    names = ["Espalier not compiled", "nanoGPT as shipped", "nanoGPT not compiled"]
    assert [case["name"] for case in (ours, shipped, equal)] == names
    assert shipped["rounds"] == equal["rounds"] == [0.012]  # the first step is to warm up; then 11, 12, 13 ms
    assert shipped["ratio"] == pytest.approx(0.012 / ours["median_seconds"])
    assert ours["rate"] == pytest.approx(32 / ours["median_seconds"])
    rows = sections["4x128 beside nanoGPT, float32: processes"]["rows"]
    assert rows["nanoGPT as shipped"]["loss"] == 3.0  # of 4, 3, 2
    assert 4 < rows["Espalier not compiled"]["loss"] < 6  # 256 bytes, hardly trained
    assert rows["Espalier not compiled"]["whole s"] > 0
    share = sections["4x128: share of the best product"]["rows"]["Espalier not compiled"]
    products = sections["products of 32 x 32, float32"]["cases"]
    assert share["ratio"] == pytest.approx(share["GFLOP/s"] / max(case["rate"] for case in products))
    assert share["GFLOP/s"] == pytest.approx(32 * FLOPS_PER_TOKEN / ours["median_seconds"] / 1e9)
    peak = sections["peak memory beside nanoGPT"]["rows"]
    assert peak["Espalier"]["ratio"] == pytest.approx(
        peak["Espalier"]["peak MiB"] / peak["nanoGPT as shipped"]["peak MiB"]
    )
    assert {path.name for path in checkout.rglob("*.*")} == {"train.py", "model.py", "configurator.py", "prepare.py"}


def test_what_is_no_checkout_is_named(checkout, tmp_path):
    (checkout / "model.py").unlink()
    done = bench(checkout, tmp_path)
    sentence = f"error: --ref {checkout}: has no model.py; name a checkout of karpathy/nanoGPT or "
    sentence += "karpathy/nanochat, or transformers\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    done = forked.run(tmp_path, "bench/run.py", "--only", "peer-gpt2")
    sentence = "error: --only peer-...: name what to compare with: --ref FOLDER, or --ref transformers\n"
    assert (done.returncode, done.stderr) == (2, sentence)


def test_the_package_transformers_is_a_peer_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda name: object())
    assert isinstance(reference.check("transformers"), huggingface.Trainer)
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda name: None)
    sentence = "^--ref transformers: it needs transformers and accelerate; pip install transformers accelerate$"
    with pytest.raises(UsageError, match=sentence):
        reference.check("transformers")


def test_a_failing_section_leaves_the_others(checkout, tmp_path):
    (checkout / "train.py").write_text("raise SystemExit('no such flag')")
    done = bench(checkout, tmp_path, "--only", "peer-memory", "scale-journal")
    assert done.returncode == 1
    assert done.stderr.startswith("error: peer-memory: train.py --dropout=0.0 ")
    assert done.stderr.endswith(": failed: no such flag\n")
    assert "scale of the journal" in done.stdout


def test_each_variant_runs_nanogpt_as_its_name_says():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    peer, ours, compiled = nanogpt.NanoGPT(Path("ref")), "Espalier not compiled", "Espalier compiled"
    assert reference.rivals(peer, cpu, "bfloat16", auto=True, compilable=True) == {
        "nanoGPT as shipped, float32": (Way("float32", False, shipped=True), compiled),
        "nanoGPT not compiled, bfloat16": (Way("bfloat16", False), ours),
        "nanoGPT compiled, bfloat16": (Way("bfloat16", True), compiled),
    }
    assert reference.rivals(peer, cpu, "float32", auto=False, compilable=False) == {
        "nanoGPT as shipped": (Way("float32", False, shipped=True), ours),
        "nanoGPT not compiled": (Way("float32", False), ours),
    }
    assert reference.rivals(peer, cuda, "bfloat16", auto=True, compilable=True) == {
        "nanoGPT as shipped": (Way("bfloat16", True, shipped=True), compiled),
        "nanoGPT not compiled, bfloat16": (Way("bfloat16", False), ours),
        "nanoGPT compiled, bfloat16": (Way("bfloat16", True), compiled),
    }
    found = reference.rivals(huggingface.Trainer(), cuda, "bfloat16", auto=True, compilable=True)
    assert found["Trainer as shipped, float32"] == (Way("float32", False, shipped=True), compiled)
    found = reference.rivals(nanochat.Nanochat(Path("ref")), cpu, "bfloat16", auto=False, compilable=True)
    assert found == {  # its optimizer needs the compiler
        "nanochat as shipped, float32": (Way("float32", True, shipped=True), ours),
        "nanochat compiled, bfloat16": (Way("bfloat16", True), compiled),
    }
    assert pickle.loads(nanogpt._META) == {"vocab_size": 256}


def started(monkeypatch, steps):
    """The words and variables of each program that would be started; each prints `steps`."""
    found = []

    def run(words, folder, device, **variables):
        found.append((words, variables))
        return process.Finished([(2.0 + number, line) for number, line in enumerate(steps)], 0.0, 9.0, 1000)

    monkeypatch.setattr(process, "run", run)
    return found


def test_the_trainer_gets_our_shape_vocabulary_and_arithmetic(tmp_path, monkeypatch):
    steps = [f"iter {step}: loss {5 - step:.4f}, time {10 * (step + 1):.2f}ms" for step in range(4)]
    found = started(monkeypatch, ["a warning", *steps])
    cpu, variables = torch.device("cpu"), {"TORCHINDUCTOR_CACHE_DIR": "cache"}
    done = huggingface.Trainer().train(Way("bfloat16", True), whole.TINY, tmp_path, cpu, variables)
    assert done == whole.Outcome(0.03, 3.0, 9.0, 1000, 3.0)  # after one step to warm up: 20, 30 and 40 ms
    ((words, given),) = found
    assert given == variables
    assert words[0] == "-P" and Path(words[1]) == ROOT / "bench/trainer.py"
    settings = (
        f"--n_layer=1 --n_head=2 --n_embd=32 --block_size=16 --batch_size=2 --vocab_size=256 "
        f"--bin={tmp_path}/bytes/train.bin --max_steps=4 --learning_rate=0.0001 "
        "--device=cpu --dtype=bfloat16 --compile=1"
    )
    assert words[2:] == settings.split()


def test_nanochat_prepares_our_text_once_and_gets_our_shape(tmp_path, monkeypatch):
    import pyarrow.parquet

    line = (
        "step {:05d}/00004 (0.00%) | loss: {:.6f} | lrm: 0.03 | dt: {:.2f}ms | tok/sec: 26 | bf16_mfu: 0.00 | epoch: 1"
    )
    steps = [line.format(step, 5 - step, 10 * (step + 1)) for step in range(4)]
    found = started(monkeypatch, steps)
    monkeypatch.setattr("bench.nanochat.documents", lambda: ["x" * 1500, "é" * 98_500])
    peer, shape = nanochat.Nanochat(Path("/checkout")), whole.TINY._replace(n_layer=2, n_embd=32)
    for _ in range(2):
        done = peer.train(Way("float32", True), shape, tmp_path, torch.device("cpu"), {"A": "b"})
        assert done == whole.Outcome(0.03, 2.0, 9.0, 1000, 3.0)
    prepare, first, second = found
    where = {"A": "b", "PYTHONPATH": "/checkout", "NANOCHAT_BASE_DIR": str(tmp_path / "nanochat")}
    assert prepare == (["-m", "scripts.tok_train", "--vocab-size=265"], where)
    assert first == second and first[1] == where | {"NANOCHAT_DTYPE": "float32"}
    settings = (
        "--window-pattern=L --eval-every=-1 --core-metric-every=-1 --sample-every=-1 --depth=2 --aspect-ratio=16 "
        "--head-dim=16 --max-seq-len=16 --device-batch-size=2 --total-batch-size=32 --num-iterations=4 "
        "--device-type=cpu"
    )
    assert first[0] == ["-m", "scripts.base_train", *settings.split()]
    train, val = sorted((tmp_path / "nanochat" / "base_data_climbmix").iterdir())
    texts = [pyarrow.parquet.read_table(path)["text"].to_pylist() for path in (train, val)]
    assert [len(one) for one in texts] == [95, 5]
    assert "".join(texts[0] + texts[1]) == "x" * 1500 + "é" * 98_500


def test_too_few_steps_are_another_version(monkeypatch, tmp_path):
    started(monkeypatch, ["iter 0: loss 5.0000, time 10.00ms"])
    sentence = r"^transformers' Trainer: printed only 1 of 4 steps; is this version supported\?$"
    with pytest.raises(UserError, match=sentence):
        huggingface.Trainer().train(Way("float32", False), whole.TINY, tmp_path, torch.device("cpu"), {})


def test_auto_decides_as_for_a_run_of_the_readmes_length():
    class Bench:
        machine = device.choose(device.SystemOptions("cpu", "float32", 0, False, "float32"))

    # 4 x 128: 6 operations for each of 0.8 M weights, 768 tokens, 2,000 steps: 7.6e12, or 50 s. From 45 s on it pays.
    compared = reference.COMPARISONS["4x128"]
    assert whole.flops_per_token(compared.shape) * compared.shape.tokens * compared.iterations < 1e13
    assert reference.auto(Bench, compared, compared.shape)
    assert not reference.auto(Bench, compared._replace(iterations=1_000), compared.shape)


def test_cold_and_warm_first_steps_are_apart(tmp_path, monkeypatch):
    """What is in the cache at each start, by a double that leaves a file there."""
    starts = []

    class Double:
        name, eager = "nanoGPT", True

        def train(self, way, shape, folder, device, variables):
            return start("theirs", way.compiled, shape, variables)

    def start(who, compiled, shape, variables):
        assert shape.warmup == shape.steps == 1
        (cache := Path(variables["TORCHINDUCTOR_CACHE_DIR"])).mkdir(parents=True, exist_ok=True)
        starts.append((who, compiled, len(list(cache.iterdir()))))
        (cache / str(len(starts))).touch()
        return whole.Outcome(0.1, 30.0 if who == "ours" else 60.0, 99.0, 1, 5.0)

    def ours(bench, shape, folder, dtype, compiled, variables):
        return start("ours", compiled, shape, variables)

    monkeypatch.setattr(reference, "_ours", ours)
    monkeypatch.setattr(whole, "scratch", lambda names: contextlib.nullcontext(tmp_path))
    chosen = device.choose(device.SystemOptions("cpu", "float32", 0, False, "float32"))
    made = benchmark.Bench(chosen, "gpt2", Timer(chosen.device, 2, allow_busy=True), Double())
    reference.start(made, "4x128")
    cases = made.sections["4x128 to the first step beside nanoGPT"]["cases"]
    assert [(case["name"], case["median_seconds"], case.get("ratio"), case.get("met")) for case in cases] == [
        ("nanoGPT not compiled", 60.0, None, None), ("Espalier not compiled", 30.0, 0.5, None),
        ("nanoGPT compiled, cold", 60.0, None, None), ("Espalier compiled, cold", 30.0, 0.5, True),
        ("nanoGPT compiled, warm", 60.0, None, None), ("Espalier compiled, warm", 30.0, 0.5, True),
    ]  # fmt: skip
    cold, warm = ("theirs", True, 0), ("theirs", True, 1)
    assert [found for found in starts if found[:2] == ("theirs", True)] == [cold, cold, warm, ("theirs", True, 2), cold]
    assert [found for found in starts if found[:2] == ("ours", True)].count(("ours", True, 0)) == 3
    assert {found for found in starts if not found[1]} == {("theirs", False, 0), ("ours", False, 0)}


# ---- processes -------------------------------------------------------------------------------------------------------


def test_the_peak_is_the_programs_and_not_that_of_who_starts_it(tmp_path):
    held = bytearray(os.urandom(1)) * 400_000_000  # resident here
    done = process.run(["-c", "held = bytearray(b'x') * 100_000_000; print('done')"], tmp_path, torch.device("cpu"))
    assert len(held) > 0 and 100_000_000 < done.peak_bytes < 200_000_000
    assert [line for _, line in done.lines if line] == ["done"]
    assert 0 < done.lines[0][0] <= done.seconds


def test_a_failure_is_its_last_line(tmp_path):
    with pytest.raises(UserError, match=r"failed: out of luck$"):
        process.run(["-c", "import sys; print('fine'); sys.exit('out of luck')"], tmp_path, torch.device("cpu"))


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_what_was_started_ends_with_the_benchmark(checkout, tmp_path, kind):
    held = tmp_path / "held"
    (checkout / "train.py").write_text(
        f"import fcntl, time\nfile = open({str(held)!r}, 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write('mine')\nfile.flush()\ntime.sleep(600)"
    )
    command = [sys.executable, ROOT / "bench/run.py", "--size", "tiny", "--rounds", "1", "--device", "cpu"]
    command += ["--dtype", "float32", "--ref", checkout, "--only", "peer-4x128"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        while not (held.exists() and held.read_text()):
            time.sleep(0.05)
            assert running.poll() is None
        running.send_signal(kind)
        output, _ = running.communicate(timeout=60)
    if kind == signal.SIGINT:
        assert output.endswith("interrupted\n")
    assert running.returncode == (130 if kind == signal.SIGINT else -kind)
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # hangs for as long as the program lives


def test_bins_are_the_pythons_own_sources(tmp_path):
    import numpy as np

    with whole.scratch({"bytes", "gpt2"}) as folder:
        train, val = (np.fromfile(folder / "bytes" / f"{split}.bin", "<u2") for split in ("train", "val"))
        tokens = sum((folder / "gpt2" / f"{split}.bin").stat().st_size // 2 for split in ("train", "val"))
    assert bytes(train[:20].astype(np.uint8)).isascii() and train.max() < 256
    assert len(val) == (len(train) + len(val)) // 20
    assert len(train) / 5 < tokens < len(train)
    assert not folder.exists()

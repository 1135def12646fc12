"""The comparison with nanoGPT, by a double that prints what nanoGPT prints: its code is not in this repository."""

import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from bench import process, reference, whole
from lib.base.errors import UserError
from tests import forked
from tests.training import ROOT

DOUBLE = """\
import os, pickle, sys
flags = dict(word[2:].split("=") for word in sys.argv[1:])
data = os.path.join("data", flags["dataset"])
meta = pickle.load(open(os.path.join(data, "meta.pkl"), "rb"))
assert meta == {"vocab_size": 256} and os.path.getsize(os.path.join(data, "train.bin")) > 1_000_000
exec(open("configurator.py").read())
print("step 0: train loss 5.5000, val loss 5.5000")
for step in range(int(flags["max_iters"]) + 1):
    print(f"iter {step}: loss {5 - step:.4f}, time {1000 if step == 0 else 10 + step:.2f}ms, mfu -100.00%")
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like nanoGPT."""
    folder = tmp_path / "nanoGPT"
    folder.mkdir()
    for name, text in {"train.py": DOUBLE, "model.py": "", "configurator.py": ""}.items():
        (folder / name).write_text(text)
    return folder


def bench(checkout, tmp_path, *words):
    words = ["--dtype", "float32", "--ref", str(checkout), "--json", str(tmp_path / "bench.json"), *words]
    return forked.run(tmp_path, "bench/run.py", "--size", "tiny", "--rounds", "1", "--device", "cpu", *words)


def test_both_are_timed_as_whole_processes(checkout, tmp_path):
    done = bench(checkout, tmp_path, "--only", "nanogpt-4x128", "nanogpt-memory")
    assert (done.returncode, done.stderr) == (0, "")
    sections = json.loads((tmp_path / "bench.json").read_text())["sections"]
    ours, shipped, compiled = sections["4x128 beside nanoGPT, float32"]["cases"]
    assert [case["name"] for case in (ours, shipped, compiled)] == [
        "Espalier",
        "nanoGPT as shipped",
        "nanoGPT compiled",
    ]
    assert shipped["rounds"] == compiled["rounds"] == [0.012]  # the first step is to warm up; then 11, 12, 13 ms
    assert shipped["ratio"] == pytest.approx(0.012 / ours["median_seconds"])
    assert ours["rate"] == pytest.approx(32 / ours["median_seconds"])
    rows = sections["4x128 beside nanoGPT, float32: processes"]["rows"]
    assert rows["nanoGPT as shipped"]["loss"] == 3.0  # of 4, 3, 2
    assert 4 < rows["Espalier"]["loss"] < 6  # 256 bytes, hardly trained
    assert 0 < rows["Espalier"]["first step after s"] < rows["Espalier"]["whole s"]
    peak = sections["peak memory beside nanoGPT"]["rows"]
    assert peak["Espalier"]["ratio"] == pytest.approx(
        peak["Espalier"]["peak MiB"] / peak["nanoGPT as shipped"]["peak MiB"]
    )
    assert {path.name for path in checkout.iterdir()} == {"train.py", "model.py", "configurator.py"}


def test_what_is_no_checkout_is_named(checkout, tmp_path):
    (checkout / "model.py").unlink()
    done = bench(checkout, tmp_path)
    sentence = f"error: --ref {checkout}: has no model.py; name a checkout of karpathy/nanoGPT\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    done = forked.run(tmp_path, "bench/run.py", "--only", "nanogpt-gpt2")
    sentence = "error: --only nanogpt-...: say where a checkout of karpathy/nanoGPT is: --ref FOLDER\n"
    assert (done.returncode, done.stderr) == (2, sentence)


def test_a_failing_section_leaves_the_others(checkout, tmp_path):
    (checkout / "train.py").write_text("raise SystemExit('no such flag')")
    done = bench(checkout, tmp_path, "--only", "nanogpt-memory", "scale-journal")
    assert done.returncode == 1
    assert done.stderr.startswith("error: nanogpt-memory: train.py --dataset=bench ")
    assert done.stderr.endswith(": failed: no such flag\n")
    assert "scale of the journal" in done.stdout


def test_each_variant_runs_nanogpt_as_its_name_says():
    compared, cpu, cuda = reference.COMPARISONS["gpt2"], torch.device("cpu"), torch.device("cuda")
    eager, compiled = reference.Variant("float32", False), reference.Variant("bfloat16", True)
    names = {"nanoGPT as shipped, float32": eager, "nanoGPT compiled, bfloat16": compiled}
    found = reference.variants(compared, cpu, "bfloat16")
    assert {name: variant for variant, (name, _) in found.items()} == names
    assert [goal for _, goal in found.values()] == [">= 2.4", ">= 1.1"]
    assert reference.variants(compared, cuda, "bfloat16") == {compiled: ("nanoGPT as shipped", ">= 1.1")}
    assert pickle.loads(reference._META) == {"vocab_size": 256}


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


def test_spinning_is_left_to_the_program(tmp_path, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "2000")  # lib.base.threads has set it for this process
    done = process.run(["-c", "import os; print(os.environ.get('GOMP_SPINCOUNT'))"], tmp_path, torch.device("cpu"))
    assert done.lines[0][1] == "None"


def test_ctrl_c_ends_what_was_started(checkout, tmp_path):
    held = tmp_path / "held"
    (checkout / "train.py").write_text(
        f"import fcntl, time\nfile = open({str(held)!r}, 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write('mine')\nfile.flush()\ntime.sleep(600)"
    )
    command = [sys.executable, ROOT / "bench/run.py", "--size", "tiny", "--rounds", "1", "--device", "cpu"]
    command += ["--dtype", "float32", "--ref", checkout, "--only", "nanogpt-4x128"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        while not (held.exists() and held.read_text()):
            time.sleep(0.05)
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert output.endswith("interrupted\n")
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

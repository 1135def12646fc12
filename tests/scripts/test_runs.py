"""scripts/runs.py as a user runs it, on runs that the real trainer made."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest
from pyarrow import parquet

from lib.record import journal, media
from tests import forked, training
from tests.runs import ended, evaluated, trained, write
from tests.training import ROOT


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the runs `dense`, `half` (pruned) and `killed` (by kill -9)."""
    home = tmp_path_factory.mktemp("home")
    short = {"max_iters": 20, "sample_tokens": 0}
    training.train(home, *training.arguments(**short, tracker_run_name="dense"))
    half = {"pruning_method": "magnitude", "target_sparsity": 0.5, "pruning_interval": 2}
    training.train(home, *training.arguments(**short, **half, tracker_run_name="half"))
    process = training.start(home, *training.arguments(max_iters=100_000, tracker_run_name="killed"))
    for line in process.stdout:
        if line.startswith("step     20/100000  val loss"):
            process.send_signal(signal.SIGKILL)
    process.wait()
    return home


def runs(folder, *words, code=0, **env):
    done = forked.run(folder, "scripts/runs.py", *words, environment=os.environ | env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def screen(folder, *words, columns=80):
    """What a terminal of that width is sent, without its control sequences."""
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONUTF8": "1"}
    command = [sys.executable, str(ROOT / "scripts/runs.py"), *words]
    process = subprocess.Popen(command, cwd=folder, stdout=child, stderr=child, stdin=child, env=environment)
    os.close(child)
    sent = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        sent += part
    os.close(parent)
    assert process.wait(timeout=60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", sent.decode()).replace("\r\n", "\n")


# ---- list ------------------------------------------------------------------------------------------------------------


def test_list(home):
    lines = [line.split("\t") for line in runs(home, "list").splitlines()]
    assert lines[0] == ["run", "state", "step", "best val loss", "sparsity", "tokens/s", "last record"]
    assert [line[:2] for line in lines[1:]] == [
        ["runs/dense", "finished"], ["runs/half", "finished"], ["runs/killed", "crashed"],
    ]  # fmt: skip
    dense, half, killed = (dict(zip(lines[0], line, strict=True)) for line in lines[1:])
    summary = json.loads((home / "runs/dense/summary.json").read_text())
    assert float(dense["best val loss"]) == summary["best_val_loss"]
    assert float(dense["tokens/s"]) == summary["tokens_per_second"]
    assert (dense["step"], half["sparsity"]) == ("20", "0.5")
    assert re.fullmatch(r"\d+/100000", killed["step"])
    shown = screen(home, "list")
    assert re.search(r"^runs/ +state +step +loss +sparse +tok/s +age *$", shown, re.MULTILINE)
    assert re.search(r"^half +finished +20 +\d\.\d{4} +50\.0% +[\d,]+ +\d+ (s|min) *$", shown, re.MULTILINE)


def test_a_run_that_is_damaged_is_a_row_that_says_so(tmp_path):
    write(tmp_path / "runs/good", *trained(1), evaluated(1, 2.0), ended(1))
    write(tmp_path / "runs/few/seed1", *trained(1))
    write(tmp_path / "runs/garbage")
    (tmp_path / "runs/garbage/journal.jsonl").write_bytes(bytes(range(256)) * 40)
    write(tmp_path / "runs/nobody")
    (tmp_path / "runs/nobody/run.json").write_bytes(b"\xff{")
    done = forked.run(tmp_path, "scripts/runs.py", "list", "runs")
    assert sorted(line.split("\t")[:3] for line in done.stdout.splitlines()[1:]) == [
        ["runs/few/seed1", "crashed", "1/40"], ["runs/garbage", "damaged", ""],
        ["runs/good", "finished", "1"], ["runs/nobody", "damaged", ""],
    ]  # fmt: skip
    assert done.stderr.splitlines()[0] == "runs/garbage/journal.jsonl: has no complete record of a start"
    assert "runs/nobody/run.json: the run's identity cannot be read" in done.stderr
    assert done.returncode == 0


def test_list_takes_options_as_make_gives_them(tmp_path):
    write(tmp_path / "other/run", *trained(1))
    assert "other/run\tcrashed" in runs(tmp_path, "list", "OUTPUT_DIR=other")
    assert runs(tmp_path, "list", "OUTPUT_DIRS=other", code=2).startswith("error: OUTPUT_DIRS=other: unknown option")


def test_no_runs_is_one_sentence(tmp_path):
    sentence = "error: runs: there is no run in this folder yet; start one with make train\n"
    assert runs(tmp_path, "list", code=2) == sentence
    assert runs(tmp_path, "show", code=2) == sentence
    assert runs(tmp_path, "show", "x", code=2) == "error: x: there is no run in this folder (run.json is missing)\n"


# ---- show ------------------------------------------------------------------------------------------------------------


def test_show(home):
    text = runs(home, "show", "runs/half")
    assert text.startswith("half\nstate      finished at step 20 of 20, ")
    assert re.search(r"^PRUNING_METHOD +magnitude +--pruning-method$", text, re.MULTILINE)
    assert "\nSEED " in text and "\nWEIGHT_DECAY " not in text
    assert re.search(r"^train_loss +[▁▂▃▄▅▆▇█ ]+ +5\.\d{4} +\d\.\d{4} +\d\.\d{4} +5\.\d{4}$", text, re.MULTILINE)
    assert re.search(r"^sparsity +[▁▂▃▄▅▆▇█ ]+ 0\.0000 +0\.5000 +0\.0000 +0\.5000$", text, re.MULTILINE)
    assert "sparsity/h.0" not in text and "sparsity/h.0.attn.c_attn" in runs(home, "show", "runs/half", "--all")
    assert runs(home, "show").startswith("killed\nstate      crashed at step ")  # the latest
    shown = screen(home, "show", "runs/half")
    assert max(map(len, shown.splitlines())) <= 80
    assert "train_loss" in shown


def test_show_knows_alerts_trackers_and_damaged_lines(tmp_path):
    alerts = [("alert", 2, {}, {"kind": "sparsity", "message": "reached"}), ("alert", 2, {}, {"message": "trouble"})]
    run = write(tmp_path / "run", *trained(1, 2), *alerts, config={"max_iters": 9, "tracker": ["trackio"]})
    with (run / "journal.jsonl").open("ab") as file:
        file.write(b"junk\n")
    journal.Journal(run).write("train", 3, {"train_loss": float("nan")})
    with contextlib.closing(journal.Journal(run)) as book:
        for step in (2, 3):
            media.write(run, book, "text", "sample", step, b"words")
        media.write(run, book, "image", "loss", 3, b"png")
    (run / "trackers").mkdir()
    (run / "trackers/wandb.json").write_text('{"rows": 1, "state": "live"}')
    (run / "trackers/csv.json").write_text("?")
    text = runs(tmp_path, "show", "run")
    assert "\nstep 2  sparsity: reached\nstep 2  trouble\n" in text
    assert "\nmedia\nsample  text   2 files, the newest media/sample-00000003.txt\n" in text
    assert "\nloss    image  media/loss-00000003.png\n" in text
    assert "\ntrackio   stopped   0 rows delivered, " in text and "make sync RUN=run TRACKER=trackio" in text
    assert "\nwandb     stopped   1 rows delivered, " in text  # nobody holds its lock
    assert "csv.json: the tracker's state cannot be read" in text
    assert "\ndamaged  lines of journal.jsonl that are skipped: 6\n" in text
    with (run / "journal.jsonl").open("ab") as file:
        file.write(b"junk\n" * 20)
    assert " skipped: 6, 11, 12, 13, 14, 15, 16, 17, 18, 19 and 11 more\n" in runs(tmp_path, "show", "run")


@pytest.mark.parametrize(
    ("recipe", "unit"), [("none", "nats per token"), ("sft", "nats per token"), ("grpo", "minus the mean reward")]
)
def test_show_says_what_the_loss_is(tmp_path, recipe, unit):
    write(tmp_path / "runs/one", *trained(1), evaluated(1, -0.5), config={"finetune_recipe": recipe})
    assert f"best loss  -0.5000 in validation, {unit}\n" in runs(tmp_path, "show", "runs/one")


def test_without_utf8_sparklines_are_ascii(home):
    text = runs(home, "show", "runs/dense", PYTHONIOENCODING="ascii")
    assert re.search(r"^train_loss +[_.,\-~=+# ]+ +5\.\d{4}", text, re.MULTILINE)
    assert "?" not in text.split("\nmetrics")[1]


# ---- compare ---------------------------------------------------------------------------------------------------------


def test_compare(home):
    text = runs(home, "compare", "runs/dense", "runs/half")
    assert re.search(r"^PRUNING_METHOD +none +magnitude$", text, re.MULTILINE)
    assert "\nthe same: " in text
    assert re.search(r"^val loss at step 20 +\d\.\d{4} +\d\.\d{4} +[+-]\d\.\d{4}$", text, re.MULTILINE)
    assert re.search(r"^Equal budgets: at step 20 [AB] has the lower validation loss, by \d", text, re.MULTILINE)
    text = runs(home, "compare", "runs/dense", "runs/killed")
    assert text.startswith("The budgets differ, so neither is ranked: MAX_ITERS is 20 and 100000")
    assert re.search(r"^val loss at step 20 +\d\.\d{4} +\d\.\d{4}$", text, re.MULTILINE)  # no difference
    assert runs(home, "compare", "", "", code=2).startswith("error: name two runs, such as: make compare A=")


# ---- export ----------------------------------------------------------------------------------------------------------


def test_export(home):
    assert runs(home, "export", "runs/dense", "--out", "-").count("\n") == 22  # the header and the steps 0 to 20
    assert len(json.loads(runs(home, "export", "runs/dense", "--format", "json", "--out", "-"))) == 21
    told = runs(home, "export", "runs/dense", "--format", "parquet")
    assert told.startswith("runs/dense/steps.parquet: 21 steps, ")
    losses = parquet.read_table(home / "runs/dense/steps.parquet").column("train_loss").to_pylist()
    assert losses[1:] == list(training.losses(home / "runs/dense").values())
    sentence = "error: parquet is not text; name a file to write, as in OUT=steps.parquet\n"
    assert runs(home, "export", "runs/dense", "--format", "parquet", "--out", "-", code=2) == sentence


def test_export_leaves_the_file_of_the_tracker_csv_alone(tmp_path):
    run = write(tmp_path / "run", *trained(1))
    (run / "metrics.csv").write_text("the tracker's")
    assert runs(tmp_path, "export", "run") == "run/steps.csv: 1 steps, 7 columns\n"
    assert (run / "metrics.csv").read_text() == "the tracker's"


def test_a_run_without_metrics_is_one_sentence(tmp_path):
    write(tmp_path / "run")
    sentence = "error: run: has no metrics yet; export it when it has made some steps\n"
    assert runs(tmp_path, "export", "run", code=1) == sentence


# ---- all -------------------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error(home):
    for words in (["list"], ["show"], ["export", "--out", "-"]):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, str(ROOT / "scripts/runs.py"), *words]
        done = subprocess.run(command, cwd=home, stdout=writing, stderr=subprocess.PIPE, timeout=60)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, b""), words


def test_nothing_heavy_is_imported(home):
    program = (
        f"import sys, runpy; sys.argv = ['runs.py', 'list']; sys.path[:0] = ['']\n"
        f"try: runpy.run_path({str(ROOT / 'scripts/runs.py')!r}, run_name='__main__')\n"
        "except SystemExit: print({'torch', 'numpy', 'pandas', 'pyarrow', 'trackio', 'wandb'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=home, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("\nset()\n"), done.stderr

"""`make report`: its folder, what it prints, and what it refuses."""

import csv
import html
import json
import re
import shutil
from html.parser import HTMLParser

from tests.forked import run as program
from tests.report.made import run, sweep

LOSSES = {
    "dense": {1: 3.00, 2: 3.02, 3: 3.01},
    "pruned": {1: 3.50, 2: 3.53, 3: 3.51},
    "<script>alert(1)</script>": {1: 3.00, 2: 3.03, 3: 3.01},
    "=1+1\ud800": {1: 2.5, 2: 2.5, 3: 2.51},
}
MORE = {"pruned": {"pruning_method": "magnitude"}, "=1+1\ud800": {"max_iters": 60}}
INTERVAL = "95 % interval +0.4890 to +0.5177, adjusted p < 0.001, n = 3"
WORSE = f"pruned: worse than dense by 0.5033 nats (16.72 %), {INTERVAL}."


def made(folder):
    """The sweep of LOSSES, with names that would act in a page or a spreadsheet."""
    names = {name: f"c{number}" for number, name in enumerate(LOSSES)}
    found = sweep(folder, {names[name]: losses for name, losses in LOSSES.items()}, **{
        names[name]: options for name, options in MORE.items()
    })  # fmt: skip
    path = found / "results.json"
    text = path.read_text()
    for name, safe in names.items():
        text = text.replace(f'"configuration": "{safe}"', f'"configuration": {json.dumps(name)}')
    path.write_text(text)
    return found


class Page(HTMLParser):
    """Collects the elements and what they would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            self.loads += [value] if name in ("src", "href", "xlink:href", "srcset") and value[:1] != "#" else []
            self.ids += [value] if name == "id" else []


def test_a_report_is_whole_harmless_and_the_same_again(tmp_path):
    folder = made(tmp_path / "few")
    done = program(tmp_path, "scripts/report.py", "few", "--margin", "0.02")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert WORSE in lines
    assert "Equivalent means within ±0.0200 nats per token: declared." in lines
    assert lines[-1] == "few/report/index.html, few/report/report.md"
    report = folder / "report"
    first = {path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()}
    assert {str(path) for path in first} >= {"index.html", "report.md", "results.csv", "verdicts.csv"}
    page = Page((report / "index.html").read_text())
    assert page.loads == []
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    words = html.unescape((report / "index.html").read_text())
    assert WORSE in words.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
    assert "<script" not in (report / "report.md").read_text()
    rows = list(csv.DictReader((report / "results.csv").open()))
    assert [(row["configuration"], row["seed"], row["val_loss"]) for row in rows[:2]] == [
        ("dense", "1", "3.0"),
        ("dense", "2", "3.02"),
    ]
    assert {row["configuration"] for row in rows} == {"dense", "pruned", "<script>alert(1)</script>", r"'=1+1\ud800"}
    verdicts = {row["configuration"]: row for row in csv.DictReader((report / "verdicts.csv").open())}
    assert verdicts["pruned"]["word"] == "worse"
    program(tmp_path, "scripts/report.py", "few", "--margin", "0.02")
    assert {path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()} == first


def test_runs_are_reported_without_a_sweep(tmp_path):
    for seed in (1, 2):
        run(tmp_path / f"runs/a{seed}", seed, 3.0 + seed / 100)
        run(tmp_path / f"runs/b{seed}", seed, 2.5 + seed / 100, learning_rate=0.1)
    done = program(tmp_path, "scripts/report.py", "--runs", "runs", "--by", "learning_rate", "--out", "said")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^learning_rate=0\.1: better than learning_rate=0\.002 by 0\.5000 nats", done.stdout, re.MULTILINE
    )
    assert (tmp_path / "said/index.html").exists()


def test_what_cannot_be_is_one_sentence(tmp_path):
    def error(*words):
        done = program(tmp_path, "scripts/report.py", *words)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    assert error() == (2, "error: runs: has no sweep with results; name runs, as in RUNS='runs/a runs/b'\n")
    code, sentence = error("none")
    assert (code, sentence) == (
        2, "error: none: neither it nor runs/none has results.json, which make sweep writes\n",
    )  # fmt: skip
    folder = made(tmp_path / "few")
    (folder / "report").mkdir()
    (folder / "report/mine.txt").write_text("mine")
    assert error("few") == (2, "error: few/report: has files that are no report; name another OUT or remove them\n")
    assert (folder / "report/mine.txt").read_text() == "mine"
    assert error("few", "--margin", "small")[1].endswith(
        "'small' is not a number of nats per token above 0, as in 0.005\n"
    )
    assert error("few", "--margin", "-1")[1].endswith("'-1' is not a number of nats per token above 0, as in 0.005\n")
    assert error("few", "SEED=1") == (
        2, "error: SEED=1: a report trains nothing, so of the options it takes OUTPUT_DIR only\n",
    )  # fmt: skip
    assert error("--runs", "'a b") == (2, "error: RUNS: cannot be understood: no closing quotation\n")
    shutil.rmtree(folder / "report")
    assert [path.name for path in folder.glob("*report*")] == []

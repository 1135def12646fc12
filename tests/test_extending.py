"""docs/extending.md, done to the letter in a copy of the repository: each addition is checked and used."""

import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lib.record import journal
from lib.track.trackio import first_charts
from tests.training import ROOT, TEXT, arguments, program, train

PAGE = (ROOT / "docs" / "extending.md").read_text()


def section(title: str, kinds: tuple[str, ...] = ("python", "kconfig")) -> list[list[str]]:
    """The blocks of code in a section of the page, by kind."""
    text = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return [re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in kinds]


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository's files, to add to."""
    folder = tmp_path / "espalier"
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    for name in filter(lambda name: (ROOT / name).is_file(), set(listed.split("\0"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "corpus.txt").write_text(TEXT)
    return folder


def insert(path: Path, block: str, before: str, after: str = "") -> None:
    """Put a block in front of the first line `before` that follows `after`."""
    text = path.read_text()
    place = text.index(f"{before}\n", text.index(after))
    path.write_text(f"{text[:place]}{block}\n{text[place:]}")


def run(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_kconfig(folder: Path) -> None:
    run(folder, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_kconfig.py")


def test_an_optimizer(copy):
    [code], [choice, option] = section("An optimizer")
    (copy / "lib/optim/signum.py").write_text(code)
    insert(copy / "lib/optim/Kconfig", choice, "endchoice")
    insert(copy / "lib/optim/Kconfig", option, "endmenu")
    check_kconfig(copy)
    run(copy, "gpt2/train.py", *arguments(optimizer="signum", signum_momentum=0.8, learning_rate=1e-3))
    history = journal.history(copy / "runs/run")
    assert history["eval", 40]["metrics"]["val_loss"] < history["eval", 0]["metrics"]["val_loss"] - 0.3


def test_a_learning_rate_schedule(copy):
    [code], [choice, option] = section("A learning-rate schedule")
    (copy / "lib/schedule/inverse_sqrt.py").write_text(code)
    insert(copy / "gpt2/Kconfig", choice, "endchoice", after="choice LR_SCHEDULE")
    insert(copy / "gpt2/Kconfig", option, "endmenu", after="choice LR_SCHEDULE")
    check_kconfig(copy)
    words = arguments(lr_schedule="inverse-sqrt", lr_hold_steps=5, learning_rate=1e-3)  # after 5 steps of warm-up
    run(copy, "gpt2/train.py", *words)
    history = journal.history(copy / "runs/run")
    rates = {step: history["train", step]["metrics"]["learning_rate"] for step in (1, 10, 40)}
    assert rates == {1: 2e-4, 10: 1e-3, 40: 5e-4}


def test_a_metric(copy):
    [declaration, entry], _ = section("A metric")
    loop = copy / "gpt2/loop.py"
    insert(loop, f"{declaration}\n", "def train_metrics(")
    text = loop.read_text()
    place = text.index("    metrics = {\n", text.index("def train_metrics(")) + len("    metrics = {\n")
    loop.write_text(text[:place] + entry + text[place:])
    output = run(copy, "gpt2/train.py", *arguments(max_iters=10, eval_samples=4, tracker="csv"))
    norm = journal.history(copy / "runs/run")["train", 10]["metrics"]["weight_norm"]
    assert re.search(rf"^step 10/10  \|w\| {norm:.2f}  loss ", output, re.MULTILINE)
    assert ",weight_norm," in (copy / "runs/run/metrics.csv").read_text()
    loop.write_text(text)  # a version that does not know the metric shows the run
    shown = run(copy, "scripts/runs.py", "show", "runs/run")
    names = re.findall(r"^(\w+) +[▁▂▃▄▅▆▇█ ]+ ", shown.partition("\nmetrics\n")[2], re.MULTILINE)
    assert "weight_norm" in names
    assert f"|w| {norm:.2f}" in run(copy, "scripts/runs.py", "tail", "runs/run")
    assert first_charts(copy / "runs/run").endswith(",tokens,weight_norm")


def test_a_pruning_criterion(copy):
    [code], [choice] = section("A pruning criterion")
    (copy / "lib/prune/score/snip_average.py").write_text(code)
    insert(copy / "lib/prune/Kconfig", choice, "endchoice")
    check_kconfig(copy)
    pruning = {
        "pruning_method": "snip-average",
        "pruning_distribution": "global",
        "target_sparsity": 0.8,
        "pruning_interval": 5,
    }
    run(copy, "gpt2/train.py", *arguments(**pruning))
    final = journal.history(copy / "runs/run")["train", 40]["metrics"]
    assert final["sparsity"] == round(0.8 * 24576) / 24576  # 2 layers x 12 x 32^2


def test_a_tracker(copy):
    [code], [entry] = section("A tracker")
    (copy / "lib/track/sqlite.py").write_text(code)
    insert(copy / "lib/track/Kconfig", entry, "endmenu")
    check_kconfig(copy)
    output = run(copy, "gpt2/train.py", *arguments(tracker="sqlite"))
    assert "sqlite    finished  " in output and "ask it with: sqlite3 runs/run/metrics.db" in output
    assert_database_holds(copy / "runs/run")


def assert_database_holds(folder: Path) -> None:
    """Everything of the run is in the table that the page's tracker fills."""
    database = sqlite3.connect(folder / "metrics.db")
    found = {tuple(key): value for *key, value in database.execute("select event, step, name, value from metrics")}
    assert {key: value for key, value in found.items() if key[0] in ("train", "eval")} == {
        (event, step, name): value
        for (event, step), record in journal.history(folder).items()
        if event in ("train", "eval")
        for name, value in journal.numbers(record).items()
    }
    assert {name for event, _, name in found if event == "finish"} == {
        "final_val_loss", "best_val_loss", "total_time_seconds",
    }  # fmt: skip
    told = [(r["kind"], r["step"], r["message"]) for r in journal.read(folder) if r["event"] == "alert"]
    assert database.execute("select kind, step, message from alerts").fetchall() == told
    database.close()


def test_a_tracker_of_another_package(tmp_path, monkeypatch):
    [code], [project] = section("A tracker", ("python", "toml"))
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    (package / "espalier_sqlite.py").write_text(code)
    (package / "pyproject.toml").write_text(project)
    run(tmp_path, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, package)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))  # where trackio writes
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # where wandb would find a key of yours
    tiny = {"max_iters": 10, "eval_samples": 4}
    for trackers in ("sqlite", "all"):
        folder = tmp_path / trackers
        folder.mkdir()
        output = train(folder, *arguments(tracker=trackers, **tiny), by=program)
        assert re.search(r"^sqlite +finished  1\d rows delivered$", output, re.MULTILINE), output
        assert_database_holds(folder / "runs/run")
    for tracker in ("csv", "trackio", "wandb"):
        assert re.search(rf"^{tracker} +finished  1\d rows delivered$", output, re.MULTILINE), output


def test_a_dataset(copy):
    [code], [entry] = section("A dataset")
    with (copy / "gpt2/data/corpora.py").open("a") as file:
        file.write(f"\n\n{code}")
    kconfig = copy / "gpt2/Kconfig"
    insert(kconfig, entry, "endchoice", after="choice DATASET")
    text = kconfig.read_text()
    start = text.index("depends on", text.index("config DATASET_SOURCE"))
    end = text.index("\n", start)
    kconfig.write_text(f"{text[:end]} || DATASET_MANPAGES{text[end:]}")
    pages = copy / "pages"
    pages.mkdir()
    for number, word in enumerate(("cat", "ls", "rm", "cp") * 10):
        (pages / f"{word}{number}.1").write_text(f"{word} - do what {word} does\n" * 30)
    check_kconfig(copy)
    run(copy, "gpt2/train.py", *arguments(dataset="manpages", dataset_source="pages", eval_samples=4))
    assert list(copy.glob("data/manpages-pages-*-bytes/meta.json"))
    assert ("eval", 40) in journal.history(copy / "runs/run")

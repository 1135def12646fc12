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
from tests import forked
from tests.training import ROOT, arguments, train

PAGE = (ROOT / "docs" / "extending.md").read_text()


def section(title: str, kinds: tuple[str, ...] = ("python", "kconfig")) -> list[list[str]]:
    """The blocks of code in a section of the page, by kind."""
    text = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return [re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in kinds]


def insert(path: Path, block: str, before: str, after: str = "") -> None:
    """Put a block in front of the first line `before` that follows `after`."""
    text = path.read_text()
    place = text.index(f"{before}\n", text.index(after))
    path.write_text(f"{text[:place]}{block}\n{text[place:]}")


def run(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository's files, with every addition of the page: no two of them touch the same lines."""
    folder = tmp_path_factory.mktemp("extending") / "espalier"
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    for name in filter(lambda name: (ROOT / name).is_file(), set(listed.split("\0"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for add in (add_optimizer, add_schedule, add_metric, add_criterion, add_tracker, add_dataset):
        add(folder)
    return folder


def add_optimizer(folder: Path) -> None:
    [code], [choice, option] = section("An optimizer")
    (folder / "lib/optim/signum.py").write_text(code)
    insert(folder / "lib/optim/Kconfig", choice, "endchoice")
    insert(folder / "lib/optim/Kconfig", option, "endmenu")


def add_schedule(folder: Path) -> None:
    [code], [choice, option] = section("A learning-rate schedule")
    (folder / "lib/schedule/inverse_sqrt.py").write_text(code)
    insert(folder / "gpt2/Kconfig", choice, "endchoice", after="choice LR_SCHEDULE")
    insert(folder / "gpt2/Kconfig", option, "endmenu", after="choice LR_SCHEDULE")


def add_metric(folder: Path) -> None:
    [declaration, entry], _ = section("A metric")
    loop = folder / "gpt2/loop.py"
    insert(loop, f"{declaration}\n", "def train_metrics(")
    text = loop.read_text()
    place = text.index("    metrics = {\n", text.index("def train_metrics(")) + len("    metrics = {\n")
    loop.write_text(text[:place] + entry + text[place:])


def add_criterion(folder: Path) -> None:
    [code], [choice] = section("A pruning criterion")
    (folder / "lib/prune/score/snip_average.py").write_text(code)
    insert(folder / "lib/prune/Kconfig", choice, "endchoice")


def add_tracker(folder: Path) -> None:
    [code], [entry] = section("A tracker")
    (folder / "lib/track/sqlite.py").write_text(code)
    insert(folder / "lib/track/Kconfig", entry, "endmenu")


def add_dataset(folder: Path) -> None:
    [code], [entry] = section("A dataset")
    with (folder / "gpt2/data/corpora.py").open("a") as file:
        file.write(f"\n\n{code}")
    kconfig = folder / "gpt2/Kconfig"
    insert(kconfig, entry, "endchoice", after="choice DATASET")
    text = kconfig.read_text()
    start = text.index("depends on", text.index("config DATASET_SOURCE"))
    end = text.index("\n", start)
    kconfig.write_text(f"{text[:end]} || DATASET_MANPAGES{text[end:]}")
    pages = folder / "pages"
    pages.mkdir()
    for number, word in enumerate(("cat", "ls", "rm", "cp") * 10):
        (pages / f"{word}{number}.1").write_text(f"{word} - do what {word} does\n" * 30)


@pytest.fixture(scope="module")
def trained(copy):
    """What a training with every addition printed, and its history."""
    words = arguments(
        optimizer="signum", signum_momentum=0.8, learning_rate=1e-3,
        lr_schedule="inverse-sqrt", lr_hold_steps=5,  # after 5 steps of warm-up
        pruning_method="snip-average", pruning_distribution="global", target_sparsity=0.8, pruning_interval=5,
        tracker="sqlite,csv", dataset="manpages", dataset_source="pages", eval_samples=4,
    )  # fmt: skip
    return run(copy, "gpt2/train.py", *words), journal.history(copy / "runs/run")


def test_the_additions_pass_the_checks_of_kconfig(copy):
    run(copy, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_kconfig.py")


def test_an_optimizer(trained):
    _, history = trained
    assert history["eval", 40]["metrics"]["val_loss"] < history["eval", 0]["metrics"]["val_loss"] - 0.3


def test_a_learning_rate_schedule(trained):
    _, history = trained
    rates = {step: history["train", step]["metrics"]["learning_rate"] for step in (1, 10, 40)}
    assert rates == {1: 2e-4, 10: 1e-3, 40: 5e-4}


def test_a_metric(copy, trained):
    output, history = trained
    norm = history["train", 40]["metrics"]["weight_norm"]
    assert re.search(rf"^step 40/40  \|w\| {norm:.2f}  loss ", output, re.MULTILINE)
    assert ",weight_norm," in (copy / "runs/run/metrics.csv").read_text()
    # The repository itself does not know the metric, as a later version might not, and shows the run.
    shown = forked.run(copy, "scripts/runs.py", "show", "runs/run").stdout
    names = re.findall(r"^(\w+) +[▁▂▃▄▅▆▇█ ]+ ", shown.partition("\nmetrics\n")[2], re.MULTILINE)
    assert "weight_norm" in names
    assert f"|w| {norm:.2f}" in forked.run(copy, "scripts/runs.py", "tail", "runs/run").stdout
    assert first_charts(copy / "runs/run").endswith(",tokens,mask_change,empty_neurons,empty_heads,weight_norm")


def test_a_pruning_criterion(trained):
    _, history = trained
    assert history["train", 40]["metrics"]["sparsity"] == round(0.8 * 24576) / 24576  # 2 layers x 12 x 32^2


def test_a_tracker(copy, trained):
    output, _ = trained
    assert "sqlite    finished  " in output and "ask it with: sqlite3 runs/run/metrics.db" in output
    assert_database_holds(copy / "runs/run")


def test_a_dataset(copy, trained):
    _, history = trained
    assert list(copy.glob("data/manpages-pages-*-bytes/meta.json"))
    assert ("eval", 40) in history


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
    output = train(tmp_path, *arguments(tracker="sqlite,csv", max_iters=10, eval_samples=4))
    assert_database_holds(tmp_path / "runs/run")
    for tracker in ("sqlite", "csv"):
        assert re.search(rf"^{tracker} +finished  1\d rows delivered$", output, re.MULTILINE), output

"""docs/extending.md, done to the letter in a copy of the repository: each addition is checked by the audit and used."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib import journal
from tests.training import ROOT, TEXT, arguments

PAGE = (ROOT / "docs" / "extending.md").read_text()


def section(title: str) -> tuple[list[str], list[str]]:
    """The python and the kconfig blocks of a section of the page."""
    text = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL), re.findall(r"```kconfig\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def copy(tmp_path):
    """A copy of what the repository tracks, to add to."""
    folder = tmp_path / "espalier"
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
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


def audit(folder: Path) -> None:
    run(folder, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_audit.py")


def test_an_optimizer(copy):
    [code], [choice, option] = section("An optimizer")
    (copy / "lib/optim/signum.py").write_text(code)
    insert(copy / "lib/optim/Kconfig", choice, "endchoice")
    insert(copy / "lib/optim/Kconfig", option, "endmenu")
    audit(copy)
    run(copy, "gpt2/train.py", *arguments(optimizer="signum", signum_momentum=0.8, learning_rate=1e-3))
    history = journal.history(copy / "runs/run")
    assert history["eval", 40]["metrics"]["val_loss"] < history["eval", 0]["metrics"]["val_loss"] - 0.3


def test_a_pruning_criterion(copy):
    [code], [choice] = section("A pruning criterion")
    (copy / "lib/prune/score/lamp.py").write_text(code)
    insert(copy / "lib/prune/Kconfig", choice, "endchoice")
    audit(copy)
    pruning = {
        "pruning_method": "lamp",
        "pruning_distribution": "global",
        "target_sparsity": 0.8,
        "pruning_interval": 5,
    }
    run(copy, "gpt2/train.py", *arguments(**pruning))
    final = journal.history(copy / "runs/run")["train", 40]["metrics"]
    assert final["sparsity"] == round(0.8 * 24576) / 24576  # 2 layers x 12 x 32^2


def test_a_tracker(copy):
    [code], [entry] = section("A tracker")
    (copy / "lib/track/csv.py").write_text(code)
    insert(copy / "lib/track/Kconfig", entry, "endmenu")
    audit(copy)
    output = run(copy, "gpt2/train.py", *arguments(tracker="csv"))
    assert "csv" in output
    with (copy / "runs/run/metrics.csv").open(newline="") as file:
        lines = {(event, int(step), name): float(value) for event, step, name, value in csv.reader(file)}
    expected = {
        (event, step, name): value
        for (event, step), record in journal.history(copy / "runs/run").items()
        for name, value in journal.numbers(record).items()
    }
    assert {key: value for key, value in lines.items() if key[0] != "finish"} == expected
    assert {name for event, _, name in lines if event == "finish"} == {
        "final_val_loss", "best_val_loss", "total_time_seconds",
    }  # fmt: skip


def test_a_dataset(copy):
    [code], [entry] = section("A dataset")
    with (copy / "gpt2/corpora.py").open("a") as file:
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
    audit(copy)
    run(copy, "gpt2/train.py", *arguments(dataset="manpages", dataset_source="pages", eval_samples=4))
    assert (copy / "data/manpages-bytes/meta.json").exists()
    assert ("eval", 40) in journal.history(copy / "runs/run")

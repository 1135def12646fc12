"""Killed runs of a tiny model: a fixed part of what tests/torture.py does."""

import json
import shutil
import sys

import pytest
import torch

from lib.config.kconf import Schema
from lib.record import journal
from tests import torture
from tests.killpoints import Point
from tests.torture import Reference, combinations, halves, new_place
from tests.training import rewrite
from tests.wholeness import begun, damages, differences, leftovers

# Together they have every optimizer, base, method, dynamics and form of movement.
SOME = (
    "adamw+grasp+static", "adam+synflow+static", "muon+magnitude+rigl", "adamwadv+magnitude+set",
    "adamw+magnitude+granet", "muon+magnitude+mest", "adamw+magnitude+s-ste",
    "adamwspam+magnitude+ste", "stablespam+magnitude+sr-ste", "adamw+movement+hard",
    "muon+magnitude+topkast", "adamw+magnitude+chts",
    "adamwprune+adamwadv+movement+soft",
    "adamwprune+adamwspam+state+gradual", "adamwprune+adam+state+gradual", "adamwprune+adamw+gradient+gradual",
    "muon+wanda+gradual", "stablespam+random+gradual", "sgd+none", "sgd+str",
    "muon+given",
)  # fmt: skip


def test_every_optimizer_is_combined_with_every_pruning_that_the_menu_allows():
    names = combinations()
    members = {choice: set(Schema().options[choice].members) for choice in torture.CHOICES}
    trained = set().union(*members.values()) - {"shrink", "sparsegpt", "oneshot"}
    assert {part for name in names for part in name.split("+")} == trained
    assert {part for name in SOME for part in name.split("+")} == trained
    found = {(options["optimizer"], options["pruning_method"]) for options in names.values()}
    methods = members["PRUNING_METHOD"] - {"shrink", "sparsegpt"}
    every = {(one, other) for one in members["OPTIMIZER"] for other in methods}
    refused = {("sgd", "movement"), ("sgd", "state"), ("muon", "state"), ("adam", "movement"), ("adam", "str")}
    assert every - found == refused
    assert (len(names), len(found)) == (318, 83)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("reference"), combinations()["adamw+magnitude+gradual"])


def kills(reference: Reference, name: str) -> list[Point]:
    """The first point of every kind, dealt out to SOME in the order in which a run comes to them."""
    labels = list(reference.counts)[SOME.index(name) :: len(SOME)]
    return [Point(label, 1, halves(label)) for label in labels]


DATA = "data/files-corpus.txt-#ad#-bytes"


def test_every_file_of_a_run_is_among_what_kills_hit(reference):
    written = {label.removeprefix("rename ") for label in reference.counts if label.startswith("rename ")}
    sometimes = {"changes.patch", "media/loss-#.png", "media/layer_sparsity-#.png"}  # changed clone, with matplotlib
    assert written - sometimes == {
        ".config", "checkpoints/step-#.pt", DATA, f"{DATA}.partial/meta.json",
        f"{DATA}.partial/train-#.bin", f"{DATA}.partial/val-#.bin", "defconfig", "provenance.json",
        "media/sample-#.txt", "run.json", "summary.json",
    }  # fmt: skip
    assert {"write journal.jsonl", "update of the masks", "write checkpoints/step-#.pt.tmp"} <= reference.counts.keys()


@pytest.mark.parametrize("name", SOME)
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, reference, name):
    own, wanted = Reference(tmp_path, combinations()[name]), kills(reference, name)
    made, wrong = torture.torture(new_place(tmp_path), own.options, wanted, own.run)
    assert wrong == []
    assert made == wanted


LAST = (
    "write journal.jsonl", "fsync journal.jsonl", "update of the masks", "create checkpoints/step-#.pt.tmp",
    "write checkpoints/step-#.pt.tmp", "rename checkpoints/step-#.pt", "fsync checkpoints",
    "unlink checkpoints/step-#.pt",
)  # fmt: skip


@pytest.mark.parametrize("label", LAST)
def test_a_run_killed_near_its_end_ends_as_an_uninterrupted_one(tmp_path, reference, label):
    where = Point(label, reference.counts[label], halves(label))
    assert where.number > 1
    assert torture.torture(new_place(tmp_path), reference.options, [where], reference.run) == ([where], [])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("twice", "train of step 3: 2 times, not 1"),
        ("lost", "train of step 3: 0 times, not 1"),
        ("torn", "line 6 of the journal is damaged"),
        ("other", "train of step 3: {'train_loss': 9.0"),
        ("weights", "step-000000012.pt: model differs"),
        ("bytes", "step-000000012.pt is not intact"),
        ("file", "left over: checkpoints/step-000000001.pt.tmp"),
    ],
)
def test_what_is_wrong_is_found(tmp_path, reference, damage, message):
    place = tmp_path / "copy"
    shutil.copytree(reference.run.parents[1], place)
    run = begun(place)
    book, last = run / journal.FILE, run / "checkpoints" / "step-000000012.pt"
    lines = book.read_text().splitlines(keepends=True)
    [number] = [n for n, line in enumerate(lines) if (r := json.loads(line))["event"] == "train" and r["step"] == 3]
    if damage == "weights":
        state = torch.load(last, weights_only=True)
        state["model"]["wte.weight"][0, 0] += 1e-7
        rewrite(last, state)
    elif damage == "bytes":
        last.write_bytes(last.read_bytes()[:-1])
    elif damage == "file":
        (run / "checkpoints" / "step-000000001.pt.tmp").touch()
    else:
        loss = str(json.loads(lines[number])["metrics"]["train_loss"])
        line = {"twice": 2 * lines[number], "lost": "", "torn": "{}\n", "other": lines[number].replace(loss, "9.0")}
        lines[number] = line[damage]
        book.write_text("".join(lines))
    wrong = [*damages(place), *leftovers(place, reference.run), *differences(run, reference.run)]
    assert any(sentence.startswith(message) for sentence in wrong), wrong


def test_the_program_says_what_it_killed(monkeypatch, capsys):
    words = "--minutes 0 --combinations sgd+none --kills".split()
    kills = "write journal.jsonl:4:half,rename summary.json:1"
    monkeypatch.setattr(sys, "argv", ["torture.py", *words, kills])
    assert torture.main() == 0
    output = capsys.readouterr().out
    assert "     1  before rename summary.json\n     1  half-way through write journal.jsonl\n" in output
    assert "2 kills in 1 runs of 1 of 1 combinations, 0 failures" in output

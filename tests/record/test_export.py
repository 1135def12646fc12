"""A run's metrics for other programs, read back by them."""

import csv
import json
import math

import pytest
from pyarrow import parquet

from lib.base.errors import UserError
from lib.record import export, history
from tests.runs import NOON, evaluated, trained, write

BIG = 2**53 + 1  # no double holds it


@pytest.fixture
def table(tmp_path):
    odd = {"train_loss": math.nan, "tokens": BIG, "grad_norm": -math.inf}
    system = [("system", 1, {"system/power": 60.0}, {}), ("system", 1, {"system/power": 70.5}, {})]
    resume = ("resume", 1, {}, {"changed": {}})
    events = [
        evaluated(0, 5.5),
        *trained(1),
        *system,
        *trained(2),
        resume,
        ("train", 2, odd, {}),
        evaluated(2, math.inf),
    ]
    return export.table(history.load(write(tmp_path / "run", *events)))


def test_a_step_is_one_row_with_what_is_in_force(table):
    common = ["train_loss", "tokens", "learning_rate", "sparsity", "tokens_per_second", "grad_norm"]
    assert table.columns == ["step", "time", *common, "val_loss", "val_perplexity", "system/power"]
    assert [row["step"] for row in table.rows] == [0, 1, 2]
    assert table.rows[0] == {"step": 0, "time": NOON + 1, "val_loss": 5.5, "val_perplexity": 2.0}
    assert table.rows[1]["system/power"] == 60.0  # the first sample of the step
    assert table.rows[2]["time"] == NOON + 7


def test_a_metric_of_several_series_loses_no_value(tmp_path):
    rows = [
        ("train", 1, {"loss": 4.0, "time": 9.0}, {}),
        ("train.2", 1, {"loss": 3.0}, {}),
        ("train", 2, {"loss": 2.0}, {}),
    ]
    table = export.table(history.load(write(tmp_path / "run", *rows)))
    assert table.columns == ["step", "time", "loss", "train/time", "train.2/loss"]
    assert table.rows == [
        {"step": 1, "time": NOON + 1, "loss": 4.0, "train/time": 9.0, "train.2/loss": 3.0},
        {"step": 2, "time": NOON + 3, "loss": 2.0},
    ]


def test_csv(table, tmp_path):
    export.write(table, "csv", tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["train_loss"] == ""
    assert [rows[2][name] for name in ("train_loss", "tokens", "grad_norm", "val_loss")] == [
        "NaN", str(BIG), "-Infinity", "Infinity",
    ]  # fmt: skip
    assert float(rows[1]["time"]) == table.rows[1]["time"]


def test_json(table, tmp_path):
    export.write(table, "json", tmp_path / "m.json")
    rows = json.loads((tmp_path / "m.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert rows == table.rows
    assert rows[2]["tokens"] == BIG


def test_parquet(table, tmp_path):
    export.write(table, "parquet", tmp_path / "m.parquet")
    read = parquet.read_table(tmp_path / "m.parquet")
    assert {name: str(read.schema.field(name).type) for name in ("step", "tokens", "time", "train_loss")} == {
        "step": "int64", "tokens": "int64", "time": "double", "train_loss": "double",
    }  # fmt: skip
    columns = read.to_pydict()
    assert columns["tokens"] == [None, 64, BIG]
    assert columns["train_loss"][:2] == [None, 8.0] and math.isnan(columns["train_loss"][2])
    assert columns["grad_norm"] == [None, None, -math.inf]


def test_numbers_of_more_than_64_bits(tmp_path):
    def table(value):
        return export.Table(["x"], [{"x": value}])

    export.write(table(2**64 - 1), "parquet", tmp_path / "m.parquet")
    assert parquet.read_table(tmp_path / "m.parquet").to_pydict() == {"x": [2**64 - 1]}
    with pytest.raises(UserError, match=r"^x: has numbers of more than 64 bits, which parquet cannot hold; export csv"):
        export.write(table(2**64), "parquet", tmp_path / "n.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]  # written whole or not at all


def test_a_file_that_cannot_be_written_is_one_sentence(table, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/m.csv: cannot be written: No such file or directory$"):
        export.write(table, "csv", tmp_path / "nowhere/m.csv")

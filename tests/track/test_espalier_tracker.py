"""EspalierTracker's files: images, tables, artifacts and large arrays; where a run is, and what it is called."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="needs the optional package accelerate: make test-extras")

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, register_tracker_class
from accelerate.utils import ProjectConfiguration
from PIL import Image

from lib.base.errors import UsageError, UserError
from lib.config.kconf import Options
from lib.record import journal
from lib.record.run import Identity
from lib.track.espalier_tracker import EspalierTracker
from tests.tracking import ROOT, state, sync, wait_for

pytestmark = pytest.mark.extra("accelerate")


@pytest.fixture
def tracker(tmp_path):
    """A tracker of a run that has started, without trackers of Espalier."""
    found = EspalierTracker("mine", output_dir=str(tmp_path / "runs"), trackers=())
    found.start()
    yield found
    found.finish()


@pytest.fixture
def accelerator():
    """Builds an Accelerator; each test has its own state."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield lambda **options: Accelerator(cpu=True, **options)
    AcceleratorState._reset_state(reset_partial_state=True)


def recorded(folder):
    """Each event of media in a journal: its kind, name, step and file."""
    records = [record for record in journal.read(folder) if record["event"] == "media"]
    assert all(record["bytes"] == (folder / record["file"]).stat().st_size for record in records)
    return [(record["kind"], record["name"], record["step"], record["file"]) for record in records]


def pictures(folder):
    """Step and content of each image `sample` in the event files, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    return [(event.step, event.tensor_proto.string_val[-1]) for event in events.Tensors("image/sample")]


def in_trackio():
    """What Trackio's only database has: name, step and value of each image and each table; versions of artifacts."""
    home = Path(os.environ["TRACKIO_DIR"])
    [path] = home.glob("*.db")
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
        versions = database.execute(
            "select replace(name, '-' || producer_run_id, ''), manifest "
            "from artifact_versions join artifacts on artifacts.id = artifact_id"
        ).fetchall()
    kept = [(name, step, value) for step, metrics in rows for name, value in json.loads(metrics).items()]
    media = [one for one in kept if isinstance(one[2], dict)]
    images = [(n, s, (home / "media" / v["file_path"]).read_bytes()) for n, s, v in media if "file_path" in v]
    tables = [(name, step, value["_value"]) for name, step, value in media if "_value" in value]
    blobs = home / "artifacts" / path.stem / "blobs" / "sha256"
    digests = [(name, file["digest"]) for name, manifest in versions for file in json.loads(manifest)]
    return images, tables, [(name, (blobs / digest[:2] / digest).read_bytes()) for name, digest in digests]


def configuration():
    """The configuration of the only run in Trackio's only database, without what Trackio adds."""
    [path] = Path(os.environ["TRACKIO_DIR"]).glob("*.db")
    with contextlib.closing(sqlite3.connect(path)) as database:
        [(config,)] = database.execute("select config from configs").fetchall()
    return {name: value for name, value in json.loads(config).items() if not name.startswith("_")}


# ---- files -----------------------------------------------------------------------------------------------------------


def test_images_belong_to_a_step_and_have_names(tracker):
    picture = np.full((2, 3), 128, np.uint8)
    tracker.log_images({"first": picture})
    tracker.log({"loss": 1.0}, step=4)
    tracker.log_images({"sample": [picture, picture], "sample/2": picture}, dataformats="HW")
    tracker.log_images({"sample": torch.zeros(2, 3, 5, 6)}, step=7)
    with pytest.raises(UsageError, match=r"^log_images: captioned must be an array, .+; got str$"):
        tracker.log_images({"sample": picture, "captioned": (picture, "a caption")}, step=8)  # and writes nothing
    found = recorded(tracker.folder)
    assert [(kind, name, step) for kind, name, step, _ in found] == [
        ("image", "first", 0),
        ("image", "sample", 4),
        ("image", "sample/2", 4),
        ("image", "sample/2/2", 4),
        ("image", "sample", 7),
        ("image", "sample/2", 7),
    ]
    assert len({file for *_, file in found}) == 6
    sizes = [Image.open(tracker.folder / file).size for *_, file in found]
    assert sizes == [(3, 2)] * 4 + [(6, 5)] * 2  # width and height


def test_tables_are_json(tracker):
    tracker.log_table("scores", ["name", "score"], [["a", 1.5]], step=3)
    tracker.log_table("scores", data=[["name"], ["b"]], step=3)
    (_, first, step, file), (_, second, *_, other) = recorded(tracker.folder)
    assert (first, second, step, file) == ("scores", "scores/2", 3, "media/scores-00000003.json")
    assert json.loads((tracker.folder / file).read_text()) == {"columns": ["name", "score"], "rows": [["a", 1.5]]}
    assert json.loads((tracker.folder / other).read_text()) == {"columns": ["name"], "rows": [["b"]]}


def test_an_artifact_is_what_the_file_held(tracker, tmp_path):
    model = tmp_path / "model.pt"
    model.write_bytes(b"first")
    tracker.log_artifact(model, step=5, type="model")
    model.write_bytes(b"other")
    tracker.log_artifact(str(model), "weights", name="best.pt", step=5)
    [(kind, name, step, file), (_, second, *_, other)] = recorded(tracker.folder)
    assert (kind, name, step, second) == ("artifact", "model.pt", 5, "weights/best.pt")
    assert (tracker.folder / file).read_bytes() == b"first"
    assert (tracker.folder / other).read_bytes() == b"other"
    with pytest.raises(UserError, match=r"^.+/no\.pt: cannot be copied into the run's folder: No such file"):
        tracker.log_artifact(tmp_path / "no.pt")


def test_a_folder_is_one_artifact_for_each_file(tracker, tmp_path):
    (tmp_path / "state" / "deep").mkdir(parents=True)
    (tmp_path / "state" / "b.bin").write_bytes(b"b")
    (tmp_path / "state" / "deep" / "a.bin").write_bytes(b"a")
    tracker.log_artifacts(tmp_path / "state", "checkpoint", step=2)
    found = {(name, step): (tracker.folder / file).read_bytes() for _, name, step, file in recorded(tracker.folder)}
    assert found == {("checkpoint/b.bin", 2): b"b", ("checkpoint/deep/a.bin", 2): b"a"}
    with pytest.raises(UsageError, match=r"^log_artifact: .+/state is a folder; use log_artifacts$"):
        tracker.log_artifact(tmp_path / "state")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(UsageError, match=rf"^log_artifacts: .+/{name} has no files; give a folder that has$"):
            tracker.log_artifacts(tmp_path / name)


def test_a_large_array_is_a_file_and_a_small_one_is_in_the_journal(tracker):
    weights = np.arange(600.0).reshape(20, 30)
    tracker.log({"loss": 1.0, "layer": {"weight": weights}, "bias": np.ones(3), "who": "me"}, step=8)
    tracker.log({"bias": torch.ones(300)}, step=8)
    first, second = (record for record in journal.read(tracker.folder) if "others" in record)
    weight = first["others"].pop("layer/weight")
    assert first["others"] == {"bias": [1.0, 1.0, 1.0], "who": "me"}
    assert (weight["shape"], weight["dtype"]) == ([20, 30], "float64")
    assert re.fullmatch(r"media/layer-weight-\w{6}-00000008\.npy", weight["file"])
    assert (np.load(tracker.folder / weight["file"]) == weights).all()
    file = {"file": "media/bias-00000008.npy", "shape": [300], "dtype": "float32"}
    assert second["others"] == {"bias": file}
    assert recorded(tracker.folder) == []  # trackers do not get arrays
    assert (tracker.folder / "journal.jsonl").stat().st_size < 1500


def test_a_resumed_script_writes_the_same_files_again_under_the_same_names(tmp_path):
    for resume in (False, True):
        ours = EspalierTracker("mine", output_dir=str(tmp_path), trackers=(), resume=resume)
        ours.start()
        ours.log({"loss": 1.0}, step=3)
        ours.log_images({"sample": np.zeros((2, 2)), "a/b": np.zeros((2, 2))})
        ours.log_images({"sample": np.ones((2, 2)), "caf\udce9": np.zeros((2, 2))})
        ours.finish()
    names = ["sample", "a/b", "sample/2", "caf\\udce9"]
    found = recorded(tmp_path / "mine")
    assert [(name, step) for _, name, step, _ in found] == [(name, 3) for name in names * 2]
    assert [file for *_, file in found[:4]] == [file for *_, file in found[4:]]
    assert len(list((tmp_path / "mine" / "media").iterdir())) == 4
    assert [key for key in journal.in_force(tmp_path / "mine").others if key[0].startswith("media ")] == [
        (f"media {name}", 3) for name in names
    ]


def test_two_trackers_in_one_process_are_two_runs(tmp_path):
    both = [EspalierTracker("mine", output_dir=str(tmp_path), trackers=()) for _ in range(2)]
    for ours in both:
        ours.start()
    third = EspalierTracker("mine", output_dir=str(tmp_path), trackers=(), resume=True)
    with pytest.raises(UserError, match=rf"^{tmp_path}/mine: "):
        third.start()
    third.finish()
    for step in range(2):
        for number, ours in enumerate(both):
            ours.log({"loss": float(number)}, step=step)
            ours.log_images({"sample": np.full((2, 2), number, np.uint8)})
    for number, ours in enumerate(both):
        ours.finish()
        assert ours.folder.name == ("mine", "mine-2")[number]
        rows = [(r["step"], r["metrics"]) for r in journal.read(ours.folder) if r["event"] == "train"]
        assert rows == [(step, {"loss": float(number)}) for step in range(2)]
        assert [(name, step) for _, name, step, _ in recorded(ours.folder)] == [("sample", 0), ("sample", 1)]


def test_threads_write_each_row_and_each_file_once(tracker):
    def work(number):
        for step in range(20):
            tracker.log({f"loss {number}": 1.0})
            tracker.log_table("scores", ["thread", "step"], [[number, step]], step=7)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    rows = [(r["event"], r["step"]) for r in journal.read(tracker.folder) if r["event"].startswith("train")]
    assert rows == [("train", step) for step in range(80)]
    found = recorded(tracker.folder)
    assert {name for _, name, *_ in found} == {"scores", *(f"scores/{number}" for number in range(2, 81))}
    cells = [json.loads((tracker.folder / file).read_text())["rows"][0] for *_, file in found]
    assert sorted(cells) == [[number, step] for number in range(4) for step in range(20)]


# Logs a picture and a file in each step, and is killed: folder of runs, steps.
KILLED = """
import os, sys
import numpy
from lib.espalier_tracker import EspalierTracker
tracker = EspalierTracker("mine", output_dir=sys.argv[1], trackers=("trackio", "tensorboard"), resume=True)
tracker.start()
for step in range(int(sys.argv[2])):
    tracker.log({"loss": 1.0 / (1 + step)}, step=step)
    tracker.log_images({"sample": numpy.full((2, 2), step, numpy.uint8)})
    with open("weights.bin", "w") as file:
        file.write(str(step))
    tracker.log_artifact("weights.bin")
os.kill(os.getpid(), 9)
"""


def test_trackers_have_the_files_of_a_killed_and_resumed_script_once(run, tmp_path):
    (tmp_path / "train.py").write_text(KILLED)
    for steps in ("2", "3"):
        words = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "theirs"), steps]
        done = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
    folder = tmp_path / "theirs" / "mine"
    names = [(name, step) for _, name, step, _ in recorded(folder)]
    assert names == [(name, step) for steps in (2, 3) for step in range(steps) for name in ("sample", "weights.bin")]
    valid = [key for key in journal.in_force(folder).others if key[0].startswith("media ")]
    assert valid == [(f"media {name}", step) for step in range(3) for name in ("sample", "weights.bin")]
    wait_for(lambda: sync(folder).returncode == 0)  # the trackers' processes of the killed script go on for a while
    files = [(folder / f"media/sample-0000000{step}.png").read_bytes() for step in range(3)]
    assert pictures(folder) == [(step, files[step]) for step in range(3)]
    images, _, artifacts = in_trackio()
    assert images == [("sample", step, files[step]) for step in range(3)]
    assert artifacts == [("mine-weights.bin", b"%d" % step) for step in range(3)]


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_the_object_of_get_tracker_has_the_run_and_the_calls(accelerator, tmp_path):
    ours = accelerator(log_with=[EspalierTracker("mine", project="p", output_dir=str(tmp_path), trackers=())])
    ours.init_trackers("ignored")
    found = ours.get_tracker("espalier", unwrap=True)
    assert found is ours.get_tracker("espalier")
    assert all(callable(getattr(found, name)) for name in ("log", "log_images", "log_table", "log_artifact"))
    identity = Identity.load(tmp_path / "mine")
    run = (found.run.id, found.run.name, found.run.project, found.run.folder, found.run.notes)
    assert run == (identity.run_id, "mine", "p", tmp_path / "mine", [])
    assert (Path(found), found / "run.json") == (tmp_path / "mine", tmp_path / "mine" / "run.json")
    ours.end_training()


@pytest.mark.parametrize("registered", [False, True])
def test_a_run_is_in_the_logging_dir(accelerator, folder, monkeypatch, registered):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "espalier", None)  # is removed afterwards
    del LOGGER_TYPE_TO_CLASS["espalier"]
    register_tracker_class(EspalierTracker)
    places = ProjectConfiguration(project_dir="project", logging_dir="logs")
    for resume, events in ((False, ["start"]), (True, ["start", "finish", "resume"])):
        arguments = {"trackers": (), "resume": resume}
        one = "espalier" if registered else EspalierTracker("mine", **arguments)
        ours = accelerator(log_with=[one], project_config=places)
        ours.init_trackers("mine", config={}, init_kwargs={"espalier": arguments})
        assert [record["event"] for record in journal.read(folder / "logs" / "mine")] == events
        ours.end_training()
    assert sorted(path.name for path in folder.iterdir()) == ["logs"]


def test_output_dir_comes_before_the_logging_dir_and_runs_after_it(accelerator, folder):
    for given, place, there in (("own", "logs", "own"), ("", None, "runs")):
        ours = accelerator(
            log_with=[EspalierTracker("mine", output_dir=given, trackers=())],
            project_config=ProjectConfiguration(logging_dir=place),
        )
        ours.init_trackers("ignored")
        assert (folder / there / "mine" / "run.json").exists()
        ours.end_training()
    assert sorted(path.name for path in folder.iterdir()) == ["own", "runs"]


def test_a_name_that_exists_is_said_with_the_way_to_continue(folder, capsys):
    (folder / "runs" / "other").mkdir(parents=True)
    (folder / "runs" / "other" / "notes.txt").write_text("no run")
    continues = "; to continue experiment-1 instead: pass resume=True to EspalierTracker"
    for name, resume, said in (
        ("experiment-1", False, []),
        ("experiment-1", True, []),
        ("experiment-1", False, [f"note: runs/experiment-1 exists, so this run is called experiment-1-2{continues}"]),
        ("other", False, ["note: runs/other exists, so this run is called other-2"]),
    ):
        tracker = EspalierTracker(name, trackers=(), resume=resume)
        tracker.start()
        assert capsys.readouterr().out.splitlines() == said
        tracker.finish()
        capsys.readouterr()


def test_trackers_show_what_the_script_gave(tracker):
    values = {"learning_rate": 0.1, "max_iters": "many", "tracker_tags": ["a"], "model": {"layers": 2}}
    tracker.store_init_configuration(values)
    start = next(journal.read(tracker.folder))
    assert start["parameters"] == values
    assert start["config"] == {
        "learning_rate": 0.1,
        "config.max_iters": "many",
        "config.tracker_tags": ["a"],
        "model": {"layers": 2},
        "tracker": [],
    }


def test_every_option_that_trackers_read_is_reserved(tracker):
    modules = [importlib.import_module(f"lib.track.{path.stem}") for path in (ROOT / "lib/track").glob("[a-z]*.py")]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    bound = {kind for kind in kinds if issubclass(kind, Options) and kind.__module__.startswith("lib.track.")}
    names = {field.name for kind in bound for field in dataclasses.fields(kind)}
    assert {"tracker_group", "wandb_entity", "trackio_space_id"} <= names
    assert names <= tracker.reserved


# ---- docs/accelerate.md ----------------------------------------------------------------------------------------------


def test_the_example_of_the_page_does_what_the_page_says(run, tmp_path):
    page = (ROOT / "docs" / "accelerate.md").read_text()
    (tmp_path / "train.py").write_text(re.search(r"```python\n(# train\.py\n.*?)```", page, re.DOTALL)[1])
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "logs" / "experiment-1"
    assert done.stdout.splitlines()[:2] == ["written to logs/experiment-1", "run folder  logs/experiment-1"]
    assert recorded(folder) == [
        ("image", "weights", 19, "media/weights-00000019.png"),
        ("table", "norms", 19, "media/norms-00000019.json"),
        ("artifact", "model.pt", 19, "media/model.pt-00000019.pt"),
    ]
    image = Image.open(folder / "media/weights-00000019.png")
    assert (image.mode, image.size) == ("L", (16, 8))
    weight = torch.load(folder / "media/model.pt-00000019.pt", weights_only=True)["weight"]
    table = json.loads((folder / "media/norms-00000019.json").read_text())
    assert table["columns"] == ["output", "norm"]
    assert [row[1] for row in table["rows"]] == pytest.approx(weight.norm(dim=1).tolist())
    assert "trackio   finished  23 rows delivered" in done.stdout
    images, tables, artifacts = in_trackio()
    assert images == [("weights", 19, (folder / "media/weights-00000019.png").read_bytes())]
    assert tables == [("norms", 19, [{"output": n, "norm": norm} for n, norm in table["rows"]])]
    assert artifacts == [("experiment-1-model.pt", (tmp_path / "model.pt").read_bytes())]
    assert configuration() == {"learning_rate": 0.1, "batch_size": 32}


@pytest.mark.parametrize("step", [-1, 1.5])
def test_a_step_that_no_reader_takes_is_refused(run, tmp_path, step):
    tracker = EspalierTracker("mine", trackers=("csv",), output_dir=str(tmp_path / "theirs"))
    tracker.start()
    for record in (
        lambda: tracker.log({"loss": 1.0}, step=step),
        lambda: tracker.log_table("t", ["a"], [[1]], step=step),
    ):
        with pytest.raises(UsageError, match=f"a step must be a whole number from 0; got {step}"):
            record()
    tracker.finish()


def test_tensorboard_takes_a_configuration_with_a_dictionary_in_it(run, tmp_path):
    tracker = EspalierTracker("mine", trackers=("tensorboard",), output_dir=str(tmp_path / "theirs"))
    tracker.start()
    tracker.store_init_configuration({"lora": {"rank": 8}, "empty": {}})
    tracker.log({"loss": 1.0}, step=0)
    tracker.finish()
    assert state(tracker.folder, "tensorboard").state == "finished"

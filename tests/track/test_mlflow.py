"""MLflow, read back by its own client: every value once, whatever was killed, and names and numbers intact."""

import math
import os
import shutil
import signal
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.base.files import write_json
from lib.record import journal
from lib.track import mlflow as adapter
from lib.track import mlflow_database
from tests import forked
from tests.track.mlflow_runs import client, database, empty, runs, written
from tests.tracking import RUN_ID, expected, new_run, run, state, sync, train, trainer, wait_for

__all__ = ["database", "empty", "run"]  # fixtures
pytestmark = pytest.mark.extra("mlflow")


def stored(folder):
    """(metric, step) -> every (value, milliseconds) that the run's history holds."""
    ours = [r for r in runs(folder) if r.data.tags[adapter.RUN_ID] == RUN_ID and r.info.run_name == folder.name]
    assert len(ours) == 1
    found = {}
    for name in ours[0].data.metrics:
        for point in client(folder).get_metric_history(ours[0].info.run_id, name):
            found.setdefault((name, point.step), []).append((point.value, point.timestamp))
    return found


def limited(value):
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else float(value)


def assert_holds(folder):
    times = {}
    for record in journal.read(folder):
        times.setdefault((record["event"], record["step"]), int(record["time"] * 1000))
    wanted = {
        (name, step): (limited(value), times[event, step])
        for (event, step), metrics in expected(folder).items()
        for name, value in metrics.items()
    }
    found = stored(folder)
    assert {key: len(points) for key, points in found.items()} == dict.fromkeys(wanted, 1)
    assert all(repr(found[key][0]) == repr(point) for key, point in wanted.items())


def test_it_holds_values_times_configuration_and_status(run):
    output = train(run, "mlflow")
    assert "mlflow    finished  25 rows delivered" in output
    command = f"mlflow server --backend-store-uri sqlite:///{run.parent.resolve()}/mlflow.db"
    assert f"look at it with: {command} (package mlflow)" in output
    assert_holds(run)
    (held,) = runs(run)
    records = list(journal.read(run))
    assert held.data.params == {
        "tracker": '["mlflow"]',
        "wandb_offline": "true",
        "learning_rate": "0.001",
        "prompt": "",
    }
    assert (held.info.run_name, held.info.status) == ("first", "FINISHED")
    assert held.info.start_time == int(records[0]["time"] * 1000)
    assert held.info.end_time == int(records[-1]["time"] * 1000)
    assert math.isnan(stored(run)["train_loss", 3][0][0])
    assert stored(run)["train_loss", 5][0][0] == -1.7976931348623157e308


def test_a_lane_that_is_killed_or_loses_its_cursor_stores_nothing_twice(run):
    process = trainer(run, "mlflow", end=80, pause=0.05, deadline=0)
    wait_for(lambda: state(run, "mlflow").rows > 0)
    os.kill(int((run / "trackers" / "mlflow.lock").read_text()), signal.SIGKILL)
    process.communicate(timeout=120)
    assert sync(run).returncode == 0
    assert_holds(run)
    (run / "trackers" / "mlflow.json").unlink()
    assert sync(run).returncode == 0
    assert_holds(run)


def test_a_resume_goes_on_in_the_same_run_and_says_what_it_changed(run):
    written(run, ("train", 1, {"loss": 2.0}, {}), ("finish", 1, {}, {"status": "interrupted"}), config={"lr": 0.1})
    assert sync(run).returncode == 0
    assert runs(run)[0].info.status == "KILLED"
    again = {"config": {"tracker": ["mlflow"], "lr": 0.2, "more": True}}
    written(run, ("resume", 1, {}, again), ("train", 2, {"loss": 1.5}, {}))
    assert sync(run).returncode == 0
    (held,) = runs(run)
    assert held.info.status == "FAILED"  # the journal ends without a word: the trainer crashed
    assert held.data.params == {"tracker": '["mlflow"]', "lr": "0.1", "more": "true"}
    assert held.data.tags["resumed.lr"] == "0.2"
    assert [stored(run)["loss", step][0][0] for step in (1, 2)] == [2.0, 1.5]


def test_tags_group_alerts_and_unusual_names_and_numbers_arrive(run):
    config = {"tracker_tags": "baseline, a@b", "tracker_group": "sweep 1", "long": "x" * 7000, "Größe": 1}
    metrics = {"huge": 2**70, "beyond": 10**400, "system/gpu %": 7, "../up": 1.0, "a//b": 2.0, "größe": 3.0}
    alert = {"kind": "diverged", "level": "error", "message": "the loss is no number"}
    written(run, ("train", 1, metrics, {}), ("system", 1, {"loss": 1.0}, {}), ("alert", 1, {}, alert), config=config)
    assert sync(run).returncode == 0
    (held,) = runs(run)
    tags = held.data.tags
    assert (tags["baseline"], tags["a-b-a1ca0ed6"], tags["group"]) == ("true", "true", "sweep 1")
    assert tags["alert.diverged.1"] == "error: the loss is no number"
    assert (held.data.params["long"], held.data.params["Größe"]) == ("x" * 6000, "1")
    assert held.data.metrics["huge"] == 2.0**70 and held.data.metrics["beyond"] == sys.float_info.max
    assert held.data.metrics["größe"] == 3.0
    assert len(held.data.metrics) == 7


def test_runs_that_start_together_share_a_new_database(run, database):
    database.unlink()
    second = new_run(run.parent / "second")
    write_json(second / "run.json", {"run_id": "ba9876543210", "project": "demo", "name": "second"})
    processes = [trainer(folder, "mlflow", deadline=90) for folder in (run, second)]
    for process in processes:
        output = process.communicate(timeout=180)[0]
        assert "mlflow    finished  25 rows delivered" in output, output
    assert sorted(held.info.run_name for held in runs(run)) == ["first", "second"]


def test_a_database_is_beside_the_runs_wherever_a_sync_is_started(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///sub/my.db?timeout=9")
    written(run, ("train", 0, {"loss": 1.0}, {}))
    (run.parent / "sub").mkdir()
    shutil.copy(run.parent / "mlflow.db", run.parent / "sub" / "my.db")
    for place in (tmp_path / "one", tmp_path / "two"):
        place.mkdir()
        done = forked.run(place, "scripts/sync.py", str(run.resolve()))
        assert done.returncode == 0, done.stdout
        assert list(place.iterdir()) == []
    assert f"--backend-store-uri 'sqlite:///{run.parent.resolve()}/sub/my.db?timeout=9' (package" in done.stdout
    assert [path.name for path in (run.parent / "sub").iterdir()] == ["my.db"]
    found = adapter.examine({"output_dir": str(run.parent)})[1].found
    assert found.startswith(f"{run.parent.resolve()}/sub/my.db: ") and found.endswith(" MB")
    (run.parent / "mlflow.db").write_bytes((run.parent / "sub" / "my.db").read_bytes())
    assert_holds(run)


def test_a_new_database_leaves_no_lock_and_one_that_is_there_needs_none(tmp_path):
    path = tmp_path / "new" / "mlflow.db"
    mlflow_database.make(path)
    assert [one.name for one in path.parent.iterdir()] == ["mlflow.db"]
    stamp = path.stat().st_mtime_ns
    (tmp_path / "new" / "mlflow.db.lock").mkdir()  # cannot be opened
    mlflow_database.make(path)
    assert path.stat().st_mtime_ns == stamp


def test_projects_and_runs_of_any_name_stay_apart(run):
    names = ["a/b", "a b", "a.b", "Äpfel", "日" * 300, "日" * 301, "a\nb", "a\tb"]
    for number, name in enumerate(names):
        folder = new_run(run.parent / str(number))
        write_json(folder / "run.json", {"run_id": f"{number:012}", "project": name, "name": name})
        written(folder, ("train", 0, {"loss": number}, {}))
        tracker = adapter.Tracker()
        tracker.open(adapter.Identity.load(folder), {}, folder)
        assert client(run).get_run(tracker.run_id).info.run_name == adapter.plain_name(name, r"[\x00-\x1f]+", 250)
    assert len({e.name for e in client(run).search_experiments()} - {"Default"}) == len(names)


@settings(deadline=None)
@given(st.text(max_size=300), st.text(alphabet="ab./-: @", max_size=12))
def test_metrics_have_names_that_mlflow_takes_and_that_stay_apart(text, path):
    from mlflow.utils import validation

    for name in (text, path, f"{path}/{text}"):
        validation._validate_metric(adapter._mlflow_name(name), 1.0, 0, 0)
        validation._validate_tag(adapter._mlflow_name(name), "")
    assert (adapter._mlflow_name(text) == adapter._mlflow_name(path)) == (text == path)


def test_plain_names_are_left_as_they_are():
    names = ["train_loss", "system/gpu0.memory", "val loss: best", "größe", "a-b", "..."]
    assert [adapter._mlflow_name(name) for name in names] == [*names[:-1], "unnamed-2f43b42f"]


def test_a_dead_server_fails_in_a_sentence_and_is_made_up_for(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret@127.0.0.1:9")
    output = train(run, "mlflow")
    assert "mlflow    failed    0 rows delivered, 25 pending" in output
    assert "127.0.0.1" in output and "secret" not in output and "Traceback" not in output
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync(run).returncode == 0
    assert_holds(run)


def test_a_damaged_database_and_a_deleted_experiment_are_sentences(run, database):
    written(run, ("train", 0, {"loss": 1.0}, {}))
    assert sync(run).returncode == 0
    client(run).delete_experiment(runs(run)[0].info.experiment_id)
    (run / "trackers" / "mlflow.json").unlink()
    assert "MLflow's experiment 'demo' was deleted; restore it with `mlflow experiments restore" in sync(run).stdout
    database.write_bytes(b"no database" * 1000)
    done = sync(run)
    assert done.returncode == 1 and "file is not a database" in done.stdout and "Traceback" not in done.stdout
    assert state(run, "mlflow").state == "failed"


def test_a_training_run_goes_on_while_the_database_is_locked(run, database):
    import sqlite3

    lock = sqlite3.connect(database)
    lock.execute("begin exclusive")
    process = trainer(run, "mlflow", deadline=0)
    assert "still delivering" in process.communicate(timeout=120)[0]
    lock.rollback()
    lock.close()
    wait_for(lambda: state(run, "mlflow").state == "finished")
    assert_holds(run)


def test_what_the_doctor_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    where = {"output_dir": str(tmp_path / "new")}
    found = adapter.examine(where)
    assert [(one.what, one.good) for one in found] == [
        ("tracking URI", True),
        ("database", True),
    ]
    assert found[0].found == f"sqlite:///{tmp_path}/new/mlflow.db"
    assert found[1].found == f"{tmp_path}/new/mlflow.db: will be created"
    (tmp_path / "file").touch()
    broken = adapter.examine({**where, "mlflow_tracking_uri": f"sqlite:///{tmp_path}/file/mlflow.db"})[1]
    assert (broken.good, broken.found) == (
        False,
        f"{tmp_path}/file/mlflow.db: {tmp_path}/file cannot be written",
    )
    found = adapter.examine({**where, "mlflow_tracking_uri": "http://me:secret@127.0.0.1:9"})
    assert [(one.what, one.good) for one in found] == [
        ("tracking URI", True),
        ("credentials", True),
        ("server", False),
    ]
    assert found[1].found == "none in the environment"
    assert "secret" not in repr(found)

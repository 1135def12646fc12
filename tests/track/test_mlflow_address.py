"""Where MLflow keeps a run: what is refused before training, which variable wins, and databases that move."""

import re
import shutil

import pytest

from lib.base.errors import UsageError
from lib.track import mlflow as adapter
from lib.track import mlflow_address, registry
from lib.track.tracker import Refused, Row
from tests import forked
from tests.track.mlflow_runs import artifacts, client, database, empty, opened, runs, text_of, written
from tests.tracking import RUN_ID, run

__all__ = ["database", "empty", "run"]  # fixtures
pytestmark = pytest.mark.extra("mlflow")


PROBLEMS = {
    "http://host:5000": "",
    "HTTPS://u:secret@host": "",
    "sqlite:///mlflow.db": "",
    "sqlite:////somewhere/mlflow.db?timeout=9": "",
    "http:///path": "names no server; write http://host:port",
    "sqlite://": "is not understood; write sqlite:///path/to/mlflow.db",
    "sqlite+pysqlite:///x.db": "is not understood; write sqlite:///path/to/mlflow.db",
    "file:///data/mlruns": "names a folder, where MLflow no longer keeps runs; write sqlite:////data/mlruns/mlflow.db",
    "./mlruns": "names a folder, where MLflow no longer keeps runs; write sqlite:///mlruns/mlflow.db",
    "mlflow.db": "names a folder, where MLflow no longer keeps runs; write sqlite:///mlflow.db",
    "localhost:5000": "has no scheme; write http://localhost:5000",
    "uc:http://host": "is a registry of models and keeps no runs; write databricks",
    "databricks-uc://profile": "is a registry of models and keeps no runs; write databricks",
    "s3://bucket": "has the scheme s3, which MLflow does not know; use sqlite:///path/to/mlflow.db, http://, "
    "https://, postgresql://, mysql://, mssql:// or databricks",
    "mysql+nonsense://host/runs": "is not understood; write it as mysql://user:password@host/database",
}


@pytest.mark.parametrize("uri", PROBLEMS)
def test_a_tracking_uri_is_checked_before_a_run_begins(uri, monkeypatch):
    wanted = f"MLFLOW_TRACKING_URI={uri} {PROBLEMS[uri]}" if PROBLEMS[uri] else ""
    assert adapter.problem({"mlflow_tracking_uri": uri}) == wanted
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert adapter.problem({"mlflow_tracking_uri": ""}) == wanted
    assert adapter.problem({"mlflow_tracking_uri": "http://host"}) == ""


def test_a_package_can_add_a_scheme_to_mlflow(tmp_path, monkeypatch):
    assert "has the scheme odd, which MLflow does not know" in adapter.problem({"mlflow_tracking_uri": "odd://x"})
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mlflow.tracking_store]\nodd = odd:Store\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert adapter.problem({"mlflow_tracking_uri": "odd://x"}) == ""


def test_a_database_without_its_driver_and_secrets_are_not_in_the_sentence():
    text = adapter.problem({"mlflow_tracking_uri": "mssql+pyodbc://me:secret@host/runs"})
    assert text == (
        "MLFLOW_TRACKING_URI=mssql+pyodbc://host/runs needs the driver pyodbc; install it, or name another one as in "
        "mssql+driver://"
    )


def test_databricks_needs_an_experiment_in_the_workspace(monkeypatch):
    needs = (
        "needs an experiment that is an absolute path of the workspace; set TRACKER_PROJECT or MLFLOW_EXPERIMENT_NAME "
        "to one such as /Users/you@example.com/gpt2"
    )
    profile = {"mlflow_tracking_uri": "databricks://work"}
    assert adapter.problem(profile) == f"MLFLOW_TRACKING_URI=databricks://work {needs}"
    assert adapter.problem({**profile, "tracker_project": "gpt2"}) == f"MLFLOW_TRACKING_URI=databricks://work {needs}"
    assert adapter.problem({**profile, "tracker_project": "/Shared/gpt2"}) == ""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Shared/gpt2")
    assert adapter.problem(profile) == ""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "123")
    assert adapter.problem(profile) == ""


def test_training_and_the_doctor_refuse_a_place_where_mlflow_keeps_no_runs(tmp_path):
    sentence = "MLFLOW_TRACKING_URI=file:runs names a folder, where MLflow no longer keeps runs; write sqlite:///runs"
    (place := tmp_path / "place").mkdir()
    done = forked.run(place, "gpt2/train.py", "TRACKER=mlflow", "MLFLOW_TRACKING_URI=file:runs")
    assert done.returncode == 2 and f"error: tracker mlflow: {sentence}/mlflow.db" in done.stderr, done.stderr
    assert list(place.iterdir()) == []
    (place / ".config").write_text('CONFIG_TRACKER_MLFLOW=y\nCONFIG_MLFLOW_TRACKING_URI="file:runs"\n')
    done = forked.run(place, "scripts/tracker_doctor.py", "mlflow")
    assert done.returncode == 1
    assert re.search(f"mlflow +configuration +BAD +{re.escape(sentence)}", done.stdout), done.stdout
    for wanted in (["mlflow"], ["all"]):  # with `all` it is not left out as if it were not installed
        with pytest.raises(UsageError, match=r"^tracker mlflow: MLFLOW_TRACKING_URI=file:runs names"):
            registry.names(wanted, {"mlflow_tracking_uri": "file:runs"})
    assert registry.names(["csv"], {"mlflow_tracking_uri": "file:runs"}) == ["csv"]


def test_a_sync_to_such_a_place_is_refused_without_new_attempts(run, monkeypatch):
    written(run, ("train", 0, {"loss": 1.0}, {}))
    with pytest.raises(Refused, match="MLFLOW_TRACKING_URI=file:x names a folder"):
        opened(run, mlflow_tracking_uri="file:x")


def test_variables_of_mlflow_are_used_where_options_are_empty_and_notes_say_what_wins(run, monkeypatch):
    written(run, ("train", 0, {"loss": 1.0}, {}))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    tracker, note = opened(run)
    assert tracker.destination() == "sqlite:///mlflow.db, experiment theirs"
    assert note.startswith("look at it with: mlflow server")
    assert [held.info.run_name for held in runs(run, "theirs")] == ["first"]
    shutil.copy(run.parent / "mlflow.db", run.parent / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    tracker, note = opened(run, mlflow_tracking_uri="sqlite:///mlflow.db", tracker_project="ours")
    assert tracker.destination() == "sqlite:///mlflow.db, experiment ours"
    assert note.split("; ")[:-1] == [
        "the option MLFLOW_TRACKING_URI=sqlite:///mlflow.db wins over the variable, which is sqlite:///other.db",
        "TRACKER_PROJECT=ours wins over MLFLOW_EXPERIMENT_NAME=theirs",
        "TRACKER_PROJECT=ours wins over MLFLOW_EXPERIMENT_ID=0",
        "MLFLOW_RUN_ID=abc is not used, because MLflow finds a run of Espalier by its own id",
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "you")
    options = mlflow_address.MlflowOptions("http://me:secret@host", str(run.parent), "")
    assert list(mlflow_address.notes(options))[1] == (
        "the user and the password in MLFLOW_TRACKING_URI win over MLFLOW_TRACKING_USERNAME and its password"
    )
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert opened(run)[0].destination() == "sqlite:///other.db, experiment Default"


def test_a_run_is_held_by_the_database_that_has_its_metrics_and_is_moved_with_it(run, tmp_path):
    from mlflow.tracking._tracking_service import utils

    written(run, ("train", 0, {"loss": 1.0}, {}))
    tracker, _ = opened(run)
    assert (tracker.destination(), tracker.holds()) == ("sqlite:///mlflow.db, experiment demo", False)
    assert opened(run)[0].holds() is False  # nothing was delivered: a kill came before
    tracker.log([Row("train", 0, 1700000000.0, {"loss": 1.0})])
    assert opened(run)[0].holds() is True
    tracker.media([text_of(run, 1, "before")])
    moved = run.parent.rename(tmp_path / "elsewhere") / run.name
    utils._artifact_repos_cache.clear()  # as in another process
    tracker, _ = opened(moved)
    assert (tracker.destination(), tracker.holds()) == ("sqlite:///mlflow.db, experiment demo", True)
    tracker.media([text_of(moved, 2, "after")])
    folder = tmp_path / "elsewhere" / "mlartifacts" / tracker.run_id / "artifacts"
    assert artifacts(tracker) == {
        "texts/sample/step-00000001.txt": b"before",
        "texts/sample/step-00000002.txt": b"after",
    }
    assert tracker.client.get_run(tracker.run_id).info.artifact_uri == str(folder)
    assert not run.parent.exists()
    tracker, _ = opened(moved, mlflow_tracking_uri=f"sqlite:///{tmp_path}/away.db")
    assert tracker.destination() == f"sqlite:///{tmp_path}/away.db, experiment demo"
    assert tracker.holds() is False


def test_a_copied_folder_of_runs_does_not_write_into_the_original(run, tmp_path):
    from mlflow.tracking._tracking_service import utils

    written(run, ("train", 0, {"loss": 1.0}, {}))
    tracker, _ = opened(run)
    tracker.media([text_of(run, 1, "before")])
    copied = shutil.copytree(run.parent, tmp_path / "copy") / run.name
    utils._artifact_repos_cache.clear()  # as in another process
    tracker, note = opened(copied)
    assert "earlier" not in note and "before" not in note
    tracker.media([text_of(copied, 2, "after")])
    names = {"texts/sample/step-00000001.txt", "texts/sample/step-00000002.txt"}
    assert artifacts(tracker).keys() == names
    found = [path.parts[-1] for path in run.parent.joinpath("mlartifacts").rglob("*.txt")]
    assert found == ["step-00000001.txt"]
    shutil.rmtree(run.parent)
    assert artifacts(opened(copied)[0]).keys() == names


def test_files_of_earlier_versions_and_of_other_users_stay_where_they_are(run, tmp_path, monkeypatch):
    from mlflow.tracking._tracking_service import utils

    monkeypatch.chdir(tmp_path)
    written(run, ("train", 0, {"loss": 1.0}, {}))
    mlflow = client(run)
    number = mlflow.create_experiment("demo")  # in mlruns of the current folder, as an earlier version did
    ours = mlflow.create_run(number, tags={"espalier.run_id": RUN_ID}).info.run_id
    other = mlflow.create_run(number).info
    second, third = (mlflow.create_run(number, tags={"espalier.run_id": name}).info for name in ("2", "3"))
    for early in (ours, second.run_id):
        mlflow.log_text(early, "early", "early.txt")
    chosen = mlflow.create_experiment("chosen", str(tmp_path / "my-files"))
    utils._artifact_repos_cache.clear()
    tracker, note = opened(run)
    old, new = tmp_path / "mlruns" / number / ours / "artifacts", run.parent / "mlartifacts" / ours / "artifacts"
    assert tracker.run_id == ours
    assert note.startswith(f"files that the run stored before stay in {old}, and new ones are in {new}; look at it")
    tracker.media([text_of(run, 1, "text")])
    assert artifacts(tracker) == {"texts/sample/step-00000001.txt": b"text"}
    assert (new / "texts" / "sample" / "step-00000001.txt").exists()
    assert tracker.client.get_experiment(number).artifact_location == str(run.parent / "mlartifacts")
    assert tracker.client.get_run(other.run_id).info.artifact_uri == other.artifact_uri
    assert tracker.client.get_run(second.run_id).info.artifact_uri == second.artifact_uri
    assert str(new).replace(ours, third.run_id) == tracker.client.get_run(third.run_id).info.artifact_uri
    assert not opened(run)[1].startswith("files")
    tracker, _ = opened(run, tracker_project="chosen")
    assert tracker.client.get_experiment(chosen).artifact_location == str(tmp_path / "my-files")
    tracker.media([text_of(run, 1, "text")])
    assert len(list((tmp_path / "my-files").rglob("step-00000001.txt"))) == 1


def test_addresses_are_shown_without_passwords():
    shown = {
        "postgresql://u:p@ss@host/db": "postgresql://host/db",
        "postgresql://u:p/s#@s@host/db?a=b": "postgresql://host/db?a=b",
        "postgresql://host/db": "postgresql://host/db",
        "https://u:p@ss@host/a@b": "https://host/a@b",
        "https://host/a@b": "https://host/a@b",
        "sqlite:////a@b/c@d.db": "sqlite:////a@b/c@d.db",
    }
    assert {uri: mlflow_address.public(uri) for uri in shown} == shown

"""Where a run goes at Weights & Biases, under which names, and what wandb gets to know about the machine."""

import json
import socket

import pytest

from lib.base.files import write_json
from lib.config.kconf import ROOT
from lib.record.run import Identity
from lib.track import wandb_place
from lib.track.wandb_place import Place
from tests.track.wandb_server import Api, serving
from tests.tracking import RUN_ID, recorded, state, sync, wandb_records

ROWS = [("train", 1, {"train_loss": 2.0}, {}), ("train", 2, {"train_loss": 1.0}, {})]
END = ("finish", 2, {"final_val_loss": 1.5}, {"status": "finished"})
ARGV = [str(ROOT / "gpt2" / "train.py"), "--max-iters", "2"]
EMPTY = {"tracker_project": "", "tracker_run_name": "", "wandb_entity": ""}


def run_with(folder, **config):
    recorded(folder, *ROWS, END, **EMPTY | {"wandb_offline": False} | config)
    write_json(folder / "provenance.json", {"argv": ARGV})
    return folder


def steps(api, *key):
    return [row["step"] for row in api.runs[key].history]


def environment(folder):
    """What wandb's own reader finds in the run's files about the machine."""
    records = wandb_records(folder)
    found = {}
    for record in records:
        found |= record.get("environment", {})
    begun = next(record["run"] for record in records if record["type"] == "run")
    kept = [one["path"] for record in records for one in record.get("files", {}).get("files", [])]
    return found, begun, kept


def test_wandb_gets_the_command_of_the_run_and_nothing_that_names_the_machine(run, api):
    folder = run_with(run.parent / "second")
    done = sync(folder, "--tracker", "wandb")
    assert done.returncode == 0, done.stdout + done.stderr
    found, begun, kept = environment(folder)
    assert (found["program"], found["args"]) == ("gpt2/train.py", ["--max-iters", "2"])
    assert (begun.get("host"), begun.get("git"), kept) == (None, None, [])
    assert {"host", "git", "email", "username", "code_path"} & found.keys() == set()
    metadata = json.loads(api.run.files["wandb-metadata.json"])
    assert (metadata["program"], metadata["args"]) == ("gpt2/train.py", ["--max-iters", "2"])
    assert {"host", "git", "email", "username", "codePath"} & metadata.keys() == set()
    assert {name for name in api.run.said if name in ("host", "repo", "commit")} == set()
    assert [name for name in api.run.files if "requirements" in name or "code" in name] == []
    sent = json.dumps([body for path, body in api.requests if "/otel/" not in path]) + str(api.run.files)
    assert socket.gethostname() not in sent.split() and f'"{socket.gethostname()}"' not in sent
    assert "lib.track" not in sent and "trackio==" not in sent


def test_the_full_configuration_has_the_host_and_the_packages(run):
    folder = run_with(run.parent / "second", tracker_config="full", wandb_offline=True)
    sync(folder, "--tracker", "wandb")
    found, begun, kept = environment(folder)
    assert (found["program"], found["args"]) == ("gpt2/train.py", ["--max-iters", "2"])
    assert (found["host"], begun["host"]) == (socket.gethostname(), socket.gethostname())
    assert kept == ["requirements.txt"]
    [requirements] = folder.glob("wandb/offline-run-*/files/requirements.txt")
    assert "wandb==" in requirements.read_text()


@pytest.mark.extra("wandb")  # slow
def test_a_run_without_a_command_tells_none(run):
    folder = recorded(run.parent / "second", *ROWS, END)
    sync(folder, "--tracker", "wandb")
    found, begun, kept = environment(folder)
    assert (found, begun.get("host"), kept) == ({}, None, [])


def test_variables_of_wandb_hold_where_the_options_are_empty(run, api, monkeypatch):
    for name, value in {"PROJECT": "theirs", "NAME": "a name", "ENTITY": "team"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_DIR", str(run.parent / "scratch"))
    (run.parent / "scratch").mkdir()
    folder = run_with(run.parent / "second")
    done = sync(folder, "--tracker", "wandb")
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(api, "team", "theirs", RUN_ID) == [1, 2]
    assert api.run.said["displayName"] == "a name"
    [file] = (run.parent / "scratch" / "wandb").glob("run-*/*.wandb")
    [link] = (folder / "wandb").glob("run-*")
    assert link.is_symlink() and link.resolve() == file.parent
    monkeypatch.delenv("WANDB_DIR")
    assert sync(folder, "--tracker", "wandb").returncode == 0
    assert steps(api, "team", "theirs", RUN_ID) == [1, 2] and api.run.conflicts == []


def test_an_option_wins_over_a_variable_and_a_note_says_so():
    env = {"WANDB_PROJECT": "theirs", "WANDB_NAME": "first", "WANDB_ENTITY": "they"}
    ours = {"tracker_project": "demo", "tracker_run_name": "first", "wandb_entity": "we"}
    place, note = wandb_place.chosen(Identity(RUN_ID, "demo", "first"), ours, env)
    assert (place.entity, place.project, place.name) == ("we", "demo", "first")
    assert note == (
        "TRACKER_PROJECT=demo is used, not WANDB_PROJECT=theirs; WANDB_ENTITY=we is used, not WANDB_ENTITY=they"
    )
    place, note = wandb_place.chosen(Identity(f"{RUN_ID}_2", "demo", "first~2"), EMPTY, env)
    assert (place.entity, place.project, place.name, note) == ("they", "theirs", "first~2", "")
    place, note = wandb_place.chosen(Identity(RUN_ID, "demo", "first"), {}, {"WANDB_PROJECT": "theirs"})
    assert (place.project, note) == ("demo", "TRACKER_PROJECT=demo is used, not WANDB_PROJECT=theirs")


@pytest.mark.parametrize(
    "mine, account, has",
    [
        (Place("s", "", "p", "n"), "", True),
        (Place("s", "", "p", "n"), "one", True),  # the default entity of the key is now known
        (Place("s", "one", "p", "n"), "one", False),  # the file has no entity, so it may go to another one
        (Place("t", "", "p", "n"), "", False),
        (Place("s", "", "q", "n"), "", False),
    ],
)
def test_a_file_of_an_offline_run_goes_where_the_variables_said(tmp_path, mine, account, has):
    file = tmp_path / "run-a.wandb"
    assert mine.has(file, account)  # an earlier version left no mark
    Place("s", "", "p", "other name").mark(file, "", tmp_path)
    assert mine.has(file, account) == has


def test_a_file_of_an_online_run_belongs_to_the_entity_that_the_server_said(tmp_path):
    file = tmp_path / "run-a.wandb"
    Place("s", "", "p", "n").mark(file, "one", tmp_path)
    assert Place("s", "", "p", "n").has(file) and Place("s", "one", "p", "n").has(file, "one")
    assert not Place("s", "", "p", "n").has(file, "two")  # another key
    assert not Place("s", "two", "p", "n").has(file, "two")
    (tmp_path / "run-a.wandb.destination").write_text("{")
    assert not Place("s", "", "p", "n").has(file)


@pytest.mark.extra("wandb")  # slow
def test_another_project_or_server_gets_the_whole_run_and_the_former_stays(run, api, monkeypatch):
    folder = run_with(run.parent / "second")
    assert sync(folder, "--tracker", "wandb").returncode == 0
    monkeypatch.setenv("WANDB_PROJECT", "other")
    done = sync(folder, "--tracker", "wandb")
    assert done.returncode == 0, done.stdout + done.stderr
    note = f"the rows went to {api.address}/demo before; {api.address}/other now gets all of the run"
    assert note in done.stdout
    assert steps(api, "someone", "demo", RUN_ID) == steps(api, "someone", "other", RUN_ID) == [1, 2]
    with serving(Api()) as second:
        monkeypatch.setenv("WANDB_BASE_URL", second.address)
        assert sync(folder, "--tracker", "wandb").returncode == 0
        assert steps(second, "someone", "other", RUN_ID) == [1, 2]
    assert state(folder, "wandb").destination == f"{second.address}/other"


@pytest.mark.extra("wandb")  # slow
def test_a_run_that_the_server_has_lost_is_sent_again(run, api):
    folder = run_with(run.parent / "second")
    assert sync(folder, "--tracker", "wandb").returncode == 0
    api.runs.clear()
    done = sync(folder, "--tracker", "wandb")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{api.address}/demo does not hold the run any more and gets all of it again" in done.stdout
    assert steps(api, "someone", "demo", RUN_ID) == [1, 2]

"""Uploads to Weights & Biases: `make sync` of offline and killed runs, what is missing, and what a server refuses."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from lib.track import wandb_private as private
from lib.track import wandb_upload
from tests.track.wandb_server import KEY, NOWHERE, Api, serving, stopped_on_the_way
from tests.tracking import (
    ROOT,
    RUN_ID,
    assert_wandb_holds,
    expected,
    recorded,
    state,
    sync,
    train,
    trainer,
    wait_for,
    wandb_rows,
)

ROWS = [("train", 1, {"train_loss": 2.0}, {}), ("finish", 1, {"final_val_loss": 1.5}, {"status": "finished"})]


def steps(api):
    return [line["step"] for line in api.run.history] if api.runs else []


def wanted(run):
    return [step for event, step in expected(run) if event != "finish"]


def files(run, pattern="*run-*"):
    return sorted(path for path in (run / "wandb").glob(f"{pattern}/*.wandb") if not path.parent.is_symlink())


def upload(*words):
    """Run wandb itself."""
    command = [sys.executable, "-m", "wandb", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def uploaded(folder, code="pass"):
    """What our function says, in a process of its own: wandb reads the environment once."""
    program = (
        f"from pathlib import Path; from lib.track import wandb_upload; {code}; "
        f"print(wandb_upload.upload(Path({str(folder)!r}), {{}}))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    return (done.stdout or done.stderr).splitlines()[-1]


def offline(folder):
    """A finished run that was kept offline."""
    recorded(folder, *ROWS)
    done = sync(folder, "--tracker", "wandb")
    assert "wandb     finished  2 rows delivered" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    return folder, done


def test_make_sync_uploads_a_finished_offline_run_once(run, api, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert "offline by WANDB_MODE" in train(run, "wandb")
    assert api.runs == {}
    done = sync(run)
    assert (done.returncode, done.stderr) == (0, "")
    [file] = files(run)
    assert f"wandb: uploaded to {api.address}/demo ({file.parent.name})\n" in done.stdout
    assert private.uploaded_mark(file).exists()
    assert steps(api) == wanted(run)
    assert (api.run.summary["final_val_loss"], api.run.summary["best_val_loss"]) == (1.5, 1.25)
    before = len(api.requests)
    done = sync(run)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"wandb: everything is uploaded to {api.address}/demo\n" in done.stdout
    assert steps(api) == wanted(run) and files(run) == [file]
    assert [body for path, body in api.requests[before:] if (body.get("files") or {}).get("wandb-history.jsonl")] == []


def test_without_a_key_or_against_wandb_mode_nothing_is_uploaded_and_the_reason_is_one_sentence(run, api, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    folder, done = offline(run.parent / "second")
    words = f"error: wandb: {folder}/wandb is not uploaded: "
    assert done.stderr == f"{words}there is no API key; run: wandb login, or set WANDB_API_KEY\n"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = sync(folder, "--tracker", "wandb")
    assert (done.returncode, done.stderr) == (1, f"{words}WANDB_MODE=offline forbids it; unset WANDB_MODE\n")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    problem = "WANDB_API_KEY invalid: API key must have 40+ characters, has 5."
    assert f"wandb is not uploaded: the API key cannot be right: {problem}; run: wandb login" in uploaded(folder)
    assert api.runs == {}


def test_a_server_that_does_not_answer_costs_no_row_and_little_time(run, unplugged):
    folder = recorded(run.parent / "second", *ROWS, wandb_offline=False)
    done = sync(folder, "--tracker", "wandb")
    upload = f"wandb sync {folder}/wandb/offline-run-*"
    assert f"offline because the server cannot be reached; upload the run with: {upload}" in done.stdout
    assert wandb_rows(folder) == [(1, {"train_loss": 2.0})] and KEY not in done.stdout
    missing = f"{folder}/wandb is not uploaded: {NOWHERE} does not answer (ConnectionError)"
    assert (done.returncode, done.stderr) == (1, f"error: wandb: {missing}\n")


@pytest.mark.extra("wandb")  # slow
def test_a_server_that_dies_during_the_upload_ends_it_with_a_sentence(run, monkeypatch):
    """wandb itself would try for hours."""
    folder, _ = offline(run.parent / "second")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(wandb_upload, "ASK_SECONDS", 1)
        monkeypatch.setattr(wandb_upload, "ANSWER_SECONDS", 0.5)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", address)
        began = time.monotonic()
        with pytest.raises(Exception, match=rf"not completely uploaded: {address} does not answer \(ReadTimeout\)"):
            wandb_upload.sync(folder, files(folder), address)
        assert time.monotonic() - began < 20
    assert not private.uploaded_mark(files(folder)[0]).exists()


def test_make_sync_uploads_what_a_killed_process_had_not_uploaded(run, api, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    process = stopped_on_the_way(run)
    os.kill(int((run / "trackers" / "wandb.lock").read_text()), signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=120)
    [killed] = files(run)
    done = sync(run, "--tracker", "wandb")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"wandb: everything is uploaded to {api.address}/demo\n" in done.stdout
    assert private.uploaded_mark(killed).exists() and api.run.conflicts == []
    assert sorted(steps(api)) == sorted(wanted(run))
    done = sync(run, "--tracker", "wandb")
    assert "wandb: everything is uploaded" in done.stdout and sorted(steps(api)) == sorted(wanted(run))
    assert_wandb_holds(run)


@pytest.mark.extra("wandb")  # slow
def test_a_network_lost_on_the_way_ends_in_a_sentence_and_the_rest_goes_up_later(run, api, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    process = stopped_on_the_way(run)
    port = api.server_port
    api.shutdown()
    api.server_close()
    process.send_signal(signal.SIGCONT)
    output = process.communicate(timeout=60)[0]
    [file] = files(run)
    assert "wandb     failed    49 rows delivered" in output
    command = f"wandb sync --include-online {file.parent}"
    assert f"could not upload everything; upload the rest with: {command}\n" in output
    assert_wandb_holds(run)
    with serving(Api(port)) as later:
        done = sync(run, "--tracker", "wandb")
        assert (done.returncode, done.stderr) == (0, "")
        assert steps(later) == wanted(run) and later.run.conflicts == []


def test_a_torn_and_an_empty_file_of_killed_processes_do_not_stop_the_upload(run, api, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        folder, _ = offline(run.parent / "second")
    [file] = files(folder)
    os.truncate(file, file.stat().st_size - 3)
    empty = folder / "wandb" / "offline-run-20200101_000000-0123456789ab"
    empty.mkdir()
    (empty / file.name).touch()
    assert uploaded(folder) == f"uploaded to {api.address}/demo ({file.parent.name})"
    assert private.uploaded_mark(file).exists() and steps(api) == [1]
    assert uploaded(folder) == f"everything is uploaded to {api.address}/demo"


def test_a_server_that_refuses_rows_is_no_success(run, api):
    api.refuses = "file_stream"
    folder = recorded(run.parent / "second", *ROWS, wandb_offline=False)
    done = sync(folder, "--tracker", "wandb")
    [file] = files(folder)
    assert done.returncode == 1
    command = f"wandb sync --include-online {file.parent}"
    assert f"could not upload everything; upload the rest with: {command}\n" in done.stdout
    said = uploaded(folder)
    assert "/wandb is not completely uploaded: " in said and "403 Forbidden" in said
    assert not private.uploaded_mark(file).exists()  # wandb had made the mark
    api.refuses = "nothing"
    assert uploaded(folder) == f"uploaded to {api.address}/demo ({file.parent.name})"
    assert steps(api) == [1] and api.run.conflicts == []


@pytest.mark.extra("wandb")  # slow
@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_is_told_at_once_and_the_run_is_delivered_later(run, api, code, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    api.refuses, api.code = "graphql", code
    process = trainer(run, "wandb", end=200, pause=0.1, deadline=0)
    wait_for(lambda: "refuses the run" in state(run, "wandb").message, 20)
    assert process.poll() is None
    process.send_signal(signal.SIGSTOP)
    process.kill()
    assert state(run, "wandb").message.startswith(
        f"{api.address}/demo refuses the run: Failed to get resume status for run {RUN_ID}: returned error {code}"
    )
    process.communicate(timeout=120)
    wait_for(lambda: state(run, "wandb").state == "failed", 60)
    api.refuses = "nothing"
    done = sync(run, "--tracker", "wandb")
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(api) == wanted(run)


@pytest.mark.extra("wandb")  # slow
def test_a_key_of_the_wrong_form_is_told_and_named_as_such(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_API_KEY", "only-twenty-or-so-letters")
    folder = recorded(run.parent / "second", *ROWS, wandb_offline=False)
    done = sync(folder, "--tracker", "wandb")
    assert done.returncode == 1
    assert "wandb     failed    0 rows delivered, 2 pending" in done.stdout
    said = r"wandb: the API key cannot be right: WANDB_API_KEY invalid: .* 40\+ characters, has \d+\.; run: wandb login"
    assert re.search(said, done.stdout), done.stdout
    monkeypatch.delenv("WANDB_API_KEY")
    done = sync(folder, "--tracker", "wandb")
    assert "wandb     finished  2 rows delivered" in done.stdout


@pytest.mark.extra("wandb")  # slow
def test_wandb_itself_takes_all_runs_by_a_pattern_and_bare_asks_first(run, api, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        folders = [offline(run.parent / name)[0] for name in ("second", "third")]
    monkeypatch.chdir(run.parent.parent)
    assert "No runs to sync" in upload("sync", "--yes").stderr
    found = [str(path.relative_to(run.parent.parent)) for path in run.parent.parent.glob("runs/*/wandb/offline-run-*")]
    done = upload("sync", *found)
    assert done.returncode == 0 and len(found) == 2
    assert [private.uploaded_mark(file).exists() for folder in folders for file in files(folder)] == [True, True]
    monkeypatch.chdir(folders[0])
    private.uploaded_mark(files(folders[0])[0]).unlink()
    assert "NotATerminalError" in upload("sync").stderr

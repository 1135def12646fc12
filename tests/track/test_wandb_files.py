"""The .wandb files of a run that were damaged, cut, removed, moved or made by a stranger, and links in its folder."""

import os
import shutil
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2 as proto

from lib.base.errors import UserError
from lib.record import journal
from lib.track import wandb_files
from lib.track import wandb_private as private
from lib.track.wandb_place import Place
from tests.track.wandb_server import ENTITY, KEY
from tests.tracking import RUN_ID, recorded, sync, wandb_rows

PLACE = Place("http://server", "", "demo", "first")
END = ("finish", 300, {"final_val_loss": 1.5}, {"status": "finished"})


def rows(first, last):
    return [("train", step, {"train_loss": 2.0}, {}) for step in range(first, last + 1)]


def files(folder):
    return sorted((folder / "wandb").glob("*run-2*/*.wandb"))


def deliver(folder):
    return sync(folder, "--tracker", "wandb")


def extend(folder, *events):
    book = journal.Journal(folder)
    book.write("resume", 0, config={"tracker": [], "wandb_offline": False})
    for event, step, metrics, more in events:
        book.write(event, step, metrics, **more)
    book.close()


def one_file(folder, *records, name="offline-run-20260101_000000-aa"):
    path = folder / "wandb" / name / f"run-{RUN_ID}.wandb"
    path.parent.mkdir(parents=True)
    private.write_log(path, [record.SerializeToString() for record in records])
    return path


def begun(**changes):
    return proto.Record(run=proto.RunRecord(**{"run_id": RUN_ID, "project": "demo"} | changes))


def artifact(local_path, **changes):
    manifest = proto.ArtifactManifest(contents=[proto.ArtifactManifestEntry(path="k", local_path=str(local_path))])
    about = {"run_id": RUN_ID, "project": "demo", "manifest": manifest}
    return proto.Record(artifact=proto.ArtifactRecord(**about | changes))


def usable(folder, path, account="someone", place=PLACE):
    ledger = wandb_files.Ledger(folder, place, RUN_ID)
    return wandb_files.usable([path], ledger, place, folder, lambda: account)


def test_one_damaged_byte_costs_no_row(run, api, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        folder = recorded(run.parent / "second", *rows(1, 300), END)
        deliver(folder)
    [file] = files(folder)
    data = bytearray(file.read_bytes())
    data[32768 + 6] = 9  # the kind of the first chunk of the second block
    file.write_bytes(data)
    done = deliver(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(row["step"] for row in api.run.history) == list(range(1, 301)) and api.run.conflicts == []
    assert api.run.summary["final_val_loss"] == 1.5
    assert file.with_name(f"{file.name}.damaged").read_bytes() == data
    assert len(wandb_rows(folder)) == 300


@pytest.mark.parametrize("loss", ["removed", pytest.param("cut", marks=pytest.mark.extra("wandb"))])  # slow
def test_a_file_that_was_removed_or_cut_before_its_upload_is_delivered_again(run, api, monkeypatch, loss):
    with monkeypatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        folder = recorded(run.parent / "second", *rows(1, 20))
        deliver(folder)
        extend(folder, *rows(21, 24), END)
        deliver(folder)
    first, _ = files(folder)
    if loss == "removed":
        shutil.rmtree(first.parent)
    else:
        os.truncate(first, first.stat().st_size // 2)
    done = deliver(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(row["step"] for row in api.run.history) == list(range(1, 25)) and api.run.conflicts == []
    shutil.rmtree(folder / "wandb")  # the server has everything
    done = deliver(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not hold" not in done.stdout and len(api.run.rows) == 24


@pytest.mark.extra("wandb")  # slow
def test_the_upload_of_a_later_file_keeps_the_summary(run, api, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        folder = recorded(run.parent / "second", *rows(1, 2), END)
        deliver(folder)
        extend(folder, *rows(3, 4))
        deliver(folder)
    assert len(files(folder)) == 2
    assert deliver(folder).returncode == 0
    assert (api.run.summary["final_val_loss"], api.run.summary["train_loss"]) == (1.5, 2)
    assert [row["step"] for row in api.run.history] == [1, 2, 3, 4]


def test_a_file_of_a_stranger_uploads_nothing_of_the_user_and_withholds_no_row(run, api, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE")
    folder = recorded(run.parent / "second", *rows(1, 2), END)
    row = proto.HistoryRecord(item=[proto.HistoryItem(key="step", value_json="1")])
    row.item.append(proto.HistoryItem(key="train_loss", value_json="9"))
    one_file(folder, begun(entity="attacker"), proto.Record(history=row), artifact(secret, entity="attacker"))
    done = deliver(folder)
    assert done.returncode == 1
    assert f"it belongs to attacker, not to {ENTITY}; remove {folder}/wandb/offline-run-" in done.stderr
    assert list(api.runs) == [(ENTITY, "demo", RUN_ID)] and api.artifacts == {}
    assert [(row["step"], row["train_loss"]) for row in api.run.history] == [(1, 2), (2, 2)]


def test_a_file_is_used_only_if_its_run_and_its_paths_are_those_of_the_folder(tmp_path):
    folder = tmp_path / "run"
    (folder / "trackers").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    outside = proto.Record(files=proto.FilesRecord(files=[proto.FilesItem(path="../../../../secret")]))
    boards = proto.Record(tbrecord=proto.TBRecord(log_dir="/home"))
    wrong = {
        "a": ([begun(project="other")], f"it belongs to the run other/{RUN_ID}, not to demo/{RUN_ID}"),
        "b": ([begun(run_id="x")], f"it belongs to the run demo/x, not to demo/{RUN_ID}"),
        "c": ([begun(), artifact(tmp_path / "secret")], f"it would upload {tmp_path}/secret, which is no file in"),
        "d": ([begun(), outside], "it would upload "),
        "e": ([begun(), boards], "it has a record of the kind tbrecord"),
        "f": ([begun(), artifact("", entity="two")], "it belongs to two, not to someone"),
    }
    for name, (records, said) in wrong.items():
        path = one_file(folder, *records, name=f"run-{name}")
        good, problem = usable(folder, path)
        assert (good, problem.startswith(f"{path}: {said}")) == ([], True), problem
    path = one_file(folder, begun(entity="someone"), artifact(folder / "wandb" / "artifacts" / "x"), name="run-g")
    assert usable(folder, path) == ([path], "")
    assert usable(folder, path, account=None) == ([path], "")  # offline, nobody knows
    path = one_file(folder, proto.Record(uuid="x"), name="run-h")
    private.write_log(path, [b"\xff\xff"])
    assert "wandb cannot read it" in usable(folder, path)[1]


def test_the_paths_of_a_moved_run_are_corrected_and_only_those(tmp_path):
    folder = tmp_path / "run"
    (folder / "trackers").mkdir(parents=True)
    name = "offline-run-20260101_000000-aa"
    path = one_file(folder, begun(), artifact(f"/old/wandb/run/wandb/{name}/artifacts/1/best.pt"), name=name)
    ledger = wandb_files.Ledger(folder, PLACE, RUN_ID)
    log = private.TransactionLog(path)
    list(log.records())
    ledger.note([log], forget=False)
    assert wandb_files.usable([path], ledger, PLACE, folder, lambda: None) == ([path], "")
    [entry] = [
        r.artifact.manifest.contents[0] for r in private.TransactionLog(path).records() if r.HasField("artifact")
    ]
    assert entry.local_path == f"{folder}/wandb/{name}/artifacts/1/best.pt"
    assert not wandb_files.Ledger(folder, PLACE, RUN_ID).misses([path])


def test_a_log_is_written_as_it_is_read(tmp_path):
    bodies = [b"a", b"b" * 40000, b"", b"c" * 32754, b"d" * 100000]
    private.write_log(tmp_path / "x.wandb", bodies)
    log = private.TransactionLog(tmp_path / "x.wandb")
    assert list(log.bodies()) == bodies and log.position == (tmp_path / "x.wandb").stat().st_size


def test_links_that_leave_the_runs_folder_are_refused(tmp_path, monkeypatch):
    folder, home = tmp_path / "run", tmp_path / "home"
    log = folder / "wandb" / "run-a" / "logs"
    log.mkdir(parents=True)
    (home / "wandb" / "run-b").mkdir(parents=True)
    (log / "debug-core.log").symlink_to(home / "core.log")  # wandb's own
    (folder / "wandb" / "latest-run").symlink_to("run-a")
    wandb_files.check_links(folder)
    link = folder / "wandb" / "debug-cli.root.log"
    link.symlink_to("../../home/.bashrc")
    with pytest.raises(UserError, match=f"{link}: leads out of the run's folder to {home}/.bashrc, so wandb does not"):
        wandb_files.check_links(folder)
    link.unlink()
    (folder / "wandb" / "run-b").symlink_to(home / "wandb" / "run-b")
    with pytest.raises(UserError, match="leads out"):
        wandb_files.check_links(folder)
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_DIR", str(home))
        wandb_files.check_links(folder)
    file = home / "wandb" / "run-b" / f"run-{RUN_ID}.wandb"
    file.touch()
    PLACE.mark(file, "", tmp_path / "another run")
    with pytest.raises(UserError, match="leads out"):
        wandb_files.check_links(folder)
    PLACE.mark(file, "", folder)
    wandb_files.check_links(folder)


def test_the_password_of_an_address_is_not_kept(run, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://user:hunter2pass@127.0.0.1:9")
    folder = recorded(run.parent / "second", *rows(1, 2), END)
    deliver(folder)
    kept = [path for path in folder.rglob("*") if path.is_file() and b"hunter2pass" in path.read_bytes()]
    assert (kept, len(files(folder))) == ([], 1)
    [mark] = folder.glob("wandb/offline-run-*/*.destination")
    old = mark.read_text().replace("http://127", "http://user:hunter2pass@127")
    mark.write_text(old)  # as an earlier version wrote it
    assert Place("http://127.0.0.1:9", "", "demo", "x").has(Path(str(mark).removesuffix(".destination")))
    assert KEY not in old

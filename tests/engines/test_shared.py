"""The check of shared folders: what is seen, what is not, locks that do not hold, and other versions."""

import multiprocessing
from pathlib import Path

import pytest

from lib.base import files
from lib.base.errors import UserError
from lib.engines import shared


def in_a_worker(here, offers):
    """What another process finds."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(shared.look(here, offers)))
    process.start()
    found = queue.get(timeout=20)
    process.join()
    return found


def test_a_shared_folder_is_read_written_and_locked_and_nothing_is_left(folder):
    (folder / "runs").mkdir()
    with shared.offered([folder, folder / "runs", folder / "data/x"]) as offers:
        assert [Path(name).parent for name, _ in offers] == [folder, folder / "runs", folder]
        there, wrong = in_a_worker(str(folder), offers)
        assert (there, wrong) == (shared.versions(), "")
        shared.check("second", there, wrong, offers)
    assert [path.name for path in folder.rglob("*")] == ["runs"]


def test_a_folder_that_is_not_there_is_named(folder):
    with shared.offered([folder]) as offers:
        assert in_a_worker(str(folder / "none"), offers)[1].startswith(f"{folder}/none: is not the same there (No such")
        lost = [(str(folder / "runs/.shared-1"), "token")]
        there, wrong = in_a_worker(str(folder), lost)
        with pytest.raises(UserError) as caught:
            shared.check("second", there, wrong, lost)
        assert str(caught.value) == (
            f"{folder}/runs: the worker second cannot train here: is not the same there (No such file or directory); "
            f"{shared.SHARE}"
        )


def test_another_folder_of_the_same_name_is_found_out(folder, monkeypatch):
    monkeypatch.setattr(shared, "_SECONDS", 0.2)
    with shared.offered([folder]) as offers:
        [(name, token)] = offers
        assert in_a_worker(str(folder), [(name, "x" + token)])[1] == f"{folder}: is another folder there"
        told = rf"^{folder}: what the worker second writes there is not seen here; {shared.SHARE}$"
        with pytest.raises(UserError, match=told):
            shared.check("second", shared.versions(), "", offers)


def test_locks_that_hold_on_one_machine_only_are_found_out(folder, monkeypatch):
    with shared.offered([folder]) as offers:
        monkeypatch.setattr(files, "locks", lambda *_: True)
        assert in_a_worker(str(folder), offers)[1].startswith(f"{folder}: a lock that this program holds does not hold")


def test_other_versions_are_refused(monkeypatch):
    here = {"Python": "3.11", "torch": "2.13.0"}
    monkeypatch.setattr(shared, "versions", lambda: here)
    shared.check("second", here, "", [])
    with pytest.raises(UserError) as caught:
        shared.check("second", here | {"torch": "2.12.1"}, "", [])
    assert str(caught.value) == (
        "the worker second has Python 3.11 and torch 2.12.1, and this program has Python 3.11 and torch 2.13.0; start "
        "it there from the same environment"
    )

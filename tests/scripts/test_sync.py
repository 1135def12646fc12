"""make sync: what trackers keep offline is uploaded after the delivery; a failure is an exit code and a sentence."""

import textwrap

import pytest

import lib.track
from lib.record import journal
from scripts import sync
from tests.tracking import new_run

MODULE = """
    from lib.base.errors import UserError
    def upload(folder, config):
        {body}
"""


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    """Make lib/track/<name>.py from the body of its function `upload`."""
    monkeypatch.setattr(lib.track, "__path__", [*lib.track.__path__, str(tmp_path / "more")])
    (tmp_path / "more").mkdir()

    def make(name, body):
        (tmp_path / "more" / f"{name}.py").write_text(textwrap.dedent(MODULE).format(body=body))

    return make


@pytest.fixture
def folder(tmp_path):
    """A run with a configuration."""
    book = journal.Journal(new_run(tmp_path / "run"))
    book.write("start", 0, config={"tracker": [], "max_iters": 7})
    book.close()
    return tmp_path / "run"


def test_trackers_upload_with_the_configuration_and_say_what_they_did(tracker, folder, capsys):
    tracker("sendsall", "return f\"sent {folder.name} of {config['max_iters']} steps\"")
    assert sync.upload(folder, ["csv", "sendsall"]) == []
    said = capsys.readouterr()
    assert (said.out, said.err) == ("sendsall: sent run of 7 steps\n", "")


def test_a_tracker_that_cannot_upload_is_named_and_stops_no_other(tracker, folder, capsys):
    tracker("sendsnone", 'raise UserError("nothing is uploaded: there is no key")')
    tracker("sendslater", 'return "done"')
    assert sync.upload(folder, ["sendsnone", "sendslater"]) == ["sendsnone"]
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "sendslater: done\n",
        "error: sendsnone: nothing is uploaded: there is no key\n",
    )


def test_a_run_without_a_tracker_is_refused(program, folder):
    done = program("scripts/sync.py", str(folder))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {folder}: this run has no tracker; name one, as in --tracker trackio\n"

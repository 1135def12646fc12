"""Files and texts that libraries of trackers refuse: damaged ones are one sentence, and texts become UTF-8."""

import json
import os
import subprocess
import sys

import pytest

from lib.base.errors import UserError
from lib.track import clean, media_files
from lib.track.tracker import plain_name
from tests.track.damaged import damaged
from tests.tracking import ROOT, RUN_ID, run
from tests.trackio_show import database

__all__ = ["run"]  # a fixture
LATIN, UTF8 = os.fsdecode(b"gr\xf6\xdfe"), r"gr\udcf6\udcdfe"

# Hands damaged files, texts that are no UTF-8, and an artifact in the other mode to the tracker; prints what it says.
PROGRAM = f"""
import os, sys
from pathlib import Path
from lib.base.errors import UserError
from lib.record.run import Identity
from lib.track import trackio
from lib.track.tracker import Alert, Configuration, Media, Row
from tests.track.damaged import damaged
folder, latin = Path(sys.argv[1]), {LATIN!r}

def opened(project):
    tracker, config = trackio.Tracker(), Configuration({{"file": latin}}, {{"tracker_group": latin}})
    tracker.open(Identity("{RUN_ID}", project, latin), config, folder)
    return tracker

def told(tracker, item):
    try:
        tracker.media([item])
    except UserError as error:
        print(error)

tracker = opened("demo")
for item in damaged(folder / "media"):
    told(tracker, item)
print(tracker.holds())
tracker.log([Row("train", 0, 0.0, {{latin: 1.0}})])
tracker.alert([Alert(latin, 0, 0.0, "warn", latin)])
for kind in ("table", "text", "artifact"):
    tracker.media([Media(kind, latin, 1, 0.0, folder / "file")])
os.environ["TRACKIO_STORAGE_MODE"] = "jsonl"
told(opened("other"), Media("artifact", "weights", 1, 0.0, folder / "file"))
"""


def test_a_damaged_file_is_one_sentence(tmp_path):
    for item in damaged(tmp_path):
        with pytest.raises(UserError, match=rf"{item.name}: .*(PNG|table)"):
            (media_files.image if item.kind == "image" else media_files.table)(item)


def test_texts_become_utf_8_and_stay_apart():
    assert clean.text([LATIN, {LATIN: ("a", 1)}]) == [UTF8, {UTF8: ("a", 1)}]
    assert plain_name(LATIN, "(?!)", 50) == "gr--e-9cc9c823"
    assert plain_name(os.fsdecode(b"gr\xf6\xdee"), "(?!)", 50) == "gr--e-ac3bdd20"


def test_trackio_refuses_damaged_files_and_takes_any_name(run, tmp_path):
    (run / "file").write_text(json.dumps({"columns": [LATIN], "rows": [[LATIN]]}))
    words = [sys.executable, "-c", PROGRAM, str(run)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    *refused, held, mode = done.stdout.splitlines()
    assert len(refused) == 11 and all("PNG" in line or "table" in line for line in refused)
    assert held == "False"
    assert "Trackio gets no artifacts in its mode for network file systems" in mode
    assert not (tmp_path / "trackio" / "other.db").exists()
    assert database("select run_name, json_extract(metrics, '$') from metrics where step = 0") == [
        (UTF8, json.dumps({UTF8: 1.0}, separators=(",", ":")))
    ]
    assert database("select text from alerts") == [(UTF8,)]
    assert database("select count(*) from artifact_versions") == [(1,)]
    assert json.loads(database("select config from configs")[0][0])["file"] == UTF8

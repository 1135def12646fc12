"""The disk fills up at every write: programs run on disks of every size, from where nothing fits to where all does.

A run is tried in steps of some pages here; FULL_DISK_STEP=1 tries every size.
"""

import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lib import track
from lib.base.errors import UserError
from lib.config import kconf
from lib.record import export, journal, provenance
from lib.record.run import Identity
from lib.track import csv, lane, tensorboard
from lib.track.cursor import Cursor
from lib.track.tracker import Alert, Row
from tests import forked, runs
from tests.disk import disk
from tests.forked import Trainer
from tests.training import ROOT, TEXT, arguments, environment
from tests.wholeness import is_intact

__all__ = ["disk"]  # fixtures

PAGE = 4096  # bytes: the least that a file takes on such a disk
ANY = resource.RLIM_INFINITY
STEP = int(os.environ.get("FULL_DISK_STEP", "0"))
SHORT = r"No space left on device; it takes [\d,]+ bytes and ([\d,]+ bytes are free|no more files fit) there; make room"

# ---- a whole run -----------------------------------------------------------------------------------------------------

SMALL = {
    "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "gradient_accumulation": 1, "max_iters": 16,
    "warmup_steps": 1, "eval_interval": 4, "eval_samples": 2, "checkpoint_interval": 4, "sample_tokens": 0,
    "output_dir": "disk", "json_output": "disk/result.json",
}  # fmt: skip
LIMITS = {  # what is short -> mount options for so much of it, the step in which the suite tries it
    "room": (lambda n: f"size={n * PAGE}", 11),
    "files": (lambda n: f"size=16m,nr_inodes={n}", 3),
    "file size": (lambda n: "size=16m", 13),
}


def train(folder: Path, *words: str, largest: int = ANY) -> tuple[int, str]:
    """Exit code and output of the trainer, which may write files of `largest` bytes; without git, no changes."""
    process = Trainer(folder, list(words), environment() | {"PATH": ""})
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, largest))
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def refused(code: int, output: str) -> bool:
    """Whether the run failed, which must be with one sentence that says what is short."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    if code == 0:
        return False
    assert (code, len(errors), "Traceback" in output) == (1, 1, False), output
    assert re.search(r"No space left on device|File too large|MB are free", errors[0]), errors
    assert "; make room" in errors[0]
    return True


def assert_whole(run: Path, wanted: Path) -> None:
    """Every file in a run's folder is whole, and what it says is in the finished run `wanted` too."""
    for path in (path for path in run.rglob("*") if path.is_file() and path.name != "lock"):
        if path.suffix == ".pt":
            assert is_intact(path), path
        elif path.suffix == ".json":
            same = re.sub(r"^provenance-\d+", "provenance", path.name)
            assert json.loads(path.read_text()).keys() == json.loads((wanted / same).read_text()).keys()
        elif path.name == "journal.jsonl":
            assert path.read_bytes()[-1:] in (b"", b"\n") and journal.damaged(run) == []
            assert measured(run).items() <= measured(wanted).items()
        else:
            assert path.read_bytes() == (wanted / path.relative_to(run)).read_bytes(), path


def measured(run: Path) -> dict[tuple[str, int], dict]:
    return {key: journal.lasting(record["metrics"]) for key, record in journal.history(run).items()}


def assert_same_end(run: Path, wanted: Path) -> None:
    """Two runs have measured the same, and have the same weights."""
    assert measured(run) == measured(wanted)
    last = "checkpoints/step-000000016.pt"
    one, other = (torch.load(folder / last, weights_only=True)["model"] for folder in (run, wanted))
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    assert json.loads((run / "summary.json").read_text())["steps"] == 16


@pytest.fixture
def place(tmp_path, disk) -> Iterator[tuple[Path, list[str], Path, Callable[[str], Path]]]:
    """A folder to train in, the words for it, the run that has all it needs, and what mounts `disk` in the folder."""
    (tmp_path / "corpus.txt").write_text(TEXT[:20_000])
    words = arguments(**SMALL)
    disk("size=16m,nr_inodes=9999")
    assert train(tmp_path, *words)[0] == 0
    shutil.move(tmp_path / "disk" / "run", tmp_path / "wanted")
    return tmp_path, words, tmp_path / "wanted", disk


@pytest.mark.parametrize("short", LIMITS)
def test_a_run_whose_disk_fills_up_says_what_it_needs_and_goes_on_to_the_same_end(place, short):
    """On every disk: one sentence, whole files alone, the same again by a resume, and with room the same end."""
    folder, words, wanted, mount = place
    options, step = LIMITS[short]
    run, failures = folder / "disk" / "run", 0
    for size in itertools.count(1, STEP or step):
        shutil.rmtree(run, ignore_errors=True)
        (folder / "disk" / "result.json").unlink(missing_ok=True)
        mount(options(size))
        largest = size * 1000 if short == "file size" else ANY
        if not refused(*train(folder, *words, largest=largest)):
            break
        failures += 1
        assert_whole(run, wanted)
        begun = (run / "run.json").exists()
        again = ["--resume", "disk/run"] if begun else words
        assert refused(*train(folder, *again, largest=largest)), "it went on without what it lacked"
        assert_whole(run, wanted)
        assert (run / "run.json").exists() == begun
        mount("size=16m,nr_inodes=9999")
        assert train(folder, *again)[0] == 0
        assert_same_end(run, wanted)
        assert sorted(path.name for path in (folder / "disk").iterdir()) == ["result.json", "run"]
    assert failures > 3
    assert_same_end(run, wanted)
    print(f"{failures} disks that were too small, by {short}")


def test_a_change_that_a_full_disk_keeps_from_being_recorded_has_not_been_made(place):
    """The resume of a finished run with more steps and another learning rate, where there is too little room for it."""
    folder, words, wanted, mount = place
    run, more = folder / "disk" / "run", ["MAX_ITERS=16", "LEARNING_RATE=0.002"]
    assert train(folder, *words, "--max-iters", "8", "--output-dir", "begun")[0] == 0
    shutil.rmtree(wanted)
    shutil.copytree(folder / "begun" / "run", run)
    assert train(folder, "--resume", "disk/run", *more)[0] == 0
    shutil.move(run, wanted)
    refusals = 0
    # The first pages are those of the change itself, the others of what is trained after it.
    for pages in itertools.count(0, STEP) if STEP else itertools.chain((0, 2, 4), itertools.count(7, 11)):
        shutil.rmtree(run, ignore_errors=True)
        mount("size=16m")
        shutil.copytree(folder / "begun" / "run", run)
        disk = os.statvfs(run)
        mount(f"size={(disk.f_blocks - disk.f_bfree + pages) * disk.f_bsize}")
        if not refused(*train(folder, "--resume", "disk/run", *more)):
            break
        refusals += 1
        mount("size=16m")
        assert journal.damaged(run) == []
        if not journal_has_changed(run):
            assert (run / "summary.json").exists()
            assert (run / ".config").read_text() == (folder / "begun/run/.config").read_text()
        assert train(folder, "--resume", "disk/run", *more)[0] == 0
        assert_same_end(run, wanted)
    assert refusals > 1
    assert_same_end(run, wanted)
    print(f"{refusals} disks that were too small, for a change")


def journal_has_changed(run: Path) -> bool:
    return any(record["event"] == "resume" and record.get("changed") for record in journal.read(run))


# ---- one file at a time ----------------------------------------------------------------------------------------------


def texts(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def empty(mount: Callable[[str], Path], pages: int) -> Path:
    """An empty folder on a disk with room for so many pages of files."""
    shutil.rmtree(mount("size=16m") / "here", ignore_errors=True)
    folder = mount(f"size={pages * PAGE}") / "here"
    folder.mkdir()
    return folder


def assert_all_or_nothing(write: Callable[[Path], None], tmp_path: Path, mount: Callable[[str], Path]) -> None:
    """Write on disks of every size: where it does not fit, the sentence says so, and each file is whole or missing."""
    (tmp_path / "new").mkdir()
    write(tmp_path / "new")
    wanted = texts(tmp_path / "new")
    for pages in itertools.count(1):
        folder = empty(mount, pages)
        try:
            write(folder)
        except UserError as error:
            assert re.fullmatch(rf"{folder}/\S+: cannot be written: {SHORT}", str(error))
            assert texts(folder).items() <= wanted.items()
        else:
            break
    assert texts(folder) == wanted
    assert pages >= sum(-(-len(text) // PAGE) for text in wanted.values()) > 1


@pytest.mark.parametrize("form", export.FORMATS)
def test_a_table_is_exported_whole_or_not_at_all(tmp_path, disk, form):
    columns = ["step", "time", *(f"metric_{n}" for n in range(8))]
    rows = [dict.fromkeys(columns, 1 / (step + 3)) | {"step": step} for step in range(200)]
    table = export.Table(columns, rows)
    assert_all_or_nothing(lambda folder: export.write(table, form, folder / f"m.{form}"), tmp_path, disk)


def test_what_a_run_keeps_of_its_code_is_whole(tmp_path, disk, monkeypatch):
    clone = tmp_path / "clone"
    for words in (["init", "-q", clone], ["-C", clone, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *"-c user.name=a -c user.email=a@b -c commit.gpgsign=false".split(), *words], check=True)
    (clone / "new.py").write_text("".join(f"x = {n}\n" for n in range(1500)))
    monkeypatch.setattr(provenance, "ROOT", clone)
    schema = kconf.Schema()
    assert_all_or_nothing(lambda folder: provenance.save(schema, folder, []), tmp_path, disk)
    assert sorted(texts(tmp_path / "new")) == ["changes.patch", "provenance.json"]


@pytest.mark.parametrize("tracker", [csv, pytest.param(tensorboard, marks=pytest.mark.extra("tensorboard"))])
def test_rows_of_a_tracker_are_there_together_or_not_at_all(tmp_path, disk, tracker):
    """And when there is room, the tracker that failed goes on where it was."""
    batches = [[Row("train", n, 1e9 + n, {"train_loss": 1 / (n + 3)}) for n in range(k, k + 40)] for k in (0, 40, 80)]
    alert, identity = Alert("nan", 5, 1e9, "warn", "text"), Identity("0123456789ab", "project", "name")

    def opened(folder: Path):
        made = tracker.Tracker()
        made.open(identity, {"seed": 1}, folder)
        return made

    def lines(folder: Path) -> bytes:
        names = ("metrics.csv", "events.out.tfevents.[1-9]*")
        return b"".join(path.read_bytes() for name in names for path in sorted(folder.rglob(name)))

    whole = opened(tmp_path)
    begun = [b""] + [lines(tmp_path) for batch in batches if not whole.log(batch)]
    for pages in itertools.count(1):
        one = opened(folder := empty(disk, pages))
        try:
            for batch in batches:
                one.log(batch)
            one.alert([alert])
        except UserError as error:
            assert re.search(rf": cannot be written: {SHORT}$", str(error))
            if tracker is csv:
                assert lines(folder) in begun
        else:
            break
        disk("size=16m")
        for batch in (*batches, *batches):
            one.log(batch)
            opened(folder).log(batch)
        assert len(lines(folder)) == len(begun[-1])
    assert pages > 3


def test_a_lane_whose_disk_is_full_delivers_the_rest_later(tmp_path, disk, monkeypatch):
    """Its lock, its state and the tracker's files are on the disk; nothing is delivered twice."""
    monkeypatch.setattr(lane, "WAITS", ())
    made = runs.write(tmp_path / "run", *runs.trained(*range(1, 200)), runs.ended(199))

    def deliver(folder: Path) -> int:
        try:
            return lane.deliver(folder, "csv", lambda seconds: True, lane.Pipe(os.dup(2)))
        except UserError as error:
            assert re.search(rf"trackers/csv\S+: cannot be written: {SHORT}$|No space.+ 0 bytes are free", str(error))
            return 1

    shutil.copytree(made, tmp_path / "wanted")
    assert deliver(tmp_path / "wanted") == 0
    for pages in itertools.count(-(-(made / "journal.jsonl").stat().st_size // PAGE) + 1):
        folder = empty(disk, pages)
        shutil.copytree(made, folder, dirs_exist_ok=True)
        if code := deliver(folder):
            assert (code, list(folder.rglob("*.tmp"))) == (1, [])
            disk("size=16m")
            assert deliver(folder) == 0
        assert (folder / "metrics.csv").read_bytes() == (tmp_path / "wanted/metrics.csv").read_bytes()
        found, wanted = (Cursor.load(one, "csv") for one in (folder, tmp_path / "wanted"))
        assert (found.rows, found.offset, found.state) == (wanted.rows, wanted.offset, "finished")
        if not code:
            break
    disk("size=16m")
    empty(disk, 1)
    (tmp_path / "disk/filler").write_bytes(bytes(PAGE))
    (folder / "trackers").mkdir()
    with pytest.raises(OSError, match="No space left on device"):  # a lane that could tell nobody is not started
        track._LaneProcess(folder, "csv")


# ---- configurations, and what is printed -----------------------------------------------------------------------------

COMMANDS = ("defconfig", "olddefconfig SEED=3", "savedefconfig mine", "randconfig 3")


def test_a_configuration_is_written_whole_or_not_at_all(tmp_path, disk):
    """Each command finds what the ones before it have left; there is room for a .config, for a page more, and so on."""
    for pages in itertools.count(2):
        folder, failed = empty(disk, pages), 0
        for command in COMMANDS:
            before = texts(folder)
            done = forked.run(folder, "scripts/config.py", *command.split(), environment=environment())
            if done.returncode:
                failed += 1
                name = "mine" if "mine" in command else r"\.config(\.old)?"
                assert re.fullmatch(rf"error: {name}: cannot be written: {SHORT}\n", done.stderr)
                assert texts(folder) in (before, before | {".config.old": before.get(".config")})
                assert done.returncode == 1
            else:
                assert done.stderr == ""
        if not failed:
            break
    assert pages >= 4  # a page at least for each of .config, .config.old, mine and a temporary file


def test_the_menu_says_that_the_disk_is_full_and_saves_when_it_is_not(tmp_path, disk, monkeypatch):
    sys.path.insert(0, "scripts")  # which the program takes out
    from scripts import menuconfig

    path, said = empty(disk, 1) / ".config", []
    monkeypatch.setattr(menuconfig, "_error", said.append)
    (path.parent / "filler").write_bytes(bytes(PAGE))
    menu = menuconfig.Menu(path)
    save = menu.schema.kconf.write_config
    assert menu._try_save(save, str(path), "configuration") is None
    assert re.fullmatch(rf"{path}: cannot be written: {SHORT}", said[0]) and not path.exists()
    disk("size=12k")
    assert menu._try_save(save, str(path), "configuration") == f"Configuration saved to {path}"
    assert path.stat().st_size > 2000


@pytest.mark.parametrize(
    "printing, code, told",
    [
        ("console.say('x' * 99)", 0, "note: from here on, what is printed is lost: No space left on device"),
        ("print('x' * 99)", 1, "error: the output cannot be written: No space left on device; make room"),
    ],
)
def test_output_that_has_no_room_ends_a_program_with_a_sentence_and_no_run(printing, code, told):
    program = "from lib.base import errors\nfrom lib.terminal import console\n"
    program += f"errors.run_program(lambda: [{printing} for _ in range(999)] and None)"
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (code, f"{told}\n")

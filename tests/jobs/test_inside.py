"""The program of a job: the order of copies, what survives, what is refused before anything is trained."""

import ast
import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.jobs import inside, script
from lib.jobs.inside import Copies, Task


@pytest.fixture(autouse=True)
def _own_signals():
    """The program of a job sets handlers of signals, and ends with its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def copies(folder):
    (folder / "run").mkdir()
    (folder / "there").mkdir()
    return Copies(folder / "run", folder / "there")


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_checkpoints_come_after_the_journal_that_they_need(copies, monkeypatch):
    write(copies.folder, journal="1", checkpoints__one="c", summary="s", lock="")
    order, copy = [], inside.shutil.copyfile

    def spy(source, target):
        order.append(source.name)
        if source.name == "journal":  # a checkpoint that comes now needs a longer journal: it waits
            write(copies.folder, checkpoints__two="c")
        return copy(source, target)

    monkeypatch.setattr(inside.shutil, "copyfile", spy)
    assert copies.make()
    assert order == ["journal", "summary", "one"]
    assert names(copies.target) == ["checkpoints/one", "journal", "summary"]
    order.clear()
    (copies.folder / "checkpoints/one").unlink()
    assert copies.make() and order == ["two"]
    assert names(copies.target) == ["checkpoints/two", "journal", "summary"]


def test_a_new_machine_goes_on_where_the_last_one_died(copies, folder):
    write(copies.folder, journal="1", checkpoints__one="c", half__tmp="x")
    (copies.target / "journal.part").write_text("of a machine that died")
    write(copies.target, job__job="kept by make job")
    copies.make()
    later = Copies(folder / "later", copies.target)
    later.bring_back()
    assert names(folder / "later") == ["checkpoints/one", "half/tmp", "journal"]
    before = (copies.target / "journal").stat().st_mtime_ns
    write(later.folder, more="2")
    assert later.make() and (copies.target / "more").read_text() == "2"
    assert (copies.target / "journal").stat().st_mtime_ns == before  # not copied again


def test_a_bucket_that_does_not_keep_files_ends_the_job_at_once(copies, monkeypatch):
    copies.try_out()
    assert names(copies.target) == []
    missing = Copies(copies.folder, copies.target / "missing")
    with pytest.raises(SystemExit, match=r"the output cannot be kept there: .*No such file"):
        missing.try_out()
    monkeypatch.setattr(inside.Path, "replace", lambda *_: None)
    with pytest.raises(SystemExit, match="the output cannot be kept there"):
        copies.try_out()


def test_what_says_that_a_checkpoint_is_complete_is_copied_after_it():
    given = [
        "checkpoints/step-5.pt",
        "trl/checkpoint-5/complete.json",
        "trl/checkpoint-5/optimizer.pt",
        "journal.jsonl",
    ]
    assert sorted(map(Path, given), key=inside.late) == [Path(given[n]) for n in (2, 3, 1, 0)]


def test_the_last_copy_is_tried_again(copies, monkeypatch, capsys):
    write(copies.folder, journal="1")
    copies.target.rmdir()
    copies.target.write_text("a file in place of the folder")

    def wait(seconds):
        copies.target.unlink()
        copies.target.mkdir()

    monkeypatch.setattr(inside, "time", SimpleNamespace(sleep=wait))
    assert inside.work([sys.executable, "-c", ""], copies.folder, copies) == 0
    assert names(copies.target) == ["journal"] and capsys.readouterr().err.count("warning: ") == 1


def test_output_that_cannot_be_copied_is_told_and_fails_the_job(copies, capsys, monkeypatch):
    monkeypatch.setattr(inside, "AGAIN", (0.0,))
    write(copies.folder, journal="1")
    copies.target.rmdir()
    copies.target.write_text("a file in place of the folder")
    assert not copies.make()
    assert "warning: " in capsys.readouterr().err
    command = [sys.executable, "-c", ""]
    assert inside.work(command, copies.folder, copies) == 1
    assert inside.work(command, copies.folder, None) == 0


def test_sigterm_reaches_the_training_and_its_end_is_copied(copies, folder):
    program = (
        "import signal, sys, time; from pathlib import Path\n"
        "def end(n, f): Path('saved').write_text('saved'); sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, end); Path('begun').touch(); time.sleep(60)"
    )

    def stop():
        while not (copies.folder / "begun").exists():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert inside.work([sys.executable, "-c", program], copies.folder, copies) == 3
    assert (copies.target / "saved").read_text() == "saved"


def test_the_second_job_of_a_fine_tuning_resumes_its_run_and_not_the_source(copies, monkeypatch):
    commands = []
    monkeypatch.setattr(inside, "get_code", lambda task, place, archive: copies.folder)
    monkeypatch.setattr(inside, "work", lambda command, folder, copies: commands.append(command) or 0)
    task = Task("runs/tuned", ("finetune", "FINETUNE_STEPS=5"), ("resume", "RUN=runs/tuned", "FINETUNE_STEPS=5"), "")
    given = ["--output", str(copies.target), "--input", "FINETUNE_DATA", "/data/a.jsonl"]
    given += ["--input", "RUN", "/input/RUN/pruned", "@40"]
    assert inside.main(task, given) == 0
    (copies.target / "run.json").write_text("{}")
    assert inside.main(task, given) == 0
    python = f"PYTHON={sys.executable}"
    begins = ["make", "finetune", "FINETUNE_STEPS=5", "FINETUNE_DATA=/data/a.jsonl", "RUN=/input/RUN/pruned@40", python]
    goes_on = ["make", "resume", "RUN=runs/tuned", "FINETUNE_STEPS=5", "FINETUNE_DATA=/data/a.jsonl", python]
    assert commands == [begins, goes_on]


def test_the_archive_must_be_the_one_that_was_sent(folder):
    (folder / "code").write_text("code")
    with tarfile.open(folder / "code.tar.gz", "w:gz") as file:
        file.add(folder / "code", "code")
    digest = hashlib.sha256((folder / "code.tar.gz").read_bytes()).hexdigest()
    task = Task("runs/one", ("train",), ("resume",), "", archive=digest)
    assert (inside.get_code(task, folder / "good", folder / "code.tar.gz") / "code").read_text() == "code"
    with pytest.raises(SystemExit, match="is not the archive that was sent"):
        inside.get_code(Task("", (), (), "", archive="0"), folder / "bad", folder / "code.tar.gz")
    with pytest.raises(SystemExit, match="the code is missing"):
        inside.get_code(task, folder / "none", None)
    gone = Task("", (), (), "", url=f"file://{folder}/gone", commit="0" * 40)
    with pytest.raises(SystemExit, match="cannot be fetched"):
        inside.get_code(gone, folder / "gone-code", None)


def test_the_script_is_a_program_of_its_own(folder):
    config = 'CONFIG_PROMPT="a \\"b\\" \'c\'"\nCONFIG_SEED=1\n'
    task = Task("runs/one", ("train", "PROMPT=it's"), ("resume",), config, commit="c")
    needed = script.packages("sweep", ["mlflow", "accelerate:comet_ml"], True)
    text = script.text(task, needed, {})
    (folder / "job.py").write_text(text)
    done = subprocess.run([sys.executable, "-I", "job.py", "--help"], capture_output=True, text=True, check=True)
    assert "Train in a job of Hugging Face" in done.stdout
    tail = text[text.index("TASK = ") :].partition("\n\nif __name__")[0]
    assert repr(task) == repr(_task_of(tail))
    for package in ("torch==", "optuna==", "mlflow-skinny==", "accelerate==", "lm_eval=="):
        assert f'#     "{package}' in text


def _task_of(source):
    """The task that the end of a script names."""
    [assignment] = ast.parse(source).body
    return Task(**{one.arg: ast.literal_eval(one.value) for one in assignment.value.keywords})

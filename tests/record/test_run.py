"""Identity and folder of a run."""

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.base.errors import UsageError, UserError
from lib.record import history, journal, run
from lib.record.run import RunOptions
from scripts import dashboard


def options(folder, name="", project=""):
    return RunOptions(output_dir=str(folder), tracker_project=project, tracker_run_name=name, optimizer="adamw")


def test_a_run_is_named_after_its_optimizer_and_time(tmp_path):
    folder, identity = run.create(options(tmp_path / "new" / "runs"))
    assert folder.parent == tmp_path / "new" / "runs"
    assert folder.name == identity.name
    assert re.fullmatch(r"gpt2_adamw_\d{8}-\d{6}", identity.name)
    assert re.fullmatch(r"[0-9a-f]{12}", identity.run_id)
    assert identity.project == run.project_name()
    assert run.Identity.load(folder) == identity


def test_an_existing_folder_is_never_used_again(tmp_path):
    names = [run.create(options(tmp_path, "same"))[1].name for _ in range(3)]
    assert names == ["same", "same-2", "same-3"]
    assert len({run.Identity.load(tmp_path / name).run_id for name in names}) == 3


def test_a_run_with_another_name_than_wanted_says_how_to_continue_the_first(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()  # a folder that is no run
    notes = {}
    for name in ("", "same", "same", "a/b", "a/b", "other"):
        _, identity = run.create(options(tmp_path, name))
        notes[identity.name] = run.renamed(options(tmp_path, name), identity, "this")
    assert next(iter(notes.values())) == ""
    odd = run.folder_name("a/b")
    assert {name: note for name, note in notes.items() if note} == {
        "same-2": f"note: {tmp_path}/same exists, so this run is called same-2; to continue same instead: this",
        "a/b-2": f"note: {tmp_path}/{odd} exists, so this run is called a/b-2; to continue a/b instead: this",
        "other-2": f"note: {tmp_path}/other exists, so this run is called other-2",
    }


def test_names_that_are_no_file_names_stay_inside_the_output_folder(tmp_path):
    for name in ("../../x", "/etc/passwd", "a/b c", "..", "x" * 300, "опыт 1", ".hidden", "-rf"):
        folder, identity = run.create(options(tmp_path, name))
        assert folder.parent == tmp_path
        assert folder.is_dir()
        assert identity.name == name
        assert not folder.name.startswith((".", "-"))


def test_folder_names_are_literal():
    assert run.folder_name("adamw-0.5_seed1") == "adamw-0.5_seed1"
    assert run.folder_name("опыт") == "опыт"
    assert run.folder_name("a b") == f"a-b-{hashlib.md5(b'a b').hexdigest()[:6]}"
    assert run.folder_name("..") == f"run-{hashlib.md5(b'..').hexdigest()[:6]}"


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_names_get_different_folders(a, b):
    folders = [run.folder_name(name) for name in (a, b)]
    assert (folders[0] == folders[1]) == (a == b)
    for folder in folders:
        assert 0 < len(folder.encode()) <= 110
        assert "/" not in folder
        assert "\0" not in folder


def test_the_project_is_the_folder_and_a_checksum_of_its_path(tmp_path):
    clone = tmp_path / "espalier"
    clone.mkdir()
    expected = f"espalier-{hashlib.md5(str(clone.resolve()).encode()).hexdigest()[:8]}"
    assert run.project_name(clone) == expected
    (tmp_path / "link").symlink_to(clone)
    assert run.project_name(tmp_path / "link") == expected
    other = tmp_path / "other" / "espalier"
    other.mkdir(parents=True)
    assert run.project_name(other) != expected


def test_a_worktree_has_the_project_of_its_clone(tmp_path):
    clone, tree = tmp_path / "clone", tmp_path / "tree"

    def git(*words):
        subprocess.run(["git", "-C", clone, *words], check=True, capture_output=True)

    clone.mkdir()
    git("init")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", "x")
    git("worktree", "add", str(tree))
    assert run.project_name(tree) == run.project_name(clone)


def test_a_subfolder_of_a_clone_is_in_it(tmp_path):
    (tmp_path / "clone/.git").mkdir(parents=True)
    (tmp_path / "clone/a/b").mkdir(parents=True)
    for folder in ("clone", "clone/a/b"):
        assert run.clone(tmp_path / folder) == tmp_path / "clone"
    assert run.clone(tmp_path) == tmp_path


def test_the_latest_run_is_the_one_written_last(tmp_path):
    folders = [run.create(options(tmp_path, name))[0] for name in ("a", "b", "c")]
    for seconds, folder in zip((100, 300, 200), folders, strict=True):
        (folder / ".config").write_text("")
        os.utime(folder / "run.json", (seconds, seconds))
    assert run.latest(str(tmp_path)) == folders[1]
    (folders[0] / "journal.jsonl").write_text("")
    (run.create(options(tmp_path, "stub"))[0] / "journal.jsonl").write_text("")  # killed before it had a configuration
    assert run.latest(str(tmp_path)) == folders[0]


def test_results_of_tasks_do_not_make_a_run_the_latest(tmp_path):
    for name, seconds in (("old", 100), ("new", 200)):
        folder = run.create(options(tmp_path, name))[0]
        (folder / ".config").write_text("")
        book = journal.Journal(folder, clock=lambda now=seconds: float(now))
        book.write("finish", 5, status="finished")
        book.close()
        for file in ("run.json", "journal.jsonl"):
            os.utime(folder / file, (seconds, seconds))
    book = journal.Journal(tmp_path / "old")
    book.write("task", 5, {"a/acc": 0.5}, task="a", n=1)
    book.close()
    assert run.latest(str(tmp_path)) == tmp_path / "new"
    assert history.load(tmp_path / "old").time == 100


def test_a_one_shot_run_is_not_the_latest_to_train(tmp_path):
    words = [f"OUTPUT_DIR={tmp_path}"]
    (run.create(options(tmp_path, "pruned"))[0] / ".config").write_text("CONFIG_PRUNING_DYNAMICS_ONESHOT=y\n")
    assert run.named("latest", words) == (tmp_path / "pruned", "")
    with pytest.raises(UsageError, match=r"has only one-shot runs, which train nothing; start one with make train$"):
        run.named("latest", words, trains=True)
    (run.create(options(tmp_path, "dense"))[0] / ".config").write_text("")
    os.utime(tmp_path / "dense/run.json", (100, 100))
    assert run.named("latest", words, trains=True) == (tmp_path / "dense", "")


def test_a_run_is_found_under_the_name_that_its_folder_cannot_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, identity = run.create(options("runs", "a=0.5"))
    run.create(options("runs/few", "b@20"))
    assert (str(folder), identity.name) == ("runs/a-0.5-465708", "a=0.5")
    for text in ("a=0.5", "runs/a=0.5", "a-0.5-465708", "runs/a-0.5-465708"):
        assert run.named(text) == (folder, ""), text
    assert run.named("a=0.5@best") == (folder, "best")
    assert run.named("b@20") == (Path("runs/few", run.folder_name("b@20")), "")


def test_a_checkpoint_is_named_with_its_run_or_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run.create(options("runs", "a"))
    for text, checkpoint in (("runs/a@20", "20"), ("a@best", "best"), ("runs/a@newest", "newest")):
        assert run.named(text) == (Path("runs/a"), checkpoint), text
    for text in ("nosuch@20", "runs/nosuch@best", "a@", "a@last", "@20", "a@20@best"):
        assert run.named(text) == (Path(text), ""), text
    named = run.named("a@20")
    assert [named.chosen(asked) for asked in (None, "20", "step-000000020.pt")] == ["20", "20", "step-000000020.pt"]
    assert [run.named("a").chosen(asked) for asked in (None, "best")] == ["newest", "best"]
    with pytest.raises(UsageError, match=r"^the run is given with the checkpoint 20, and CHECKPOINT=best is another"):
        named.chosen("best")
    assert [run.whole(text) for text in ("a", "nosuch@20")] == [Path("runs/a"), Path("nosuch@20")]
    with pytest.raises(UsageError, match=r"^a@20: is one checkpoint, and this is about the whole run; leave out @20$"):
        run.whole("a@20")


def test_the_runs_of_sweeps_count_for_the_latest(tmp_path):
    for name, seconds in (("a", 100), ("sweep/one-seed1", 300), ("sweep/two-seed1", 200)):
        folder = run.create(options((tmp_path / name).parent, (tmp_path / name).name))[0]
        (folder / ".config").write_text("")
        os.utime(folder / "run.json", (seconds, seconds))
    assert run.latest(str(tmp_path)) == tmp_path / "sweep/one-seed1"


def test_a_run_is_named_by_its_folder_a_file_of_it_or_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for parent, name in (("runs", "a"), ("runs/few", "b-seed1"), ("runs/few", "c"), ("runs/more", "c"), ("other", "d")):
        folder = run.create(options(parent, name))[0]
        (folder / ".config").write_text("")
        (folder / "checkpoints/step-000000020.pt").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "c").mkdir()
    step = "step-000000020.pt"
    for text, folder, checkpoint in (
        ("runs/a", "runs/a", ""), ("runs/a/", "runs/a", ""), (f"{tmp_path}/runs/a", f"{tmp_path}/runs/a", ""),
        ("runs/a/.config", "runs/a", ""), ("runs/a/run.json", "runs/a", ""), ("runs/a/checkpoints", "runs/a", ""),
        (f"runs/a/checkpoints/{step}", "runs/a", step), ("runs/a/checkpoints/gone.pt", "runs/a", "gone.pt"),
        ("a", "runs/a", ""), ("few/b-seed1", "runs/few/b-seed1", ""), ("b-seed1", "runs/few/b-seed1", ""),
        ("data", "data", ""), ("nothing", "nothing", ""), ("runs/nothing", "runs/nothing", ""),
    ):  # fmt: skip
        assert run.named(text) == (Path(folder), checkpoint), text
    assert run.named("d", ["OUTPUT_DIR=other"]) == (Path("other/d"), "")
    for text, words in (("latest", ["--output-dir", "other"]), (None, ["OUTPUT_DIR=other"])):
        assert run.named(text, words) == (Path("other/d"), "")
    with pytest.raises(UsageError, match=r"^c: runs/few/c and runs/more/c have this name; give the folder of one$"):
        run.named("c")
    monkeypatch.chdir("runs/a")
    for text, checkpoint in ((".", ""), (".config", ""), ("checkpoints", ""), (f"checkpoints/{step}", step)):
        folder, found = run.named(text)
        assert (folder.resolve(), found) == (tmp_path / "runs/a", checkpoint), text


def test_a_broken_configuration_does_not_keep_names_from_being_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for parent in ("runs", "other"):
        run.create(options(parent, parent[0]))
    (tmp_path / ".config").write_text("banana\n")
    assert run.named("r") == (Path("runs/r"), "")
    assert run.named("o", ["OUTPUT_DIR=other"]) == (Path("other/o"), "")
    assert run.named("nosuch") == (Path("nosuch"), "")
    assert dashboard.wanted_project("r") == (run.Identity.load(Path("runs/r")).project, Path("runs/r"))
    assert dashboard.wanted_project("demo") == ("demo", None)
    with pytest.raises(UsageError, match=r"^\.config:1: cannot be understood"):  # what is the latest depends on it
        run.named(None)


def test_what_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"there is no run in this folder yet; start one with make train$"):
        run.latest(str(tmp_path))
    with pytest.raises(UsageError, match=r"there is no run in this folder \(run.json is missing\)$"):
        run.Identity.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: the run's identity cannot be read: "):
        run.Identity.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the run's folder cannot be made there: "):
        run.create(options(tmp_path / "file", "x"))

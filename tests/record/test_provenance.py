"""What a run's folder keeps of its code and its machine, in real git clones."""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib import metadata

import pytest

from lib.base import redact
from lib.base.errors import UserError
from lib.config.kconf import Schema
from lib.record import provenance
from lib.record.provenance import Changes
from tests.disk import disk, fill

__all__ = ["disk"]  # fixtures


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True).stdout


@pytest.fixture
def clone(tmp_path):
    """A clone with one commit: a text, a program, a binary file and a rule for what is ignored."""
    root = tmp_path / "clone"
    (root / "lib").mkdir(parents=True)
    git(root, "init")
    (root / "text").write_text("one\ntwo\n")
    (root / "lib/code.py").write_text("x = 1\n")
    (root / "picture").write_bytes(bytes(range(256)))
    (root / ".gitignore").write_text("*.ignored\nruns/\n")
    git(root, "add", "-A")
    git(root, "commit", "-m", "first")
    return root


def again(clone, tmp_path, patch):
    """The files of the commit with the patch applied: path -> content."""
    git(clone, "worktree", "add", "--detach", str(tmp_path / "again"))
    (tmp_path / "patch").write_bytes(patch)
    git(tmp_path / "again", "apply", "--binary", str(tmp_path / "patch"))
    return contents(tmp_path / "again")


def contents(root):
    files = [path for path in root.rglob("*") if ".git" not in path.relative_to(root).parts and not path.is_dir()]
    return {str(path.relative_to(root)): path.readlink() if path.is_symlink() else path.read_bytes() for path in files}


def test_a_patch_makes_the_checkout_of_its_commit(clone, tmp_path):
    (clone / "text").write_bytes(b"one\r\nthree \nno newline")
    (clone / "picture").write_bytes(bytes(range(255, -1, -1)) * 3)
    (clone / "lib/code.py").unlink()
    (clone / 'a "new" näme\n.py').write_text("print()\n")
    (clone / "new folder").mkdir()
    (clone / "new folder/*.bin").write_bytes(b"\0\xff\n" * 100)
    (clone / "empty").touch()
    (clone / "link").symlink_to("nowhere")
    (clone / "staged").write_text("staged\n")
    (clone / "program").write_text("#!/bin/sh\n")
    (clone / "program").chmod(0o755)
    git(clone, "add", "staged")
    changes = provenance.uncommitted(clone)
    assert (changes.left_out, changes.failure) == ((), "")
    assert again(clone, tmp_path, changes.patch) == contents(clone)
    assert (tmp_path / "again/program").stat().st_mode & 0o111


def test_looking_at_the_changes_leaves_the_clone_alone(clone):
    (clone / "text").write_text("changed\n")
    (clone / "new").write_text("new\n")
    (clone / "staged").write_text("staged\n")
    git(clone, "add", "staged")
    status = git(clone, "status", "--porcelain")  # which refreshes the index
    before = contents(clone / ".git")
    assert provenance.uncommitted(clone).patch
    assert contents(clone / ".git") == before
    assert status == git(clone, "status", "--porcelain") == b"A  staged\n M text\n?? new\n"


def test_a_configured_format_of_diffs_changes_nothing(clone):
    (clone / "text").write_text("changed\n")
    git(clone, "mv", "lib/code.py", "lib/moved.py")
    plain = provenance.uncommitted(clone)
    settings = "diff.noprefix=true color.ui=always diff.external=false diff.context=0 diff.mnemonicPrefix=true"
    for setting in f"{settings} diff.renames=copies diff.relative=true status.relativePaths=false".split():
        git(clone, "config", *setting.split("="))
    assert provenance.uncommitted(clone) == plain


def test_a_clone_without_changes_and_a_folder_that_is_none(clone, tmp_path, monkeypatch):
    (clone / "x.ignored").write_text("ignored\n")
    assert provenance.uncommitted(clone) == Changes(b"", ())
    assert re.fullmatch("[0-9a-f]{40}", provenance.commit(clone))
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init")  # no commit yet
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for folder in (tmp_path, tmp_path / "empty"):
        assert (provenance.commit(folder), provenance.uncommitted(folder)) == (None, None)
    assert provenance.unknown(clone) == ""
    assert provenance.unknown(tmp_path) == f"{tmp_path} is not in a git clone; get the code with git clone"
    empty = tmp_path / "empty"
    assert provenance.unknown(empty) == f"{empty} has no commit yet; make one with git commit"
    (clone / ".git/HEAD").write_text("nonsense\n")
    words = provenance.unknown(clone)
    assert words.startswith(f"git rev-parse in {clone} failed: fatal: not a git repository")
    assert words.endswith(f"; repair {clone}/.git, or get the code again with git clone")
    monkeypatch.setenv("PATH", "")
    assert (provenance.commit(clone), provenance.uncommitted(clone)) == (None, None)
    assert provenance.unknown(clone) == "git is not installed, or not in PATH; install it"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a clone to another user")
def test_a_clone_of_another_user_is_said_with_what_makes_it_known(clone, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    known = provenance.commit(clone)
    for path in (clone, clone / ".git"):
        os.chown(path, 1234, 1234)
    command = f"git config --global --add safe.directory {clone}"
    why = f"git does not read {clone}, which belongs to another user; to allow it: {command}"
    assert (provenance.commit(clone), provenance.unknown(clone)) == (None, why)
    note, made = save(clone, monkeypatch, tmp_path / "run")
    assert note == f"the commit and the uncommitted changes are not kept with the run: {why}"
    assert (made["commit"], made["commit_unknown"], made["uncommitted_changes"]) == (None, why, None)
    subprocess.run(command.split(), check=True)
    assert (provenance.commit(clone), provenance.unknown(clone)) == (known, "")


def test_what_is_too_much_or_private_is_left_out_by_name(clone, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "LIMIT", 1000)
    for name, size in {"small": 300, "middle": 600, "large": 2000, "larger": 10**6}.items():
        (clone / name).write_bytes(bytes(size))
    (clone / "text").write_text("x" * 5000)  # tracked
    for name in (".env", "server.pem", "lib/.netrc"):
        (clone / name).write_text("s3cret\n")
    (clone / "other").mkdir()
    git(clone / "other", "init")
    (clone / "other/file").touch()
    changes = provenance.uncommitted(clone)
    assert changes.left_out == (".env", "large", "larger", "lib/.netrc", "other/", "server.pem", "text")
    kept = again(clone, tmp_path, changes.patch)
    assert kept.keys() - {"text", "lib/code.py", "picture", ".gitignore"} == {"small", "middle"}
    assert kept["text"] == b"one\ntwo\n"
    assert b"s3cret" not in changes.patch
    assert provenance._note(changes) == (
        "not kept with the run's uncommitted changes (at most 0 MB, no keys, no other repositories): "
        ".env, large, larger, lib/.netrc, other/ and 2 more, see provenance.json"
    )


def test_private_files_that_git_was_told_of_are_left_out_until_they_are_committed(clone):
    names = [".env.local", ".npmrc", ".pypirc", "API-Secret", "id_ed25519", "lib/aws_credentials", "server.key"]
    for name in names:
        (clone / name).write_text("s3cret\n")
    git(clone, "add", "-A")
    git(clone, "rm", "--cached", ".npmrc")
    git(clone, "add", "--intent-to-add", ".npmrc")
    (clone / "id_ed25519").write_text("s3cret too\n")
    (clone / "text").write_text("changed\n")
    changes = provenance.uncommitted(clone)
    assert changes.left_out == tuple(names)
    assert re.findall(rb"^diff --git (\S+)", changes.patch, re.MULTILINE) == [b"a/text"]
    git(clone, "commit", "-a", "-m", "second")
    (clone / "id_ed25519").write_text("changed\n")
    assert provenance.uncommitted(clone).left_out == ()


def test_a_large_file_that_was_deleted_counts_as_what_it_was(clone, monkeypatch):
    monkeypatch.setattr(provenance, "LIMIT", 100)
    (clone / "picture").unlink()  # 256 bytes
    assert provenance.uncommitted(clone) == Changes(b"", ("picture",))


def test_data_and_runs_are_no_changes_but_a_folder_of_a_larger_clone_is(clone):
    for name in ("lib/output/one", "lib/data/two", "lib/three", "outside"):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text("new\n")
    root = clone / "lib"
    changes = provenance.uncommitted(root, [root / "output", root / "data", clone])
    assert re.findall(rb"^diff --git (\S+)", changes.patch, re.MULTILINE) == [b"a/lib/three"]


def test_runs_exports_and_prepared_data_are_no_changes_wherever_they_are(clone):
    """DATA_DIR and OUTPUT_DIR were others when they were made."""
    products = [
        "old/stdlib-bytes/meta.json", "old/stdlib-bytes/train-00000.bin", "old/stdlib-bytes/val-00000.bin",
        "old/web.partial/train-00000.bin.tmp", "old/web.partial/lock", "lib/out/run/run.json",
        "lib/out/run/journal.jsonl", "lib/out/run/checkpoints/step-000000003.pt", "lib/out/run/changes.patch",
        "my-model/espalier.json", "my-model/config.json", "my-model/model.safetensors", "my-model/README.md",
    ]  # fmt: skip
    others = ["old/notes.txt", "lib/meta.json", "lib/train-00000.bin.txt", "model/train-00000.bin", "model/run.json"]
    others += ["lib/espalier.json", "other/config.json"]
    for name in products + others:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("new\n")
    found = re.findall(rb"^diff --git a/(\S+)", provenance.uncommitted(clone).patch, re.MULTILINE)
    assert sorted(map(bytes.decode, found)) == sorted(others)


def test_own_sweeps_and_presets_are_no_changes(clone):
    for name in ("sweeps/mine", "defconfigs/mine_defconfig"):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text("new\n")
    assert provenance.uncommitted(clone).patch == b""
    (clone / "lib/mine").parent.mkdir(exist_ok=True)
    (clone / "lib/mine").write_text("new\n")
    assert b"lib/mine" in provenance.uncommitted(clone).patch


def test_what_another_sweep_writes_is_no_change(clone):
    """Two sweeps at once, each with an OUTPUT_DIR in the clone that git does not ignore."""
    products = [
        "sw2/few/results.json", "sw2/few/table.md", "sw2/few/lock", "sw2/few/dense-seed1.log", "sw2/few/sweep",
        "sw2/few/tuning/lock", "sw2/few/tuning/dense-trial1-seed3.log", "sw2/few/dense-seed1/.config",
        "sw2/only-begins/lock", "sw2/only-begins/sweep", "sw2/only-begins/base.config", "sw2/locked/lock",
        "sw2/first-write/lock", "sw2/first-write/table.md", "sw2/first-write/results.json.tmp",
        "lib/said/index.html", "lib/said/report.md", "lib/said/results.csv", "lib/said/verdicts.csv",
        "lib/said/figures/costs.svg", ".said-x/lock", ".said-x/new/index.html",
        "copied/run.log", "copied/run/run.json", "copied/run/journal.jsonl",
    ]  # fmt: skip
    others = ["lib/results.json", "lib/more/table.md", "lib/index.html", "tools/sweep", "tools2/lock", "tools2/new.py"]
    others += ["copied/other.log", "sw2/notes.txt"]
    for name in products + others:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("new\n")
    found = re.findall(rb"^diff --git a/(\S+)", provenance.uncommitted(clone).patch, re.MULTILINE)
    assert sorted(map(bytes.decode, found)) == sorted(others)


def test_git_that_fails_is_said(clone):
    (clone / ".git/index").write_bytes(b"no index")
    changes = provenance.uncommitted(clone)
    assert changes.patch == b""
    assert "index file smaller than expected" in changes.failure
    assert provenance._note(changes).startswith(
        f"the uncommitted changes are not kept with the run: git status in {clone} failed: "
    )


def test_the_environment_names_no_other_clone(clone, tmp_path, monkeypatch):
    (clone / "text").write_text("changed\n")
    git(tmp_path, "init", "other")
    plain = provenance.commit(clone), provenance.uncommitted(clone)
    for name, value in {
        "GIT_DIR": tmp_path / "other/.git", "GIT_WORK_TREE": tmp_path / "other", "GIT_INDEX_FILE": tmp_path / "none",
        "GIT_LITERAL_PATHSPECS": "1", "GIT_EXTERNAL_DIFF": "false",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    assert (provenance.commit(clone), provenance.uncommitted(clone)) == plain


def test_a_change_in_the_second_of_the_commit_is_found(clone):
    """Of the same size, too: then git has only the time of the index to go by."""
    git(clone, "config", "core.trustctime", "false")
    second = 1_700_000_000
    os.utime(clone / "text", (second, second))
    git(clone, "add", "text")
    os.utime(clone / ".git/index", (second, second))
    (clone / "text").write_text("changed\n")
    os.utime(clone / "text", (second, second))
    assert b"+changed\n" in provenance.uncommitted(clone).patch


def test_a_full_scratch_disk_is_said(clone, disk, monkeypatch):
    (clone / "text").write_text("changed\n")
    monkeypatch.setattr(tempfile, "tempdir", str(disk("size=64k")))
    fill(disk("size=64k"))
    reason = "git's index cannot be copied to a scratch folder: No space left on device"
    assert provenance.uncommitted(clone) == Changes(b"", (), reason)


def test_secrets_on_a_command_line_are_not_kept():
    given = "train.py --api-key hunter2 --hf-token=hunter2 WANDB_API_KEY=hunter2 --password --tokenizer bytes hunter2"
    words = redact.without([*given.split(), "--sample-tokens=5", "SAMPLE_TOKENS=5", "keys.txt"])
    assert words == [
        "train.py", "--api-key", "***", "--hf-token=***", "WANDB_API_KEY=***", "--password", "--tokenizer", "bytes",
        "hunter2", "--sample-tokens=5", "SAMPLE_TOKENS=5", "keys.txt",
    ]  # fmt: skip


def test_the_environment_is_the_machine_and_every_package():
    now = provenance.environment()
    assert list(now) == [
        "python", "platform", "cpu", "processors", "cores", "memory_bytes", "gpus", "gpu_driver", "packages", "host",
        "command",
    ]  # fmt: skip
    assert now["packages"]["torch"] == metadata.version("torch")
    assert set(now["packages"]) == {one.name for one in metadata.distributions()}
    assert list(now["packages"]) == sorted(now["packages"], key=str.lower)
    assert now["cpu"] and now["processors"] >= 1 and now["memory_bytes"] > 1e8
    assert json.loads(json.dumps(now)) == now


def test_a_mac_without_sysctl_has_a_processor_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", "")
    assert provenance.cpu() == (platform.processor() or platform.machine())


# ---- a run's folder --------------------------------------------------------------------------------------------------


def save(clone, monkeypatch, folder, name="provenance.json"):
    monkeypatch.setattr(provenance, "ROOT", clone)
    schema = Schema()
    schema.override([("MAX_ITERS", "7", "--max-iters")])
    folder.mkdir(exist_ok=True)
    note = provenance.save(schema, folder, ["gpt2/train.py", "--max-iters", "7"], name)
    return note, json.loads((folder / name).read_text())


def test_the_configuration_is_kept_with_its_sources(clone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    run = tmp_path / "run"
    note, made = save(clone, monkeypatch, run)
    assert made["options"]["MAX_ITERS"] == {"value": "7", "source": "--max-iters"}
    assert made["argv"] == ["gpt2/train.py", "--max-iters", "7"]
    assert made["folder"] == str(tmp_path)
    assert made["commit"] == git(clone, "rev-parse", "HEAD").decode().strip()
    assert (note, made["uncommitted_changes"]) == ("", None)
    assert "hunter2" not in (run / "provenance.json").read_text()
    assert [path.name for path in run.iterdir()] == ["provenance.json"]


def test_uncommitted_changes_are_kept_once_per_run(clone, tmp_path, monkeypatch):
    run, patch = tmp_path / "run", b"diff --git a/new b/new\n"
    (clone / "new").write_text("new\n")
    first = save(clone, monkeypatch, run)[1]["uncommitted_changes"]
    assert (run / "changes.patch").read_bytes().startswith(patch)
    digest = hashlib.sha256((run / "changes.patch").read_bytes()).hexdigest()
    assert first == {"file": "changes.patch", "sha256": digest, "left_out": [], "note": ""}
    assert save(clone, monkeypatch, run, "provenance-20.json")[1]["uncommitted_changes"] == first
    (clone / "new").write_text("newer\n")
    later = save(clone, monkeypatch, run, "provenance-30.json")[1]["uncommitted_changes"]
    assert later["file"] == "changes-30.patch"
    assert sorted(path.name for path in run.glob("*.patch")) == ["changes-30.patch", "changes.patch"]


def test_what_is_not_kept_is_told(clone, tmp_path, monkeypatch):
    (clone / "weights.bin").write_bytes(bytes(provenance.LIMIT + 1))
    note, made = save(clone, monkeypatch, tmp_path / "run")
    assert note == (
        "not kept with the run's uncommitted changes (at most 10 MB, no keys, no other repositories): weights.bin"
    )
    assert made["uncommitted_changes"]["left_out"] == ["weights.bin"]
    assert made["uncommitted_changes"]["file"] is None
    assert not (tmp_path / "run/changes.patch").exists()


def test_a_patch_that_cannot_be_written_is_one_sentence(clone, tmp_path, monkeypatch):
    (clone / "new").write_text("new\n")
    (tmp_path / "run/changes.patch.tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run/changes.patch: cannot be written: Is a directory$"):
        save(clone, monkeypatch, tmp_path / "run")

"""How the code travels: a commit only if a stranger gets it, else an archive that is a clone with the local changes."""

import tarfile

import pytest

from lib.base.errors import UserError
from lib.jobs import code
from tests.jobs.conftest import git


@pytest.fixture
def published(repository, folder, monkeypatch):
    """The address of a bare clone that stands for one on the internet."""
    place = folder / "published"
    git(folder, "clone", "--quiet", "--bare", repository, place)
    git(repository, "remote", "add", "origin", f"file://{place}")
    monkeypatch.setattr(code, "_SCHEMES", ("file://",))
    return f"file://{place}"


def chosen(repository, folder, **how):
    (scratch := folder / "scratch").mkdir()
    return code.choose(repository, [repository / "runs"], scratch, **how)


def test_a_commit_that_everybody_gets_travels_by_its_address(repository, published, folder):
    found = chosen(repository, folder)
    assert (found.url, found.archive, found.inside) == (published, None, "")
    assert found.commit == git(repository, "rev-parse", "HEAD").strip()
    assert found.words() == f"commit {found.commit[:12]} of {published}"


def test_a_commit_that_was_not_pushed_travels_as_an_archive(repository, published, folder):
    (repository / "code.txt").write_text("newer\n")
    git(repository, "commit", "--quiet", "-am", "second")
    found = chosen(repository, folder)
    assert found.url == "" and found.why == "no repository gives this commit to everybody"
    with tarfile.open(found.archive) as file:
        file.extractall(folder / "there", filter="data")
    assert git(folder / "there", "rev-parse", "HEAD").strip() == found.commit
    assert (folder / "there/code.txt").read_text() == "newer\n"
    assert git(folder / "there", "status", "--porcelain") == ""
    assert not any(str(folder).encode() in p.read_bytes() for p in (folder / "there").rglob("*") if p.is_file())


def test_an_archive_has_the_local_changes_but_no_keys_and_no_runs(repository, published, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted0123456789")
    (repository / "code.txt").write_text("changed\n")
    (repository / "new.txt").write_text("new\n")
    (repository / ".env").write_text("KEY=1\n")
    (repository / "notes").write_text("my key is hf_planted0123456789\n")
    (repository / "runs").mkdir()
    (repository / "runs/mine").write_text("output\n")
    found = chosen(repository, folder)
    assert found.url == "" and found.why == "there are local changes" and found.left_out == (".env", "notes")
    with tarfile.open(found.archive) as file:
        names = {name.removeprefix("./") for name in file.getnames() if ".git" not in name}
        owners = {(entry.uid, entry.uname) for entry in file}
    assert names == {".", "code.txt", "new.txt"} and owners == {(0, "")}


def test_without_asking_the_first_address_is_shown(repository, published, folder):
    git(folder / "published", "update-ref", "-d", "refs/heads/main")
    assert chosen(repository, folder, ask=False).url == published


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://me:hf_secret@example.org/me/x.git", ["https://example.org/me/x.git"]),
        ("git@example.org:me/x.git", ["https://example.org/me/x.git"]),
        ("ssh://git@example.org/me/x.git", ["https://example.org/me/x.git"]),
        ("/a/folder", []),
        ("http://example.org/x", []),
    ],
)
def test_an_address_is_one_for_strangers(repository, url, found):
    git(repository, "remote", "add", "origin", url)
    assert list(code._urls(repository)) == found


def test_a_folder_without_git_is_a_sentence(folder):
    with pytest.raises(UserError, match=r"^the code cannot be sent: "):
        chosen(folder, folder)

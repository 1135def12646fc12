"""How the code reaches a job: as a commit that anybody can fetch from its repository, or as an archive."""

import hashlib
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lib.base.errors import UserError
from lib.record import provenance
from lib.record.provenance import GitError, git

_SSH = re.compile(r"(?:ssh://)?git@(?P<host>[\w.-]+)[:/](?P<path>[\w./~-]+)")
_SECONDS = 120  # the longest try to fetch a commit
_SCHEMES = ("https://",)  # of addresses that a machine elsewhere reaches without a key


class Code(NamedTuple):
    """The code of a job: `url` and `commit`, or `archive` and its `sha256`."""

    commit: str
    inside: str  # folder of Espalier in the repository
    url: str = ""
    archive: Path | None = None
    sha256: str = ""
    why: str = ""  # why it is an archive
    left_out: tuple[str, ...] = ()  # files with local changes that are not sent: too large, or likely to hold keys

    def words(self) -> str:
        """For the user: `commit 0123456789ab of https://...`."""
        if self.url:
            return f"commit {self.commit[:12]} of {self.url}"
        size = f", {self.archive.stat().st_size / 1e6:,.1f} MB" if self.archive else ""
        return f"an archive{size}: {self.why}"


def choose(root: Path, apart: Iterable[Path], scratch: Path, ask: bool = True) -> Code:
    """The code at `root`: the commit if a repository gives it to anybody, else an archive that is written to `scratch`.

    An archive is a clone with this commit alone, and the local changes in its files. So the run knows its commit.
    Untracked files in `apart` are not part of the code. Without `ask` no repository is asked and no archive is written;
    the first address that could be asked is taken.

    Raises UserError if git does not tell the commit or the changes.
    """
    changes = provenance.uncommitted(root, apart)
    if changes is None:
        raise UserError(f"the code cannot be sent: {provenance.unknown(root)}")
    if changes.failure:
        raise UserError(f"the code cannot be sent: {changes.failure}")
    commit, inside = _say(root, "rev-parse", "HEAD"), _say(root, "rev-parse", "--show-prefix").rstrip("/")
    found = Code(commit, inside, left_out=changes.left_out)
    urls = list(_urls(root))
    if not changes.patch:
        for url in urls:
            if not ask or _gives(url, commit, scratch):
                return found._replace(url=url)
    why = "there are local changes" if changes.patch else "no repository gives this commit to everybody"
    if not ask:
        return found._replace(why=why)
    archive = _archive(root, commit, changes.patch, scratch)
    return found._replace(archive=archive, sha256=hashlib.sha256(archive.read_bytes()).hexdigest(), why=why)


def has(root: Path, path: Path) -> bool:
    """Whether a file or folder is part of the code, or has files that are: git does not ignore them."""
    try:
        return bool(git(root, "ls-files", "--cached", "--others", "--exclude-standard", "--", str(path.resolve())))
    except GitError:  # it is outside of the repository
        return False


def _urls(root: Path) -> Iterator[str]:
    """The addresses of the clone's remotes for somebody without a key, and without names and passwords in them."""
    for remote in _say(root, "remote").splitlines():
        url = _say(root, "remote", "get-url", remote)
        if match := _SSH.fullmatch(url):
            url = f"https://{match['host']}/{match['path']}"
        if url.startswith(_SCHEMES):
            yield re.sub(r"://[^/]*@", "://", url)


def _gives(url: str, commit: str, scratch: Path) -> bool:
    """Whether a job will get the commit from this address: it is fetched here as it will be there, without any key."""
    home = scratch / "nobody"  # neither a git configuration with credentials, nor a .netrc
    folder = home / "tried"
    folder.mkdir(parents=True, exist_ok=True)
    kept = ("PATH", "LANG", "TMPDIR", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
    plain = {name: os.environ[name] for name in (*kept, "GIT_SSL_CAINFO", "SSL_CERT_FILE") if name in os.environ}
    environment = plain | {"HOME": str(home), "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"}
    for words in (["init", "--quiet"], ["fetch", "--quiet", "--depth", "1", url, commit]):
        try:
            done = subprocess.run(
                ["git", "-C", folder, *words], env=environment, capture_output=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode:
            return False
    return True


def _archive(root: Path, commit: str, patch: bytes, scratch: Path) -> Path:
    """Write a clone of the commit with the patch applied, as a compressed archive."""
    top, tree, made = _say(root, "rev-parse", "--show-toplevel"), scratch / "code", scratch / "code.tar.gz"
    tree.mkdir()
    git(tree, "init", "--quiet")
    git(tree, "fetch", "--quiet", "--depth", "1", f"file://{top}", commit)
    git(tree, "checkout", "--quiet", "--detach", "FETCH_HEAD")
    (tree / ".git" / "FETCH_HEAD").unlink()  # it names the folder here
    if patch:
        git(tree, "apply", "--whitespace=nowarn", "-", text=patch)
    with tarfile.open(made, "w:gz") as file:
        file.add(tree, ".", filter=_nobodys)
    return made


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """An entry of an archive without the name of the user here."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _say(root: Path, *words: str) -> str:
    try:
        return os.fsdecode(git(root, *words)).strip()
    except GitError as error:
        raise UserError(f"the code cannot be sent: {error}") from None

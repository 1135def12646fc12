"""A small file system in memory that can really become full; tests are skipped where mounting is not allowed."""

import contextlib
import subprocess

import pytest


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a tmpfs with the given options in `tmp_path`/disk; the next call changes the options."""
    folder = tmp_path / "disk"

    def mount(options):
        how = "remount," if folder.is_mount() else ""
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", how + options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and not how:
            pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Write a file until nothing more fits."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

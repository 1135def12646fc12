"""A disk that fills up for real: a small file system in memory, mounted for the test where that is allowed."""

import contextlib
import subprocess

import pytest


@pytest.fixture
def disk(tmp_path):
    """Mounts a file system of a size in `tmp_path`/disk; called again, it changes size or other mount options."""
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

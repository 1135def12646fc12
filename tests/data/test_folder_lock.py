"""The lock of a data folder, when programs take and remove it at the same time."""

import os

from gpt2.data import folder_lock
from lib.base import files


def test_a_lock_that_its_holder_has_removed_is_taken_anew(tmp_path):
    """Whoever waited for a lock, and gets it when it has been removed, does not hold the folder."""

    def held(wait):
        return folder_lock.take(tmp_path, wait=wait)

    first = held(False)
    assert held(False) is None
    late = os.open(tmp_path / "lock", os.O_RDWR)  # of a program that waits
    folder_lock.give_back(tmp_path, first)
    tmp_path.mkdir()
    other = held(False)
    assert files.locks(late, tmp_path)  # it has the old lock
    assert not os.path.samestat(os.fstat(late), os.fstat(other))
    folder_lock.give_back(tmp_path, late)  # and removes nothing of the other program's
    assert held(False) is None
    folder_lock.give_back(tmp_path, other)
    assert not tmp_path.exists()

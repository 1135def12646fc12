"""Batches that are read ahead are those of the data, and an error comes with the batch that has it."""

import threading

import pytest

from gpt2.data.ahead import Ahead


class Numbered:
    """Batches that tell their place; those after `last` cannot be read."""

    def __init__(self, last=99):
        self.last, self.read = last, []

    def batch(self, step, micro):
        self.read.append((step, micro, threading.current_thread().name))
        if step > self.last:
            raise OSError(f"step {step} is gone")
        return (step, micro), (step, micro)


def test_every_batch_is_read_once_and_all_but_the_first_in_the_thread():
    data = Numbered()
    ahead = Ahead(data, [1, 3])
    places = [(step, micro) for step in range(5, 8) for micro in (1, 3)]
    assert [ahead.batch(*place)[0] for place in places] == places
    ahead.coming.result()
    assert [(step, micro) for step, micro, _ in data.read] == [*places, (8, 1)]
    assert [name.startswith("batches") for *_, name in data.read] == [False] + 6 * [True]


def test_another_batch_than_the_next_one_is_read_at_once():
    data = Numbered()
    ahead = Ahead(data, [0])
    assert [ahead.batch(step, 0)[0] for step in (4, 9, 10)] == [(4, 0), (9, 0), (10, 0)]


def test_an_error_comes_with_its_batch_and_not_before():
    ahead = Ahead(Numbered(last=1), [0])
    ahead.batch(0, 0)
    assert ahead.batch(1, 0)[0] == (1, 0)
    with pytest.raises(OSError, match=r"^step 2 is gone$"):
        ahead.batch(2, 0)

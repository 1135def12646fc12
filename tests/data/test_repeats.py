"""Documents that share a passage are found, and only those."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data import repeats
from tests.data.test_splits import prose

PASSAGE = prose(200, "passage")


def test_documents_that_share_a_passage_belong_together_and_so_do_those_that_share_one_with_the_same_third():
    other = prose(200, "other")
    a, b, c, d, e = (prose(3000, n) for n in range(5))
    assert repeats.groups([a, b + PASSAGE, c, PASSAGE + d + other, e[:1500] + other + e[1500:]]) == [0, 1, 2, 1, 1]


def test_what_is_short_or_empty_belongs_with_nothing():
    assert repeats.groups([]) == []
    assert repeats.groups(["", "", "short", "short"]) == [0, 1, 2, 3]


def test_copies_belong_together_whatever_they_are_made_of():
    document = "\ud800 é \u3000 🙂\n" * 20
    assert repeats.groups([document, prose(500, 1), document]) == [0, 1, 0]


@settings(max_examples=50, deadline=None)
@given(before=st.integers(0, 500), after=st.integers(0, 500), seed=st.integers(0, 10**6))
def test_a_passage_is_found_wherever_it_is(before, after, seed):
    one = prose(before, seed) + PASSAGE + prose(after, f"after {seed}")
    assert repeats.groups([one, PASSAGE]) == [0, 0]


@pytest.mark.parametrize(("length", "share"), [(70, 0), (100, 0.85), (120, 0.97)])
def test_how_much_of_what_is_shared_is_found(length, share):
    """Passages of under 80 bytes never; of those that are longer, nearly all."""
    found = 0
    for n in range(200):
        passage = "".join(random.Random(n).choices("abcdefghijklmnop", k=length))
        found += repeats.groups([f"{prose(300, f'one {n}')}#{passage}#", f"!{passage}!{prose(300, n)}"]) == [0, 0]
    assert found >= 200 * share if share else found == 0

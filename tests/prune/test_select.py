"""The exact threshold against a full stable sort, on every path of the search."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.prune import select
from lib.prune.select import FIRST, LAST, PruningError, keys

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1.5, float("inf"), -float("inf"), 1e-45, -1e-45, 3e-39, 1e-38, 3.4e38, -3.4e38]
FLOATS = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False))
TENSORS = st.lists(st.lists(FLOATS, min_size=1, max_size=20), min_size=1, max_size=6)


def masks_of(tensors, k, kept=None):
    sources = [select.of(keys(tensor, "t"), mask) for tensor, mask in zip(tensors, kept or [None] * 99, strict=False)]
    return [mask.view(tensor.shape) for mask, tensor in zip(select.prune(sources, k), tensors, strict=True)]


def brute(tensors, k):
    """Masks by a stable sort of all scores: 0 for the k lowest, of equal ones the first."""
    flat = np.concatenate([tensor.numpy().astype(np.float64).ravel() for tensor in tensors])
    mask = np.ones(len(flat), np.uint8)
    mask[np.argsort(flat, kind="stable")[:k]] = 0
    parts = np.split(mask, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    return [torch.from_numpy(part).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def assert_exact(tensors, k):
    for mask, expected in zip(masks_of(tensors, k), brute(tensors, k), strict=True):
        assert mask.dtype == torch.uint8
        assert torch.equal(mask, expected)


@pytest.fixture
def searches(monkeypatch):
    """How many keys each search digit by digit looked at; on a CPU there is none where the window was enough."""
    seen, search = [], select._search

    def counted(readers, k):
        seen.append(sum(len(keys) for reader in readers for keys in reader()))
        return search(readers, k)

    monkeypatch.setattr(select, "_search", counted)
    return seen


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_keys_of_known_floats():
    scores = torch.tensor([-float("inf"), -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, float("inf")])
    expected = [-0x7F800000, -0x3F800000, -1, 0, 0, 1, 0x3F800000, 0x7F800000]
    assert keys(scores, "t").tolist() == expected
    assert keys(scores, "t").dtype == torch.int32


@given(FLOATS, FLOATS)
def test_keys_keep_the_order(a, b):
    x, y = keys(torch.tensor([a, b]), "t").tolist()
    assert (x < y, x == y) == (a < b, a == b)
    assert FIRST < x < LAST


def test_keys_of_a_transposed_tensor_have_its_shape_and_order():
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert torch.equal(keys(scores.t(), "t"), keys(scores, "t").t())


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, -0x00400000, -0x007FFFFF, -1])
def test_nan_is_refused_by_name(bits):
    scores = torch.tensor([0, bits, 0x3F800000], dtype=torch.int32).view(torch.float32)
    assert scores.isnan().any()
    with pytest.raises(PruningError, match=r"^the scores of h\.0\.attn\.c_attn\.weight are NaN; lower"):
        keys(scores, "h.0.attn.c_attn.weight")


# ---- against a full sort ---------------------------------------------------------------------------------------------


@given(TENSORS, st.data())
def test_small_tensors(lists, data):
    tensors = [torch.tensor(values) for values in lists]
    assert_exact(tensors, data.draw(st.integers(0, sum(map(len, lists)))))


@given(st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([1, 3, 1000]), st.floats(0, 1))
def test_tensors_with_many_ties(size, seed, levels, share):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randint(-levels, levels, (size, n), generator=generator) / 8 for n in (1, 7, 8, 9)]
    assert_exact(tensors, round(share * sum(tensor.numel() for tensor in tensors)))


@pytest.mark.parametrize("share", [1e-6, 0.001, 0.3, 0.5, 0.9999, 1.0])
@pytest.mark.parametrize("signed", [False, True])
def test_a_window_is_enough_for_large_tensors(share, signed, searches):
    generator = torch.Generator().manual_seed(1)
    shapes = [(700, 300), (1001,), (333, 1000), (1,)]
    tensors = [
        torch.randn(shape, generator=generator) * scale for shape, scale in zip(shapes, (1, 9, 2, 1), strict=True)
    ]
    tensors = tensors if signed else [tensor.abs() for tensor in tensors]
    total = sum(tensor.numel() for tensor in tensors)
    assert_exact(tensors, round(share * total))
    assert not searches


def test_keys_that_go_first_and_stay_last_do_not_widen_the_window(searches):
    scores = torch.randn(600_000, generator=torch.Generator().manual_seed(2)).abs()
    found = keys(scores, "t").clone()
    found[:300_000], found[-100_000:] = FIRST, LAST
    [mask] = select.prune([select.of(found)], 300_100)
    assert torch.equal(mask == 0, found <= found[300_000:].sort().values[99])
    assert not searches
    for k in (300_000, 1, 600_000):
        [mask] = select.prune([select.of(found)], k)
        assert torch.equal(mask == 0, torch.arange(600_000) < k)


@pytest.mark.parametrize("k", [1, 50_000, 150_000, 245_000])
def test_a_sample_that_misleads_does_no_harm(k, searches):
    scores = torch.rand(250_000, generator=torch.Generator().manual_seed(3))
    scores[:: select._STRIDE] += 5  # all that the sample sees
    assert_exact([scores], k)
    assert searches == [250_000]


def test_equal_scores_fill_no_memory(searches):
    scores = torch.zeros(400_000)
    scores[::7] = 1.0
    assert_exact([scores], 100_001)
    assert_exact([scores], 399_999)
    assert searches == [400_000, 400_000]


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.5, 0.97])
def test_masks_chosen_part_by_part_are_those_of_a_stable_sort(share, monkeypatch):
    monkeypatch.setattr(select, "_PIECE", 500)
    generator = torch.Generator().manual_seed(6)
    shapes = [(70, 300), (3001,), (40, 1, 1001), (5, 2)]
    tensors = [torch.randn(shape, generator=generator).mul(500).round() for shape in shapes]  # every score many times
    kept = [(torch.rand(shape, generator=generator) < 0.8).to(torch.uint8) for shape in shapes]
    k = round(share * sum(int(mask.sum()) for mask in kept))
    expected = brute([tensor[mask == 1] for tensor, mask in zip(tensors, kept, strict=True)], k)
    for found, mask, stays in zip(masks_of(tensors, k, kept), kept, expected, strict=True):
        assert torch.equal(found, mask.clone().masked_scatter_(mask == 1, stays))


def test_permuting_equal_values_changes_nothing():
    scores = torch.randint(0, 50, (3000,), generator=torch.Generator().manual_seed(4)).float()
    swapped = scores.clone()
    at = (scores == 7).nonzero().view(-1)
    swapped[at] = scores[at.flip(0)]
    assert torch.equal(masks_of([scores], 300)[0], masks_of([swapped], 300)[0])


def test_nothing_and_everything():
    tensors = [torch.tensor([3.0]), torch.tensor([1.0, 2.0])]
    assert [mask.tolist() for mask in masks_of(tensors, 0)] == [[1], [1, 1]]
    assert [mask.tolist() for mask in masks_of(tensors, 2)] == [[1], [0, 0]]
    assert [mask.tolist() for mask in masks_of(tensors, 3)] == [[0], [0, 0]]


def test_ties_go_by_tensor_and_index():
    tensors = [torch.tensor([2.0, 1.0, 2.0]), torch.tensor([2.0, 0.0]), torch.tensor([2.0])]
    assert [mask.tolist() for mask in masks_of(tensors, 5)] == [[0, 0, 0], [0, 0], [1]]


@given(TENSORS, st.data())
def test_what_is_not_compared_is_pruned_and_not_counted(lists, data):
    tensors = [torch.tensor(values) for values in lists]
    bits = [data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for n in map(len, lists)]
    kept = [torch.tensor(one, dtype=torch.uint8) for one in bits]
    k = data.draw(st.integers(0, sum(int(mask.sum()) for mask in kept)))
    compared = brute([tensor[mask == 1] for tensor, mask in zip(tensors, kept, strict=True)], k)
    for found, mask, expected in zip(masks_of(tensors, k, kept), kept, compared, strict=True):
        assert torch.equal(found[mask == 1], expected)
        assert not found[mask == 0].any()


def test_scores_are_left_alone():
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(5))
    before = scores.clone()
    assert_exact([scores, scores.abs()], 2500)
    assert torch.equal(scores, before)

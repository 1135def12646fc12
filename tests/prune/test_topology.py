"""The scores of missing links: against values worked out by hand, and against a walk over all paths."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.prune import topology
from lib.prune.topology import ch2_l3n


def by_paths(mask):
    """(u, v) -> score of each missing link, by walking over its paths u - b - j - v, in plain loops and float64."""
    inputs = [{v for v, kept in enumerate(row) if kept} for row in mask.tolist()]
    outputs = [{u for u, links in enumerate(inputs) if v in links} for v in range(mask.shape[1])]
    found = {}
    for u, v in (mask == 0).nonzero().tolist():
        paths = [(b, j) for b in inputs[u] for j in outputs[b] if v in inputs[j]]
        near, far = {b for b, _ in paths}, {j for _, j in paths}
        score = 0.0
        for b in near:
            score += (1 + len(outputs[b] & far)) / (1 + len(outputs[b] - far - {u}))
        for j in far:
            score += (1 + len(inputs[j] & near)) / (1 + len(inputs[j] - near - {v}))
        found[u, v] = score
    return found


def test_scores_of_a_graph_by_hand():
    """(0, 2): outputs 1 (two links inside, none outside: 3) and 2 (2 / 2), inputs 0 (2 / 1) and 1 (3 / 1)."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.uint8)
    scores = ch2_l3n(mask)
    assert scores.dtype == torch.float32
    assert {(u, v): scores[u, v].item() for u, v in (mask == 0).nonzero().tolist()} == {
        (0, 2): 9.0, (0, 3): 2.0, (1, 3): 6.0, (2, 0): 10.0,
    }  # fmt: skip


def test_links_that_lead_out_of_the_community_count_against_it():
    """(0, 1): output 1 shares input 0 with output 0 and has two links elsewhere: 2 / 3. Input 0 likewise: 2 / 2."""
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.uint8)
    assert ch2_l3n(mask)[0, 1].item() == pytest.approx(2 / 3 + 2 / 2, rel=1e-6)


def test_without_a_path_of_three_links_there_is_no_score():
    """Output 1 and input 2 have no link. Between output 2 and input 0 there is no path."""
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.uint8)
    assert not ch2_l3n(mask)[mask == 0].any()
    assert not ch2_l3n(torch.zeros(3, 5, dtype=torch.uint8)).any()


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**32))
def test_the_products_of_matrices_agree_with_the_paths(rows, columns, density, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, columns, generator=generator) < density).byte()
    scores = ch2_l3n(mask)
    for place, score in by_paths(mask).items():
        assert scores[place].item() == pytest.approx(score, rel=1e-5)


def test_a_larger_layer_agrees_with_the_paths():
    mask = (torch.rand(30, 50, generator=torch.Generator().manual_seed(1)) < 0.15).byte()
    scores, expected = ch2_l3n(mask), by_paths(mask)
    assert len(expected) == int((mask == 0).sum()) > 1200
    assert [scores[place].item() for place in expected] == pytest.approx(list(expected.values()), rel=1e-5)


def test_a_layer_is_counted_in_parts(monkeypatch):
    mask = (torch.rand(30, 50, generator=torch.Generator().manual_seed(2)) < 0.3).byte()
    whole = ch2_l3n(mask)
    monkeypatch.setattr(topology, "_ROWS", 7)
    torch.testing.assert_close(ch2_l3n(mask)[mask == 0], whole[mask == 0])


def test_operations():
    """2 x 3 x 3 x 5 for the outputs' pairs and as many for their part of the scores; the same with 5 x 5 x 3."""
    assert topology.operations((3, 5)) == 2 * (2 * 3 * 3 * 5 + 2 * 5 * 5 * 3) == 480

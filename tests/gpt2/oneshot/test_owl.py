"""OWL's shares against the formulas in plain loops, and the numbers that follow from them."""

import pytest
import torch

from gpt2.oneshot import owl
from tests.gpt2.oneshot import cases


def test_outliers_are_counted_above_the_mean_of_the_block():
    first = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 12.0]])
    second = torch.tensor([[2.0, 7.0]])
    # The mean of the 8 scores is 25 / 8 = 3.125: above 2 times that are 12 and 7.
    assert owl.outlier_share([lambda: first, lambda: second], 2.0) == 2 / 8
    assert owl.outlier_share([lambda: first, lambda: second], 3.0) == 1 / 8


def test_densities_span_twice_lambda_and_keep_the_mean():
    # Scaled to 0 ... 0.16: 0, 0.16, 0.04; their mean is 0.2 / 3.
    expected = [0.4 - 0.2 / 3, 0.56 - 0.2 / 3, 0.44 - 0.2 / 3]
    assert owl.densities([0.01, 0.05, 0.02], 0.6, 0.08) == pytest.approx(expected)
    assert owl.densities([0.02, 0.02], 0.6, 0.08) == [0.4, 0.4]


def test_budgets_add_up_and_keep_within_their_tensor():
    shapes = {"a": (10, 10), "b": (10, 10), "c": (20, 10)}
    assert owl.budgets(shapes, {"a": 0.3, "b": 0.5, "c": 0.4}, 0.6, [0, 0, 0]) == {"a": 70, "b": 50, "c": 120}
    # 0.97 is too dense for the rest: -0.1 counts as 0, so 12 weights are divided in the proportion of 2, 10 and 0.
    assert owl.budgets(shapes, {"a": 0.02, "b": 0.1, "c": -0.1}, 0.97, [0, 0, 0]) == {"a": 98, "b": 90, "c": 200}
    # b has lost 80 already, so it keeps 20 of 160; a and c divide the other 140 in the proportion of 30 and 80.
    assert owl.budgets(shapes, {"a": 0.3, "b": 0.5, "c": 0.4}, 0.6, [0, 80, 0]) == {"a": 62, "b": 80, "c": 98}
    # a keeps the 2 that it has and b the 4, so c, with a density below 0, keeps the other 6 of 12.
    assert owl.budgets(shapes, {"a": 0.02, "b": 0.1, "c": -0.1}, 0.97, [98, 96, 0]) == {"a": 98, "b": 96, "c": 194}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_the_sparsity_of_the_blocks_is_that_of_the_formulas(method):
    model = cases.trained()
    states, shares = cases.embedded(model, cases.windows(24)), []
    for block in model.h:
        xs, states = cases.inputs(block, states)
        scores = []
        for name, x in xs.items():
            norms = [sum(float(value) ** 2 for value in column) ** 0.5 for column in x.T.astype("float64")]
            scores += [
                abs(w) * norm for row in block.get_parameter(name).tolist() for w, norm in zip(row, norms, strict=True)
            ]
        mean = sum(scores) / len(scores)
        shares.append(sum(score > 5 * mean for score in scores) / len(scores))
    assert min(shares) > 0.001
    # Two blocks: the one with more outliers loses lambda less, the other lambda more.
    _, masks = cases.pruned(method, "owl", model)
    expected = {"h.0": 0.52, "h.1": 0.68} if shares[0] > shares[1] else {"h.0": 0.68, "h.1": 0.52}
    for name, kept in masks.items():
        assert abs(int((kept == 0).sum()) - expected[name[:3]] * kept.numel()) <= 1
    assert sum(int((kept == 0).sum()) for kept in masks.values()) == 33_178
    if method == "wanda":  # as OWL's authors do: each row loses the same number
        gone = (masks["h.0.attn.c_attn.weight"] == 0).sum(1)
        assert int(gone.max() - gone.min()) <= 1

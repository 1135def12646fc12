"""One-shot pruning with OWL's shares, against the formulas in plain loops."""

import pytest

from tests.gpt2.oneshot import cases


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

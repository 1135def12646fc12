"""The law of loss against size: known laws are found again, and too few sizes are refused."""

import numpy as np
import pytest

from lib.report import law

SIZES = np.geomspace(2e5, 5e7, 8)
FEW = "No law is fitted: that needs at least 5 different sizes, and there are {}."
UNDETERMINED = "No law is drawn: these sizes and losses do not determine its exponents."


def test_a_law_without_noise_is_found_exactly():
    found = law.fit(SIZES, [1e6] * 8, 1.7 + 400 / SIZES**0.34)
    assert (found.E, found.A, found.a) == (pytest.approx(1.7), pytest.approx(400, rel=1e-3), pytest.approx(0.34))
    assert found.residual < 1e-6
    assert str(found) == "L = 1.700 + 400 / N^0.340"
    assert found.loss(np.array([1e6]), 1e6)[0] == pytest.approx(1.7 + 400 / 1e6**0.34)


def test_a_law_of_sizes_and_tokens_is_found_exactly():
    N, D = (grid.ravel() for grid in np.meshgrid(SIZES, [1e6, 4e6, 2e7, 1e8]))
    found = law.fit(N, D, 1.69 + 406.4 / N**0.34 + 410.7 / D**0.28)  # the published constants
    assert [found.E, found.a, found.b] == [pytest.approx(1.69, abs=1e-3), pytest.approx(0.34), pytest.approx(0.28)]
    assert found.points == 32
    assert str(found) == "L = 1.690 + 406 / N^0.340 + 411 / D^0.280"


def test_noise_shows_as_residual_and_standard_error():
    random = np.random.default_rng(1)
    found = [law.fit(SIZES, [1e6] * 8, 1.7 + 400 / SIZES**0.34 + 0.003 * random.standard_normal(8)) for _ in range(40)]
    exponents = np.array([one.a for one in found])
    assert np.mean([one.residual for one in found]) == pytest.approx(0.003 * np.sqrt(5 / 8), rel=0.15)
    assert np.mean([one.error for one in found]) == pytest.approx(exponents.std(), rel=0.3)


def test_two_numbers_of_tokens_leave_the_more_frequent_one():
    D = [1e6] * 6 + [5e6] * 2
    losses = 1.7 + 400 / SIZES**0.34 - 0.4 * (np.array(D) > 2e6)
    found = law.fit(SIZES, D, losses)
    assert (found.points, found.b, found.a) == (6, None, pytest.approx(0.34))


@pytest.mark.parametrize(
    ("sizes", "losses", "sentence"),
    [
        ([1e6] * 9, [2.0] * 9, FEW.format(1)),
        ([1e6, 2e6, 3e6, 4e6], [4, 3, 2.5, 2.2], FEW.format(4)),
        ([], [], FEW.format(0)),
        (SIZES, [2.0, 2.3, 1.9, 2.2, 2.1, 2.4, 1.8, 2.2], UNDETERMINED),
        (SIZES, 1 + SIZES / 5e7, UNDETERMINED),
    ],
)  # fmt: skip
def test_what_does_not_determine_a_law_is_refused_in_a_sentence(sizes, losses, sentence):
    assert law.fit(sizes, [1e6] * len(sizes), losses) == sentence

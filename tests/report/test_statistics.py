"""Verdicts: against published tables, scipy's tests, formulas by hand, and simulated runs whose truth is known."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from lib.base.errors import UserError
from lib.report import inference
from lib.report.inference import Family, Plan
from lib.report.statistics import (
    BETTER,
    DIVERGED,
    EQUIVALENT,
    NO_PAIR,
    ONE_SEED,
    UNDECIDED,
    WORSE,
    More,
    compare,
)

# Three configurations and five seeds: a level of each seed, b is 0.02 worse, and residuals with a variance of
# 3 * (8² + 4² + 4²) * 10^-6 / 8 = 3.6e-5, equally large in each row.
LAYOUT = np.array(
    [
        [3.008, 3.036, 2.976, 3.100, 3.020],
        [3.016, 3.068, 2.996, 3.120, 3.040],
        [2.996, 3.036, 2.988, 3.100, 3.020],
    ]
)


def losses(table, names=("dense", "b", "c", "d", "e", "f")):
    """The rows of a table as configurations, its columns as seeds 1, 2, ..."""
    return {name: dict(enumerate(row.tolist(), 1)) for name, row in zip(names, np.asarray(table, float), strict=False)}


# ---- the distributions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("df", "published"),  # Dunnett, Biometrics 20 (1964), two-sided, 5 %, 1 to 9 comparisons with a control
    [
        (5, [2.57, 3.03, 3.29, 3.48, 3.62, 3.73, 3.82, 3.90, 3.97]),
        (10, [2.23, 2.57, 2.76, 2.89, 2.99, 3.07, 3.14, 3.19, 3.24]),
        (20, [2.09, 2.38, 2.54, 2.65, 2.73, 2.80, 2.86, 2.90, 2.95]),
        (60, [2.00, 2.27, 2.41, 2.51, 2.58, 2.64, 2.69, 2.73, 2.77]),
    ],
)
def test_critical_values_are_dunnetts(df, published):
    assert [round(Family(size, True).critical(df), 2) for size in range(1, 10)] == published


def test_adjusted_p_is_that_of_scipys_dunnett():
    groups = [np.array([7.1, 6.8, 7.4, 7.0]), np.array([7.9, 7.2, 7.6, 8.1]), np.array([7.0, 7.3, 7.5, 6.9])]
    control = np.array([6.9, 7.0, 6.6, 7.2])
    found = stats.dunnett(*groups, control=control, rng=np.random.default_rng(1))
    assert Family(3, True).adjusted(found.statistic, 12) == pytest.approx(found.pvalue, abs=5e-4)


def test_without_correlation_the_adjustment_is_that_of_independent_comparisons():
    # With many degrees of freedom the common standard deviation is known, so p = 1 - (1 - p1)^K (Šidák).
    single = 2 * stats.norm.sf(2.5)
    found = Family(4, True, 0.0).adjusted(np.array([2.5]), 10**6)
    assert found == pytest.approx(1 - (1 - single) ** 4, abs=1e-5)


def test_holm():
    p = np.array([[0.01, 0.04, 0.03, 0.005], [0.9, 0.5, 0.6, 0.5]])
    assert inference.holm(p) == pytest.approx(np.array([[0.03, 0.06, 0.06, 0.02], [1, 1, 1, 1]]))


def test_cochrans_p_is_uniform_for_equal_variances():
    shares = inference.residuals(np.random.default_rng(5).standard_normal((4000, 6, 5)))[1]
    p = inference.cochran(shares, 6, 5)
    assert [float((p <= level).mean()) for level in (0.05, 0.25, 0.5, 0.75)] == pytest.approx(
        [0.05, 0.25, 0.5, 0.75], abs=0.025
    )


# ---- how many seeds --------------------------------------------------------------------------------------------------


def test_seeds_needed_are_the_published_ones():
    plan = Plan(Family(1, False), 1)
    assert [plan.seeds(ratio, 1.0, 0.0) for ratio in (0.5, 1.0, 1.5, 2.0, 3.0)] == [34, 10, 6, 5, 4]


@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.7, 1.2, 2.5, 6.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_given_the_true_spread_the_seeds_needed_are_those_of_the_noncentral_t(ratio, rows):
    def power(n):
        limit = stats.t.ppf(0.975, rows * (n - 1))
        other = stats.nct.cdf(-limit, rows * (n - 1), ratio * math.sqrt(n))
        return stats.nct.sf(limit, rows * (n - 1), ratio * math.sqrt(n)) + np.nan_to_num(other)

    found = Plan(Family(1, rows > 1), rows).seeds(-ratio * 0.02, 0.02, 0.0)
    assert power(found) >= 0.8 - 1e-9
    assert found == 2 or power(found - 1) < 0.8


def test_with_many_comparisons_the_critical_value_is_the_adjusted_one():
    limit = stats.t.ppf(1 - 0.025 / 8, 5)  # Bonferroni
    expected = stats.nct.sf(limit, 5, 1.4 * math.sqrt(6))
    assert Plan(Family(8, False), 1).power(1.4, 1.0, 0.0, 6) == pytest.approx(expected, abs=1e-6)


def test_equivalence_can_be_what_needs_fewer_seeds():
    # Differences of mean 0 and sd 1, margin 1: simulate how often the interval lies within the margin.
    random, n = np.random.default_rng(2), 12
    sample = random.standard_normal((20_000, n))
    half = stats.t.ppf(0.975, n - 1) * sample.std(1, ddof=1) / math.sqrt(n)
    simulated = (np.abs(sample.mean(1)) + half <= 1).mean()
    plan = Plan(Family(1, False), 1)
    assert plan.power(0.0, 1.0, 1.0, n) == pytest.approx(simulated, abs=0.01)
    assert plan.seeds(0.0, 1.0, 0.0) is None
    assert plan.seeds(0.0, 1.0, 1.0) in (12, 13, 14)


def test_the_spread_of_three_seeds_is_known_within_a_factor_of_half_to_six():
    assert inference.spread_interval(1.0, 2) == pytest.approx((0.521, 6.285), abs=1e-3)


def test_more_seeds_in_words():
    assert str(More(4, 2, 30)) == "4 more seeds (2 to 30)"
    assert str(More(1, 1, None)) == "1 more seed (1 to more than 1,000)"
    assert str(More(None, None, None)) == "more than 1,000 more seeds"


def test_more_seeds_of_an_undecided_pair():
    # Differences 0.02 and sd 0.02 of three pairs: ten seeds have 80 % power, so seven more.
    found = compare(losses([[3.0, 3.1, 2.9], [3.0, 3.12, 2.94]]), "dense", margin=0.0).verdicts["b"]
    assert (found.word, found.n, str(found.more)) == (UNDECIDED, 3, "7 more seeds (2 to 309)")


# ---- one comparison --------------------------------------------------------------------------------------------------


def test_a_single_pair_is_a_paired_t_test():
    found = compare(losses(LAYOUT[:2]), "dense")
    b = found.verdicts["b"]
    scipy = stats.ttest_rel(LAYOUT[1], LAYOUT[0])
    interval = scipy.confidence_interval(0.95)
    assert b.p == pytest.approx(scipy.pvalue)
    assert (b.low, b.high) == pytest.approx((interval.low, interval.high))
    assert (b.family_low, b.family_high) == pytest.approx((interval.low, interval.high))
    assert b.difference == pytest.approx(0.02)
    assert b.percent == pytest.approx(100 * 0.02 / 3.028)
    assert (b.word, b.n, b.more) == (WORSE, 5, None)
    assert found.margin == pytest.approx(statistics.stdev(LAYOUT[0]))
    assert found.margin_from == "the standard deviation of dense over its 5 seeds"
    assert found.method == (
        "Configurations are paired with the reference by seed. Their differences have a t test. "
        "With one comparison nothing is adjusted."
    )


def test_the_margin_is_that_of_the_first_dense_configuration_with_several_seeds():
    found = compare(losses(LAYOUT[:2]), "b", dense={"one": [3.0], "broken": [3.0, math.inf], "dense": [3.0, 3.02]})
    assert found.margin == pytest.approx(0.02 / math.sqrt(2))
    assert found.margin_from == "the standard deviation of dense over its 2 seeds"
    found = compare(losses(LAYOUT[:2]), "b", dense={"one": [3.0]})
    assert found.margin == pytest.approx(statistics.stdev(LAYOUT[1]))
    assert found.margin_from == "the standard deviation of b over its 5 seeds"


def test_seeds_are_paired_by_number_not_by_order():
    table = losses(LAYOUT[:2])
    shuffled = {"dense": table["dense"], "b": dict(reversed(table["b"].items()))}
    assert compare(shuffled, "dense").verdicts["b"].p == pytest.approx(compare(table, "dense").verdicts["b"].p)


def test_only_seeds_that_both_have_count():
    table = losses(LAYOUT[:2])
    table["b"] |= {17: 9.0}
    del table["b"][2]
    found = compare(table, "dense").verdicts["b"]
    keep = [0, 2, 3, 4]
    assert found.n == 4
    assert found.p == pytest.approx(stats.ttest_rel(LAYOUT[1, keep], LAYOUT[0, keep]).pvalue)
    assert found.percent == pytest.approx(100 * found.difference / LAYOUT[0, keep].mean())


# ---- many comparisons ------------------------------------------------------------------------------------------------


def test_equal_variances_are_pooled():
    found = compare(losses(LAYOUT), "dense")
    # Least squares with a column for each configuration and, but for one, each seed.
    rows = [
        [float(i == c) for c in range(3)] + [float(j == s) for s in range(1, 5)] for i in range(3) for j in range(5)
    ]
    left = LAYOUT.ravel() - np.array(rows) @ np.linalg.lstsq(np.array(rows), LAYOUT.ravel())[0]
    assert (left @ left) / 8 == pytest.approx(3.6e-5)
    error = math.sqrt(2 / 5 * 3.6e-5)
    assert (
        "Their variances are pooled in a two-way layout, configuration + seed, with 8 residual degrees of freedom, as "
        "no configuration's variance stands out (Cochran's test of equal variances: p = 1.000; to pool them, 5 seeds "
        "need p > 0.667). "
    ) in found.method
    assert "Dunnett's adjustment for 2 comparisons" in found.method
    for name, row in (("b", LAYOUT[1]), ("c", LAYOUT[2])):
        verdict, difference = found.verdicts[name], (row - LAYOUT[0]).mean()
        assert verdict.low == pytest.approx(difference - stats.t.ppf(0.975, 8) * error)
        assert verdict.high == pytest.approx(difference + stats.t.ppf(0.975, 8) * error)
        assert verdict.family_high == pytest.approx(difference + 2.673 * error, abs=1e-5)  # Dunnett's table: 2.67
        both = stats.multivariate_t(shape=[[1, 0.5], [0.5, 1]], df=8)
        t = abs(difference / error)
        inside = both.cdf([t, t], lower_limit=[-t, -t], maxpts=200_000, random_state=1)
        assert verdict.p == pytest.approx(1 - inside, abs=1e-4)
    assert [found.verdicts[name].word for name in "bc"] == [WORSE, EQUIVALENT]


def test_unequal_variances_leave_each_pair_its_own_t_and_holm():
    table = LAYOUT.copy()
    table[2] = [3.30, 2.95, 3.21, 3.00, 3.28]
    found = compare(losses(table), "dense")
    tests = [stats.ttest_rel(table[i], table[0]) for i in (1, 2)]
    assert (
        "Each pair has its own t test, as the variances may be unequal (Cochran's test of equal variances: p < 0.01; "
        "to pool them, 5 seeds need p > 0.667). "
    ) in found.method
    assert "Holm's adjustment for 2 comparisons" in found.method
    assert found.verdicts["b"].p == pytest.approx(2 * tests[0].pvalue)
    assert found.verdicts["c"].p == pytest.approx(max(tests[1].pvalue, 2 * tests[0].pvalue))
    interval = tests[1].confidence_interval(0.95)
    assert (found.verdicts["c"].low, found.verdicts["c"].high) == pytest.approx((interval.low, interval.high))
    wide = tests[1].confidence_interval(1 - 0.05 / 2)
    assert (found.verdicts["c"].family_low, found.verdicts["c"].family_high) == pytest.approx((wide.low, wide.high))


def test_where_a_later_step_of_holm_rejects_the_wide_interval_ends_at_zero():
    table = np.array([[3.0, 3.1, 2.9, 3.0], [2.0, 2.11, 1.90, 2.01], [3.05, 3.27, 3.05, 3.08]])
    c = compare(losses(table), "dense").verdicts["c"]
    assert 0.025 < stats.ttest_rel(table[2], table[0]).pvalue < 0.05
    assert (c.word, c.family_low) == (WORSE, 0.0)


def test_missing_runs_leave_a_pooled_variance_of_the_seeds_that_all_have():
    table = losses(LAYOUT)
    table["dense"][6], table["b"][6] = 3.05, 3.07
    found = compare(table, "dense")
    b, c = found.verdicts["b"], found.verdicts["c"]
    assert "8 residual degrees of freedom" in found.method
    assert "Šidák's adjustment" in found.method
    assert (b.n, c.n) == (6, 5)
    assert (b.high - b.low) / 2 == pytest.approx(stats.t.ppf(0.975, 8) * math.sqrt(2 * 3.6e-5 / 6))
    assert (c.high - c.low) / 2 == pytest.approx(stats.t.ppf(0.975, 8) * math.sqrt(2 * 3.6e-5 / 5))


def test_too_few_common_seeds_for_a_pooled_variance():
    table = losses(LAYOUT)
    table["b"] = {seed: table["b"][seed] for seed in (1, 2)}
    table["c"] = {seed: table["c"][seed] for seed in (2, 3, 4, 5)}
    found = compare(table, "dense")
    assert "own t test, as too few seeds are common to all" in found.method
    assert found.verdicts["b"].p == pytest.approx(2 * stats.ttest_rel(LAYOUT[1, :2], LAYOUT[0, :2]).pvalue)


# ---- no verdict, and bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_configuration_does_not_disturb_the_others(bad):
    table = losses(LAYOUT)
    alone = compare(table, "dense")
    found = compare(table | {"d": {1: 3.0, 2: bad, 3: 3.0}}, "dense")
    assert found.verdicts["d"].word == DIVERGED
    assert (found.verdicts["d"].n, found.verdicts["d"].difference, found.verdicts["d"].p) == (3, None, None)
    assert {name: found.verdicts[name] for name in "bc"} == alone.verdicts
    assert found.method == alone.method


def test_one_seed_has_no_interval():
    found = compare({"dense": {1: 4.0}, "b": {1: 3.9}, "c": {2: 3.0}, "d": {}}, "dense")
    b = found.verdicts["b"]
    assert (b.word, b.n, b.low, b.family_low, b.p, b.more) == (ONE_SEED, 1, None, None, None, None)
    assert (b.difference, b.percent) == pytest.approx((-0.1, -2.5))
    assert [found.verdicts[name].word for name in "cd"] == [NO_PAIR, NO_PAIR]
    assert (found.margin, found.margin_from) == (None, "dense has one seed; MARGIN declares one")
    assert found.method == "No configuration shares two seeds with dense, so nothing can be tested."


def test_one_seed_beside_configurations_with_several():
    table = losses(LAYOUT) | {"d": {1: 3.5}}
    found = compare(table, "dense")
    assert found.verdicts["d"].word == ONE_SEED
    assert {name: found.verdicts[name] for name in "bc"} == compare(losses(LAYOUT), "dense").verdicts


def test_identical_losses():
    same = losses([[3.0, 3.25, 3.5]] * 3)
    for margin in (None, 0.0):
        b = compare(same, "dense", margin).verdicts["b"]
        assert (b.word, b.difference, b.low, b.high, b.p, b.more) == (EQUIVALENT, 0, 0, 0, 1, None)


def test_a_difference_without_any_spread_is_certain():
    found = compare(losses([[3.0, 3.25, 3.5], [2.75, 3.0, 3.25], [3.125, 3.375, 3.625]]), "dense", margin=0.5)
    b, c = found.verdicts["b"], found.verdicts["c"]
    assert (b.word, b.low, b.family_high, b.p) == (BETTER, -0.25, -0.25, 0)
    assert (c.word, c.low, c.family_high, c.p) == (WORSE, 0.125, 0.125, 0)


@pytest.mark.parametrize(
    ("reference", "margin", "words"),
    [
        ("dnse", None, "dnse: is not among the configurations, name one of dense, empty, broken"),
        ("empty", None, "empty: has no finished run, so nothing can be compared with it, name another reference"),
        ("broken", None, "broken: the loss of seed 2 is nan, name a reference that did not diverge"),
        ("dense", -0.1, "MARGIN: -0.1 is not a difference in nats per token, give a number of at least 0"),
        ("dense", math.nan, "MARGIN: nan is not a difference in nats per token, give a number of at least 0"),
    ],
)
def test_bad_input_is_a_sentence(reference, margin, words):
    with pytest.raises(UserError) as error:
        compare({"dense": {1: 3.0, 2: 3.1}, "empty": {}, "broken": {1: 3.0, 2: math.nan}}, reference, margin)
    assert str(error.value) == words


# ---- planted truth ---------------------------------------------------------------------------------------------------

SIMULATIONS = 2000
SPREADS = {  # standard deviations of the configurations, the reference's first
    "equal": [1, 1, 1, 1, 1],
    "one noisy": [1, 1, 1, 1, 2],
    "one very noisy": [1, 1, 1, 1, 3],
    "noisy reference": [2, 1, 1, 1, 1],
    "rising": [1, 1.25, 1.5, 1.75, 2],
    "two": [1, 3],
}


def simulate(sds, n, effects, simulations=SIMULATIONS, seed=11):
    """Losses (simulations, k, n) with a common effect of each seed that is larger than the spread."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((simulations, len(sds), n)) * 0.01 * np.array(sds, float)[:, None]
    return 3 + random.normal(0, 0.05, (simulations, 1, n)) + np.array(effects)[:, None] + noise


def judged(tables):
    """Differences, half-widths of both intervals (simulations, K), and which are pooled: `compare` for many tables."""
    k, n = tables.shape[1:]
    against = tables[:, 1:] - tables[:, :1]
    variance, share = inference.residuals(tables)
    pooled = (inference.cochran(share, k, n) > inference.pooling_level(n)) & (k > 2)
    errors = np.sqrt(np.where(pooled[:, None], 2 * variance[:, None], against.var(-1, ddof=1)) / n)
    each, wide = (
        np.where(pooled, critical((k - 1) * (n - 1), True), critical(n - 1, False))[:, None] * errors
        for critical in (
            lambda df, _: inference.single_critical(df),
            lambda df, pool: Family(k - 1, pool).critical(df),
        )
    )
    return against.mean(-1), each, wide, pooled


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("spreads", SPREADS)
def test_intervals_cover_and_false_verdicts_are_rare(spreads, n):
    sds = SPREADS[spreads]
    tables = simulate(sds, n, np.zeros(len(sds)))
    differences, each, wide, pooled = judged(tables)
    covered = (np.abs(differences) <= each).mean(0)
    assert all(0.93 <= share <= 0.97 for share in covered), covered
    assert (np.abs(differences) > wide).any(1).mean() <= 0.065
    # `compare` itself says the same of the first tables.
    for i in range(3):
        found = compare(losses(tables[i]), "dense", margin=0.0)
        assert ("two-way layout" in found.method) == pooled[i]
        for verdict, difference, narrow, broad in zip(
            found.verdicts.values(), differences[i], each[i], wide[i], strict=True
        ):
            assert (verdict.low, verdict.high) == pytest.approx((difference - narrow, difference + narrow))
            if verdict.word == UNDECIDED:
                assert verdict.family_high == pytest.approx(difference + broad, abs=1e-7)


@pytest.mark.parametrize(("n", "effect"), [(3, 0.05), (5, 0.025), (10, 0.015)])
def test_power_of_one_pair_is_that_of_the_noncentral_t(n, effect):
    differences, _, wide, _ = judged(simulate([1, 1], n, [0, -effect], 4000))
    limit, center = stats.t.ppf(0.975, n - 1), effect / (0.01 * math.sqrt(2)) * math.sqrt(n)
    assert (differences < -wide).mean() == pytest.approx(stats.nct.sf(limit, n - 1, center), abs=0.03)


@pytest.mark.parametrize(("n", "effect"), [(3, 0.032), (5, 0.022), (10, 0.015)])
def test_power_of_pooled_pairs_is_that_of_the_noncentral_t(n, effect):
    """The choice of pooling depends on shares of the residuals alone, so it leaves the pooled t undisturbed."""
    effects = [0, *[-effect] * 4]
    differences, _, wide, pooled = judged(simulate([1] * 5, n, effects, 12_000))
    df, center = 4 * (n - 1), effect / (0.01 * math.sqrt(2)) * math.sqrt(n)
    expected = stats.nct.sf(Family(4, True).critical(df), df, center)
    assert 0.6 < expected < 0.95
    assert (differences < -wide)[pooled].mean() == pytest.approx(expected, abs=0.03)


def test_a_difference_of_the_margin_is_seldom_called_equivalent():
    margin = 0.02
    differences, _, wide, _ = judged(simulate([1] * 5, 10, [0, *[margin] * 4]))
    assert 0 < (np.abs(differences) + wide <= margin).any(1).mean() <= 0.05

"""The statistics behind lib/report/statistics.py, as functions of arrays; leading axes are independent data sets.

Letters of shapes: k configurations with the reference first, K = k - 1 comparisons with it, n seeds.
"""

import dataclasses
from functools import cache

import numpy as np

LEVEL = 0.05  # of all intervals and verdicts
POWER = 0.8  # with which more seeds are to decide
MOST_SEEDS = 1000  # no plan looks further
_DRAWS = 4000  # of Cochran's statistic under equal variances


# ---- variances -------------------------------------------------------------------------------------------------------


def residuals(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the two-way layout configuration + seed, with (k-1)(n-1) degrees of freedom, and Cochran's statistic.

    The statistic is the largest configuration's share of the residual sum of squares; 0 if nothing is left to share.
    """
    k, n = losses.shape[-2:]
    left = losses - losses.mean(-1, keepdims=True)
    left = left - left.mean(-2, keepdims=True)
    rows = (left**2).sum(-1)  # (..., k)
    total = rows.sum(-1)
    share = np.divide(rows.max(-1), total, out=np.zeros_like(total), where=total > 0)
    return total / ((k - 1) * (n - 1)), share


def cochran(share: np.ndarray, k: int, n: int) -> np.ndarray:
    """p of Cochran's statistic: how often equal variances give as large a share (1941; here for the two-way layout).

    From simulated layouts with a fixed seed. Published tables are for samples without the common effect of the seeds.
    """
    return 1 - np.searchsorted(_shares(k, n), share) / _DRAWS


@cache
def _shares(k: int, n: int) -> np.ndarray:
    """The statistic in layouts with equal variances, ascending."""
    random, chunk = np.random.default_rng(0), _DRAWS // 20
    return np.sort(np.concatenate([residuals(random.standard_normal((chunk, k, n)))[1] for _ in range(20)]))


def pooling_level(n: int) -> float:
    """Variances are pooled where Cochran's p is above this level.

    It is high, because few seeds hardly show unequal variances: a test at 5 % would miss most of them. The level comes
    from simulations of 3 to 20 configurations, some of which vary 2 to 4 times as much. With it each interval covers
    in 93 to 97 %, and no more than 6.5 % of the families have a false verdict. The price: if variances are equal, only
    14 % of the layouts with three seeds are pooled, 33 % with five, and 57 % with ten.
    """
    return 6 / (n + 4)


# ---- many comparisons with one reference -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Family:
    """Comparisons that are judged together."""

    size: int  # K
    pooled: bool  # Dunnett's adjustment of statistics that share a variance; otherwise Holm's
    correlation: float = 0.5  # of two comparisons; with 0 the adjustment is conservative for any other (Šidák 1967)

    def adjusted(self, t: np.ndarray, df: np.ndarray) -> np.ndarray:
        """Adjusted p of the statistics t (..., K)."""
        single = two_sided(t, df)
        if not self.pooled:
            return holm(single)
        df = float(np.max(df))
        p = [1 - _inside(abs(one), self.size, df, self.correlation) for one in t.ravel()]
        # Rounding matters only to the tiniest p, which these bounds keep in place.
        return np.clip(np.reshape(p, t.shape), single, np.minimum(self.size * single, 1))

    def critical(self, df: float) -> float:
        """What |t| exceeds in any of the comparisons with probability `LEVEL` if no configuration differs.

        Under Holm's adjustment this is its first step, Bonferroni's.
        """
        if self.pooled:
            return _dunnett(self.size, df, self.correlation)
        return single_critical(df, LEVEL / self.size)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p along the last axis (Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p, axis=-1, kind="stable")
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    steps = np.minimum(np.maximum.accumulate(steps, axis=-1), 1)
    found = np.empty_like(steps)
    np.put_along_axis(found, order, steps, -1)
    return found


def two_sided(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """p of |t|."""
    from scipy.special import stdtr

    return 2 * stdtr(df, -np.abs(t))


def single_critical(df: float, level: float = LEVEL) -> float:
    """What |t| of a single comparison exceeds with probability `level`."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - level / 2))


@cache
def _dunnett(size: int, df: float, correlation: float) -> float:
    """The critical value for which `_inside` is 1 - LEVEL; between those of one comparison and of Bonferroni."""
    from scipy.optimize import brentq

    ends = single_critical(df) - 1e-6, single_critical(df, LEVEL / size) + 1e-6
    return brentq(lambda t: _inside(t, size, df, correlation) - (1 - LEVEL), *ends, xtol=1e-7)


def _inside(t: float, size: int, df: float, correlation: float) -> float:
    """Probability that no |t| of `size` comparisons with one reference exceeds `t` (Dunnett, JASA 50, 1955).

    Equal correlations make the multivariate t a double integral: over the common part z of the differences, and over
    the estimated standard deviation, relative to the true one.
    """
    from scipy.special import ndtr

    z, weights = _gauss(0.0, 8.5, 40)  # the other half is the same
    scales, scale_weights = _scales(df)
    center, width = np.sqrt(correlation) * z, np.sqrt(1 - correlation)
    limit = t * scales[:, None]  # (scales, 1)
    within = (ndtr((limit - center) / width) - ndtr((-limit - center) / width)) ** size
    normal = weights * np.exp(-(z**2) / 2) * np.sqrt(2 / np.pi)
    return float(scale_weights @ within @ normal)


@cache
def _gauss(low: float, high: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a Gauss-Legendre rule between two limits."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (high - low) / 2 * nodes + (high + low) / 2, (high - low) / 2 * weights


@cache
def _scales(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for sqrt(chi-square / df): an estimated standard deviation relative to the true one."""
    from scipy.special import chdtri, gammaln

    low, high = (float(np.sqrt(chdtri(df, tail) / df)) for tail in (1 - 1e-13, 1e-13))
    nodes, weights = _gauss(low, high, 56)
    log = df / 2 * np.log(df / 2) - gammaln(df / 2) + np.log(2) + (df - 1) * np.log(nodes) - df * nodes**2 / 2
    return nodes, weights * np.exp(log)


# ---- how many seeds --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a number of seeds would be tested."""

    family: Family
    rows: int  # degrees of freedom per further seed: k - 1 if variances are pooled, otherwise 1

    def power(self, difference: float, sd: float, margin: float, n: int) -> float:
        """Probability that n seeds decide: better or worse, or else equivalent within ± margin.

        `difference` and `sd` are the mean and standard deviation of the paired differences. The larger of the two
        probabilities is taken.
        """
        from scipy.special import ndtr

        df, error = self.rows * (n - 1), sd / np.sqrt(n)
        scales, weights = _scales(df)
        limit, center = self.family.critical(df) * scales, abs(difference) / error
        differs = ndtr(center - limit) + ndtr(-center - limit)  # the noncentral t, given the estimated spread
        room = margin / error - limit  # how far from zero a mean may lie whose interval is within the margin
        equivalent = np.where(room > 0, ndtr(room - center) - ndtr(-room - center), 0)
        return float(max(weights @ differs, weights @ equivalent))

    def seeds(self, difference: float, sd: float, margin: float) -> int | None:
        """The smallest number of seeds that decides with 80 % power; None if it is above `MOST_SEEDS`."""
        low, high = 1, MOST_SEEDS  # low does not suffice, high does
        if self.power(difference, sd, margin, high) < POWER:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.power(difference, sd, margin, middle) >= POWER else (middle, high)
        return high


def spread_interval(sd: float, df: float) -> tuple[float, float]:
    """The 95 % interval of a standard deviation that was estimated with `df` degrees of freedom."""
    from scipy.special import chdtri

    return sd * float(np.sqrt(df / chdtri(df, LEVEL / 2))), sd * float(np.sqrt(df / chdtri(df, 1 - LEVEL / 2)))

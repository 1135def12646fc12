"""The law of loss against size: how it is fitted, and when the sizes do not suffice for it.

Hoffmann et al. (arXiv 2203.15556, equation 2) have L = E + A / N^a + B / D^b for N parameters and D tokens. Jin et al.
(arXiv 2501.12486) take for N the number of parameters averaged over training, so that it holds for sparse models too.
Here N counts the weights in scope.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

SIZES, TOKENS = 5, 3  # the fewest different numbers that determine a term
_CLOSE = 0.02  # sizes that differ by less count as one
_EXPONENTS = (0.05, 2.0)  # the range of a and b in which a fit is trusted; the published ones are 0.2 to 0.5


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law. Without the term of the tokens, `b` is None, and E has what they leave."""

    E: float
    A: float
    a: float
    error: float  # standard error of a
    residual: float  # root mean square, in nats
    points: int
    B: float = 0.0
    b: float | None = None

    def loss(self, sizes: np.ndarray, tokens: float) -> np.ndarray:
        """The loss of models with these sizes after so many tokens."""
        return self.E + self.A / sizes**self.a + (self.B / tokens**self.b if self.b else 0.0)

    def __str__(self) -> str:
        data = f" + {self.B:.3g} / D^{self.b:.3f}" if self.b else ""
        return f"L = {self.E:.3f} + {self.A:.3g} / N^{self.a:.3f}{data}"


def fit(sizes: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> Law | str:
    """The law that fits best in logarithms of the loss, or a sentence that says why there is none.

    Points with fewer different numbers of tokens than TOKENS must have one in common: then B / D^b is a constant.
    """
    N, D, L = (np.asarray(values, dtype=np.float64) for values in (sizes, tokens, losses))
    with_tokens = len(np.unique(D)) >= TOKENS
    if not with_tokens and len(np.unique(D)) > 1:
        common, counts = np.unique(D, return_counts=True)
        of = common[counts.argmax()] == D
        N, D, L = N[of], D[of], L[of]
    found = distinct(N)
    if found < SIZES:
        return f"No law is fitted: that needs at least {SIZES} different sizes, and there are {found}."
    law = _fit(N, D, L, with_tokens)
    exponents = [law.a] + ([law.b] if law.b else [])
    if law.error > law.a / 2 or not all(_EXPONENTS[0] < one < _EXPONENTS[1] for one in exponents):
        return "No law is drawn: these sizes and losses do not determine its exponents."
    return law


def distinct(sizes: np.ndarray) -> int:
    """How many sizes differ by more than 2 % from the next smaller one."""
    return 1 + int((np.diff(np.log(np.sort(sizes))) > np.log1p(_CLOSE)).sum()) if len(sizes) else 0


def _fit(N: np.ndarray, D: np.ndarray, L: np.ndarray, with_tokens: bool) -> Law:
    """Least squares in logarithms, from fixed starts. Sizes are relative to their geometric mean for a good scale."""
    from scipy.optimize import least_squares

    N0, D0 = np.exp(np.log(N).mean()), np.exp(np.log(D).mean())
    n, d, target = np.log(N / N0), np.log(D / D0), np.log(L)

    def off(x: np.ndarray) -> np.ndarray:
        """log E, log A, log a and, with tokens, log B, log b; A and B relative to the means."""
        terms = [np.full_like(n, x[0]), x[1] - np.exp(x[2]) * n]
        if with_tokens:
            terms.append(x[3] - np.exp(x[4]) * d)
        return np.logaddexp.reduce(terms) - target

    base, starts = float(target.min()), []
    for exponent in (0.1, 0.3, 1.0):
        for share in (0.05, 0.3, 0.7):  # of the loss that is not E
            start = [base + np.log1p(-share), base + np.log(share), np.log(exponent)]
            starts.append([*start, base + np.log(share), np.log(exponent)] if with_tokens else start)
    limits = (np.array([-20.0, -20.0, -6.0, -20.0, -6.0]), np.array([10.0, 10.0, 3.0, 10.0, 3.0]))
    low, high = (limit[: len(starts[0])] for limit in limits)
    best = min((least_squares(off, start, bounds=(low, high)) for start in starts), key=lambda found: found.cost)
    x, residual = best.x, np.exp(best.fun + target) - L
    spare = max(1, len(L) - len(x))
    covariance = np.linalg.pinv(best.jac.T @ best.jac) * (2 * best.cost / spare)
    a = float(np.exp(x[2]))
    law = Law(
        E=float(np.exp(x[0])),
        A=float(np.exp(x[1]) * N0**a),
        a=a,
        error=a * float(np.sqrt(covariance[2, 2])),
        residual=float(np.sqrt((residual**2).mean())),
        points=len(L),
    )
    if not with_tokens:
        return law
    b = float(np.exp(x[4]))
    return dataclasses.replace(law, B=float(np.exp(x[3]) * D0**b), b=b)

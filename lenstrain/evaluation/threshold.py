"""Where to cut: by a guaranteed false-positive rate, by F-beta, or by what people can inspect.

Every threshold flags the rows whose score lies strictly above it.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lenstrain.evaluation.clustered import tail_correlation, upper_limit_of, worth_of
from lenstrain.evaluation.metrics import RocCurve, prevalence_odds

Floats = NDArray[np.float64]


def negatives_needed(alpha: float, delta: float = 0.05) -> int:
    """Fewest independent negatives that can certify a false-positive rate `alpha`.

    The least n with ``(1 - alpha)^n <= delta``: 299, 2,995, 29,956 and 299,572 for 1e-2 to 1e-5
    at `delta` 0.05.
    """
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def neyman_pearson(
    negatives: ArrayLike,
    alpha: float,
    delta: float = 0.05,
    *,
    region: NDArray[np.integer] | None = None,
    repeats: float | None = None,
    correlation: float = 0.0,
) -> float | None:
    """Threshold from calibration negatives with a guaranteed false-positive rate.

    The lowest score for which the upper limit of the false-positive rate, at confidence
    1 - `delta`, is at most `alpha` there and at every higher score. Rates fall with the threshold,
    so the guarantee fails only if the limit at the true threshold fails, whatever the number of
    scores tried. For independent negatives this is the order statistic of Tong, Feng & Li (2018):
    rank ``min{k: sum_{j>=k} C(n, j) (1-alpha)^j alpha^(n-j) <= delta}``.

    Parameters
    ----------
    negatives : array_like, shape (n,)
        Scores of negatives that neither trained the model nor are tested on.
    alpha, delta : float
        Target rate, and the probability of exceeding it.
    region : ndarray of int, shape (n,), optional
        Region of each, numbered from 0; rows of one region may correlate. Independent rows if None.
    repeats : float, optional
        Sum over distinct images of the square of their rows; n if None: none is repeated.
    correlation : float
        Of the scores within a region, see `clustered.latent_correlation`.

    Returns
    -------
    float or None
        None if no threshold is guaranteed: too few negatives, or all in one region.

    References
    ----------
    .. [1] Tong, Feng & Li 2018, Science Advances 4, eaao1659; Korn & Graubard 1998, Survey
       Methodology 24, 193 (limits of clustered shares); Bauer 1991, Stat. Med. 10, 871 (tests in
       fixed order).
    """
    scores = np.asarray(negatives, dtype=np.float64)
    n = scores.size
    regions = np.arange(n) if region is None else region
    rows = np.bincount(regions).astype(np.float64)
    if not n:
        return None
    top = _highest(scores, math.ceil(alpha * n) + 1)
    first = np.concatenate(([0], np.flatnonzero(np.diff(scores[top])) + 1))
    squares, products = _running_sums(regions[top], rows)
    share = first / n
    scatter = squares[first] - 2 * share * products[first] + share**2 * (rows**2).sum()
    worth = worth_of(
        share, scatter, rows, float(repeats or n), tail_correlation(correlation, alpha), 1 - delta
    )
    kept = upper_limit_of(share, worth, 1 - delta) <= alpha
    passed = int(np.argmin(kept)) if not kept.all() else kept.size
    return float(scores[top][first[passed - 1]]) if passed else None


def _highest(scores: Floats, count: int) -> NDArray[np.intp]:
    """Rows of the highest scores, descending, with all rows that tie with the last of them."""
    if count >= scores.size:
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, scores.size - count)[scores.size - count]
    rows = np.flatnonzero(scores >= least)
    return rows[np.argsort(-scores[rows], kind="stable")]


def _running_sums(region: NDArray[np.integer], rows: Floats) -> tuple[Floats, Floats]:
    """Sums over regions of k^2 and of k n, before each of the rows in turn and after the last."""
    order = np.argsort(region, kind="stable")
    starts = np.searchsorted(region[order], region[order])
    before = np.empty(region.size)
    before[order] = np.arange(region.size) - starts
    return (
        np.concatenate(([0.0], np.cumsum(2 * before + 1))),
        np.concatenate(([0.0], np.cumsum(rows[region]))),
    )


def best_fbeta(
    curve: RocCurve, beta: float, prevalence: float | None = None
) -> tuple[float, float]:
    """Best F-beta over all thresholds, from labels.

    Parameters
    ----------
    curve : RocCurve
        Counts at every distinct score.
    beta : float
        Weight of recall against precision.
    prevalence : float, optional
        Share of lenses to state the precision at; that of the sample if None.

    Returns
    -------
    value, threshold : float
        The threshold is the highest score left out: the best set lies strictly above it.
    """
    odds = 1.0 if prevalence is None else prevalence_odds(curve, prevalence)
    square = beta * beta
    flagged = curve.tp + odds * curve.fp
    f = (1 + square) * curve.tp / (square * curve.n_positive + flagged)
    best = int(np.argmax(f))
    below = curve.scores[best + 1] if best + 1 < curve.scores.size else -math.inf
    return float(f[best]), float(below)


def unique_rows(identity: NDArray[np.generic]) -> NDArray[np.int64]:
    """Positions of the first row of every distinct identity, such as a hash of the pixels."""
    return np.sort(np.unique(identity, return_index=True)[1]).astype(np.int64)

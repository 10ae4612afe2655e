"""Where to cut: by a guaranteed false-positive rate, by F-beta, or by what people can inspect.

Every threshold flags the rows whose score lies strictly above it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lenstrain.evaluation.metrics import RocCurve, prevalence_odds


@dataclass(frozen=True)
class NeymanPearson:
    """A threshold whose false-positive rate is at most `alpha` with probability 1 - `delta`."""

    threshold: float
    alpha: float
    delta: float
    rank: int
    """Position of the threshold among the ascending negatives, counted from 1."""
    n_negative: int

    @property
    def allowed(self) -> int:
        """Calibration negatives above the threshold (fewer where scores are tied)."""
        return self.n_negative - self.rank


def negatives_needed(alpha: float, delta: float = 0.05) -> int:
    """Fewest independent negatives that can certify a false-positive rate `alpha`.

    The least n with ``(1 - alpha)^n <= delta``: 299, 2,995, 29,956 and 299,572 for 1e-2 to 1e-5
    at `delta` 0.05.
    """
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def neyman_pearson_rank(n_negative: int, alpha: float, delta: float = 0.05) -> int | None:
    """Order statistic of the negatives that holds FPR <= alpha with probability 1 - delta.

    Parameters
    ----------
    n_negative : int
        Number of independent negatives.
    alpha, delta : float
        Target rate, and the probability of exceeding it.

    Returns
    -------
    int or None
        The least rank k, counted from 1 in ascending order, with
        ``sum_{j>=k} C(n, j) (1-alpha)^j alpha^(n-j) <= delta``; None if even the highest
        negative cannot give the guarantee.

    References
    ----------
    .. [1] Tong, Feng & Li 2018, Science Advances 4, eaao1659.
    """
    if n_negative < 1:
        return None
    # That sum is the chance of at most n - k exceedances among n.
    allowed = int(stats.binom.ppf(delta, n_negative, alpha))
    while allowed >= 0 and stats.binom.cdf(allowed, n_negative, alpha) > delta:
        allowed -= 1
    return None if allowed < 0 else n_negative - allowed


def neyman_pearson(negatives: ArrayLike, alpha: float, delta: float = 0.05) -> NeymanPearson | None:
    """Threshold from calibration negatives with a guaranteed false-positive rate.

    Parameters
    ----------
    negatives : array_like, shape (n,)
        Scores of *unique* negatives that neither trained the model nor are tested on: repeated
        images would make the guarantee false.
    alpha, delta : float
        Target rate, and the probability of exceeding it.

    Returns
    -------
    NeymanPearson or None
        None if there are too few negatives (see `negatives_needed`).
    """
    scores = np.asarray(negatives, dtype=np.float64)
    rank = neyman_pearson_rank(scores.size, alpha, delta)
    if rank is None:
        return None
    value = float(np.partition(scores, rank - 1)[rank - 1])
    return NeymanPearson(value, alpha, delta, rank, scores.size)


@dataclass(frozen=True)
class FBeta:
    """The best F-beta and where it is reached."""

    value: float
    threshold: float


def best_fbeta(curve: RocCurve, beta: float, prevalence: float | None = None) -> FBeta:
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
    FBeta
        `threshold` is the highest score left out: the best set is what lies strictly above it.
    """
    odds = 1.0 if prevalence is None else prevalence_odds(curve, prevalence)
    square = beta * beta
    flagged = curve.tp + odds * curve.fp
    f = (1 + square) * curve.tp / (square * curve.n_positive + flagged)
    best = int(np.argmax(f))
    below = curve.scores[best + 1] if best + 1 < curve.scores.size else -math.inf
    return FBeta(float(f[best]), float(below))


def expected_fbeta(probabilities: ArrayLike, beta: float) -> FBeta:
    """Best F-beta that calibrated probabilities promise, without labels.

    Returns
    -------
    FBeta
        `threshold` is the optimal cut on probability, ``F* / (1 + beta^2)`` (Lipton et al. 2014,
        arXiv:1402.1892, for F1): keep what lies above.
    """
    p = np.sort(np.asarray(probabilities, dtype=np.float64))[::-1]
    square = beta * beta
    f = (1 + square) * np.cumsum(p) / (square * p.sum() + np.arange(1, p.size + 1))
    best = float(f.max())
    return FBeta(best, best / (1 + square))


def fpr_for_budget(budget: float, population: float) -> float:
    """False-positive rate at which a search of `population` objects gives `budget` false ones."""
    return min(1.0, budget / population)


def unique_rows(identity: NDArray[np.generic]) -> NDArray[np.int64]:
    """Positions of the first row of every distinct identity, such as a hash of the pixels."""
    return np.sort(np.unique(identity, return_index=True)[1]).astype(np.int64)

"""True-positive rates at false-positive rates, and purity, where both rates are uncertain (pure).

The threshold that gives a false-positive rate is known as well as the highest negatives let it be:
an interval of the true-positive rate there has the scatter of the lenses above the threshold and
that of the threshold (Woodruff 1952). Both come from the same regions, so they correlate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from lenstrain.evaluation.clustered import Shares, few_regions, tail_correlation
from lenstrain.evaluation.metrics import RocCurve, partial_auroc

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RateIntervals:
    """Intervals of the true-positive rate at m false-positive rates; arrays of shape (m,)."""

    low: Floats
    high: Floats


def tpr_intervals(
    negative: Shares, positive: Shares, curve: RocCurve, fprs: Floats, level: float
) -> RateIntervals:
    """Intervals of the true-positive rate at false-positive rates.

    Parameters
    ----------
    negative, positive : Shares
        Shares of both classes above the threshold of each rate; hits of shape (m, regions).
    curve : RocCurve
        Counts of all rows.
    fprs : ndarray, shape (m,)
        The rates.
    level : float
        Coverage.

    Returns
    -------
    RateIntervals
        The interval spans all thresholds that have as many negatives above them as the true one
        may have (Woodruff 1952, JASA 47, 635), joined with the interval of the share itself
        on the logit scale (Zou & Donner 2008, Stat. Med. 27, 1693, with the correlation of both
        over regions). The lower end is 0 where no negative at all may lie above. NaN for one
        region.
    """
    confidence = (1 + level) / 2
    worth = negative.worth(confidence, fprs)
    fewest, most = _counts_above(curve.n_negative, worth, fprs, confidence)
    # At the true threshold the rate is kept, and at the next score it is not: ties in between.
    least = _tpr(curve, np.searchsorted(curve.fp, fewest * (1 - 1e-9), side="left"))
    largest = _tpr(curve, np.searchsorted(curve.fp, most * (1 + 1e-9), side="right"))
    low, high = _joined(positive.value, negative, positive, curve, (least, largest), level)
    low = np.where(stats.binom.cdf(0, np.round(worth), fprs) > 1 - confidence, 0.0, low)
    known = np.isfinite(worth) & np.isfinite(high)
    return RateIntervals(np.where(known, low, np.nan), np.where(known, high, np.nan))


def partial_area_interval(
    negative: Shares, positive: Shares, curve: RocCurve, max_fpr: float, level: float
) -> tuple[float, float]:
    """Interval of the mean true-positive rate at false-positive rates from 0 to `max_fpr`.

    As `tpr_intervals`, with the threshold of half that rate for all: the axis of rates is
    stretched by its uncertainty. `negative` and `positive` are the shares above the threshold of
    ``max_fpr / 2``, with hits of shape (1, regions).
    """
    rate, confidence = np.array([max_fpr / 2]), (1 + level) / 2
    worth = negative.worth(confidence, rate)
    ends = _counts_above(curve.n_negative, worth, rate, confidence)
    stretched = [
        np.array([_mean_tpr(curve, min(2 * float(end[0]) / curve.n_negative, 1.0))]) for end in ends
    ]
    value = np.array([_mean_tpr(curve, max_fpr)])
    low, high = _joined(value, negative, positive, curve, (stretched[0], stretched[1]), level)
    known = bool(np.isfinite(worth[0]))
    return (float(low[0]), float(high[0])) if known else (np.nan, np.nan)


def _counts_above(n: int, worth: Floats, fprs: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Fewest and most of `n` negatives that may lie above the true threshold of each rate."""
    trials = np.maximum(np.round(np.where(np.isfinite(worth), worth, 1.0)), 1)
    fewest, most = stats.binom.ppf([[1 - confidence], [confidence]], trials, fprs) / trials * n
    return fewest, most


def _mean_tpr(curve: RocCurve, max_fpr: float) -> float:
    """Mean true-positive rate at false-positive rates from 0 to `max_fpr`."""
    if max_fpr * curve.n_negative < 1:
        return float(_tpr(curve, np.searchsorted(curve.fp, [0], side="right"))[0])
    return partial_auroc(curve, max_fpr, standardize=False) / max_fpr


def _joined(
    value: Floats,
    negative: Shares,
    positive: Shares,
    curve: RocCurve,
    at_ends: tuple[Floats, Floats],
    level: float,
) -> tuple[Floats, Floats]:
    """Combine the uncertainties of the lenses and of the threshold on the logit scale."""
    edge = 0.5 / curve.n_positive

    def logit(share: Floats) -> Floats:
        return np.asarray(special.logit(np.clip(share, edge, 1 - edge)))

    correlation = _correlation(negative, positive)
    ends = []
    for share, tpr, side in zip(positive.interval(level), at_ends, (-1, 1), strict=True):
        own = logit(share) - logit(positive.value)
        threshold = logit(tpr) - logit(value)
        both = own**2 + threshold**2 - 2 * correlation * np.abs(own * threshold)
        ends.append(special.expit(logit(value) + side * np.sqrt(both)))
    return np.minimum(ends[0], value), np.maximum(ends[1], value)


def _tpr(curve: RocCurve, points: NDArray[np.intp]) -> Floats:
    """True-positive rate after a number of points of the curve, from none on."""
    tp = np.concatenate(([0], curve.tp))
    return np.asarray(tp[np.minimum(points, curve.tp.size)] / curve.n_positive)


def _residuals(shares: Shares) -> Floats:
    """What each region adds to the error of a share; shape (m, regions)."""
    return (shares.hits - shares.value[:, None] * shares.rows) / np.maximum(shares.n, 1)[:, None]


def _correlation(negative: Shares, positive: Shares) -> Floats:
    """Correlation of the errors of both shares over regions, at least 0."""
    d0, d1 = _residuals(negative), _residuals(positive)
    scale = np.sqrt((d0**2).sum(axis=1) * (d1**2).sum(axis=1))
    return np.clip((d0 * d1).sum(axis=1) / np.maximum(scale, 1e-300), 0.0, 1.0)


@dataclass(frozen=True)
class Purity:
    """Purity at m thresholds; arrays of shape (m,), NaN where it is not known."""

    value: Floats
    low: Floats
    high: Floats
    at_least: Floats
    """One-sided: from the upper limit of the false- and the lower of the true-positive rate."""


FEWEST_FLAGGED = 10
"""Flagged distinct non-lenses below which a purity has a lower limit only."""


def purities(
    negative: Shares, positive: Shares, prevalence: float, level: float, dex: float = 0.0
) -> Purity:
    """Share of lenses among what is flagged, at a prevalence, with both rates uncertain.

    Parameters
    ----------
    negative, positive : Shares
        Shares of both classes above each threshold; hits of shape (m, regions).
    prevalence : float
        Share of lenses in the population.
    level : float
        Coverage.
    dex : float
        Standard deviation of the prevalence, in decades.

    Returns
    -------
    Purity
        The odds of purity are TPR / FPR times those of the prevalence. Their logarithm has the
        variance of the summed relative errors of regions (delta method), with Student's t.
    """
    odds = prevalence / (1 - prevalence)
    tpr, fpr = positive.value, negative.value
    k0 = negative.k * negative.n / np.maximum(negative.repeats, 1)
    enough = (k0 >= FEWEST_FLAGGED) & (positive.k > 0)
    safe = np.where(enough, fpr, 1.0), np.where(enough, tpr, 1.0)
    errors = _residuals(positive) / safe[1][:, None] - _residuals(negative) / safe[0][:, None]
    few = few_regions(negative.rows, tail_correlation(negative.correlation, safe[0])).worse(
        few_regions(positive.rows, tail_correlation(positive.correlation, safe[1]))
    )
    one = np.where(np.minimum(negative.regions, positive.regions) > 1, 1.0, np.nan)
    variance = (errors**2).sum(axis=1) * few.factor + (dex * np.log(10)) ** 2
    half = stats.t.isf((1 - level) / 2, few.degrees) * np.sqrt(variance) * one
    centre = np.log(odds * safe[1] / safe[0])
    ends = [special.expit(centre + sign * half) for sign in (-1, 1)]
    # All that is uncertain keeps to its side together (Bonferroni).
    confidence = 1 - (1 - level) / (3 if dex else 2)
    shift = 10.0 ** (-dex * special.ndtri(confidence))
    least = shift * odds * positive.lower_limit(confidence)
    flagged = odds * tpr + fpr
    value = np.where(
        (negative.k > 0) & (flagged > 0), odds * tpr / np.maximum(flagged, 1e-300), np.nan
    )
    return Purity(
        value,
        np.where(enough, ends[0], np.nan),
        np.where(enough, ends[1], np.nan),
        least / np.maximum(least + negative.upper_limit(confidence), 1e-300),
    )

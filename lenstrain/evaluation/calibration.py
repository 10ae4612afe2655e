"""Calibration of probabilities: binned errors, parts of the Brier score, and maps that correct it.

A probability is always P(lens), never the confidence in the winning class. `p` and `y` below are
arrays of one shape (n,): probabilities in [0, 1] and labels 0 or 1.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from lenstrain.evaluation.clustered import FewRegions, Shares
from lenstrain.evaluation.metrics import logit_nll

_LARGEST_SLOPE = 1e3
"""Classes that do not overlap would send the slope to infinity; it stops here, and is marked."""

_LARGE_CHI2 = 1e4

Floats = NDArray[np.float64]


def equal_width_bins(p: ArrayLike, n_bins: int) -> NDArray[np.int64]:
    """Bin of each probability in [0, 1], bins closed on the left; p = 1 is in the last."""
    bins = np.floor(np.asarray(p, dtype=np.float64) * n_bins).astype(np.int64)
    return np.clip(bins, 0, n_bins - 1)


def equal_mass_bins(p: ArrayLike, n_bins: int) -> NDArray[np.int64]:
    """Bin of each probability, bins of equal count; equal probabilities share a bin.

    So the bins do not depend on the order of rows; with many ties there are fewer of them.
    """
    values = np.asarray(p, dtype=np.float64)
    starts = -(-np.arange(1, n_bins) * values.size // n_bins)
    starts = starts[starts < values.size]
    edges = np.unique(np.partition(values, starts)[starts]) if starts.size else values[:0]
    _, bins = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)
    return bins.astype(np.int64)


class BinSums(NamedTuple):
    """Sums per bin from which every binned measure follows; arrays end in (n_bins,).

    Sums add up over regions, so the bootstrap needs no row.
    """

    n: Floats
    p: Floats
    y: Floats
    pp: Floats
    py: Floats


def bin_sums(p: ArrayLike, y: ArrayLike, bins: NDArray[np.int64], n_bins: int) -> BinSums:
    """Add up rows, probabilities, labels and products in each bin."""
    probability, label = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.float64)

    def total(weights: Floats | None = None) -> Floats:
        return np.bincount(bins, weights, minlength=n_bins).astype(np.float64)

    return BinSums(
        total(),
        total(probability),
        total(label),
        total(probability**2),
        total(probability * label),
    )


def region_sums(
    p: ArrayLike, y: ArrayLike, bins: NDArray[np.int64], n_bins: int, region: NDArray[Any]
) -> BinSums:
    """`bin_sums` of each region, numbered from 0; arrays of shape (regions, n_bins)."""
    cells = region.astype(np.int64) * n_bins + bins
    count = int(region.max()) + 1
    flat = bin_sums(p, y, cells, count * n_bins)
    return BinSums(*(array.reshape(count, n_bins) for array in flat))


def expected_error(sums: BinSums) -> Floats:
    """ECE, ``sum (n_b / n) abs(mean y - mean p)``, from sums of shape (..., n_bins).

    References
    ----------
    .. [1] Naeini et al. 2015, AAAI; Guo et al. 2017, arXiv:1706.04599 (equal width).
    """
    n = np.maximum(sums.n, 1.0)
    weight = sums.n / sums.n.sum(axis=-1, keepdims=True)
    return np.asarray(np.sum(weight * np.abs(sums.p / n - sums.y / n), axis=-1))


class SquaredError(NamedTuple):
    """Squared calibration error (L2, binned) less its sampling part, with its interval."""

    value: float
    """May be negative."""
    low: float
    high: float


def squared_error(sums: BinSums, few: FewRegions, level: float) -> SquaredError:
    """Debiased squared calibration error from sums by region, with its interval.

    Gaps between mean probability and share of lenses scatter about 0 even if every probability is
    true, so their squares are positive: the interval of a plug-in error, or of draws of it, never
    holds 0. Here the sum of squares is treated as a sum of squared normal variables with the
    covariance seen between regions, widened by (t / z)^2 for few regions: a noncentral chi-squared
    in Satterthwaite's approximation, and the interval is that of its noncentrality. For a
    calibrated finder it starts at 0 with probability (1 + level) / 2.

    Parameters
    ----------
    sums : BinSums
        Arrays of shape (regions, bins).
    few : FewRegions
        Correction of the covariance for few or unequal regions.
    level : float
        Coverage.

    Returns
    -------
    SquaredError
        ``sum (n_b / n) (mean y - mean p)^2`` less its expectation under calibration: as Kumar et
        al. (2019), with the scatter between regions in place of binomial variance. NaN for one
        region.
    """
    n_bins = sums.n.sum(axis=0)
    kept = n_bins > 0
    weight = np.sqrt(n_bins[kept].sum() * n_bins[kept])
    error = (sums.p - sums.y)[:, kept]
    gap = error.sum(axis=0) / n_bins[kept]
    scatter = (error - gap * sums.n[:, kept]) / weight
    covariance = float(few.factor) * scatter.T @ scatter
    total = float(((error.sum(axis=0) / weight) ** 2).sum())
    trace = float(np.trace(covariance))
    if trace <= 0 or len(sums.n) < 2:
        return SquaredError(math.nan, math.nan, math.nan)
    confidence = (1 + level) / 2
    wider = special.stdtrit(float(few.degrees), confidence) / special.ndtri(confidence)
    scale = float((covariance**2).sum()) / trace
    bins = trace / scale
    scale *= float(wider) ** 2
    low, high = (
        scale * _noncentrality(bins, total / scale, share) for share in (confidence, 1 - confidence)
    )
    return SquaredError(total - trace, low, high)


def _noncentrality(degrees: float, chi2: float, share: float) -> float:
    """Noncentrality at which a chi-squared lies below `chi2` with probability `share`; >= 0."""
    if chi2 > _LARGE_CHI2:
        # Its root is normal then, with variance 1.
        return float(np.sqrt(chi2) - special.ndtri(share)) ** 2

    def excess(noncentrality: float) -> float:
        return float(special.chndtr(chi2, degrees, noncentrality)) - share

    if excess(0.0) <= 0:
        return 0.0
    upper = chi2 + 1
    while excess(upper) > 0:
        upper *= 2
    return float(optimize.brentq(excess, 0.0, upper, rtol=1e-9))


class BrierParts(NamedTuple):
    """``brier = reliability - resolution + uncertainty + within_variance - within_covariance``."""

    reliability: Floats
    resolution: Floats
    uncertainty: Floats
    within_variance: Floats
    within_covariance: Floats


def brier_parts(sums: BinSums) -> BrierParts:
    """Split the Brier score (Murphy 1973), with the two terms for the spread within bins.

    References
    ----------
    .. [1] Murphy 1973, J. Appl. Meteor. 12, 595; Stephenson et al. 2008, Wea. Forecasting 23, 752.
    """
    n = np.maximum(sums.n, 1.0)
    weight = sums.n / sums.n.sum(axis=-1, keepdims=True)
    base = sums.y.sum(axis=-1, keepdims=True) / sums.n.sum(axis=-1, keepdims=True)
    mean_p, rate = sums.p / n, sums.y / n
    return BrierParts(
        np.sum(weight * (mean_p - rate) ** 2, axis=-1),
        np.sum(weight * (rate - base) ** 2, axis=-1),
        np.squeeze(base * (1 - base), axis=-1),
        np.sum(weight * (sums.pp / n - mean_p**2), axis=-1),
        2 * np.sum(weight * (sums.py / n - mean_p * rate), axis=-1),
    )


def reliability_table(sums: BinSums, level: float = 0.95) -> dict[str, Floats]:
    """Reliability curve: columns of one row for every bin that is not empty.

    Parameters
    ----------
    sums : BinSums
        Arrays of shape (regions, bins).
    level : float
        Coverage.

    Returns
    -------
    dict
        n, mean_probability, observed, and its interval by region: low and high, NaN for one region.
    """
    total = sums.n.sum(axis=0)
    kept = total > 0
    n = total[kept]
    observed = Shares(sums.y.T[kept], sums.n.T[kept], n)
    low, high = observed.interval(level)
    return {
        "n": n,
        "mean_probability": sums.p.sum(axis=0)[kept] / n,
        "observed": observed.value,
        "low": low,
        "high": high,
    }


@dataclass(frozen=True)
class LogitMap:
    """A monotone correction of logits: ``slope * logit + offset``; ranks do not change."""

    kind: str
    slope: float = 1.0
    offset: float = 0.0
    at_bound: bool = False
    """The classes hardly overlap, or the scores carry no information: do not trust the map."""


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> LogitMap:
    """Temperature that minimises the NLL of ``logit / T`` (Guo et al. 2017).

    Fit it on another split than the one that is judged. The likelihood is convex in 1/T, so its
    slope has one root.
    """
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)

    def gradient(slope: float) -> float:
        return float(np.dot(z, special.expit(slope * z) - y))

    least = 1 / _LARGEST_SLOPE
    if gradient(least) >= 0:
        return LogitMap("temperature", least, at_bound=True)
    if gradient(_LARGEST_SLOPE) <= 0:
        return LogitMap("temperature", _LARGEST_SLOPE, at_bound=True)
    slope = optimize.brentq(gradient, least, _LARGEST_SLOPE, xtol=1e-12, rtol=1e-12)
    return LogitMap("temperature", float(slope))


def fit_platt(logits: ArrayLike, labels: ArrayLike) -> LogitMap:
    """Slope and offset that minimise the NLL (Platt 1999, without his pseudo-counts).

    Without an optimum (one class alone, or classes apart at any logit) the solver stops wherever
    the loss is flat, so this is judged by the logits and not by where it stopped.
    """
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        mapped = parameters[0] * z + parameters[1]
        residual = special.expit(mapped) - y
        slopes = np.array([np.dot(z, residual), residual.sum()]) / z.size
        return float(logit_nll(mapped, y).mean()), slopes

    least = 1 / _LARGEST_SLOPE
    bounds = [(least, _LARGEST_SLOPE), (None, None)]
    start = np.array([fit_temperature(z, y).slope, 0.0])
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 500}
    fit = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    slope, offset = (float(value) for value in fit.x)
    lenses, others = z[y == 1], z[y == 0]
    apart = not lenses.size or not others.size or lenses.min() >= others.max()
    at_bound = bool(apart) or not least * 1.001 < slope < _LARGEST_SLOPE * 0.999
    return LogitMap("platt", slope, offset, at_bound)

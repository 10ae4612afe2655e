"""Shares of rows that are not independent: what they are worth, their intervals and limits.

Rows of one region share sky, seeing and calibration; rows of one image are one observation. Such
rows are *worth* fewer independent ones, and a share of them has the interval of that many:
Wilson's, or Clopper and Pearson's for a one-sided limit, with Student's t for few regions (Korn &
Graubard 1998; Franco et al. 2019). What they are worth is the lesser of two estimates: the scatter
of the share between regions, which says nothing where hardly a row is flagged, and what the
correlation of the scores themselves implies at that rate.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from lenstrain.evaluation.intervals import wilson

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(24)
_LARGEST_CORRELATION = 0.95

Floats = NDArray[np.float64]


def latent_correlation(scores: Floats, region: NDArray[np.integer]) -> float:
    """Intraclass correlation of scores within regions, on the scale of normal scores.

    Parameters
    ----------
    scores : ndarray, shape (n,)
        Scores of distinct images of one class; any monotone map of them gives the same.
    region : ndarray of int, shape (n,)
        Region of each, numbered from 0.

    Returns
    -------
    float
        The estimate from the analysis of variance, at least 0; 0 where no region has two rows.

    References
    ----------
    .. [1] Donner 1986, Int. Stat. Rev. 54, 67 (unequal regions).
    """
    rows = np.bincount(region).astype(np.float64)
    rows = rows[rows > 0]
    n, groups = scores.size, rows.size
    if groups < 2 or n == groups:
        return 0.0
    normal = special.ndtri((stats.rankdata(scores) - 0.5) / n)
    sums = np.bincount(region, normal)
    between = float((sums[np.bincount(region) > 0] ** 2 / rows).sum())
    within = float((normal**2).sum()) - between
    mean_square = (between - normal.sum() ** 2 / n) / (groups - 1)
    error = within / (n - groups)
    size = (n - float((rows**2).sum()) / n) / (groups - 1)
    total = mean_square + (size - 1) * error
    found = (mean_square - error) / total if total > 0 else 0.0
    return float(np.clip(found, 0.0, _LARGEST_CORRELATION))


def class_correlations(
    labels: NDArray[np.generic], scores: Floats, region: NDArray[np.integer]
) -> tuple[float, float]:
    """`latent_correlation` of non-lenses and of lenses; arrays of shape (n,), distinct images."""
    zero, one = (
        latent_correlation(scores[labels == label], region[labels == label]) for label in (0, 1)
    )
    return zero, one


def tail_correlation(correlation: float, rate: Floats | float) -> Floats:
    """Correlation of "flagged or not" between two rows whose normal scores correlate.

    It falls with the rate: at a correlation of 0.1 it is 0.064 for a rate of one half and 0.009
    for one in a hundred. From the probability that both are flagged, ``P(0) + integral of the
    bivariate normal density over the correlation`` (Plackett 1954, Biometrika 41, 351).
    """
    share = np.asarray(rate, dtype=np.float64)
    cut = -special.ndtri(np.clip(share, 1e-12, 1 - 1e-12))[..., None]
    r = 0.5 * correlation * (_NODES + 1)
    density = np.exp(-(cut**2) / (1 + r)) / (2 * np.pi * np.sqrt(1 - r**2))
    both = 0.5 * correlation * (density * _NODE_WEIGHTS).sum(axis=-1)
    found: Floats = both / np.maximum(share * (1 - share), 1e-12)
    return found


@dataclass(frozen=True)
class Shares:
    """Hits among rows, by region; leading axes hold any number of shares at once."""

    hits: Floats
    """Shape (..., regions)."""
    rows: Floats
    """Shape (..., regions)."""
    repeats: Floats
    """Sum over distinct images of the square of their rows; the rows if none is repeated."""
    correlation: float = 0.0
    """Of the scores within a region, from `latent_correlation`."""

    def at(self, index: int) -> "Shares":
        """One of several shares."""
        return Shares(
            self.hits[index], self.rows[index], np.asarray(self.repeats[index]), self.correlation
        )

    @property
    def k(self) -> Floats:
        """Hits."""
        return np.asarray(self.hits.sum(axis=-1))

    @property
    def n(self) -> Floats:
        """Rows."""
        return np.asarray(self.rows.sum(axis=-1))

    @property
    def value(self) -> Floats:
        """The share; NaN without rows."""
        return np.where(self.n > 0, self.k / np.maximum(self.n, 1), np.nan)

    @property
    def regions(self) -> NDArray[np.int64]:
        """Regions that hold any of the rows."""
        return np.asarray((self.rows > 0).sum(axis=-1))

    def worth(self, confidence: float, rate: Floats | float | None = None) -> Floats:
        """Independent rows that these are worth; NaN where all lie in one region.

        Parameters
        ----------
        confidence : float
            One-sided, such as 0.975 for either end of a 95 % interval: sets Student's t.
        rate : ndarray or float, optional
            Rate at which rows correlate; the likely one nearest to one half if None.
        """
        share = np.nan_to_num(self.value)
        if rate is None:
            distinct = self.n**2 / np.maximum(self.repeats, 1)
            low, high = wilson(share * distinct, distinct, 2 * confidence - 1)
            shared = tail_correlation(self.correlation, np.clip(0.5, low, high))
        else:
            shared = tail_correlation(self.correlation, rate)
        scatter = ((self.hits - share[..., None] * self.rows) ** 2).sum(axis=-1)
        return worth_of(share, scatter, self.rows, self.repeats, shared, confidence)

    def interval(self, level: float) -> tuple[Floats, Floats]:
        """Two-sided interval of each share; NaN where all rows lie in one region."""
        worth = self.worth((1 + level) / 2)
        known = np.isfinite(worth) & (self.n > 0)
        trials = np.where(known, worth, 1.0)
        low, high = wilson(np.nan_to_num(self.value) * trials, trials, level)
        return np.where(known, low, np.nan), np.where(known, high, np.nan)

    def upper_limit(self, confidence: float) -> Floats:
        """One-sided upper limit of each share; NaN where all rows lie in one region."""
        return upper_limit_of(self.value, self.worth(confidence), confidence)

    def lower_limit(self, confidence: float) -> Floats:
        """One-sided lower limit of each share; NaN where all rows lie in one region."""
        missed = Shares(self.rows - self.hits, self.rows, self.repeats, self.correlation)
        return 1 - missed.upper_limit(confidence)

    def entry(self, level: float) -> dict[str, Any]:
        """One share for metrics.json: interval by region, Wilson's next to it, and the counts.

        ``effective`` is the number of independent rows it is worth; ``method`` is ``wilson`` where
        every region holds one image, which Wilson's interval takes for granted.
        """
        k, n = int(self.k), int(self.n)
        if n == 0:
            return no_value(level, "no row of this kind") | {"k": 0, "n": 0, "regions": 0}
        low, high = (float(end) for end in self.interval(level))
        wilson_low, wilson_high = (float(end) for end in wilson(k, n, level))
        alone = bool((self.rows**2).sum() <= self.repeats)
        return {
            "value": float(self.value),
            "low": low,
            "high": high,
            "level": level,
            "k": k,
            "n": n,
            "regions": int(self.regions),
            "effective": float(self.worth((1 + level) / 2)),
            "method": "wilson" if alone else "regions",
            "wilson_low": wilson_low,
            "wilson_high": wilson_high,
        }


def no_value(level: float, reason: str) -> dict[str, Any]:
    """Entry of a figure that the data do not support."""
    return {"value": None, "low": None, "high": None, "level": level, "reason": reason}


class FewRegions(NamedTuple):
    """Correction of an estimate of the scatter between regions that are few or unequal."""

    factor: Floats
    """Expected scatter over the estimated one; G / (G - 1) for equal regions."""
    degrees: Floats
    """Degrees of freedom of the estimate; G - 1 for equal regions."""

    def worse(self, other: "FewRegions") -> "FewRegions":
        """Correction of a figure that rests on the regions of two classes: the worse of each."""
        return FewRegions(
            np.maximum(self.factor, other.factor), np.minimum(self.degrees, other.degrees)
        )


def few_regions(rows: Floats, shared: Floats | float) -> FewRegions:
    """Bias and degrees of freedom of the scatter between regions.

    Parameters
    ----------
    rows : ndarray, shape (..., regions)
        Rows in each region.
    shared : ndarray or float
        Correlation within regions; leading axes as `rows`.

    Returns
    -------
    FewRegions
        From the variance n (1 + (n - 1) shared) of each region's sum: large regions weigh more
        the more rows correlate, and pull the mean from which the scatter is taken. With a share w
        of the rows and a variance v of each region the residuals have the covariance
        (I - w 1') diag(v) (I - w 1')', whose trace, and that of its square, give both.

    References
    ----------
    .. [1] Satterthwaite 1946; Bell & McCaffrey 2002, Survey Methodology 28, 169.
    """
    w = rows / np.maximum(rows.sum(axis=-1, keepdims=True), 1)
    shared = np.asarray(shared)[..., None]
    v = rows * (1 - shared) + rows**2 * shared
    total = v.sum(axis=-1)
    ww, wv, vv = (w * w).sum(axis=-1), (w * v).sum(axis=-1), (v * v).sum(axis=-1)
    trace = total - 2 * wv + total * ww
    square = vv - 4 * (w * v * v).sum(axis=-1) + 2 * total * (w * w * v).sum(axis=-1)
    square = square + 2 * wv**2 + 2 * ww * vv - 4 * total * wv * ww + (total * ww) ** 2
    known = (trace > 1e-9 * total) & (square > 0)
    factor = np.where(known, total / np.where(known, trace, 1.0), 0.0)
    degrees = np.where(known, trace**2 / np.where(known, square, 1.0), 1.0)
    return FewRegions(factor, np.maximum(degrees, 1.0))


def few_of_classes(
    labels: NDArray[np.generic],
    region: NDArray[np.integer],
    n_regions: int,
    correlations: tuple[float, float],
) -> FewRegions:
    """Correction of an area under a curve for few or unequal regions: that of the worse class.

    Parameters
    ----------
    labels, region : ndarray, shape (n,)
        Label, and region numbered from 0.
    n_regions : int
        Number of regions.
    correlations : tuple of float
        Of the scores of non-lenses and of lenses, see `latent_correlation`.
    """
    one, other = (
        few_regions(
            np.bincount(region[labels == label], minlength=n_regions).astype(np.float64),
            tail_correlation(correlation, 0.5),
        )
        for label, correlation in enumerate(correlations)
    )
    return one.worse(other)


def worth_of(
    share: Floats,
    scatter: Floats,
    rows: Floats,
    repeats: Floats | float,
    shared: Floats,
    confidence: float,
) -> Floats:
    """Independent rows that the rows of a share are worth.

    Parameters
    ----------
    share : ndarray
        Hits over rows.
    scatter : ndarray
        Sum over regions of (hits - share * rows)^2.
    rows : ndarray, shape (..., regions)
        Rows in each region.
    repeats : ndarray or float
        Sum over distinct images of the square of their rows.
    shared : ndarray
        Correlation of hits within a region that the scores imply.
    confidence : float
        One-sided.

    Returns
    -------
    ndarray
        The lesser of what scatter and correlation allow, times (z / t)^2 for few regions. Where
        every region has one image: the distinct images. NaN where one region has all rows.
    """
    n = rows.sum(axis=-1)
    squares = (rows**2).sum(axis=-1)
    implied = n**2 / np.maximum((1 - shared) * repeats + shared * squares, 1)
    few = few_regions(rows, shared)
    spread = scatter * few.factor
    seen = np.full(np.shape(share), np.inf)
    np.divide(n**2 * share * (1 - share), spread, out=seen, where=spread > 0)
    narrower = (special.ndtri(confidence) / special.stdtrit(few.degrees, confidence)) ** 2
    several = (rows > 0).sum(axis=-1) > 1
    worth = np.where(several, np.minimum(implied, seen) * narrower, np.nan)
    return np.where(squares <= repeats, n**2 / np.maximum(repeats, 1), worth)


def upper_limit_of(share: Floats, worth: Floats, confidence: float) -> Floats:
    """Clopper and Pearson's one-sided limit for a number of rows that need not be whole."""
    hits = np.minimum(share, 1) * worth
    inner = worth - hits > 0
    limit = special.betaincinv(hits + 1, np.where(inner, worth - hits, 1.0), confidence)
    return np.where(np.isfinite(worth), np.where(inner, limit, 1.0), np.nan)

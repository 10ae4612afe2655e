"""From the injections to a population of lenses: average completeness, and what it leaves out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from lenstrain.evaluation.selection.axes import Floats
from lenstrain.evaluation.selection.function import SelectionFunction, bounds

_ROWS = 65_536


@dataclass(frozen=True)
class Population:
    """Completeness of a population of lenses, given as rows with weights."""

    value: float
    """Weighted mean of C over the rows inside the support; NaN if there are none."""
    ends: dict[float, tuple[float, float]]
    """Ends of its interval by level."""
    n: int
    inside: int
    """Rows inside the support."""
    outside_share: float
    """Share of the weight outside the support, whose C is not known."""
    cell_share: Floats
    """Share of the total weight in each cell of the support, over the rows inside."""
    reweighted: float
    """The same mean without the fit: the injections of each cell, weighted to the population."""
    effective: float
    """Kish's effective number of the weighted injections."""

    def entries(self) -> dict[str, Any]:
        """Entry of metrics.json; ``low`` and ``high`` are those of 95 %."""
        low, high = self.ends[0.95]
        return {
            "value": self.value,
            "low": low,
            "high": high,
            "level": 0.95,
            "n": self.n,
            "n_inside": self.inside,
            "outside_share": self.outside_share,
            "reweighted": self.reweighted,
            "injections_effective": self.effective,
        }


def average_over(function: SelectionFunction, values: Floats, weights: Floats) -> Population:
    """Average C over a population.

    Parameters
    ----------
    function : SelectionFunction
    values : ndarray, shape (n, axes)
        The population on the function's axes; NaN is outside.
    weights : ndarray, shape (n,)
        Not negative, with a positive sum.
    """
    coordinates = function.coordinates(values)
    inside = function.support.holds(coordinates)
    total = float(weights.sum())
    kept = coordinates[inside], weights[inside] / total
    share = float(kept[1].sum())
    cells = _cell_shares(function, *kept)
    reweighted, effective = _reweighted(function, cells)
    value, ends = np.nan, dict.fromkeys(function.t_factors, (np.nan, np.nan))
    if share > 0:
        value, ends = _mean(function, *kept)
    return Population(
        value,
        ends,
        len(values),
        int(inside.sum()),
        1 - share,
        cells,
        reweighted,
        effective,
    )


def _mean(
    function: SelectionFunction, coordinates: Floats, weights: Floats
) -> tuple[float, dict[float, tuple[float, float]]]:
    """Weighted mean of C; its error, on the logit, is that of `SelectionFunction.evaluate`."""
    fit, regions = function.fit, function.fit.n_regions
    vectors = np.vstack([fit.coefficients, fit.draws]).T
    sums = np.zeros(vectors.shape[1])
    gradient = np.zeros(fit.coefficients.size)
    for start in range(0, len(coordinates), _ROWS):
        rows = slice(start, start + _ROWS)
        design, weight = function.terms.design(coordinates[rows]), weights[rows]
        shares = special.expit(design @ vectors)
        sums += weight @ shares
        gradient += design.T @ (weight * shares[:, 0] * (1 - shares[:, 0]))
    means = sums / weights.sum()
    logits = special.logit(means)
    slope = gradient / weights.sum() / (means[0] * (1 - means[0]))
    variance = float(slope @ fit.posterior @ slope)
    if regions > 1:
        drawn = float(np.var(logits[1:], ddof=1)) * regions / (regions - 1)
        variance = max(variance, drawn + float(slope @ fit.bias @ slope))
    ends = bounds(logits[:1], np.sqrt(np.array([variance])), function.t_factors)
    return float(means[0]), {level: (float(a[0]), float(b[0])) for level, (a, b) in ends.items()}


def _cell_shares(function: SelectionFunction, coordinates: Floats, weights: Floats) -> Floats:
    """Weight in each cell; a row between two nodes of a grid is divided between them."""
    size = function.support.n.size
    shares = np.zeros(size)
    for cell, share in function.support.corners(coordinates):
        shares += np.bincount(cell, weights * share, minlength=size)
    return shares.reshape(function.support.n.shape)


def injection_weights(function: SelectionFunction, cell_share: Floats) -> Floats:
    """Weight of each injection of a cell that turns the injections into the population.

    It is the population's share of the cell over the injections': 1 where they agree. The mean
    over all injections is the population's share inside the support.
    """
    n = function.support.n
    return np.where(n > 0, cell_share * n.sum() / np.maximum(n, 1), np.nan)


def _reweighted(function: SelectionFunction, cell_share: Floats) -> tuple[float, float]:
    """Found share of the weighted injections, and their effective number (Kish 1965)."""
    n, k = function.support.n, function.support.k
    weight = np.nan_to_num(injection_weights(function, cell_share))
    total, squares = float((weight * n).sum()), float((weight**2 * n).sum())
    if total == 0:
        return np.nan, 0.0
    return float((weight * k).sum()) / total, total**2 / squares

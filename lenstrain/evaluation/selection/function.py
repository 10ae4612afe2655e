"""The fitted selection function: C with its interval anywhere that injections support it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from lenstrain.evaluation.intervals import ONE_SIGMA
from lenstrain.evaluation.selection.axes import Axis, Floats, Ints, Terms
from lenstrain.evaluation.selection.fit import Fit

LEVELS = (0.68, 0.95)
"""Coverage of the intervals; 0.68 is one standard deviation, 0.6827."""

_ROWS = 65_536
"""Points worked on at a time, which bounds the memory."""


@dataclass(frozen=True)
class Support:
    """Where the injections are: lenses, and those found, in each cell of the axes' nodes."""

    axes: tuple[Axis, ...]
    n: Ints
    """Shape: the cells of each axis."""
    k: Ints
    least: int
    """Lenses that a cell needs."""

    @property
    def occupied(self) -> NDArray[np.bool_]:
        """Cells that hold lenses enough."""
        return self.n >= self.least

    def corners(self, coordinates: Floats) -> Iterator[tuple[Ints, Floats]]:
        """Cells that points need, one after another, and the share of the point that each has.

        Cells are numbered in C order, -1 beyond the ends. A continuous axis needs the cell that
        holds the point; a grid axis the nodes on both sides.
        """
        ends = [
            axis.position(column) for axis, column in zip(self.axes, coordinates.T, strict=True)
        ]
        sides = [(0, 1) if axis.is_grid else (0,) for axis in self.axes]
        for choice in product(*sides):
            cells = [end[side] for end, side in zip(ends, choice, strict=True)]
            shares = [
                end[2] if side else 1 - end[2] for end, side in zip(ends, choice, strict=True)
            ]
            outside = np.min(cells, axis=0) < 0
            cell = np.ravel_multi_index(np.maximum(cells, 0).astype(np.int64), self.n.shape)
            yield np.where(outside, -1, cell), np.prod(shares, axis=0)

    def holds(self, coordinates: Floats) -> NDArray[np.bool_]:
        """Whether every cell that a point needs is occupied; NaN is outside."""
        occupied = self.occupied.reshape(-1)
        inside = np.ones(len(coordinates), bool)
        for cell, _ in self.corners(coordinates):
            inside &= (cell >= 0) & occupied[np.maximum(cell, 0)]
        return inside


def count_support(
    axes: tuple[Axis, ...], coordinates: Floats, found: NDArray[np.bool_], least: int
) -> Support:
    """Count the lenses of each cell; outliers beyond the nodes are in none."""
    # A lens lies on a node of its grid, so the lower cell is its own.
    cells = np.stack(
        [axis.position(column)[0] for axis, column in zip(axes, coordinates.T, strict=True)]
    )
    inside = cells.min(axis=0) >= 0
    shape = tuple(axis.cells for axis in axes)
    cell, found = np.ravel_multi_index(tuple(cells[:, inside]), shape), found[inside]
    size = int(np.prod(shape))
    n = np.bincount(cell, minlength=size).reshape(shape)
    return Support(axes, n, np.bincount(cell[found], minlength=size).reshape(shape), least)


class Curve(NamedTuple):
    """C at some points with the ends of its intervals; NaN outside the support."""

    value: Floats
    bounds: dict[float, tuple[Floats, Floats]]
    """Ends by level; NaN for one region."""


@dataclass(frozen=True)
class SelectionFunction:
    """C(theta_E, seeing, ...) of one finder at one threshold."""

    terms: Terms
    fit: Fit
    support: Support

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes, in the order of every array of coordinates."""
        return self.terms.axes

    @property
    def t_factors(self) -> dict[float, float]:
        """Standard errors on either side, by level: Student's t with G - 1 degrees of freedom."""
        freedom = self.fit.n_regions - 1
        if freedom < 1:
            return dict.fromkeys(LEVELS, np.nan)
        exact = {0.68: ONE_SIGMA}
        tails = {level: (1 - exact.get(level, level)) / 2 for level in LEVELS}
        return {level: float(stats.t.isf(tail, freedom)) for level, tail in tails.items()}

    @cached_property
    def by_region(self) -> Floats:
        """Covariance of the coefficients: over draws of G regions, times G / (G - 1), and the bias.

        With independent lenses the two would add up to the posterior covariance.
        """
        regions = self.fit.n_regions
        if regions < 2:
            return self.fit.bias
        return np.atleast_2d(np.cov(self.fit.draws.T)) * regions / (regions - 1) + self.fit.bias

    def coordinates(self, values: Floats) -> Floats:
        """From the axes' own units to coordinates; shape (n, axes)."""
        columns = [axis.coordinate(c) for axis, c in zip(self.axes, values.T, strict=True)]
        return np.stack(columns, axis=1)

    def evaluate(self, values: Floats, *, masked: bool = True) -> Curve:
        """C at some points.

        Parameters
        ----------
        values : ndarray, shape (n, axes)
            In the axes' own units.
        masked : bool
            Whether C is NaN outside the support; else it is extrapolated, for figures that say so.

        Returns
        -------
        Curve
            Its error is the larger one of `by_region` and of the posterior.
        """
        coordinates = self.coordinates(values)
        logit, error = np.empty(len(values)), np.empty(len(values))
        for start in range(0, len(values), _ROWS):
            rows = slice(start, start + _ROWS)
            design = self.terms.design(coordinates[rows])
            logit[rows] = design @ self.fit.coefficients
            variances = [
                np.einsum("ij,jk,ik->i", design, matrix, design, optimize=True)
                for matrix in (self.by_region, self.fit.posterior)
            ]
            error[rows] = np.sqrt(np.max(variances, axis=0))
        if masked:
            logit[~self.support.holds(coordinates)] = np.nan
        error[np.isnan(logit)] = np.nan
        return Curve(special.expit(logit), bounds(logit, error, self.t_factors))


def bounds(
    logit: Floats, error: Floats, factors: dict[float, float]
) -> dict[float, tuple[Floats, Floats]]:
    """Ends of the intervals of C: Wilson's, at the effective number of lenses.

    An error s of logit C is that of ``1 / (C (1 - C) s^2)`` independent lenses (as Korn & Graubard
    1998, Surv. Methodol. 24, 193, for shares in clusters). An interval symmetric on the logit would
    reach far too high where few lenses are found: adding to them soon contradicts the data, taking
    away does not.
    """
    share = special.expit(logit)
    variance = share * (1 - share)
    ends = {}
    for level, t in factors.items():
        inverse = (t * error) ** 2 * variance  # t^2 over the effective number
        half = np.sqrt(inverse * variance + inverse**2 / 4)
        middle = share + inverse / 2
        low, high = (middle - half) / (1 + inverse), (middle + half) / (1 + inverse)
        ends[level] = np.maximum(low, 0.0), np.minimum(high, 1.0)
    return ends

"""Axes of the selection function: scale, splines, and whether C may rise or fall along each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from lensprep.tables.known import known_column

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Physics(NamedTuple):
    """What is known of an axis beforehand."""

    sign: int
    """+1: C never falls along it; -1: it never rises."""
    log: bool = False
    """Splines run in the logarithm."""


PHYSICS: Final = {
    "theta_e_arcsec": Physics(+1),
    "psfsize_r": Physics(-1),
    "psfdepth_r": Physics(+1),
    "arc_snr": Physics(+1, log=True),
    "src_dmag": Physics(-1),
}
"""A wider lens, a brighter arc and a deeper image are never harder to find, all else being equal;
a blurred image and a fainter source are never easier."""

INTERACTIONS: Final = (
    ("theta_e_arcsec", "psfsize_r"),
    ("theta_e_arcsec", "arc_snr"),
    ("psfsize_r", "arc_snr"),
)
"""Pairs that have a surface: whether an arc is resolved depends on theta_E and seeing together,
and how much its brightness helps depends on whether it is resolved."""

LOG_FLOOR: Final = 0.1
"""Values of a logarithmic axis below this count as this: an arc of that S/N is not seen anyway."""

_FEW_VALUES = 12
"""An axis of at most this many distinct values is a grid: a knot at each, straight between."""

_INTERVALS = 4
"""Intervals between the knots of a continuous axis, of equally many lenses; the penalty smooths."""

_CUBIC = 3


@dataclass(frozen=True)
class Axis:
    """One axis: a coordinate, B-splines over it, and the nodes of its support.

    A *grid* axis has few distinct values, its nodes; a point between two nodes needs lenses at
    both. On a continuous axis the nodes are the edges of bins of equal width.
    """

    name: str
    sign: int
    """+1 or -1 as in `Physics`, 0 if C may both rise and fall."""
    unit: str
    log: bool
    is_grid: bool
    degree: int
    knots: Floats
    """Knots of the B-splines, in the coordinate; each end is repeated ``degree + 1`` times."""
    nodes: Floats
    """In the coordinate, ascending."""

    @property
    def size(self) -> int:
        """Number of B-splines."""
        return self.knots.size - self.degree - 1

    @property
    def cells(self) -> int:
        """Nodes of a grid axis, or bins of a continuous one."""
        return self.nodes.size - (not self.is_grid)

    def coordinate(self, values: Floats) -> Floats:
        """From the axis's own unit to the coordinate of the splines; NaN stays NaN."""
        scaled = np.log(np.maximum(values, LOG_FLOOR)) if self.log else values
        # Or 0.3 in float32 would lie beside the grid's 0.3.
        return np.round(scaled, 6)

    def values(self, coordinate: Floats) -> Floats:
        """Inverse of `coordinate`."""
        return np.exp(coordinate) if self.log else coordinate

    def basis(self, coordinate: Floats) -> Floats:
        """B-splines at each point, shape (n, size); points beyond the ends count as the ends."""
        first, last = self.knots[0], self.knots[-1]
        inside = np.clip(np.nan_to_num(coordinate, nan=first), first, last)
        found: Floats = BSpline.design_matrix(inside, self.knots, self.degree).toarray()
        return found

    @property
    def greville(self) -> Floats:
        """Where each B-spline's coefficient acts, scaled to 0 ... 1."""
        windows = np.lib.stride_tricks.sliding_window_view(self.knots[1:-1], self.degree)
        sites = windows.mean(axis=1)
        return (sites - sites[0]) / (sites[-1] - sites[0])

    def position(self, coordinate: Floats) -> tuple[Ints, Ints, Floats]:
        """Cells a point needs, and how much of it belongs to the second.

        Returns
        -------
        lower, upper : ndarray of int
            Equal on a continuous axis; the neighbouring nodes on a grid. -1 beyond the ends.
        share : ndarray of float64
            Distance from the lower node, 0 to 1.
        """
        numbers = np.arange(self.nodes.size, dtype=float)
        at = np.interp(coordinate, self.nodes, numbers, left=-1, right=-1)
        at = np.where(np.isfinite(coordinate), at, -1.0)
        lower = np.floor(at).astype(np.int64)
        if self.is_grid:
            return lower, np.ceil(at).astype(np.int64), at - lower
        lower = np.minimum(lower, self.cells - 1)
        return lower, lower, np.zeros_like(at)

    @property
    def centres(self) -> Floats:
        """Middle of each cell, in the coordinate."""
        return self.nodes if self.is_grid else (self.nodes[:-1] + self.nodes[1:]) / 2


def make_axis(name: str, values: Floats, free: bool = False) -> Axis:
    """Axis of `PHYSICS` with its splines, from the finite values of the lenses on it.

    Along a free axis C may both rise and fall. `with_bins` adds the bins of its support.
    """
    (sign, log), unit = PHYSICS[name], known_column(name).unit
    bare = Axis(name, 0 if free else sign, unit, log, True, 1, np.empty(0), np.empty(0))
    coordinate = bare.coordinate(values)
    distinct = np.unique(coordinate)
    if distinct.size <= _FEW_VALUES:
        return replace(bare, knots=np.pad(distinct, 1, "edge"), nodes=distinct)
    knots = np.unique(np.quantile(coordinate, np.linspace(0, 1, _INTERVALS + 1)))
    padded = np.pad(knots, _CUBIC, "edge")
    return replace(bare, is_grid=False, degree=_CUBIC, knots=padded, nodes=knots[[0, -1]])


def with_bins(
    axes: Sequence[Axis], coordinates: Floats, lenses_per_cell: float
) -> tuple[Axis, ...]:
    """Divide the continuous axes so that a cell of the support holds some lenses on average.

    Cells are as wide everywhere: bins of equal count would stretch over a gap and hide it. The
    width is set by the middle 98 % of the lenses, and outliers far beyond are left without a cell.
    """
    continuous = sum(not axis.is_grid for axis in axes)
    grid = int(np.prod([axis.cells for axis in axes if axis.is_grid]))
    share = max(len(coordinates) / (lenses_per_cell * grid), 1.0)
    bins = int(np.clip(share ** (1 / max(continuous, 1)), _FEWEST_BINS, _MOST_BINS))
    return tuple(
        axis if axis.is_grid else replace(axis, nodes=_nodes(column, bins))
        for axis, column in zip(axes, coordinates.T, strict=True)
    )


_FEWEST_BINS, _MOST_BINS = 3, 12


def _nodes(column: Floats, bins: int) -> Floats:
    """Edges of `bins` bins over the middle, extended to the ends by at most half as far again."""
    first, low, high, last = np.quantile(column, [0, 0.01, 0.99, 1])
    beyond = bins // 2
    edges = low + (high - low) / bins * np.arange(-beyond, bins + beyond + 1)
    return np.unique(np.clip(edges, first, last))


@dataclass(frozen=True)
class Terms:
    """The linear predictor: a constant and, for each term, a curve or a surface of B-splines.

    Every term must be monotone by itself, which is enough for their sum to be. A surface's
    coefficients lie in C order, the first axis of the term slowest.
    """

    axes: tuple[Axis, ...]
    terms: tuple[tuple[int, ...], ...]
    """Numbers of the axes of each term, one or two."""

    @property
    def sizes(self) -> list[int]:
        """Coefficients of each term; the constant comes before them."""
        return [int(np.prod([self.axes[i].size for i in term])) for term in self.terms]

    def design(self, coordinates: Floats) -> Floats:
        """Matrix that turns coefficients into logit C; shape (n, 1 + sum of sizes)."""
        rows = len(coordinates)
        used = {i for term in self.terms for i in term}
        bases = {i: self.axes[i].basis(coordinates[:, i]) for i in used}
        blocks = [np.ones((rows, 1))]
        for term in self.terms:
            block = bases[term[0]]
            for i in term[1:]:
                block = (block[:, :, None] * bases[i][:, None, :]).reshape(rows, -1)
            blocks.append(block)
        return np.concatenate(blocks, axis=1)

    def constraints(self) -> Floats:
        """Matrix A of the condition ``A b >= 0`` that makes every term monotone.

        B-splines with rising coefficients rise; so do surfaces, in each direction.
        """
        parts = [np.empty((0, 1 + sum(self.sizes)))]
        for start, term in zip(self._starts(), self.terms, strict=True):
            sizes = [self.axes[i].size for i in term]
            for position, i in enumerate(term):
                if self.axes[i].sign:
                    steps = [np.eye(size) for size in sizes]
                    steps[position] = self.axes[i].sign * np.diff(np.eye(sizes[position]), axis=0)
                    parts.append(self._placed(_kron(steps), start))
        return np.concatenate(parts)

    def penalties(self) -> tuple[Floats, Floats]:
        """Quadratic forms of what makes a term rough.

        Returns
        -------
        curvature : ndarray, shape (p, p)
            Integral of the squared second derivatives along each axis.
        mixed : ndarray, shape (p, p)
            Integral of the squared mixed derivative: what a surface has beyond two curves. All
            lengths are in units of the axis's range.
        """
        total = 1 + sum(self.sizes)
        curvature, mixed = np.zeros((total, total)), np.zeros((total, total))
        for start, term in zip(self._starts(), self.terms, strict=True):
            sites = [self.axes[i].greville for i in term]
            for position in range(len(term)):
                factors = [np.diag(np.sqrt(_widths(site))) for site in sites]
                factors[position] = _second_derivative(sites[position])
                rough = self._placed(_kron(factors), start)
                curvature += rough.T @ rough
            if len(term) > 1:
                rough = self._placed(_kron([_slope(site) for site in sites]), start)
                mixed += rough.T @ rough
        return curvature, mixed

    def _starts(self) -> list[int]:
        return [1, *(1 + np.cumsum(self.sizes)[:-1]).tolist()] if self.terms else []

    def _placed(self, block: Floats, start: int) -> Floats:
        wide = np.zeros((len(block), 1 + sum(self.sizes)))
        wide[:, start : start + block.shape[1]] = block
        return wide


def make_terms(axes: tuple[Axis, ...]) -> Terms:
    """Surfaces for the interactions whose axes are there, curves for the rest.

    An axis of one value has no term: nothing can be learnt along it.
    """
    varying = {axis.name: i for i, axis in enumerate(axes) if axis.size > 1}
    pairs = [
        (varying[first], varying[second])
        for first, second in INTERACTIONS
        if first in varying and second in varying
    ]
    paired = {i for pair in pairs for i in pair}
    return Terms(axes, (*pairs, *((i,) for i in varying.values() if i not in paired)))


def _kron(factors: Sequence[Floats]) -> Floats:
    return reduce(lambda one, other: np.asarray(np.kron(one, other)), factors)


def _widths(sites: Floats) -> Floats:
    """Share of the range that each site stands for."""
    gaps = np.diff(sites)
    widths: Floats = np.convolve(gaps, [0.5, 0.5])
    return widths


def _slope(sites: Floats) -> Floats:
    """Matrix whose squares sum to the integral of the squared slope."""
    gaps = np.diff(sites)
    return np.diff(np.eye(sites.size), axis=0) / np.sqrt(gaps)[:, None]


def _second_derivative(sites: Floats) -> Floats:
    """Matrix whose squares sum to the integral of the squared second derivative."""
    gaps = np.diff(sites)
    slopes = np.diff(np.eye(sites.size), axis=0) / gaps[:, None]
    return np.diff(slopes, axis=0) / np.sqrt((gaps[:-1] + gaps[1:]) / 2)[:, None]

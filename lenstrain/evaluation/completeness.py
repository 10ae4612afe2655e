"""Completeness in cells of one to three axes, and the bins that all tables and figures share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation.clustered import Shares
from lenstrain.evaluation.intervals import ONE_SIGMA, wilson

GRID_AXES = ("theta_e_arcsec", "src_dmag")
"""Axes that injections sample on a grid."""

FEW_VALUES = 12
"""A grid of at most this many distinct values has one bin for each."""

CELL_COLUMNS = (
    "n",
    "recovered",
    "completeness",
    "lo68",
    "hi68",
    "lo95",
    "hi95",
    "regions",
    "region_lo68",
    "region_hi68",
    "region_lo95",
    "region_hi95",
    "joint_lo95",
    "joint_hi95",
    "unresolved_share",
)
"""What every cell has besides its edges."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AxisBins:
    """Bins of one axis: ``[edge, next edge)``, the last one closed."""

    name: str
    edges: Floats
    values: Floats | None = None
    """The distinct values, if each has its own bin."""

    @property
    def size(self) -> int:
        """Number of bins."""
        return self.edges.size - 1

    def assign(self, values: Floats) -> NDArray[np.int64]:
        """Bin of each value; -1 for NaN and for what lies outside."""
        bins = np.searchsorted(self.edges, values, side="right") - 1
        bins[values == self.edges[-1]] = self.size - 1
        outside = ~((values >= self.edges[0]) & (values <= self.edges[-1]))
        return np.where(outside, -1, bins).astype(np.int64)

    def label(self, index: int) -> str:
        """Name of a bin for tables: its value if it has one, else its range."""
        if self.values is not None:
            return str(float(self.values[index]))
        return f"{_short(self.edges[index])}–{_short(self.edges[index + 1])}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def axis_bins(name: str, values: Floats, n_bins: int) -> AxisBins | None:
    """Bins of an axis from its data, of which NaN is ignored; None if no value is finite.

    A continuous axis has `n_bins` quantile bins. A grid axis, or any axis with no more distinct
    values than `n_bins`, has one bin for each value, with edges half-way between them.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return None
    distinct = np.unique(np.round(finite, 6))
    if distinct.size > (FEW_VALUES if name in GRID_AXES else n_bins):
        # The extremes themselves, so that rounding leaves no row outside.
        edges = np.unique(np.quantile(finite, np.linspace(0, 1, n_bins + 1)))
        return AxisBins(name, edges)
    gaps = np.diff(distinct) if distinct.size > 1 else np.ones(1)
    inner = (distinct[:-1] + distinct[1:]) / 2
    first, last = distinct[0] - gaps[0] / 2, distinct[-1] + gaps[-1] / 2
    return AxisBins(name, np.concatenate(([first], inner, [last])), distinct)


@dataclass(frozen=True)
class Cells:
    """Completeness of every cell of a grid; arrays have one entry for each cell, in C order."""

    axes: tuple[AxisBins, ...]
    n: NDArray[np.int64]
    recovered: NDArray[np.int64]
    unresolved: NDArray[np.int64]
    """Lenses of the cell whose theta_E is too small for the seeing."""
    known: NDArray[np.int64]
    """Lenses of the cell of which that is known."""
    left_out: int
    """Lenses without a value on some axis."""
    shares: Shares
    """The same by region."""

    def columns(self) -> dict[str, NDArray[Any]]:
        """Long form: edges on each axis, counts, completeness and intervals.

        Intervals are Wilson's (lo, hi), by region, and by region jointly for all cells of the
        table that hold lenses (Bonferroni).
        """
        edges: dict[str, NDArray[Any]] = {}
        index = np.indices([axis.size for axis in self.axes]).reshape(len(self.axes), -1)
        for axis, bins in zip(self.axes, index, strict=True):
            edges[f"{axis.name}_lo"] = axis.edges[bins]
            edges[f"{axis.name}_hi"] = axis.edges[bins + 1]
        joint = 1 - 0.05 / max(int((self.n > 0).sum()), 1)
        columns = (
            self.n,
            self.recovered,
            np.where(self.n > 0, self.recovered / np.maximum(self.n, 1), np.nan),
            *wilson(self.recovered, self.n, ONE_SIGMA),
            *wilson(self.recovered, self.n, 0.95),
            self.shares.regions,
            *self.shares.interval(ONE_SIGMA),
            *self.shares.interval(0.95),
            *self.shares.interval(joint),
            np.where(self.known > 0, self.unresolved / np.maximum(self.known, 1), np.nan),
        )
        return edges | dict(zip(CELL_COLUMNS, columns, strict=True))


@dataclass(frozen=True)
class Lenses:
    """The lenses of a table at one threshold; arrays of shape (n_lenses,)."""

    recovered: NDArray[np.bool_]
    """Whether the score lies above the frozen threshold."""
    region: NDArray[np.integer]
    """Region of each, numbered from 0."""
    multiplicity: NDArray[np.int64]
    """Number of rows that show the same image as each."""
    correlation: float
    """Of the scores within a region."""
    unresolved: NDArray[np.bool_]
    """Lenses whose theta_E is too small for the seeing."""
    known: NDArray[np.bool_]
    """Lenses of which that is known."""


def count_cells(axes: Sequence[AxisBins], values: Sequence[Floats], lenses: Lenses) -> Cells:
    """Count lenses, and recovered ones, in every cell of a grid of one to three axes.

    `values` has an array of shape (n_lenses,) for each axis. Every lens counts, faint or not:
    completeness is about what could not be seen.
    """
    shape = tuple(axis.size for axis in axes)
    bins = np.stack([axis.assign(value) for axis, value in zip(axes, values, strict=True)])
    inside = (bins >= 0).all(axis=0)
    cell = np.ravel_multi_index(tuple(bins[:, inside]), shape)
    size = int(np.prod(shape))
    regions = int(lenses.region.max(initial=0)) + 1
    slot = cell * regions + lenses.region[inside]

    def by_region(chosen: NDArray[np.bool_]) -> Floats:
        counts = np.bincount(slot[chosen], minlength=size * regions)
        return counts.reshape(size, regions).astype(np.float64)

    rows = by_region(np.ones(cell.size, bool))
    hits = by_region(lenses.recovered[inside])
    repeats = np.bincount(cell, lenses.multiplicity[inside], minlength=size).astype(np.float64)
    marked, known = (
        np.bincount(cell[chosen[inside]], minlength=size)
        for chosen in (lenses.unresolved, lenses.known)
    )
    return Cells(
        tuple(axes),
        rows.sum(axis=1).astype(np.int64),
        hits.sum(axis=1).astype(np.int64),
        marked,
        known,
        int((~inside).sum()),
        Shares(hits, rows, repeats, lenses.correlation),
    )

"""Neighbours on the sky of the rows of catalogues: in trees, and among themselves.

    scan = TreeScan(ra, dec, diagonal_arcsec)
    scan.add(table, ...)            rows of a tree, a piece at a time
    near = neighbours(ra, dec, diagonal_arcsec)
    region = choose_regions(scan, groups(len(ra), near))
    split, contradictions = choose_splits(region, own_split, scan, fractions)
    scan.pairs                      a row of a catalogue and a row of a tree, each

Two stamps share sky if their centres are nearer than the diagonal of a stamp; in different splits
they are a leak. Memory is that of the catalogue and of one piece, whatever the size of the trees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset.layout import SPLITS
from lensprep.errors import InputError
from lensprep.source.regions import assign_regions, is_cell_region, region_splits, sky_cells
from lensprep.tables.positions import unit_vectors

SAME_ARCSEC: Final = 1.0
"""Nearer positions are taken for one object: catalogues state positions to a few tenths."""
LIGHT_COLUMNS: Final = ("ra", "dec", "region_id", "region_split")
"""Columns of trees that are read of every row..."""
PAIR_COLUMNS: Final = ("task_id", "lens_model", "cutout_ok")
"""... and of the files that hold a neighbour."""

_MOST_PAIRS: Final = 5_000_000
"""Pairs within catalogues take 200 bytes each; 100,000 cutouts of crowded fields have fewer."""
_APART: Final = 10.0
"""Distance that cells have in the fourth dimension: beyond any chord of the unit sphere."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """A row of a catalogue and its neighbour."""

    row: int
    """Number among all rows of all catalogues."""
    arcsec: float
    other: str
    """The neighbour's task_id."""
    where: str
    """What the neighbour's source is called."""
    split: str
    label: int
    """0 or 1; -1 if it is not known."""
    other_row: int = -1
    """Number of a neighbour in a catalogue."""
    at: tuple[Any, int, int] | None = None
    """File, row group and row of a neighbour in a tree."""


@dataclass(slots=True)
class TreeScan:
    """What trees say of the positions of catalogues' rows."""

    ra: Floats
    """Degrees, shape (n,); so is ``dec``."""
    dec: Floats
    diagonal_arcsec: float
    regions: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The splits of each region of the trees."""
    is_foreign: bool = False
    """Whether a region of the trees has the id of a cell that its rows do not lie in."""
    _pairs: dict[tuple[int, str, int], Pair] = field(default_factory=dict)
    _points: Floats = field(init=False)
    _cells: NDArray[np.int64] = field(init=False)
    _near: Floats = field(init=False)
    """Shape (2, n): distance (a chord, of the unit sphere) to the nearest row of a tree within the
    diagonal, and in the same cell; infinite if there is none..."""
    _region: NDArray[np.int64] = field(init=False)
    """... and its region."""
    _tree: Any = field(init=False)

    def __post_init__(self) -> None:
        from scipy.spatial import cKDTree

        self._points, self._cells = unit_vectors(self.ra, self.dec), sky_cells(self.ra, self.dec)
        self._near = np.full((2, len(self.ra)), np.inf)
        self._region = np.zeros((2, len(self.ra)), np.int64)
        self._tree = cKDTree(self._points)

    @property
    def found(self) -> NDArray[np.int64]:
        """Region of each row, shape (n,): that of the nearest row of a tree, else of its cell.

        The nearest within the diagonal comes first, then the nearest in the same cell.
        """
        own = assign_regions(self.ra, self.dec).astype(np.int64)
        return np.select(list(np.isfinite(self._near)), list(self._region), own)

    @property
    def is_found(self) -> NDArray[np.bool_]:
        """Whether a tree has a row in reach, shape (n,)."""
        return np.asarray(np.isfinite(self._near).any(axis=0))

    def add(self, table: pa.Table) -> list[tuple[int, int, float]]:
        """Look at rows of a tree.

        Parameters
        ----------
        table : pyarrow.Table
            With `LIGHT_COLUMNS`.

        Returns
        -------
        list of (int, int, float)
            Number of the catalogue's row, of the table's row and distance in arcsec, of all that
            share sky.
        """
        known = pc.is_in(table["region_split"], pa.array(SPLITS)).to_numpy()
        known &= table["region_id"].is_valid().to_numpy()
        ra, dec = (table[c].cast(pa.float64()).to_numpy() for c in ("ra", "dec"))
        known &= np.isfinite(ra) & np.isfinite(dec)
        rows = np.flatnonzero(known)
        if not len(rows):
            return []
        ra, dec = ra[rows], dec[rows]
        taken = table.select(["region_id", "region_split"]).take(pa.array(rows))
        region = taken["region_id"].to_numpy().astype(np.int64)
        pairs = taken.group_by(["region_id", "region_split"]).aggregate([]).to_pylist()
        for pair in pairs:
            self.regions[pair["region_id"]].add(pair["region_split"])
        points, cells = unit_vectors(ra, dec), sky_cells(ra, dec)
        self.is_foreign |= not is_cell_region(region, cells).all()
        self._look_in_cells(points, cells, region)
        return [(i, int(rows[j]), arcsec) for i, j, arcsec in self._look_around(points, region)]

    def _look_around(self, points: Floats, region: NDArray[np.int64]) -> list[Any]:
        """All pairs within the diagonal."""
        reach = arcsec_chord(self.diagonal_arcsec)
        near, _ = self._tree.query(points, distance_upper_bound=reach)
        found = []
        for j in np.flatnonzero(np.isfinite(near)):
            for i in self._tree.query_ball_point(points[j], reach):
                chord = float(np.linalg.norm(points[j] - self._points[i]))
                self._keep(0, np.array([i]), np.array([chord]), region[[j]])
                found.append((i, j, chord_arcsec(chord)))
        return found

    def _look_in_cells(
        self, points: Floats, cells: NDArray[np.int64], region: NDArray[np.int64]
    ) -> None:
        """The nearest row in the same cell."""
        from scipy.spatial import cKDTree

        inside = np.isin(cells, self._cells)
        rows = np.flatnonzero(np.isin(self._cells, cells[inside]))
        if not len(rows):
            return
        tree = cKDTree(np.column_stack([points[inside], cells[inside] * _APART]))
        query = np.column_stack([self._points[rows], self._cells[rows] * _APART])
        chord, index = tree.query(query)
        self._keep(1, rows, chord, region[inside][index])

    def _keep(
        self, kind: int, rows: NDArray[np.intp], chord: Floats, region: NDArray[np.int64]
    ) -> None:
        """Take a nearer row; of equally near ones the smaller region, whatever comes first."""
        near, best = self._near[kind], self._region[kind]
        better = (chord < near[rows]) | ((chord == near[rows]) & (region < best[rows]))
        near[rows[better]], best[rows[better]] = chord[better], region[better]

    def add_pair(self, pair: Pair) -> None:
        """Keep the nearest neighbour of each split and label."""
        place = pair.row, pair.split, pair.label
        before = self._pairs.get(place)
        if before is None or (pair.arcsec, pair.other) < (before.arcsec, before.other):
            self._pairs[place] = pair

    @property
    def pairs(self) -> list[Pair]:
        """The nearest neighbours in trees of each split and label."""
        return sorted(self._pairs.values(), key=lambda pair: (pair.row, pair.arcsec, pair.other))


def neighbours(ra: Floats, dec: Floats, arcsec: float) -> list[tuple[int, int, float]]:
    """Pairs of positions (degrees) nearer than this, each once, with their distance in arcsec.

    Raises
    ------
    InputError
        If there are more than `_MOST_PAIRS`.
    """
    from scipy.spatial import cKDTree

    points = unit_vectors(ra, dec)
    tree, chord = cKDTree(points), arcsec_chord(arcsec)
    pairs = (int(tree.count_neighbors(tree, chord)) - len(points)) // 2
    if pairs > _MOST_PAIRS:
        raise InputError(
            f"{pairs:,} pairs of cutouts are nearer to each other than {arcsec:.1f} arcsec: most "
            "have one position, a placeholder. Correct ra and dec in the catalogue, or leave these "
            "rows out of it."
        )
    found = tree.query_pairs(chord, output_type="ndarray")
    apart = chord_arcsec(np.linalg.norm(points[found[:, 0]] - points[found[:, 1]], axis=1))
    return [(int(i), int(j), float(d)) for (i, j), d in zip(found, apart, strict=True)]


def groups(count: int, pairs: Sequence[tuple[int, int, float]]) -> NDArray[np.int64]:
    """Friends of friends: the number of each row's group, shape (count,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.array([(i, j) for i, j, _ in pairs], np.int64).reshape(-1, 2)
    ones = np.ones(len(ends))
    graph = coo_matrix((ones, (ends[:, 0], ends[:, 1])), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def choose_regions(scan: TreeScan, group: NDArray[np.int64]) -> NDArray[np.int64]:
    """A region for each row: that of trees in reach, else a cell, the same for a whole group.

    Parameters
    ----------
    scan : TreeScan
    group : ndarray of int, shape (n,)
        See `groups`.
    """
    region, known = scan.found, scan.is_found
    for rows in _members(group):
        if len(rows) == 1 or known[rows].all():
            continue
        some = rows[known[rows]] if known[rows].any() else rows
        # By position, so that the order of the rows does not matter.
        first = min(some, key=lambda row: (scan.ra[row], scan.dec[row], region[row]))
        region[rows[~known[rows]]] = region[first]
    return region


def _members(group: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def choose_splits(
    region: NDArray[np.int64],
    own_split: Sequence[str | None],
    scan: TreeScan,
    fractions: Sequence[float],
) -> tuple[list[str], list[tuple[int, set[str]]]]:
    """Split of each row: its own, else that of its region, else one drawn by the region's id.

    Returns
    -------
    splits : list of str
    contradictions : list of (int, set of str)
        Regions that are in several splits, and in which.
    """
    stated: dict[int, set[str]] = defaultdict(set)
    for number, split in zip(region.tolist(), own_split, strict=True):
        stated[number] |= {split} if split is not None else set()
    drawn = dict(zip(region.tolist(), region_splits(region, fractions).tolist(), strict=True))
    chosen, contradictions = {}, []
    for number in sorted({*region.tolist()}):
        said = stated[number] | scan.regions.get(number, set())
        chosen[number] = next(iter(sorted(said)), drawn[number])
        if len(said) > 1:
            contradictions.append((number, said))
    return [chosen[number] for number in region.tolist()], contradictions


def arcsec_chord(arcsec: float) -> float:
    """Chord of the unit sphere under an angle."""
    return float(2 * np.sin(np.radians(arcsec / 3600) / 2))


def chord_arcsec(chord: Any) -> Any:
    """Inverse of `arcsec_chord`."""
    return np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))) * 3600

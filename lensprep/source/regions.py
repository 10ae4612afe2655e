"""Regions of rows that come without: cells of the sky, and a split for each region.

    region_id = assign_regions(ra, dec)              the cell of each position, as a region_id
    split = region_splits(region_id, fractions)    by a hash of the region_id alone

A cell of HEALPix (nside 32, nested; Gorski et al. 2005, ApJ 622, 759) is 1.8 deg across. It is much
larger than a stamp, a cluster of galaxies or an exposure, so that neighbours and what is common to
them stay together, and the sky has 12,288 of them, so that a survey of 1000 square degrees has 300
to split and to draw bootstrap samples from. The id of a cell is negative, -1 - cell, which no
survey uses for its own regions, and fits 32 bits.

The split of a region depends on its id alone and not on other rows, files or the seed of the
shuffle: what was once in test stays there in every later dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.dataset.layout import SPLITS
from lensprep.errors import ConfigError

NSIDE: Final = 32
FRACTIONS: Final = (0.8, 0.1, 0.1)
"""Expected shares of the regions in train, val and test."""

_CELLS: Final = 12 * NSIDE**2


def sky_cells(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.int64]:
    """HEALPix cell of each position (degrees); -1 where it is NaN."""
    from astropy import units
    from astropy_healpix import HEALPix

    lon, lat = (np.asarray(angle, np.float64) for angle in (ra, dec))
    known = np.isfinite(lon) & np.isfinite(lat)
    cells = np.full(known.shape, -1, np.int64)
    grid = HEALPix(NSIDE, order="nested")
    cells[known] = grid.lonlat_to_healpix(lon[known] * units.deg, lat[known] * units.deg)
    return cells


def assign_regions(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.int32]:
    """Region of each position: the id of its cell.

    Parameters
    ----------
    ra, dec : array_like, shape (n,)
        Degrees; none may be NaN.
    """
    return (-1 - sky_cells(ra, dec)).astype(np.int32)


def is_cell_region(region_id: NDArray[Any], cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each region_id may stand beside those of cells: not one of them, or its own cell."""
    return (region_id >= 0) | (region_id < -_CELLS) | (region_id == -1 - cells)


def region_splits(region_id: ArrayLike, fractions: Sequence[float] = FRACTIONS) -> NDArray[np.str_]:
    """Split of each region, drawn by a hash of its id.

    Parameters
    ----------
    region_id : array_like of int, shape (n,)
    fractions : sequence of float
        Expected shares of the regions in train, val and test; they add up to 1.

    Returns
    -------
    ndarray of str, shape (n,)
    """
    regions, inverse = np.unique(np.asarray(region_id), return_inverse=True)
    draws = [_uniform(int(region)) for region in regions]
    drawn = np.searchsorted(np.cumsum(fractions)[:-1], draws, side="right")
    return np.array(SPLITS)[drawn][inverse]


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse shares that are not three, negative, or do not add up to 1."""
    if (
        len(fractions) != len(SPLITS)
        or not min(fractions) >= 0
        or not abs(sum(fractions) - 1) < 1e-9
    ):
        raise ConfigError(
            f"fractions must be three shares that add up to 1 (of {', '.join(SPLITS)}), got "
            f"{', '.join(f'{share:g}' for share in fractions)}."
        )


def _uniform(region: int) -> float:
    """A number in [0, 1) that belongs to a region."""
    digest = blake2b(str(region).encode(), digest_size=8, person=b"region").digest()
    return int.from_bytes(digest[:6], "little") / 2**48

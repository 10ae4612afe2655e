"""The sky of a synthetic survey: regions, bricks, seeing, depth, and which row lies where (pure).

Distributions follow the published figures of Phase 4c (seeing, depth, share of masked pixels) and
of the Legacy Surveys (bricks, extinction, footprint).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.layout import SPLITS
from lensprep.errors import ConfigError

BRICK_DEG: Final = 0.25
"""Height of a Legacy Surveys brick, degrees."""
REGION_BRICKS: Final = 4
"""A region is a block of this many bricks per side: about one square degree."""
REGION_GAP_DEG: Final = 2.5
"""Smallest distance between the centres of two regions, so that their stamps are never close."""
MAX_REGIONS: Final = 782
"""The number in the largest tier of Phase 4c."""
PSFSIZE_R_RANGE: Final = (0.754, 1.600)
PSFDEPTH_R_RANGE: Final = (23.60, 26.84)
QUANTILE_BINS: Final = 4
DEFAULT_FRACTIONS: Final[dict[str, float]] = {"train": 0.60, "val": 0.15, "test": 0.25}

_ROWS_PER_REGION = 400
_FEWEST_REGIONS = 200
_ROWS_PER_BRICK = 24
_NORTH_GALACTIC_POLE_DEG = (192.8595, 27.1283)


Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Brick:
    """A patch of sky with one set of observing conditions."""

    name: str
    region_id: int
    ra_deg: Bounds
    dec_deg: Bounds
    psfsize_arcsec: tuple[float, float, float]
    """FWHM of the coadded point-spread function in g, r, z."""
    psfdepth_mag: tuple[float, float, float]
    """Point-source depth at 5 sigma in g, r, z, AB magnitudes."""
    ebv: float
    psf_bin: int
    depth_bin: int
    seed: int
    """For the properties without a column: PSF shape, noise correlation, sky residual."""


@dataclass(frozen=True, slots=True)
class SurveyPlan:
    """Where every row of a tree lies."""

    bricks: tuple[Brick, ...]
    region_split: Mapping[int, str]
    brick_of_row: NDArray[np.int64]
    """Shape (rows,): index into ``bricks``; rows of one region are neighbours."""

    def brick_of(self, row: int) -> Brick:
        """Brick in which a row lies."""
        return self.bricks[self.brick_of_row[row]]

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Indices of the rows of a split, region by region."""
        names = np.array([self.region_split[brick.region_id] for brick in self.bricks])
        return np.flatnonzero(names[self.brick_of_row] == split)


def plan_survey(
    rows: int, seed: int, regions: int | None = None, fractions: Mapping[str, float] | None = None
) -> SurveyPlan:
    """Lay out regions and bricks, give each region whole to one split, and place the rows.

    Parameters
    ----------
    rows : int
        Rows of the whole tree, at least one for every region.
    seed : int
    regions : int, optional
        Number of regions, 3 to 782; by default one per 400 rows, at least 200 (one per 2 rows if
        that is fewer), so that intervals from resampling regions are meaningful.
    fractions : mapping of split to share of the rows, optional
        Of train, val and test; normalised to their sum. By default 60, 15 and 25 %.

    Returns
    -------
    SurveyPlan

    Raises
    ------
    ConfigError
        If a number is out of range.
    """
    if seed < 0:
        raise ConfigError(f"A seed is at least 0, not {seed}.")
    count = _region_count(rows, regions)
    rng = np.random.default_rng([seed, 1])
    centres = _region_centres(rng, count)
    weights = rng.uniform(0.7, 1.3, count)
    rows_of_region = _apportion(rows, weights)
    splits = _assign_splits(rng, rows_of_region, fractions or DEFAULT_FRACTIONS)
    region_ids = rng.choice(MAX_REGIONS, count, replace=False)
    bricks: list[Brick] = []
    brick_of_row = []
    for region_id, centre, n_rows in zip(region_ids.tolist(), centres, rows_of_region, strict=True):
        first = len(bricks)
        n_bricks = min(max(1, n_rows // _ROWS_PER_BRICK), REGION_BRICKS**2)
        bricks += _region_bricks(rng, region_id, centre, n_bricks)
        brick_of_row.append(np.sort(rng.integers(first, len(bricks), n_rows)))
    split_of = dict(zip(region_ids.tolist(), splits, strict=True))
    return SurveyPlan(tuple(_with_bins(bricks)), split_of, np.concatenate(brick_of_row))


def brick_at(ra_deg: float, dec_deg: float) -> tuple[str, Bounds, Bounds]:
    """Name and bounds of the Legacy Surveys brick at a position: such as ``0001m040``.

    Rows of bricks are centred on multiples of 0.25 degrees of declination; each row is divided
    into the smallest even number of bricks that are nowhere wider than high.

    Returns
    -------
    name : str
    ra_bounds, dec_bounds : tuple of float
        Degrees.
    """
    row = round(dec_deg / BRICK_DEG)
    dec = row * BRICK_DEG
    widest = math.radians(max(0.0, abs(dec) - BRICK_DEG / 2))
    columns = 2 * math.ceil(180.0 * math.cos(widest) / BRICK_DEG)
    width = 360.0 / columns
    column = int(ra_deg % 360.0 / width)
    ra = (column + 0.5) * width
    name = f"{int(ra * 10):04d}{'m' if dec < 0 else 'p'}{int(abs(dec) * 10):03d}"
    half = BRICK_DEG / 2
    return name, (column * width, (column + 1) * width), (dec - half, dec + half)


def is_lens(seed: int, galaxy_id: str) -> bool:
    """Whether a galaxy gets an injected lens: half of them do, by a hash of the name.

    Nothing but the name matters, so both classes have the same hosts.
    """
    return hashlib.sha256(f"{seed}/{galaxy_id}".encode()).digest()[0] < 128


def bad_fractions(rng: np.random.Generator) -> tuple[float, float]:
    """``bad_pixel_frac`` and ``wise_brightmask_frac`` of one stamp.

    Most stamps have none; the mean (0.064 and 0.039) and the 95th percentile (0.5 and 0.14) are
    about those of Phase 4c.
    """
    kind, amount = rng.random(2)
    wise_kind, wise_amount = rng.random(2)
    bad = 0.0 if kind < 0.70 else 0.2 * amount**2 if kind < 0.90 else 0.2 + 0.8 * amount**1.6
    wise = 0.0 if wise_kind < 0.85 else 0.35 * wise_amount if wise_kind < 0.97 else wise_amount**0.5
    return float(bad), float(wise)


def _region_count(rows: int, regions: int | None) -> int:
    if rows < 3:
        raise ConfigError(f"{rows} rows cannot fill three splits. Ask for at least 3 rows.")
    if regions is None:
        wanted = max(_FEWEST_REGIONS, rows // _ROWS_PER_REGION)
        return min(wanted, max(3, rows // 2), MAX_REGIONS)
    if not 3 <= regions <= min(rows, MAX_REGIONS):
        raise ConfigError(
            f"{rows} rows cannot have {regions} regions. Ask for 3 to {min(rows, MAX_REGIONS)}."
        )
    return regions


def _region_centres(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Positions in the southern footprint, away from the Milky Way and from each other."""
    centres: list[tuple[float, float]] = []
    vectors = np.empty((count, 3))
    limit = math.cos(math.radians(REGION_GAP_DEG))
    while len(centres) < count:
        ra = rng.uniform(1.0, 359.0)
        dec = math.degrees(math.asin(rng.uniform(math.sin(math.radians(-65)), 0.53)))
        vector = _unit_vector(ra, dec)
        galactic = abs(float(vector @ _unit_vector(*_NORTH_GALACTIC_POLE_DEG)))
        known = vectors[: len(centres)]
        if galactic > math.sin(math.radians(20)) and not np.any(known @ vector > limit):
            vectors[len(centres)] = vector
            centres.append((ra, dec))
    return centres


def _unit_vector(ra_deg: float, dec_deg: float) -> NDArray[np.float64]:
    ra, dec = math.radians(ra_deg), math.radians(dec_deg)
    return np.array([math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)])


def _apportion(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers, each at least one, that sum to ``total`` and follow the weights."""
    spare = total - len(weights)
    edges = np.rint(np.cumsum(weights) / weights.sum() * spare).astype(np.int64)
    return 1 + np.diff(edges, prepend=0)


def _assign_splits(
    rng: np.random.Generator, rows: NDArray[np.int64], fractions: Mapping[str, float]
) -> list[str]:
    """Give every region to the split that lacks most rows; each split gets at least one."""
    if set(fractions) != set(SPLITS) or not all(share > 0 for share in fractions.values()):
        raise ConfigError(
            f"Split fractions {dict(fractions)} are not valid: give each of train, val and test "
            "a share above 0."
        )
    whole = sum(fractions.values())
    missing = {split: fractions[split] / whole * rows.sum() for split in SPLITS}
    empty = set(SPLITS)
    chosen = [""] * len(rows)
    for done, region in enumerate(rng.permutation(len(rows))):
        choice = empty if len(rows) - done <= len(empty) else SPLITS
        split = max((s for s in SPLITS if s in choice), key=missing.__getitem__)
        chosen[region] = split
        missing[split] -= float(rows[region])
        empty.discard(split)
    return chosen


def _bricks_around(centre: tuple[float, float]) -> list[tuple[str, Bounds, Bounds]]:
    """The bricks of a region, from its centre outwards as far as rows and columns allow."""
    ra, dec = centre
    offsets = (0, 1, -1, 2)
    bricks: list[tuple[str, Bounds, Bounds]] = []
    for i in offsets:
        row_dec = (round(dec / BRICK_DEG) + i) * BRICK_DEG
        width = BRICK_DEG / math.cos(math.radians(row_dec))
        bricks.extend(brick_at((ra + j * width) % 360.0, row_dec) for j in offsets)
    return list(dict.fromkeys(bricks))


def _conditions(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """PSF size, depth and extinction of the bricks of one region, which are alike: (3, bricks)."""
    kind = rng.random()
    mean_depth = rng.normal(24.32, 0.2) if kind < 0.58 else rng.normal(24.85, 0.2)
    if kind > 0.95:
        mean_depth = rng.uniform(25.3, 26.8)
    mean_size = rng.normal(1.32, 0.12)
    size = _within(rng, mean_size, 0.08, PSFSIZE_R_RANGE, count)
    depth = _within(rng, mean_depth, 0.12, PSFDEPTH_R_RANGE, count)
    ebv = rng.lognormal(math.log(0.04), 0.6) * rng.lognormal(0.0, 0.1, count)
    return np.array([size, depth, ebv])


def _within(
    rng: np.random.Generator, mean: float, sigma: float, bounds: tuple[float, float], count: int
) -> NDArray[np.float64]:
    """Normal values; those out of bounds are mirrored at the bound, so as not to pile up there."""
    low, high = bounds
    values = rng.normal(min(max(mean, low), high), sigma, count)
    values = np.where(values < low, 2 * low - values, values)
    return np.clip(np.where(values > high, 2 * high - values, values), low, high)


def _region_bricks(
    rng: np.random.Generator, region_id: int, centre: tuple[float, float], count: int
) -> list[Brick]:
    """The bricks of one region; ``psf_bin`` and ``depth_bin`` are set once all are known."""
    conditions = _conditions(rng, count).T.tolist()
    bricks = []
    for patch, (size_r, depth_r, ebv) in zip(
        _bricks_around(centre)[:count], conditions, strict=True
    ):
        name, ra, dec = patch
        # Mean FWHM upstream: g 1.531, r 1.325, z 1.323 arcsec. Depths relative to r as in DR10.
        sizes = (size_r * rng.normal(1.155, 0.06), size_r, size_r * rng.normal(1.0, 0.06))
        depths = (depth_r + rng.normal(0.45, 0.12), depth_r, depth_r - rng.normal(1.0, 0.15))
        seed = int(rng.integers(2**62))
        bricks.append(Brick(name, region_id, ra, dec, sizes, depths, ebv, 0, 0, seed))
    return bricks


def _with_bins(bricks: list[Brick]) -> list[Brick]:
    """Set ``psf_bin`` and ``depth_bin``: quartiles over the bricks."""
    size = _quantile_bin(np.array([brick.psfsize_arcsec[1] for brick in bricks]))
    depth = _quantile_bin(np.array([brick.psfdepth_mag[1] for brick in bricks]))
    return [
        replace(brick, psf_bin=int(psf_bin), depth_bin=int(depth_bin))
        for brick, psf_bin, depth_bin in zip(bricks, size, depth, strict=True)
    ]


def _quantile_bin(values: NDArray[np.float64]) -> NDArray[np.int64]:
    edges = np.quantile(values, np.arange(1, QUANTILE_BINS) / QUANTILE_BINS)
    return np.searchsorted(edges, values, side="right")

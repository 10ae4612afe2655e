"""Phase 4c trees whose stamps are crops of real DR10 cutouts, where those are at hand.

@needs_real_cutouts                      skips a test where they are not
tree = real_tree(tmp_path, rows=1000)    a Hive tree; every stamp another crop
table = real_table(rows=1000)            the rows alone
pixels = real_pixels(10)                 float32 (10, 3, 64, 64), nanomaggies

The cutouts, ``*.npz`` with a float array ``cutout`` of shape (y, x, 3), are public but not part of
the project: no package that pip installs holds any in g, r and z under a clear license. They are
looked for in the folder that LENSPREP_REAL_CUTOUTS names, else in ../shared/data/real_dr10_cutouts
beside the repository. All are lens candidates and none is an injection, so labels and all columns
are made up: what is tested with them is the path of real pixels.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.phase4c import stamp_blob, tiny_table, write_tree

_BESIDE = Path(__file__).parents[2] / "shared/data/real_dr10_cutouts"
FOLDER = Path(os.environ.get("LENSPREP_REAL_CUTOUTS") or _BESIDE)

needs_real_cutouts = pytest.mark.skipif(
    not any(FOLDER.glob("*.npz")),
    reason="no real DR10 cutouts: set LENSPREP_REAL_CUTOUTS to a folder of them",
)


@lru_cache(maxsize=1)
def _cutouts() -> tuple[np.ndarray, ...]:
    """All cutouts, band first."""
    found = []
    for path in sorted(FOLDER.glob("*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            found.append(np.moveaxis(archive["cutout"], 2, 0))
    return tuple(found)


def real_pixels(rows: int, seed: int = 0) -> np.ndarray:
    """Crops of the cutouts at random places, in random orientations."""
    rng = np.random.default_rng(seed)
    stamps = np.empty((rows, 3, 64, 64), np.float32)
    for row, stamp in enumerate(stamps):
        cutout = _cutouts()[row % len(_cutouts())]
        y, x = (rng.integers(0, side - 64, endpoint=True) for side in cutout.shape[1:])
        crop = np.rot90(cutout[:, y : y + 64, x : x + 64], rng.integers(4), (1, 2))
        stamp[:] = crop[..., ::-1] if rng.integers(2) else crop
    return stamps


def real_table(rows: int, *, seed: int = 0) -> pa.Table:
    """Phase 4c rows of the stamps that `real_pixels` gives."""
    return tiny_table(rows, stamp_npz=[stamp_blob(stamp) for stamp in real_pixels(rows, seed)])


def real_tree(folder: Path, rows: int, *, seed: int = 0, row_group_rows: int = 500) -> Path:
    """Write them as a tree below ``folder`` and return its root."""
    table = real_table(rows, seed=seed)
    return write_tree(folder / "stamps", table, row_group_rows=row_group_rows)

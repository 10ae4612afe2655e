"""Real DR10 cutouts as a Phase 4c tree, where the folder with them is at hand.

The folder is ``../shared/data/real_dr10_cutouts`` beside the checkout, or the one that the variable
LENSPREP_REAL_CUTOUTS names. Tests that need it are skipped, with the reason, where it is absent.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.phase4c import stamp_blob, tiny_table, write_tree

FOLDER = Path(
    os.environ.get("LENSPREP_REAL_CUTOUTS")
    or Path(__file__).parents[2] / "shared" / "data" / "real_dr10_cutouts"
)

needs_real_cutouts = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no real cutouts at {FOLDER} (set LENSPREP_REAL_CUTOUTS)"
)

_OFFSETS = ((18, 18), (6, 6), (6, 30), (30, 6), (30, 30), (18, 6), (18, 30), (10, 18))
"""Corners of the windows of 64 x 64 in a cutout of 101 x 101; the first is centred."""


def real_cutouts() -> dict[str, np.ndarray]:
    """Cutouts by name: float32, shape (3, 101, 101), bands g, r, z, nanomaggies."""
    cutouts = {}
    for path in sorted(FOLDER.glob("*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            cutouts[path.stem] = np.moveaxis(archive["cutout"], -1, 0).astype(np.float32)
    return cutouts


def real_windows() -> np.ndarray:
    """Windows of all cutouts, one after the other; float32, shape (n, 3, 64, 64)."""
    return np.stack(
        [
            cutout[:, y : y + 64, x : x + 64]
            for cutout in real_cutouts().values()
            for y, x in _OFFSETS
        ]
    )


def real_table() -> pa.Table:
    """Phase 4c rows of the windows: a region, a position and a split for each cutout.

    All cutouts are lens candidates and none is an injection, so labels and theta_E are made up
    (every other window is called a control): what is tested with them is the path of real pixels.
    """
    windows = real_windows()
    number = np.arange(len(windows))
    cutout = number // len(_OFFSETS)
    return tiny_table(
        len(windows),
        stamp_npz=[stamp_blob(window) for window in windows],
        region_id=cutout,
        brickname=[f"real{index}" for index in cutout],
        region_split=np.array(["train", "train", "train", "val", "test", "test"])[cutout % 6],
        ra=10.0 + cutout,
        dec=0.0 * cutout,
    )


def real_tree(folder: Path) -> Path:
    """Write the windows as a Phase 4c tree."""
    return write_tree(folder / "stamps", real_table(), files_per_split=1)

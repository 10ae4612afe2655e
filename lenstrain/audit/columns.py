"""Columns by what an audit may do with them (pure)."""

from __future__ import annotations

from typing import Final

from lensprep.dataset import BANDS

NORM_STATS: Final = tuple(f"{what}_{b}" for what in ("median", "scale", "clip_frac") for b in BANDS)
"""What normalisation measured of a stamp."""

IDENTITY: Final = (
    "key",
    "label",
    "task_id",
    "task_seed64",
    "pixel_hash",
    "payload_crc32",
    "source_file",
    "source_row_group",
    "source_row",
    "region_split",
    "split",
    "region_id",
    "brickname",
    "ra",
    "dec",
)
"""Names, places and checksums: no properties, so no metadata that a probe would learn from."""

REQUIRED: Final = ("key", "label", "region_id", "lens_model", "theta_e_arcsec", *NORM_STATS)
"""Columns without which the checks of labels and leaks cannot be done."""

"""The survey as Phase 4c delivers it: its columns, what they hold, how its stamps are named.

What every dataset states too (bands and their order, stamp size, pixel scale, label map) is in
`lensprep.dataset.layout`; another survey changes these two files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

from lensprep.dataset.layout import (
    BANDS,
    COUNTERFACTUAL,
    DONOR_TASK,
    HOST_TASK,
    SOURCE_COLOURS,
    STAMP_SIZE,
)

Controls = Literal["value", "zero", "null"]
"""What CONTROL rows hold in a column: values as in any other row, zero, or null."""

STAMP_COLUMN: Final = "stamp_npz"
STAMP_MEMBERS: Final = tuple(f"image_{band}" for band in BANDS)
"""Arrays of the NPZ in ``stamp_npz``, one for each band."""
SPLIT_COLUMN: Final = "region_split"
REFERENCE_BAND: Final = "r"
"""Band in which seeing, depth and flux are stated."""
SEEING_COLUMN: Final = f"psfsize_{REFERENCE_BAND}"
DEPTH_COLUMN: Final = f"psfdepth_{REFERENCE_BAND}"
ZERO_POINT: Final = 22.5
"""AB magnitude of one nanomaggie."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the contract."""

    name: str
    type: pa.DataType
    nullable: bool = False
    """Whether null is allowed at all (a control's null is given by ``controls``)."""
    required: bool = False
    """Whether a source without it is refused. A folder's name may state it instead."""
    controls: Controls = "value"
    leaks: bool = False
    """Whether the value, or its being null, reveals the label: never an input of a model."""
    minimum: float | None = None
    """Smallest plausible value, in the column's own unit."""
    maximum: float | None = None
    """Largest plausible value, in the column's own unit."""


_TEXT: Final = pa.string()
_INT: Final = pa.int32()
_LONG: Final = pa.int64()
_REAL: Final = pa.float64()
_BYTES: Final = pa.binary()

COLUMNS: Final[tuple[Column, ...]] = (
    Column("task_id", _TEXT, required=True),
    Column("experiment_id", _TEXT, required=True),
    Column("selection_set_id", _TEXT, required=True),
    Column("ranking_mode", _TEXT, required=True),
    Column("selection_strategy", _TEXT, required=True),
    Column("brickname", _TEXT, required=True),
    Column("bandset", _TEXT, required=True),
    Column("config_id", _TEXT, required=True, leaks=True),
    Column(SPLIT_COLUMN, _TEXT, required=True),
    Column("region_id", _INT, required=True),
    Column("stamp_size", _INT, required=True, minimum=STAMP_SIZE, maximum=STAMP_SIZE),
    Column("replicate", _INT),
    Column("is_control", _INT, required=True, leaks=True, minimum=0, maximum=1),
    Column("cutout_ok", _INT, required=True),
    Column("metrics_only", _INT),
    Column("ra", _REAL, required=True, minimum=0, maximum=360),
    Column("dec", _REAL, required=True, minimum=-90, maximum=90),
    Column(
        "theta_e_arcsec", _REAL, required=True, controls="zero", leaks=True, minimum=0, maximum=5
    ),
    Column("src_dmag", _REAL, required=True, controls="zero", leaks=True),
    Column(
        "src_reff_arcsec", _REAL, required=True, controls="zero", leaks=True, minimum=0, maximum=5
    ),
    Column("src_e", _REAL, controls="zero", leaks=True, minimum=0, maximum=1),
    Column("shear", _REAL, controls="zero", leaks=True, minimum=0, maximum=0.5),
    Column("task_seed64", _LONG, nullable=True),
    Column("src_x_arcsec", _REAL, nullable=True, controls="zero", leaks=True),
    Column("src_y_arcsec", _REAL, nullable=True, controls="zero", leaks=True),
    Column("src_phi_rad", _REAL, nullable=True, controls="zero", leaks=True),
    Column("shear_phi_rad", _REAL, nullable=True, controls="zero", leaks=True),
    *(Column(name, _REAL, nullable=True, leaks=True) for name in SOURCE_COLOURS),
    Column("psf_bin", _INT, nullable=True),
    Column("depth_bin", _INT, nullable=True),
    Column(
        "ab_zp_nmgy", _REAL, nullable=True, required=True, minimum=ZERO_POINT, maximum=ZERO_POINT
    ),
    Column("pipeline_version", _TEXT, nullable=True, required=True),
    Column(SEEING_COLUMN, _REAL, nullable=True, required=True, minimum=0.3, maximum=5),
    Column(DEPTH_COLUMN, _REAL, nullable=True, required=True, minimum=15, maximum=30),
    Column("ebv", _REAL, nullable=True, minimum=0, maximum=10),
    Column(STAMP_COLUMN, _BYTES, nullable=True, required=True),
    Column("arc_snr", _REAL, nullable=True, controls="null", leaks=True),
    Column("total_injected_flux_r", _REAL, nullable=True, controls="null", leaks=True),
    Column("magnification", _REAL, nullable=True, controls="null", leaks=True, minimum=0),
    Column("bad_pixel_frac", _REAL, nullable=True, required=True, minimum=0, maximum=1),
    Column("wise_brightmask_frac", _REAL, nullable=True, required=True, minimum=0, maximum=1),
    Column("metrics_ok", _INT, nullable=True),
    *(
        Column(
            f"psf_fwhm_used_{band}",
            _REAL,
            nullable=True,
            required=band == REFERENCE_BAND,
            controls="null",
            leaks=True,
            minimum=0.3,
            maximum=5,
        )
        for band in BANDS
    ),
    *(
        Column(f"psf_source_{band}", _INT, nullable=True, controls="null", leaks=True)
        for band in BANDS
    ),
    Column("lens_model", _TEXT, nullable=True, required=True, leaks=True),
    Column("lens_e", _REAL, nullable=True, controls="zero", leaks=True, minimum=0, maximum=1),
    Column("lens_phi_rad", _REAL, nullable=True, controls="null", leaks=True),
    Column("tangential_stretch", _REAL, nullable=True, controls="null", leaks=True),
    Column("radial_stretch", _REAL, nullable=True, controls="null", leaks=True),
    Column("expected_arc_radius", _REAL, nullable=True, controls="null", leaks=True),
    Column("physics_valid", _INT, nullable=True, controls="null", leaks=True),
    Column("physics_warnings", _TEXT, nullable=True, controls="null", leaks=True),
)
"""The 57 columns of Phase 4c, in the order in which a table of this project has them."""

FAMILY_COLUMNS: Final = tuple(
    Column(name, _TEXT, nullable=True, leaks=True)
    for name in (COUNTERFACTUAL, HOST_TASK, DONOR_TASK)
)
"""What only files of counterfactuals have, behind those of the survey; null in all other rows."""

COLUMN_BY_NAME: Final[dict[str, Column]] = {c.name: c for c in (*COLUMNS, *FAMILY_COLUMNS)}
REQUIRED_COLUMNS: Final = tuple(column.name for column in COLUMNS if column.required)
LEAKING_COLUMNS: Final = tuple(c.name for c in COLUMN_BY_NAME.values() if c.leaks)
SCHEMA: Final = pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in COLUMNS])
"""Arrow schema of all 57 columns."""

"""The names and bytes on disk: what writer and reader must agree on, and nothing else.

::

    DATASET/
      manifest.json
      train/train-000000.tar        records of one fixed stride, see below
      train/train-000000.parquet    the sidecar: one row a record, in tar order
      rejects.parquet

One record is two members of an ustar archive, so a shard is a regular grid: a plain WebDataset
tar, and an array of shape (rows, 3, 64, 64) with a constant stride.

======  =======  ==================================================
offset  bytes    what
======  =======  ==================================================
0       512      ustar header of ``<key>.stamp.npy``
512     128      ``.npy`` header (version 1.0)
640     24,576   the pixels: float16, C order, (band, y, x), g r z
25,216  384      zeros up to the next block of 512
25,600  512      ustar header of ``<key>.json``
26,112  512      JSON, padded with spaces
======  =======  ==================================================

Any change here is a change of the format: it raises ``FORMAT_VERSION``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

FORMAT_VERSION: Final = 1
"""Version of the bytes on disk of DECaLS; it moves apart from the version of the software."""
FORMAT_VERSIONS: Final = (1, 2)
"""Versions that are read: 2 is the same grid for stamps of another geometry."""

BANDS: Final = ("g", "r", "z")
STAMP_SIZE: Final = 64
STAMP_SHAPE: Final = (len(BANDS), STAMP_SIZE, STAMP_SIZE)
STAMP_DTYPE: Final = np.dtype("<f2")
PIXEL_SCALE_ARCSEC: Final = 0.262
SKY_NOISE_NMGY: Final = {"g": 0.0019, "r": 0.0028, "z": 0.0087}
"""Noise of a pixel of sky in each band: median of 1.4826 MAD over six public DR10 cutouts."""
SPLITS: Final = ("train", "val", "test")
LABEL_MAP: Final[dict[str, int]] = {"CONTROL": 0, "SIE": 1, "SIS": 1}
"""The closed map from ``lens_model`` to label: anything else is a reject, never a positive."""

MANIFEST_NAME: Final = "manifest.json"
REJECTS_NAME: Final = "rejects.parquet"

BLOCK: Final = 512
"""Block of a tar archive, bytes."""
NPY_HEADER_BYTES: Final = 128
PAYLOAD_BYTES: Final = len(BANDS) * STAMP_SIZE * STAMP_SIZE * STAMP_DTYPE.itemsize
PAYLOAD_OFFSET: Final = BLOCK + NPY_HEADER_BYTES
NPY_BYTES: Final = NPY_HEADER_BYTES + PAYLOAD_BYTES
JSON_BYTES: Final = 512
JSON_HEADER_OFFSET: Final = BLOCK + -(-NPY_BYTES // BLOCK) * BLOCK
JSON_OFFSET: Final = JSON_HEADER_OFFSET + BLOCK
RECORD_STRIDE: Final = JSON_OFFSET + JSON_BYTES
TRAILER_BYTES: Final = 2 * BLOCK
"""Two zero blocks end the archive. No padding to 10,240 bytes: no reader asks for it."""

KEY_HEX_DIGITS: Final = 32
STAMP_SUFFIX: Final = ".stamp.npy"
JSON_SUFFIX: Final = ".json"
TAR_MODE: Final = 0o644

JSON_FIELDS: Final = (
    "label",
    "task_id",
    "region_id",
    "lens_model",
    "theta_e_arcsec",
    "split",
    "ra",
    "dec",
    "brickname",
)
"""Columns repeated in each record for users of stock WebDataset, with `JSON_OPTIONAL`; all
else is in the sidecar."""

SOURCE_COLOURS: Final = tuple(f"src_{blue}{red}" for blue, red in pairwise(BANDS))
"""Columns with the colours of a lensed source between adjacent bands, magnitudes."""
MEASURED: Final = ("median", "scale", "clip_frac")
"""What normalising measures in each band."""
MEASURED_COLUMNS: Final = (
    "key",
    "label",
    *(f"{measured}_{band}" for measured in MEASURED for band in BANDS),
    "payload_crc32",
    "pixel_hash",
)
"""What conversion adds to a row and depends on its content alone."""

COUNTERFACTUAL: Final = "counterfactual"
"""Column with the kind of a counterfactual, a stamp made from another one; null for all others."""
HOST_TASK: Final = "host_task_id"
"""Column with the task_id of the non-lens that a counterfactual was made from."""
DONOR_TASK: Final = "donor_task_id"
"""Column with the task_id of the lens whose light a counterfactual was given."""
LENSED: Final = "lensed"
"""The kind that is a lens: the donor's arc on the host, to which its other kinds are compared."""
COUNTERFACTUALS: Final = ("unlensed", "magnified", "extended", "scattered", "companion", LENSED)
"""Kinds of counterfactuals. Those of one host and donor are a family. None of them is an
independent image: they count in no rate, threshold, calibration or balance of classes."""

ORIGIN: Final = "origin"
"""Column with where a row comes from: `SIMULATED`, `REAL`, or as a catalogue of cutouts says.
Sidecars without it, and nulls in it, mean `SIMULATED`: a tree's injections and its controls."""
SIMULATED: Final = "simulated"
REAL: Final = "real"
KIND: Final = "kind"
"""Column with what an object is, as its catalogue says: lens, spiral, ring, ...; null in trees."""
GRADE: Final = "grade"
"""Column with how sure its catalogue is that it is a lens: A, B, ...; null in trees."""
CUTOUT_LABELS: Final[dict[str, int]] = {"NONLENS": 0, "LENS": 1}
"""``lens_model`` of the rows of catalogues, which say what is a lens but not by which model; a
dataset that holds such rows has them in its label map."""

JSON_OPTIONAL: Final = (COUNTERFACTUAL, ORIGIN, KIND)
"""Columns repeated in the records of the rows that have one."""
JSON_MEMBERS: Final = (*JSON_FIELDS, *JSON_OPTIONAL)
"""What the JSON of a record may hold."""

TEXTS: Final = (
    "key",
    "pixel_hash",
    "task_id",
    "lens_model",
    "brickname",
    "region_split",
    "split",
    "source_file",
    COUNTERFACTUAL,
    HOST_TASK,
    DONOR_TASK,
    ORIGIN,
    KIND,
    GRADE,
)
WHOLE_NUMBERS: Final = (
    "label",
    "region_id",
    "payload_crc32",
    "is_control",
    "source_row_group",
    "source_row",
)
NUMBERS: Final = (
    "ra",
    "dec",
    "theta_e_arcsec",
    "src_dmag",
    "src_reff_arcsec",
    "src_x_arcsec",
    "src_y_arcsec",
    "psfsize_r",
    "psfdepth_r",
    "ebv",
    "arc_snr",
    "total_injected_flux_r",
    "magnification",
    "bad_pixel_frac",
    "wise_brightmask_frac",
)
BAND_NUMBERS: Final = (*MEASURED, "psf_fwhm_used")
"""Columns of a sidecar that readers of this project use, by what they hold, the last once for each
band (`Geometry.band_columns`); the types of others, but for `Geometry.colour_columns`, are free."""

SOURCE_COLUMNS: Final = ("source_file", "source_row_group", "source_row")
"""Where a row came from: the only sidecar columns that another layout of the source changes."""


def band_fluxes(
    flux: ArrayLike, colours: ArrayLike, reference: int = BANDS.index("r")
) -> NDArray[np.float64]:
    """Fluxes in every band of sources, whose flux in one and colours are known.

    Parameters
    ----------
    flux : array_like, shape (...)
        In the reference band.
    colours : array_like, shape (..., bands - 1)
        Between adjacent bands (`Geometry.colour_columns`), magnitudes.
    reference : int
        Number of the reference band.

    Returns
    -------
    ndarray, shape (..., bands)
        In the unit of `flux`.
    """
    magnitudes = np.cumsum(-np.asarray(colours, np.float64), axis=-1)
    magnitudes = np.concatenate([np.zeros_like(magnitudes[..., :1]), magnitudes], axis=-1)
    known = magnitudes[..., reference, None]
    return np.asarray(flux, np.float64)[..., None] * 10 ** (-0.4 * (magnitudes - known))


def shard_name(split: str, index: int) -> str:
    """Path of a shard's tar in its dataset: ``train/train-000000.tar``."""
    return f"{split}/{split}-{index:06d}.tar"


def sidecar_name(split: str, index: int) -> str:
    """Path of a shard's sidecar in its dataset: ``train/train-000000.parquet``."""
    return f"{split}/{split}-{index:06d}.parquet"

"""Why a row got no stamp: every reason there is, each with its meaning.

The value is the name used in the manifest and in ``rejects.parquet``, the docstring the meaning
that the reference gives. Reasons found in the light columns alone are named in
`lensprep.source.contract`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self

from lensprep.source import contract, cutouts


class _Reason(StrEnum):
    def __new__(cls, value: str, meaning: str) -> Self:
        """Make a string member that carries its meaning as its docstring."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.__doc__ = meaning
        return member


class RejectReason(_Reason):
    """Why a row is rejected: it has a defect."""

    # the blob, up to the check of its CRC-32 (see DAMAGE)
    NULL_BLOB = "null_blob", "stamp_npz is null"
    EMPTY_BLOB = "empty_blob", "stamp_npz has no bytes"
    NOT_ZIP = "not_zip", "the blob is no zip archive (a bare .npy, a pickle, text)"
    TRUNCATED = "truncated", "the blob, or a member, ends before the data it announces"
    BAD_ZIP = "bad_zip", "the zip directory contradicts itself or the archive"
    UNSUPPORTED_ZIP = "unsupported_zip", "a band is encrypted, or not stored or deflated"
    DUPLICATE_MEMBER = "duplicate_member", "a band is in the archive more than once"
    MISSING_BAND = "missing_band", "a band is not in the archive"
    OVERSIZED = "oversized", "a member claims more bytes than a stamp can have"
    BAD_STREAM = "bad_stream", "the deflate stream of a member is damaged"
    CRC_MISMATCH = "crc_mismatch", "a member does not have the CRC-32 of the directory"
    # the array
    BAD_NPY = "bad_npy", "a member is no .npy file that can be read"
    OBJECT_ARRAY = "object_array", "a band is a pickled object array, which is never loaded"
    WRONG_DTYPE = "wrong_dtype", "a band is not float16, float32 or float64"
    WRONG_SHAPE = (
        "wrong_shape",
        "a band has another side than stamps of the survey, 64 x 64 in DECaLS",
    )
    NONFINITE = "nonfinite", "a pixel is NaN, infinite, or too large to compute with (4e37)"
    CONSTANT_BAND = "constant_band", "the MAD of a band is 0, so it has no scale"
    # the row
    UNKNOWN_LABEL = contract.UNKNOWN_LABEL, "lens_model is null or none of CONTROL, SIE, SIS"
    LABEL_CONFLICT = (
        contract.LABEL_CONFLICT,
        "lens_model contradicts is_control, theta_e_arcsec or counterfactual",
    )
    MISSING_TASK_ID = contract.MISSING_TASK_ID, "task_id is null or empty"
    INCOMPLETE_COUNTERFACTUAL = (
        contract.INCOMPLETE_COUNTERFACTUAL,
        "a counterfactual states no kind, host_task_id or donor_task_id",
    )
    UNKNOWN_SPLIT = "unknown_split", "region_split is null or none of train, val, test"
    MISSING_REGION = "missing_region", "region_id is null, so no interval could count the row"
    LONG_METADATA = "long_metadata", "the row's text columns do not fit the record's JSON"
    DUPLICATE_ROW = "duplicate_row", "the same task_id with the same pixels came before"
    UNREADABLE = "unreadable", "the parquet row group is corrupt (--skip-bad-files)"
    CRASHED = "crashed", "reading the row group killed two processes (--skip-bad-files)"


class FilterReason(_Reason):
    """Why a row is filtered: it is left out on purpose."""

    CUTOUT_NOT_OK = contract.CUTOUT_NOT_OK, "cutout_ok is not 1: upstream has no stamp"
    BANDSET_LACKS_BAND = contract.BANDSET_LACKS_BAND, "bandset lacks one of the bands"
    MAX_BAD_PIXEL_FRAC = contract.MAX_BAD_PIXEL_FRAC, "more bad pixels than --max-bad-pixel-frac"
    WHERE = contract.WHERE, "--where does not hold"
    OVERLAP = (
        contract.OVERLAP,
        "a row of another split lies nearer than the diagonal of a stamp (--drop-overlap)",
    )
    GRADE = contract.OTHER_GRADE, "the grade is none of --grade-lens, and there is no label"


class CutoutReason(_Reason):
    """Why a row of a catalogue has no stamp, where `RejectReason` has no name for it."""

    NO_CUTOUT = cutouts.NO_CUTOUT, "no file belongs to the row"
    EMPTY_FILE = "empty_file", "the file has no bytes"
    WRONG_FORMAT = "wrong_format", "the file is neither FITS, NPZ, NPY nor HDF5 (a web page, say)"
    UNREADABLE = "unreadable", "the file cannot be read"
    WRONG_PIXEL_SCALE = "wrong_pixel_scale", "the header states another pixel scale"
    WRONG_POSITION = (
        "wrong_position",
        "the file states a position so far from the row's that it shows another piece of sky",
    )
    WRONG_UNIT = "wrong_unit", "the header states another unit of flux or zero point"
    LINK_TO_FILE = "link_to_file", "the HDF5 file refers to other files, which are never read"


_BY_ORDER: Final = tuple(RejectReason)
DAMAGE: Final = frozenset(_BY_ORDER[: _BY_ORDER.index(RejectReason.CRC_MISMATCH) + 1])
"""Reasons of a row whose blob, or the page that holds it, was altered in transit: all up to the
check of the CRC-32."""

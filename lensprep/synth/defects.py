"""The known defects of Phase 4c, planted on purpose, with the truth about each (pure).

A defect spoils a row that would be fine, or repeats it. What conversion must make of the row is
part of its definition; the names of the reasons are those of `lensprep.decode.reasons` and
`lensprep.source.contract`.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, SPLITS, STAMP_SIZE
from lensprep.decode.reasons import RejectReason
from lensprep.errors import ConfigError
from lensprep.source.contract import BANDSET_LACKS_BAND, CUTOUT_NOT_OK
from lensprep.source.survey import STAMP_MEMBERS
from lensprep.synth.rows import Row, encode_stamp, repeat_task

Outcome = Literal["accepted", "filtered", "rejected"]
Applies = Literal["any", "control", "injection"]
Columns = dict[str, Any]
Planter = Callable[[NDArray[np.float32], Columns, np.random.Generator], bytes | None]
"""Changes the columns in place; returns the blob."""

MAX_REPEATS: Final = 24
"""Rows that show one control stamp upstream: 12 selection sets times 2 replicates."""
DROPPED_COLUMNS: Final = ("psf_source_g", "psf_source_r", "psf_source_z", "physics_warnings")
"""Columns that part files of older versions lack: with the split there are 53 to 57."""


@dataclass(frozen=True, slots=True)
class Defect:
    """One way in which a row can be wrong."""

    name: str
    rate: float
    """Share of the rows by default; at least one row is planted."""
    plant: Planter | None
    """None for repeats, which spoil nothing in the row itself."""
    outcome: Outcome = "rejected"
    reason: str = ""
    """Reasons that conversion may give, joined by ``|``; "" where it accepts the row."""
    applies: Applies = "any"


@dataclass(frozen=True, slots=True)
class Repeat:
    """A further row with the pixels of a row of the plan."""

    row: int
    defect: str
    copy: int
    """1 for the first repeat of a row."""
    split: str


@dataclass(frozen=True, slots=True)
class DefectPlan:
    """Which rows are spoilt, and which repeated."""

    spoilt: Mapping[int, str]
    """Row of the plan to name of the defect."""
    repeats: tuple[Repeat, ...]


def plan_defects(
    rates: Mapping[str, float], seed: int, is_control: NDArray[np.bool_], splits: Sequence[str]
) -> DefectPlan:
    """Choose the rows to spoil and to repeat, each row for one defect only.

    Parameters
    ----------
    rates : mapping of defect to rate
        Share of the rows; a defect whose rate is above 0 gets at least one row.
    seed : int
    is_control : ndarray of bool, shape (rows,)
    splits : sequence of str, length rows
        Split of each row.

    Raises
    ------
    ConfigError
        If a name is unknown, a rate is no share, or the rows do not suffice.
    """
    _check_rates(rates)
    rng = np.random.default_rng([seed, 4])
    free = {
        kind: [int(row) for row in rng.permutation(np.flatnonzero(is_control == kind))]
        for kind in (True, False)
    }
    spoilt: dict[int, str] = {}
    repeats: list[Repeat] = []
    for defect in DEFECTS:
        rate = rates.get(defect.name, 0.0)
        for _ in range(max(1, round(rate * len(splits))) if rate > 0 else 0):
            row = _take(free, defect, rng)
            if defect.plant is not None:
                spoilt[row] = defect.name
            else:
                repeats.extend(_repeats_of(row, splits[row], defect.name, rng))
    return DefectPlan(spoilt, tuple(repeats))


def spoil(row: Row, name: str, seed: int, index: int) -> tuple[Columns, bytes | None]:
    """Columns and blob of a row with a defect.

    Parameters
    ----------
    row : Row
        As rendered; not changed.
    name : str
        Of a defect that is planted in the row.
    seed, index : int
        Of the tree and of the row in the plan.
    """
    plant = DEFECT_BY_NAME[name].plant
    if plant is None:
        raise ValueError(f"{name} repeats a row; it cannot be planted in one.")
    columns = dict(row.columns)
    blob = plant(row.pixels.copy(), columns, np.random.default_rng([seed, 5, index]))
    return columns, blob


def repeat(row: Row, again: Repeat) -> tuple[Columns, bytes | None]:
    """Columns and blob of a further row that shows the same stamp."""
    columns = dict(row.columns) | {"region_split": again.split}
    if again.defect != DUPLICATE_TASK:
        columns = repeat_task(columns, again.copy)
    return columns, encode_stamp(row.pixels)


def _check_rates(rates: Mapping[str, float]) -> None:
    for name, rate in rates.items():
        if name not in DEFECT_BY_NAME:
            raise ConfigError(
                f"There is no defect {name!r}; there are: {', '.join(sorted(DEFECT_BY_NAME))}."
            )
        if not 0 <= rate <= 1:
            raise ConfigError(f"The rate of {name}, {rate}, is no share: give 0 to 1.")


def _take(free: dict[bool, list[int]], defect: Defect, rng: np.random.Generator) -> int:
    """Take a row that has no defect yet and to which this one applies."""
    wanted = {"control": [True], "injection": [False]}.get(defect.applies, [True, False])
    kinds = [kind for kind in wanted if free[kind]]
    if not kinds:
        raise ConfigError(
            f"No row is left to plant {defect.name} in. Ask for more rows or lower rates."
        )
    kind = kinds[int(rng.integers(len(kinds)))]
    return free[kind].pop()


def _repeats_of(row: int, split: str, name: str, rng: np.random.Generator) -> list[Repeat]:
    if name == DUPLICATE_PIXELS:
        count = int(rng.integers(1, MAX_REPEATS))
        return [Repeat(row, name, copy, split) for copy in range(1, count + 1)]
    if name == DUPLICATE_TASK:
        return [Repeat(row, name, 1, split)]
    others = [other for other in SPLITS if other != split]
    return [Repeat(row, name, 1, others[int(rng.integers(len(others)))])]


# ---------------------------------------------------------------------------------------------
# Planters: pixels
# ---------------------------------------------------------------------------------------------


def _spot(value: float) -> Planter:
    """A few pixels of one band get a value."""

    def plant(
        pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
    ) -> bytes | None:
        rows, cols = rng.integers(0, STAMP_SIZE, (2, int(rng.integers(1, 40))))
        pixels[rng.integers(len(BANDS)), rows, cols] = value
        return encode_stamp(pixels)

    return plant


def _constant_band(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    pixels[rng.integers(len(BANDS))] = 0.0
    return encode_stamp(pixels)


def _cast(dtype: str, *, fortran: bool = False) -> Planter:
    """Arrays of another type or order."""

    def plant(
        pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
    ) -> bytes | None:
        bands = [band.astype(dtype) for band in pixels]
        return _pack([np.asfortranarray(band) if fortran else band for band in bands])

    return plant


def _larger(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    columns["stamp_size"] = 96
    return _pack(list(np.pad(pixels, ((0, 0), (16, 16), (16, 16)), mode="reflect")))


def _object_array(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    odd = np.empty(3, object)
    odd[:] = [1, "two", None]
    return _pack([odd, *pixels[1:]])


# ---------------------------------------------------------------------------------------------
# Planters: blobs
# ---------------------------------------------------------------------------------------------


def _pack(bands: Sequence[NDArray[Any]], *, compress: bool = True, **extra: NDArray[Any]) -> bytes:
    """NPZ of the bands, in their order."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(STAMP_MEMBERS, bands, strict=True)) | extra
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def _red_only(pixels: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image_r=pixels[1])
    return buffer.getvalue()


def _missing_bands(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    return _red_only(pixels)


def _bandset_r(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    columns["bandset"] = "r"
    return _red_only(pixels)


def _failed_cutout(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    columns |= {"cutout_ok": 0, "metrics_ok": 0}
    return _red_only(np.zeros_like(pixels))


def _blob(value: bytes | None) -> Planter:
    """Nothing of the stamp is left."""

    def plant(
        pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
    ) -> bytes | None:
        return value

    return plant


def _truncated(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    blob = encode_stamp(pixels)
    return blob[: int(rng.integers(1000, len(blob) - 400))]


def _bit_flip(compress: bool) -> Planter:
    """One bit in the data of the first band is another; stored data has no stream to break."""

    def plant(
        pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
    ) -> bytes | None:
        blob = bytearray(_pack(list(pixels), compress=compress))
        blob[int(rng.integers(2_000, 10_000))] ^= 1 << int(rng.integers(8))
        return bytes(blob)

    return plant


def _bare_npy(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def _stored(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    return _pack(list(pixels), compress=False)


def _extra_member(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    return _pack(list(pixels), invvar_r=np.ones((STAMP_SIZE, STAMP_SIZE), np.float32))


def _duplicate_member(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    names = [f"{name}.npy" for name in (*STAMP_MEMBERS, "image_r")]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, band in zip(names, (*pixels, pixels[1]), strict=True):
            array = io.BytesIO()
            np.save(array, band)
            # zipfile warns of a name that is there already; that is the point here.
            info = zipfile.ZipInfo("image_x.npy" if name in archive.namelist() else name)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, array.getvalue())
    return buffer.getvalue().replace(b"image_x.npy", b"image_r.npy")


# ---------------------------------------------------------------------------------------------
# Planters: columns
# ---------------------------------------------------------------------------------------------


def _columns(**changes: Any) -> Planter:
    """A sound stamp with wrong columns."""

    def plant(
        pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
    ) -> bytes | None:
        columns |= changes
        return encode_stamp(pixels)

    return plant


def _label_conflict(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    if rng.random() < 0.5:
        columns["is_control"] = 1 - columns["is_control"]
    else:
        columns["theta_e_arcsec"] = 0.0 if columns["theta_e_arcsec"] else 0.6
    return encode_stamp(pixels)


def _high_bad_pixel_frac(
    pixels: NDArray[np.float32], columns: Columns, rng: np.random.Generator
) -> bytes | None:
    columns["bad_pixel_frac"] = float(rng.uniform(0.2, 1.0))
    return encode_stamp(pixels)


DUPLICATE_PIXELS: Final = "duplicate_pixels"
DUPLICATE_ACROSS_SPLITS: Final = "duplicate_across_splits"
DUPLICATE_TASK: Final = "duplicate_task"
_R = RejectReason

DEFECTS: Final[tuple[Defect, ...]] = (
    # seen upstream
    Defect("nan_pixels", 0.0008, _spot(math.nan), reason=_R.NONFINITE),
    Defect("missing_bands", 0.0005, _missing_bands, reason=_R.MISSING_BAND),
    Defect("failed_cutout", 0.0015, _failed_cutout, "filtered", CUTOUT_NOT_OK),
    Defect("bandset_r", 0.0005, _bandset_r, "filtered", BANDSET_LACKS_BAND),
    Defect("psf_g_zero", 0.0013, _columns(psf_fwhm_used_g=0.0), "accepted", applies="injection"),
    Defect("high_bad_pixel_frac", 0.01, _high_bad_pixel_frac, "accepted"),
    Defect(DUPLICATE_PIXELS, 0.002, None, "accepted", applies="control"),
    Defect(DUPLICATE_ACROSS_SPLITS, 0.001, None, "accepted", applies="control"),
    Defect(DUPLICATE_TASK, 0.001, None, reason=_R.DUPLICATE_ROW),
    # possible
    Defect("inf_pixels", 0.0005, _spot(math.inf), reason=_R.NONFINITE),
    Defect("constant_band", 0.0005, _constant_band, reason=_R.CONSTANT_BAND),
    Defect("stamp_96", 0.0005, _larger, reason=_R.WRONG_SHAPE),
    Defect("integer_array", 0.0005, _cast("<i4"), reason=_R.WRONG_DTYPE),
    Defect("object_array", 0.0005, _object_array, reason=_R.OBJECT_ARRAY),
    Defect("float64_array", 0.0005, _cast("<f8"), "accepted"),
    Defect("float16_array", 0.0005, _cast("<f2"), "accepted"),
    Defect("big_endian_array", 0.0005, _cast(">f4"), "accepted"),
    Defect("fortran_array", 0.0005, _cast("<f4", fortran=True), "accepted"),
    Defect("stored_members", 0.0005, _stored, "accepted"),
    Defect("extra_member", 0.0005, _extra_member, "accepted"),
    Defect("duplicate_member", 0.0005, _duplicate_member, reason=_R.DUPLICATE_MEMBER),
    Defect("null_blob", 0.0005, _blob(None), reason=_R.NULL_BLOB),
    Defect("empty_blob", 0.0005, _blob(b""), reason=_R.EMPTY_BLOB),
    Defect("truncated_blob", 0.0005, _truncated, reason=_R.TRUNCATED),
    Defect(
        "bit_flip",
        0.0005,
        _bit_flip(compress=True),
        reason="|".join((_R.CRC_MISMATCH, _R.BAD_STREAM, _R.TRUNCATED)),
    ),
    Defect("bit_flip_stored", 0.0005, _bit_flip(compress=False), reason=_R.CRC_MISMATCH),
    Defect("bare_npy", 0.0005, _bare_npy, reason=_R.NOT_ZIP),
    Defect("unknown_label", 0.0005, _columns(lens_model="UNK"), reason=_R.UNKNOWN_LABEL),
    Defect("null_label", 0.0005, _columns(lens_model=None), reason=_R.UNKNOWN_LABEL),
    Defect("label_conflict", 0.0005, _label_conflict, reason=_R.LABEL_CONFLICT),
    Defect("empty_task_id", 0.0005, _columns(task_id=""), reason=_R.MISSING_TASK_ID),
)
"""Every defect, in the order in which rows are given out."""

DEFECT_BY_NAME: Final = {defect.name: defect for defect in DEFECTS}
DEFAULT_RATES: Final[dict[str, float]] = {defect.name: defect.rate for defect in DEFECTS}
"""Rates for ``--defects`` without a rate: as seen upstream, or 1 in 2,000 where only possible."""

"""The known defects of Phase 4c, planted on purpose, with the truth about each (pure).

A defect spoils a row that would be fine, or repeats it. Its definition states what conversion
must make of the row; the names of the reasons are those of `lensprep.decode.reasons` and
`lensprep.source.contract`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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

Columns = dict[str, Any]
Pixels = NDArray[np.float32]
Planter = Callable[[Pixels, Columns, np.random.Generator], bytes | None]
"""Changes the columns in place; returns the blob."""

MAX_REPEATS: Final = 24
"""Rows that show one control stamp upstream: 12 selection sets times 2 replicates."""
DROPPED_COLUMNS: Final = ("psf_source_g", "psf_source_r", "psf_source_z", "physics_warnings")
"""Columns that part files of older versions lack: with the split there are 53 to 57."""


@dataclass(frozen=True, slots=True)
class Defect:
    """One way in which a row can be wrong."""

    name: str
    plant: Planter | None
    """None for repeats, which spoil nothing in the row itself."""
    outcome: Literal["accepted", "filtered", "rejected"] = "accepted"
    reason: str = ""
    """Reasons that conversion may give, joined by ``|``; "" where it accepts the row."""
    applies: Literal["any", "control", "injection"] = "any"
    rate: float = 0.0005
    """Share of the rows by default; at least one row is planted."""


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
        If a name is unknown, a rate lies outside [0, 1], or there are too few rows.
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
    """Columns and blob of a row with a defect; ``seed`` is the tree's, ``index`` the plan's."""
    plant = DEFECT_BY_NAME[name].plant
    assert plant is not None  # a repeat spoils nothing
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
            raise ConfigError(f"The rate of {name} is {rate}: it must lie between 0 and 1.")


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
# Planters
# ---------------------------------------------------------------------------------------------


def _pack(
    arrays: Iterable[NDArray[Any]], names: Iterable[str] = STAMP_MEMBERS, *, compress: bool = True
) -> bytes:
    """NPZ of some arrays, in their order."""
    buffer = io.BytesIO()
    save = np.savez_compressed if compress else np.savez
    named: dict[str, Any] = dict(zip(names, arrays, strict=True))
    save(buffer, **named)
    return buffer.getvalue()


def _row(encode: Callable[[Pixels], bytes | None] = encode_stamp, **changes: Any) -> Planter:
    """Encode the stamp in this way and change these columns."""

    def plant(pixels: Pixels, columns: Columns, rng: np.random.Generator) -> bytes | None:
        columns |= changes
        return encode(pixels)

    return plant


def _cast(dtype: str) -> Callable[[Pixels], bytes]:
    return lambda pixels: _pack(pixels.astype(dtype))


def _red_only(pixels: Pixels) -> bytes:
    return _pack([pixels[1]], ["image_r"])


def _larger(pixels: Pixels) -> bytes:
    return _pack(np.pad(pixels, ((0, 0), (16, 16), (16, 16)), mode="reflect"))


def _object_array(pixels: Pixels) -> bytes:
    odd = np.empty(3, object)
    odd[:] = [1, "two", None]
    return _pack([odd, *pixels[1:]])


def _extra_member(pixels: Pixels) -> bytes:
    more = np.ones((STAMP_SIZE, STAMP_SIZE), np.float32)
    return _pack([*pixels, more], [*STAMP_MEMBERS, "invvar_r"])


def _duplicate_member(pixels: Pixels) -> bytes:
    blob = _pack([*pixels, pixels[1]], [*STAMP_MEMBERS, "image_x"])
    return blob.replace(b"image_x.npy", b"image_r.npy")


def _bare_npy(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def _spot(value: float) -> Planter:
    """Set a few pixels of one band to a value."""

    def plant(pixels: Pixels, columns: Columns, rng: np.random.Generator) -> bytes:
        rows, cols = rng.integers(0, STAMP_SIZE, (2, int(rng.integers(1, 40))))
        pixels[rng.integers(len(BANDS)), rows, cols] = value
        return encode_stamp(pixels)

    return plant


def _constant_band(pixels: Pixels, columns: Columns, rng: np.random.Generator) -> bytes:
    pixels[rng.integers(len(BANDS))] = 0.0
    return encode_stamp(pixels)


def _truncated(pixels: Pixels, columns: Columns, rng: np.random.Generator) -> bytes:
    blob = encode_stamp(pixels)
    return blob[: int(rng.integers(1000, len(blob) - 400))]


def _bit_flip(compress: bool) -> Planter:
    """Flip one bit of the first band's data; stored data has no stream to break."""

    def plant(pixels: Pixels, columns: Columns, rng: np.random.Generator) -> bytes:
        blob = bytearray(_pack(pixels, compress=compress))
        blob[int(rng.integers(2_000, 10_000))] ^= 1 << int(rng.integers(8))
        return bytes(blob)

    return plant


def _label_conflict(pixels: Pixels, columns: Columns, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.5:
        columns["is_control"] = 1 - columns["is_control"]
    else:
        columns["theta_e_arcsec"] = 0.0 if columns["theta_e_arcsec"] else 0.6
    return encode_stamp(pixels)


def _high_bad_pixel_frac(pixels: Pixels, columns: Columns, rng: np.random.Generator) -> bytes:
    columns["bad_pixel_frac"] = float(rng.uniform(0.2, 1.0))
    return encode_stamp(pixels)


DUPLICATE_PIXELS: Final = "duplicate_pixels"
DUPLICATE_ACROSS_SPLITS: Final = "duplicate_across_splits"
DUPLICATE_TASK: Final = "duplicate_task"
_R = RejectReason
_BROKEN_STREAM = "|".join((_R.CRC_MISMATCH, _R.BAD_STREAM, _R.TRUNCATED))
_FAILED_CUTOUT = _row(lambda pixels: _red_only(np.zeros_like(pixels)), cutout_ok=0, metrics_ok=0)

DEFECTS: Final[tuple[Defect, ...]] = (
    # seen upstream
    Defect("nan_pixels", _spot(math.nan), "rejected", _R.NONFINITE, rate=0.0008),
    Defect("missing_bands", _row(_red_only), "rejected", _R.MISSING_BAND),
    Defect("failed_cutout", _FAILED_CUTOUT, "filtered", CUTOUT_NOT_OK, rate=0.0015),
    Defect("bandset_r", _row(_red_only, bandset="r"), "filtered", BANDSET_LACKS_BAND),
    Defect("psf_g_zero", _row(psf_fwhm_used_g=0.0), applies="injection", rate=0.0013),
    Defect("high_bad_pixel_frac", _high_bad_pixel_frac, rate=0.01),
    Defect(DUPLICATE_PIXELS, None, applies="control", rate=0.002),
    Defect(DUPLICATE_ACROSS_SPLITS, None, applies="control", rate=0.001),
    Defect(DUPLICATE_TASK, None, "rejected", _R.DUPLICATE_ROW, rate=0.001),
    # possible
    Defect("inf_pixels", _spot(math.inf), "rejected", _R.NONFINITE),
    Defect("constant_band", _constant_band, "rejected", _R.CONSTANT_BAND),
    Defect("stamp_96", _row(_larger, stamp_size=96), "rejected", _R.WRONG_SHAPE),
    Defect("integer_array", _row(_cast("<i4")), "rejected", _R.WRONG_DTYPE),
    Defect("object_array", _row(_object_array), "rejected", _R.OBJECT_ARRAY),
    Defect("float64_array", _row(_cast("<f8"))),
    Defect("float16_array", _row(_cast("<f2"))),
    Defect("big_endian_array", _row(_cast(">f4"))),
    Defect("fortran_array", _row(lambda pixels: _pack([*map(np.asfortranarray, pixels)]))),
    Defect("stored_members", _row(lambda pixels: _pack(pixels, compress=False))),
    Defect("extra_member", _row(_extra_member)),
    Defect("duplicate_member", _row(_duplicate_member), "rejected", _R.DUPLICATE_MEMBER),
    Defect("null_blob", _row(lambda _: None), "rejected", _R.NULL_BLOB),
    Defect("empty_blob", _row(lambda _: b""), "rejected", _R.EMPTY_BLOB),
    Defect("truncated_blob", _truncated, "rejected", _R.TRUNCATED),
    Defect("bit_flip", _bit_flip(compress=True), "rejected", _BROKEN_STREAM),
    Defect("bit_flip_stored", _bit_flip(compress=False), "rejected", _R.CRC_MISMATCH),
    Defect("bare_npy", _row(_bare_npy), "rejected", _R.NOT_ZIP),
    Defect("unknown_label", _row(lens_model="UNK"), "rejected", _R.UNKNOWN_LABEL),
    Defect("null_label", _row(lens_model=None), "rejected", _R.UNKNOWN_LABEL),
    Defect("label_conflict", _label_conflict, "rejected", _R.LABEL_CONFLICT),
    Defect("empty_task_id", _row(task_id=""), "rejected", _R.MISSING_TASK_ID),
)
"""Every defect, in the order in which rows are given out."""

DEFECT_BY_NAME: Final = {defect.name: defect for defect in DEFECTS}
DEFAULT_RATES: Final[dict[str, float]] = {defect.name: defect.rate for defect in DEFECTS}
"""Rates for ``--defects`` without a rate: as seen upstream, or 1 in 2,000 where only possible."""

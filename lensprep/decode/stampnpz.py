"""The pixels of one ``stamp_npz`` blob, or the reason why it has none.

    decode(blob, out, bands) -> RejectReason | None     one blob into out, float32 (bands, S, S)
    decode_batch(blobs, out, bands) -> list of them     a pyarrow binary column, or a sequence

A blob is what ``np.savez_compressed`` writes: a zip archive with a member for each band,
``image_g.npy`` and so on. ``np.load`` spends several times longer on its own objects than on the
data, so the archive is walked by `lensprep.decode.zipwalk` and inflated by libdeflate.
Whenever a blob is accepted, ``np.load`` gives the same pixels; the few exceptions to this, and to
its reverse, are listed under `decode`. No input raises: a blob is decoded or has a reason.

Nothing in a blob is trusted before it is checked. Sizes are claims, and a large one is refused
before anything is inflated, so no blob costs more memory than one stamp. Every CRC-32 is checked.
Object arrays are never loaded: this file uses no pickle.

Source of the .npy layout: NumPy NEP 1.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deflate import DeflateError, crc32
from deflate import deflate_decompress as inflate

from lensprep.dataset.geometry import LEAST_SIDE, MOST_SIDE
from lensprep.dataset.layout import BANDS
from lensprep.decode import zipwalk
from lensprep.decode.reasons import RejectReason
from lensprep.decode.zipwalk import DEFLATED, FIELDS, MAX_HEADER_CHARS
from lensprep.kernel import kernel

_BY_CODE: dict[int, RejectReason] = {
    zipwalk.EMPTY: RejectReason.EMPTY_BLOB,
    zipwalk.NOT_ZIP: RejectReason.NOT_ZIP,
    zipwalk.TRUNCATED: RejectReason.TRUNCATED,
    zipwalk.BAD_ZIP: RejectReason.BAD_ZIP,
    zipwalk.UNSUPPORTED: RejectReason.UNSUPPORTED_ZIP,
    zipwalk.DUPLICATE: RejectReason.DUPLICATE_MEMBER,
    zipwalk.MISSING: RejectReason.MISSING_BAND,
    zipwalk.OVERSIZED: RejectReason.OVERSIZED,
}


# ---------------------------------------------------------------------------------------------
# The .npy array
# ---------------------------------------------------------------------------------------------


class _Band(NamedTuple):
    """A band as NumPy writes it: native float32 in C order."""

    side: int
    pixel_bytes: int
    header: bytes


@lru_cache(maxsize=16)
def _band(side: int) -> _Band:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (side, side)}
    )
    return _Band(side, side * side * 4, file.getvalue())


def _cast_array(member: bytes | bytearray, raw: memoryview, side: int) -> RejectReason | None:
    """Write the pixels of one .npy file to `raw`, as native float32; a reason if it cannot."""
    version = member[6] if len(member) > 6 else 0
    prefix = {1: 10, 2: 12, 3: 12}.get(version)
    if prefix is None or len(member) < prefix or not member.startswith(b"\x93NUMPY"):
        return RejectReason.BAD_NPY
    length = int.from_bytes(member[8:prefix], "little")
    # A character of version 3 is at most four bytes.
    if member[7] != 0 or length > 4 * MAX_HEADER_CHARS or prefix + length > len(member):
        return RejectReason.BAD_NPY
    found = _parse_header(bytes(member[prefix : prefix + length]), version, side)
    if isinstance(found, RejectReason):
        return found
    dtype, order = found
    if len(member) - prefix - length < side * side * dtype.itemsize:
        return RejectReason.TRUNCATED
    values = np.frombuffer(member, dtype, side * side, prefix + length)
    band = np.frombuffer(raw, np.float32).reshape(side, side)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows float32 is nonfinite later
        band[...] = values.reshape(side, side, order=order)
    return None


@lru_cache(maxsize=256)
def _parse_header(
    raw: bytes, version: int, side: int
) -> tuple[np.dtype[Any], Literal["C", "F"]] | RejectReason:
    """Type and order of the array by NumPy's rules for a .npy header, without evaluating it.

    Cached, since the stamps of one pipeline share a handful of headers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a string escape in foreign text
            text = raw.decode("utf-8" if version == 3 else "latin1")
            header = ast.literal_eval(text) if len(text) <= MAX_HEADER_CHARS else None
    except Exception:  # SyntaxError, ValueError, MemoryError, RecursionError: by the interpreter
        return RejectReason.BAD_NPY
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        return RejectReason.BAD_NPY
    shape, fortran = header["shape"], header["fortran_order"]
    integers = isinstance(shape, tuple) and all(isinstance(n, int) for n in shape)
    if not integers or not isinstance(fortran, bool):
        return RejectReason.BAD_NPY
    dtype = _float_dtype(header["descr"])
    if isinstance(dtype, RejectReason):
        return dtype
    if shape != (side, side):
        return RejectReason.WRONG_SHAPE
    return dtype, "F" if fortran else "C"


def _float_dtype(descr: object) -> np.dtype[Any] | RejectReason:
    """Type of the array on disk, if it is one of the three floats in either byte order."""
    if not isinstance(descr, str):
        return RejectReason.WRONG_DTYPE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dtype = np.dtype(descr)
    except Exception:  # np.dtype parses strings in its own ways: TypeError, SyntaxError, ...
        return RejectReason.BAD_NPY
    if dtype.hasobject:
        return RejectReason.OBJECT_ARRAY
    known = dtype.kind == "f" and dtype.itemsize in (2, 4, 8) and dtype.subdtype is None
    return dtype if known else RejectReason.WRONG_DTYPE


# ---------------------------------------------------------------------------------------------
# A stamp, and many
# ---------------------------------------------------------------------------------------------


@kernel
def _unusable_rows(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Rows of float32, given as int32, that hold a NaN, an infinity or 2**125 and more."""
    n, m = bits.shape
    found = np.zeros(n, np.bool_)
    for i in range(n):
        row = bits[i]
        bad = np.int32(0)
        for j in range(m):
            size = np.int32(row[j] & np.int32(0x7FFFFFFF))
            bad = np.int32(bad | np.int32(size >= np.int32(0x7E000000)))
        found[i] = bad != 0
    return found


def decode(
    blob: Any, out: npt.NDArray[np.float32], bands: Sequence[str] = BANDS
) -> RejectReason | None:
    """Decode one blob into `out`.

    Parameters
    ----------
    blob : bytes-like or None
        Anything with the buffer interface: bytes, memoryview, ``pyarrow.Buffer``.
    out : ndarray of float32, shape (bands, side, side), C-contiguous, writable
        Receives the bands in the order of `bands` and the units of the blob (nanomaggies per
        pixel). Its side, 32 to 256 pixels, is that which stamps must have. Undefined when a reason
        is returned.
    bands : sequence of str
        Names of the bands: letters and digits, at most 8.

    Returns
    -------
    RejectReason or None
        None if `out` holds the pixels, else why it does not.

    Raises
    ------
    ValueError
        If `out` has another shape, type or layout, or a band no such name. No blob raises anything.

    Notes
    -----
    float16, float64, big-endian and Fortran-ordered arrays are cast, as ``.astype(np.float32)``
    would. Stored, deflated, streamed and Zip64 members are read; other members are ignored.

    Stricter than ``np.load``, on purpose:

    - a band that occurs twice, also as ``image_z`` and ``image_z.npy``, of which ``np.load``
      takes the former, or with a NUL in its name, which ends it there (``duplicate_member``);
    - a band with a NUL in its name alone; members that overlap; offsets beyond the blob, and
      Zip64 numbers of 2**63 and more, of any member; a Zip64 end record that its locator does not
      point to, or that is longer than it must be (``zipfile`` of later Pythons refuses most of
      them); a stored band of two sizes (``bad_zip``);
    - a band that is compressed with bzip2 or LZMA (``unsupported_zip``);
    - a member of another length than the directory says (``truncated``, ``bad_stream``), or larger
      than a stamp can be, `lensprep.decode.zipwalk.most_member_bytes` (``oversized``);
    - a CRC-32 that ``np.load`` would not have looked at, in bytes after the array
      (``crc_mismatch``);
    - headers that only Python 2 wrote, ``64L`` (``bad_npy``);
    - pixels of 2**125 (4e37) and more, whose sums overflow (``nonfinite``).

    Broader: the names of other members need not be UTF-8, and a deflate stream may announce more
    codes than zlib allows, or use the two that have no meaning and that libdeflate takes for the
    longest length; the CRC-32 has to be right in any case. All else that
    ``np.load`` refuses is refused: a local name that differs from the directory's, encryption,
    ``.npy`` versions other than (1, 0), (2, 0) and (3, 0), object arrays.
    """
    return decode_batch([blob], out[None], bands)[0]


def decode_batch(
    blobs: pa.Array | pa.ChunkedArray | Sequence[Any],
    out: npt.NDArray[np.float32],
    bands: Sequence[str] = BANDS,
) -> list[RejectReason | None]:
    """Decode many blobs, each into its row of `out`.

    Parameters
    ----------
    blobs : pyarrow.Array or ChunkedArray of a binary type, or sequence of bytes-like or None
        N blobs. The buffers of an arrow array are read in place, without a copy per row.
    out : ndarray of float32, shape (N, bands, side, side) or longer, C-contiguous, writable
        Row i receives blob i; undefined where a reason is returned.
    bands : sequence of str
        Names of the bands, as for `decode`.

    Returns
    -------
    list of RejectReason or None
        One entry for each blob, None where it was decoded. See `decode`.

    Raises
    ------
    ValueError
        If `out` does not fit, or a band has no such name. No blob raises anything.
    """
    _check_out(out, len(blobs), len(bands))
    reasons: list[RejectReason | None] = []
    for data, bounds, null in _stretches(blobs):
        n = len(bounds) - 1
        rows = out[len(reasons) : len(reasons) + n]
        found = _decode_stretch(data, bounds, rows, bands)
        for row in null:
            found[row] = RejectReason.NULL_BLOB
        reasons += found
    return reasons


def _decode_stretch(
    data: memoryview,
    bounds: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
    bands: Sequence[str],
) -> list[RejectReason | None]:
    """Decode blobs that are contiguous in memory."""
    n, count, side, _ = out.shape
    places, codes = zipwalk.walk(data, bounds, bands, side)
    reasons = [_BY_CODE.get(code) for code in codes]
    raw, band, fields = memoryview(out.reshape(-1).view(np.uint8).data), _band(side), count * FIELDS
    for row in range(n):
        if reasons[row] is None:
            own = places[row * fields : (row + 1) * fields]
            reasons[row] = _inflate_bands(data, own, raw, row * count * band.pixel_bytes, band)
    bits = out.reshape(n, count * side * side).view(np.int32)
    for row in np.flatnonzero(_unusable_rows(bits)).tolist():
        reasons[row] = reasons[row] or RejectReason.NONFINITE
    return reasons


def _inflate_bands(
    data: memoryview, places: list[int], raw: memoryview, at: int, band: _Band
) -> RejectReason | None:
    """Inflate the members of a stamp, check length and CRC-32, and write their pixels to `raw`."""
    header = len(band.header)
    for k in range(0, len(places), FIELDS):
        start, compressed, size, crc, method = places[k : k + FIELDS]
        stream = data[start : start + compressed]
        try:
            member = inflate(stream, size) if method == DEFLATED else bytes(stream)
        except DeflateError:
            return RejectReason.BAD_STREAM
        if len(member) != size:
            return RejectReason.TRUNCATED
        if crc32(member) != crc:
            return RejectReason.CRC_MISMATCH
        pixels = raw[at : at + band.pixel_bytes]
        if size == header + band.pixel_bytes and member.startswith(band.header):
            pixels[:] = memoryview(member)[header:]
        else:
            reason = _cast_array(member, pixels, band.side)
            if reason is not None:
                return reason
        at += band.pixel_bytes
    return None


def _check_out(out: npt.NDArray[np.float32], rows: int, bands: int) -> None:
    """Refuse an output that is no plain memory of the right shape."""
    fits = out.ndim == 4 and len(out) >= rows and out.shape[1] == bands > 0
    square = fits and out.shape[2] == out.shape[3] and LEAST_SIDE <= out.shape[2] <= MOST_SIDE
    plain = out.dtype == np.float32 and out.dtype.isnative
    if not (square and plain and out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(
            f"out must be writable C-contiguous float32 of shape ({rows}, {bands}, side, side) or "
            f"longer, side from {LEAST_SIDE} to {MOST_SIDE}, not {out.dtype} {out.shape}"
        )


def _stretches(blobs: Any) -> Iterator[tuple[memoryview, npt.NDArray[np.int64], list[int]]]:
    """Memory, bounds of the blobs in it, and which of them are null.

    One for each arrow chunk, or for each blob of a sequence.
    """
    if isinstance(blobs, pa.ChunkedArray):
        for chunk in blobs.chunks:
            yield from _stretches(chunk)
    elif isinstance(blobs, pa.Array):
        yield _arrow_stretch(blobs)
    else:
        for blob in blobs:
            view = memoryview(b"" if blob is None else blob).cast("B")
            yield view, np.array([0, len(view)]), [0] if blob is None else []


def _arrow_stretch(blobs: pa.Array) -> tuple[memoryview, npt.NDArray[np.int64], list[int]]:
    """Data buffer, offsets and null rows of one arrow array."""
    if not (pa.types.is_binary(blobs.type) or pa.types.is_large_binary(blobs.type)):
        blobs = blobs.cast(pa.large_binary())
    _, offsets, data = blobs.buffers()
    null: list[int] = []
    if blobs.null_count:
        null = np.flatnonzero(blobs.is_null().to_numpy(zero_copy_only=False)).tolist()
    if offsets is None or len(blobs) == 0:
        return memoryview(b""), np.zeros(len(blobs) + 1, np.int64), null
    width = np.int64 if pa.types.is_large_binary(blobs.type) else np.int32
    bounds = np.frombuffer(offsets, width)[blobs.offset : blobs.offset + len(blobs) + 1]
    return memoryview(b"" if data is None else data), bounds.astype(np.int64), null

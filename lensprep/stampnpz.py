"""The pixels of one ``stamp_npz`` blob, or the reason why it has none.

    decode(blob, out) -> RejectReason | None            one blob into out, float32 (3, 64, 64)
    decode_batch(blobs, out) -> list[RejectReason | None]   a pyarrow binary column, or a sequence
    RejectReason                                         every reason a row can be refused for

A blob is what ``np.savez_compressed`` writes: a zip archive with the members ``image_g.npy``,
``image_r.npy`` and ``image_z.npy``. ``np.load`` spends several times longer on its own objects than
on the data, so the archive is walked here by hand and inflated by libdeflate. What is read is what
``np.load`` would read: whenever a blob is accepted, ``np.load`` gives the same pixels (the reverse
has the few exceptions listed under `decode`). No input raises: a blob is decoded or has a reason.

Nothing a blob says is believed before it is checked. Sizes are claims, and a claim above
`MAX_MEMBER_BYTES` is refused before anything is inflated, so no blob costs more memory than one
stamp. Every CRC-32 is checked. Object arrays are never loaded: there is no pickle in this file.

Source of the zip layout: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5; of .npy: NumPy NEP 1.
"""

import ast
import struct
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import deflate
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from lensprep.dataset.layout import STAMP_SHAPE

MEMBERS = ("image_g", "image_r", "image_z")
"""Members of the archive in the order of the bands, without the suffix ``.npy``."""

MAX_HEADER_CHARS = 10_000
"""Longest .npy header that is parsed; the limit of ``np.load`` itself."""

MAX_MEMBER_BYTES = 3 * 64 * 64 * 8 + MAX_HEADER_CHARS + 12
"""Largest member that is inflated: one whole stamp as float64, and the longest header."""


class RejectReason(StrEnum):
    """Why a row did not get in. The docstring of a member is its meaning, for people.

    One place for all of them, so that the account of a conversion is complete. The value is the
    name that stands in the manifest and in ``rejects.parquet``.
    """

    def __new__(cls, value: str, meaning: str) -> "RejectReason":
        """Make a string member that carries its meaning as its docstring."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.__doc__ = meaning
        return member

    # the blob
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
    WRONG_SHAPE = "wrong_shape", "a band is not 64 x 64"
    NONFINITE = "nonfinite", "a pixel is NaN, infinite, or too large to compute with (4e37)"
    CONSTANT_BAND = "constant_band", "the MAD of a band is 0, so it has no scale"
    # the row
    UNKNOWN_LABEL = "unknown_label", "lens_model is null or none of CONTROL, SIE, SIS"
    LABEL_CONFLICT = "label_conflict", "lens_model contradicts is_control or theta_e_arcsec"
    MISSING_TASK_ID = "missing_task_id", "task_id is null or empty"
    UNKNOWN_SPLIT = "unknown_split", "region_split is null or none of train, val, test"
    MISSING_REGION = "missing_region", "region_id is null, so no interval could count the row"
    LONG_METADATA = "long_metadata", "the row's text columns do not fit the record's JSON"
    DUPLICATE_ROW = "duplicate_row", "the same task_id with the same pixels came before"
    UNREADABLE = "unreadable", "the parquet row group is corrupt (--skip-bad-files)"


class _RejectedError(Exception):
    """Leaves the reading of one blob; never leaves this module."""

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


_Member = tuple[int, int, int, int, int, bytes]
"""What the directory says of a band: offset of its header, compressed and full size, CRC, method,
name."""


# ---------------------------------------------------------------------------------------------
# The zip archive
# ---------------------------------------------------------------------------------------------

_END = struct.Struct("<4s8xLLH")  # signature, directory size and offset, comment length
_END64_LOCATOR = struct.Struct("<4sLQL")  # signature, disk, offset of the record, disks
_END64 = struct.Struct("<4s36xQQ")  # signature, directory size and offset
# signature, version needed, flags, method, CRC, sizes, lengths of name, extra, comment, offset
_CENTRAL = struct.Struct("<4s2xBxHH4xLLLHHH8xL")
_LOCAL = struct.Struct("<4s22xHH")  # signature, lengths of name and extra

_END_BYTES, _CENTRAL_BYTES, _LOCAL_BYTES = 22, 46, 30
_LOCATOR_BYTES, _END64_BYTES = 20, 56
_COMMENT_MAX = 0xFFFF
_NEWEST_VERSION = 63
_UTF8_NAME = 0x800
_UNREADABLE_FLAGS = 0x1 | 0x20 | 0x40  # encrypted, patch data, strong encryption
_STORED, _DEFLATED = 0, 8
_IN_EXTRA = 0xFFFF_FFFF  # the 32-bit field is full: the value is in the Zip64 extra field

_SLOTS = {
    name: band
    for band, stem in enumerate(MEMBERS)
    for name in (stem.encode(), stem.encode() + b".npy")
}


def _end_record(blob: memoryview) -> tuple[int, int, int]:
    """Start of the central directory, its size, and the shift of all offsets in it."""
    at = len(blob) - _END_BYTES
    if at < 0:
        raise _RejectedError(RejectReason.TRUNCATED)
    signature, size, offset, comment = _END.unpack_from(blob, at)
    if signature != b"PK\x05\x06" or comment:
        at = _search_end(blob)
        _, size, offset, _ = _END.unpack_from(blob, at)
    start = at - size
    record = at - _LOCATOR_BYTES - _END64_BYTES
    if record >= 0 and _at(blob, at - _LOCATOR_BYTES) == b"PK\x06\x07":
        _, disk, _, disks = _END64_LOCATOR.unpack_from(blob, at - _LOCATOR_BYTES)
        if disk != 0 or disks > 1:
            raise _RejectedError(RejectReason.UNSUPPORTED_ZIP)
        if _at(blob, record) == b"PK\x06\x06":
            _, size, offset = _END64.unpack_from(blob, record)
            start = record - size
    if start < 0:
        raise _RejectedError(RejectReason.BAD_ZIP)
    return start, size, start - offset


def _at(blob: memoryview, offset: int) -> bytes:
    """Four bytes of the blob: a signature."""
    return bytes(blob[offset : offset + 4])


def _search_end(blob: memoryview) -> int:
    """Offset of the end record of an archive that has a comment, or bytes after its end."""
    base = max(len(blob) - _COMMENT_MAX - 1 - _END_BYTES, 0)
    found = bytes(blob[base:]).rfind(b"PK\x05\x06")
    if found < 0 or base + found + _END_BYTES > len(blob):
        raise _RejectedError(RejectReason.TRUNCATED)
    return base + found


def _zip64_fields(extra: memoryview, size: int, compressed: int, offset: int) -> list[int]:
    """Sizes and offset with those replaced that stand in the Zip64 extra field."""
    fields = [size, compressed, offset]
    at = 0
    while len(extra) - at >= 4:
        tag, length = struct.unpack_from("<HH", extra, at)
        at += 4
        if at + length > len(extra):
            raise _RejectedError(RejectReason.BAD_ZIP)
        if tag == 1:
            full = [i for i, value in enumerate(fields) if value == _IN_EXTRA]
            if length < 8 * len(full):
                raise _RejectedError(RejectReason.BAD_ZIP)
            for k, i in enumerate(full):
                fields[i] = struct.unpack_from("<Q", extra, at + 8 * k)[0]
        at += length
    return fields


def _directory(blob: memoryview) -> tuple[list[_Member], list[int]]:
    """Walk the central directory.

    Returns
    -------
    members : list of _Member
        The three bands, in order.
    limits : list of int
        Where the data of any member must have ended, ascending: every local header, and the
        directory.
    """
    start, size, shift = _end_record(blob)
    end = start + size
    if end > len(blob):
        raise _RejectedError(RejectReason.BAD_ZIP)
    found: list[_Member | None] = [None, None, None]
    limits = [start]
    at = start
    while at < end:
        if at + _CENTRAL_BYTES > end:
            raise _RejectedError(RejectReason.BAD_ZIP)
        (signature, version, flags, method, crc, compressed, size, n_name, n_extra, n_comment,
         offset) = _CENTRAL.unpack_from(blob, at)  # fmt: skip
        at += _CENTRAL_BYTES
        name = bytes(blob[at : at + n_name])
        at += n_name
        if signature != b"PK\x01\x02" or at + n_extra + n_comment > end:
            raise _RejectedError(RejectReason.BAD_ZIP)
        if version > _NEWEST_VERSION:
            raise _RejectedError(RejectReason.UNSUPPORTED_ZIP)
        if flags & _UTF8_NAME:
            _check_utf8(name)
        if n_extra:
            extra = blob[at : at + n_extra]
            size, compressed, offset = _zip64_fields(extra, size, compressed, offset)
        at += n_extra + n_comment
        offset += shift
        limits.append(offset)
        band = _SLOTS.get(name)
        if band is None:
            continue
        if found[band] is not None:
            raise _RejectedError(RejectReason.DUPLICATE_MEMBER)
        if flags & _UNREADABLE_FLAGS or method not in (_STORED, _DEFLATED):
            raise _RejectedError(RejectReason.UNSUPPORTED_ZIP)
        found[band] = (offset, compressed, size, crc, method, name)
    members = [member for member in found if member is not None]
    if len(members) != len(MEMBERS):
        raise _RejectedError(RejectReason.MISSING_BAND)
    limits.sort()
    return members, limits


def _check_utf8(name: bytes) -> None:
    """Refuse a name that says it is UTF-8 and is not."""
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        raise _RejectedError(RejectReason.BAD_ZIP) from None


def _member_bytes(blob: memoryview, member: _Member, limits: list[int]) -> Any:
    """Inflate one member and check its length and CRC-32; a bytes-like object."""
    offset, compressed, size, crc, method, name = member
    if size > MAX_MEMBER_BYTES:
        raise _RejectedError(RejectReason.OVERSIZED)
    at = offset + _LOCAL_BYTES + len(name)
    if offset < 0 or at > len(blob):
        raise _RejectedError(RejectReason.BAD_ZIP)
    signature, n_name, n_extra = _LOCAL.unpack_from(blob, offset)
    if signature != b"PK\x03\x04" or n_name != len(name) or blob[at - n_name : at] != name:
        raise _RejectedError(RejectReason.BAD_ZIP)
    at += n_extra
    end = at + compressed
    following = bisect_right(limits, offset)
    if following == len(limits) or end > limits[following]:
        raise _RejectedError(RejectReason.BAD_ZIP)
    data: Any = blob[at:end]
    if method == _DEFLATED:
        try:
            data = deflate.deflate_decompress(data, size)
        except deflate.DeflateError:
            raise _RejectedError(RejectReason.BAD_STREAM) from None
    if len(data) != size:
        raise _RejectedError(RejectReason.TRUNCATED)
    if deflate.crc32(data) != crc:
        raise _RejectedError(RejectReason.CRC_MISMATCH)
    return data


# ---------------------------------------------------------------------------------------------
# The .npy array
# ---------------------------------------------------------------------------------------------


def _header_text(text: str) -> bytes:
    """The bytes of a version 1.0 header as NumPy 1.14 and later pads it, to 64 bytes."""
    padding = -(10 + len(text) + 1) % 64
    body = text.encode("latin1") + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


_NATIVE = np.dtype(np.float32).newbyteorder("=").str
_PLAIN_HEADER = _header_text(
    f"{{'descr': '{_NATIVE}', 'fortran_order': False, 'shape': (64, 64), }}"
)
_PLAIN_START = len(_PLAIN_HEADER)
_PLAIN_BYTES = _PLAIN_START + 64 * 64 * 4
_BAND_BYTES = 64 * 64 * 4


class _ArraySpec(NamedTuple):
    """What a .npy header says: the type on disk and the order of the axes."""

    dtype: np.dtype[Any]
    fortran: bool


def _array_into(view: memoryview, band: npt.NDArray[np.float32]) -> None:
    """Read one .npy file into one band, cast to native float32."""
    prefix = {1: 10, 2: 12, 3: 12}.get(view[6] if len(view) > 6 else 0)
    if prefix is None or len(view) < prefix or bytes(view[:6]) != b"\x93NUMPY" or view[7] != 0:
        raise _RejectedError(RejectReason.BAD_NPY)
    length = int.from_bytes(view[8:prefix], "little")
    # A character of version 3 is at most four bytes.
    if length > 4 * MAX_HEADER_CHARS or prefix + length > len(view):
        raise _RejectedError(RejectReason.BAD_NPY)
    spec = _parse_header(bytes(view[prefix : prefix + length]), view[6])
    if isinstance(spec, RejectReason):
        raise _RejectedError(spec)
    if len(view) - prefix - length < 64 * 64 * spec.dtype.itemsize:
        raise _RejectedError(RejectReason.TRUNCATED)
    values = np.frombuffer(view, spec.dtype, 64 * 64, prefix + length).reshape(64, 64)
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float32: nonfinite, below
        band[...] = values.T if spec.fortran else values


@lru_cache(maxsize=256)
def _parse_header(raw: bytes, version: int) -> _ArraySpec | RejectReason:
    """Read the dictionary of a .npy header by the rules of NumPy, without evaluating it.

    Cached, since the stamps of one pipeline share a handful of headers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a string escape inside what somebody sent us
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
    return _ArraySpec(dtype, fortran) if shape == (64, 64) else RejectReason.WRONG_SHAPE


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


def _read_into(blob: memoryview, stamp: npt.NDArray[np.float32], raw: memoryview) -> None:
    """Read the three bands of one blob; `raw` is the same memory as `stamp`, as bytes."""
    if _at(blob, 0) != b"PK\x03\x04":
        empty = len(blob) == 0
        raise _RejectedError(RejectReason.EMPTY_BLOB if empty else RejectReason.NOT_ZIP)
    members, limits = _directory(blob)
    at = 0
    for band, member in enumerate(members):
        data = _member_bytes(blob, member, limits)
        view = memoryview(data)
        if len(view) == _PLAIN_BYTES and view[:_PLAIN_START] == _PLAIN_HEADER:
            raw[at : at + _BAND_BYTES] = view[_PLAIN_START:]
        else:
            _array_into(view, stamp[band])
        at += _BAND_BYTES


@njit(cache=True, nogil=True)
def _has_nonfinite(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Rows of float32, given as int32, in which some exponent is all ones."""
    n, m = bits.shape
    found = np.zeros(n, np.bool_)
    for i in range(n):
        row = bits[i]
        bad = np.int32(0)
        for j in range(m):
            bad = np.int32(bad | np.int32((row[j] & np.int32(0x7FFFFFFF)) >= np.int32(0x7F800000)))
        found[i] = bad != 0
    return found


def decode(blob: Any, out: npt.NDArray[np.float32]) -> RejectReason | None:
    """Decode one blob into `out`.

    Parameters
    ----------
    blob : bytes-like or None
        Anything with the buffer interface: bytes, memoryview, ``pyarrow.Buffer``.
    out : ndarray of float32, shape (3, 64, 64), C-contiguous, writable
        Receives the bands g, r, z in the units of the blob (nanomaggies per pixel). Undefined when
        a reason is returned.

    Returns
    -------
    RejectReason or None
        None if `out` holds the pixels, else why it does not.

    Raises
    ------
    ValueError
        If `out` has another shape, type or layout. No blob raises anything.

    Notes
    -----
    float16, float64, big-endian and Fortran-ordered arrays are cast, as ``.astype(np.float32)``
    would. Stored, deflated, streamed and Zip64 members are read; other members are ignored.

    Stricter than ``np.load``, on purpose: a band that is there twice; one that is compressed with
    bzip2 or LZMA; a member of another length than the directory says, or larger than
    `MAX_MEMBER_BYTES`; members that overlap; headers that only Python 2 wrote (``64L``); a CRC-32
    that ``np.load`` would not have looked at, in bytes after the array.
    """
    stamps = out[None] if isinstance(out, np.ndarray) and out.ndim == 3 else out
    return decode_batch([blob], stamps)[0]


def decode_batch(
    blobs: "pa.Array | pa.ChunkedArray | Sequence[Any]", out: npt.NDArray[np.float32]
) -> list[RejectReason | None]:
    """Decode many blobs, each into its row of `out`.

    Parameters
    ----------
    blobs : pyarrow.Array or ChunkedArray of a binary type, or sequence of bytes-like or None
        N blobs. The buffers of an arrow array are read in place, without a copy per row.
    out : ndarray of float32, shape (N, 3, 64, 64) or longer, C-contiguous, writable
        Row i receives blob i; undefined where a reason is returned.

    Returns
    -------
    list of RejectReason or None
        One entry for each blob, None where it was decoded. See `decode`.

    Raises
    ------
    ValueError
        If `out` does not fit. No blob raises anything.
    """
    views = _row_views(blobs)
    _check_out(out, len(views))
    flat = memoryview(out.reshape(-1).view(np.uint8).data)
    step = 3 * _BAND_BYTES
    reasons: list[RejectReason | None] = []
    for row, view in enumerate(views):
        reasons.append(_decode_row(view, out[row], flat[row * step : (row + 1) * step]))
    if reasons:
        bits = out[: len(views)].reshape(len(views), -1).view(np.int32)
        for row in np.flatnonzero(_has_nonfinite(bits)).tolist():
            reasons[row] = reasons[row] or RejectReason.NONFINITE
    return reasons


def _decode_row(blob: Any, stamp: npt.NDArray[np.float32], raw: memoryview) -> RejectReason | None:
    """Reason of one row, or None; the only place where a blob is opened."""
    if blob is None:
        return RejectReason.NULL_BLOB
    try:
        view = blob if type(blob) is memoryview else memoryview(blob)
        _read_into(view if view.format == "B" else view.cast("B"), stamp, raw)
    except _RejectedError as rejected:
        return rejected.reason
    return None


def _check_out(out: npt.NDArray[np.float32], rows: int) -> None:
    """Refuse an output that the blobs cannot be written into as plain bytes."""
    fits = out.ndim == 4 and out.shape[1:] == STAMP_SHAPE and len(out) >= rows
    plain = out.dtype == np.float32 and out.dtype.isnative
    if not (fits and plain and out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(
            f"out must be writable C-contiguous float32 of shape ({rows}, 3, 64, 64) or longer, "
            f"not {out.dtype} {out.shape}"
        )


def _row_views(blobs: Any) -> Sequence[Any]:
    """The blobs as a sequence of buffers, those of arrow columns without a copy."""
    if isinstance(blobs, pa.ChunkedArray):
        return [view for chunk in blobs.chunks for view in _row_views(chunk)]
    if not isinstance(blobs, pa.Array):
        return blobs
    if not (pa.types.is_binary(blobs.type) or pa.types.is_large_binary(blobs.type)):
        blobs = blobs.cast(pa.large_binary())
    wide = pa.types.is_large_binary(blobs.type)
    _, offsets, data = blobs.buffers()
    if len(blobs) == 0 or data is None:
        return [None if null else b"" for null in blobs.is_null().to_pylist()]
    where = np.frombuffer(offsets, np.int64 if wide else np.int32)
    bounds = where[blobs.offset : blobs.offset + len(blobs) + 1].tolist()
    whole = memoryview(data)
    views: list[Any] = [whole[start:stop] for start, stop in pairwise(bounds)]
    if blobs.null_count:
        for row in np.flatnonzero(blobs.is_null().to_numpy(zero_copy_only=False)).tolist():
            views[row] = None
    return views

"""Where the three bands are in the zip archives of many stamps: a walk in compiled code.

``zipfile`` makes objects and seeks for every member, which takes longer than inflating it; here a
blob takes less than a microsecond. What is found is what ``zipfile`` would find (the end record,
Zip64, the shift of an archive behind other bytes), with the exceptions that
`lensprep.stampnpz.decode` lists. Nothing is inflated and nothing is believed: a claim that passes
the blob, or `MAX_MEMBER_BYTES`, ends the walk.

An index out of bounds in a kernel is not an error but a read of somebody else's memory. So the
bytes of a blob are touched by `_number` and `_matches` alone, and both check that what they are
asked for lies in the blob.

Source of the layout: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lensprep.dataset.layout import BANDS
from lensprep.kernel import kernel

_Bytes = npt.NDArray[np.uint8]
_Longs = npt.NDArray[np.int64]

READ, EMPTY, NOT_ZIP, TRUNCATED, BAD_ZIP, UNSUPPORTED, DUPLICATE, MISSING, OVERSIZED = range(9)
"""What `walk` says of a blob: the first means that it knows where the three bands are."""

STORED, DEFLATED = 0, 8
"""Methods of compression that are read."""

MAX_HEADER_CHARS = 10_000
"""Longest .npy header that is parsed; the limit of ``np.load`` itself."""

MAX_MEMBER_BYTES = 3 * 64 * 64 * 8 + MAX_HEADER_CHARS + 12
"""Largest member that is inflated: one whole stamp as float64, and the longest header."""

_LOCAL_SIGNATURE, _CENTRAL_SIGNATURE, _END_SIGNATURE = 0x04034B50, 0x02014B50, 0x06054B50
_LOCATOR_SIGNATURE, _END64_SIGNATURE = 0x07064B50, 0x06064B50
_LOCAL_BYTES, _CENTRAL_BYTES, _END_BYTES, _LOCATOR_BYTES, _END64_BYTES = 30, 46, 22, 20, 56
_COMMENT_MAX = 0xFFFF
_NEWEST_VERSION = 63
_UNREADABLE_FLAGS = 0x1 | 0x20 | 0x40  # encrypted, patch data, strong encryption
_IN_EXTRA = 0xFFFF_FFFF  # the 32-bit field is full: the value is in the Zip64 extra field
_ZIP64_TAG = 1

_START, _COMPRESSED, _SIZE, _CRC, _METHOD, _HEADER, _NAME = range(7)
"""Columns of what the directory says of a band; the first is where its data begin."""

FIELDS = 5
"""How many of these columns leave this module."""

_STEM = np.frombuffer(b"image_", np.uint8)
_SUFFIX = np.frombuffer(b".npy", np.uint8)
_LETTERS = np.frombuffer("".join(BANDS).encode(), np.uint8)


def walk(data: memoryview, bounds: _Longs) -> tuple[list[int], list[int]]:
    """Find the bands of many blobs that lie one after the other in memory.

    Parameters
    ----------
    data : memoryview of bytes
    bounds : ndarray of int64, shape (n + 1,)
        Blob i is ``data[bounds[i]:bounds[i + 1]]``. Ascending, and within `data`.

    Returns
    -------
    bands : list of n * 3 * `FIELDS` int
        Of each blob for g, r and z: start in `data`, compressed size, size, CRC-32, method. Flat,
        since a thousand small lists set off the garbage collector.
    codes : list of n int
        `READ`, or why the bands of this blob are meaningless.
    """
    n = len(bounds) - 1
    array = np.frombuffer(data, np.uint8)
    array.flags.writeable = False  # always, so that the kernels compile once
    bands = np.zeros((n, len(BANDS), _NAME + 1), np.int64)
    codes = np.empty(n, np.int64)
    _walk_all(array, bounds, bands, codes)
    return bands[:, :, :FIELDS].reshape(-1).tolist(), codes.tolist()


@kernel
def _number(blob: _Bytes, at: int, width: int) -> np.int64:
    """Little-endian number of `width` bytes; negative if it is not in the blob or beyond int64."""
    if at < 0 or at > blob.size - width:
        return np.int64(-1)
    value = np.int64(0)
    for i in range(width):
        value |= np.int64(blob[at + i]) << np.int64(8 * i)
    return value


@kernel
def _matches(blob: _Bytes, at: int, text: _Bytes) -> bool:
    """Whether the text stands in the blob at this place."""
    if at < 0 or at > blob.size - text.size:
        return False
    same = True
    for i in range(text.size):
        same = same and blob[at + i] == text[i]
    return same


@kernel
def _band_of(blob: _Bytes, at: int, length: int) -> int:
    """Band of a member by its name, ``image_g`` or ``image_g.npy``; -1 if it is none."""
    stem = _STEM.size
    bare, full = length == stem + 1, length == stem + 1 + _SUFFIX.size
    if not (bare or full) or not _matches(blob, at, _STEM):
        return -1
    if full and not _matches(blob, at + stem + 1, _SUFFIX):
        return -1
    letter = _number(blob, at + stem, 1)
    for band in range(_LETTERS.size):
        if letter == _LETTERS[band]:
            return band
    return -1


@kernel
def _find_end(blob: _Bytes) -> int:
    """Offset of the end record, which a comment or other bytes may follow; -1 if there is none."""
    last = blob.size - _END_BYTES
    if _number(blob, last, 4) == _END_SIGNATURE and _number(blob, last + 20, 2) == 0:
        return last
    first = max(last - _COMMENT_MAX - 1, 0)
    for at in range(blob.size - 4, first - 1, -1):
        if _number(blob, at, 4) == _END_SIGNATURE:
            return at if at <= last else -1
    return -1


@kernel
def _find_directory(blob: _Bytes) -> tuple[int, int, int, int]:
    """Reason, start and end of the central directory, and the shift of the offsets in it."""
    end = _find_end(blob)
    if end < 0:
        return TRUNCATED, 0, 0, 0
    size, offset = _number(blob, end + 12, 4), _number(blob, end + 16, 4)
    start = end - size
    locator = end - _LOCATOR_BYTES
    if _number(blob, locator, 4) == _LOCATOR_SIGNATURE:
        if _number(blob, locator + 4, 4) != 0 or _number(blob, locator + 16, 4) > 1:
            return UNSUPPORTED, 0, 0, 0
        record = locator - _END64_BYTES
        if _number(blob, record, 4) == _END64_SIGNATURE:
            size, offset = _number(blob, record + 40, 8), _number(blob, record + 48, 8)
            start = record - size
    if size < 0 or offset < 0 or start < 0:
        return BAD_ZIP, 0, 0, 0
    return READ, start, start + size, start - offset


@kernel
def _read_zip64(blob: _Bytes, at: int, end: int, entry: _Longs) -> int:
    """Replace sizes and offset of an entry by those of its Zip64 extra field; a reason."""
    while end - at >= 4:
        tag, stop = _number(blob, at, 2), at + 4 + _number(blob, at + 2, 2)
        if stop > end:
            return BAD_ZIP
        at += 4
        if tag == _ZIP64_TAG:
            for field in (_SIZE, _COMPRESSED, _HEADER):
                if entry[field] == _IN_EXTRA:
                    if at + 8 > stop:
                        return BAD_ZIP
                    entry[field] = _number(blob, at, 8)
                    at += 8
                    if entry[field] < 0:
                        return BAD_ZIP
        at = stop
    return READ


@kernel
def _read_entry(blob: _Bytes, at: int, end: int, entry: _Longs) -> tuple[int, int, int]:
    """Read one entry of the directory: its reason, its band (-1: another), and where it ends."""
    if end - at < _CENTRAL_BYTES or _number(blob, at, 4) != _CENTRAL_SIGNATURE:
        return BAD_ZIP, -1, end
    if _number(blob, at + 6, 1) > _NEWEST_VERSION:
        return UNSUPPORTED, -1, end
    flags = _number(blob, at + 8, 2)
    entry[_METHOD] = _number(blob, at + 10, 2)
    entry[_CRC] = _number(blob, at + 16, 4)
    entry[_COMPRESSED], entry[_SIZE] = _number(blob, at + 20, 4), _number(blob, at + 24, 4)
    entry[_HEADER] = _number(blob, at + 42, 4)
    name, length = at + _CENTRAL_BYTES, _number(blob, at + 28, 2)
    extra = name + length
    comment = extra + _number(blob, at + 30, 2)
    stop = comment + _number(blob, at + 32, 2)
    if stop > end:
        return BAD_ZIP, -1, end
    reason = _read_zip64(blob, extra, comment, entry)
    if reason != READ:
        return reason, -1, end
    entry[_NAME] = length
    band = _band_of(blob, name, length)
    known = entry[_METHOD] == STORED or entry[_METHOD] == DEFLATED
    if band >= 0 and (not known or flags & _UNREADABLE_FLAGS):
        return UNSUPPORTED, band, stop
    return READ, band, stop


@kernel
def _read_directory(blob: _Bytes, bands: _Longs) -> int:
    """Fill one row a band, shape (3, 7), and return the reason.

    The header of the next member, or the directory, ends the space of a member's data: two members
    that share bytes are the mark of a zip bomb. `_START` holds that end until `_find_data`.
    """
    reason, start, end, shift = _find_directory(blob)
    if reason != READ:
        return reason
    entry = np.empty(_NAME + 1, np.int64)
    bands[:, _METHOD] = -1
    at, members = start, 0
    while at < end:
        reason, band, at = _read_entry(blob, at, end, entry)
        if reason != READ:
            return reason
        members += 1
        if band >= 0:
            if bands[band, _METHOD] >= 0:
                return DUPLICATE
            bands[band, :] = entry
            bands[band, _HEADER] += shift
            bands[band, _START] = start
    for band in range(bands.shape[0]):
        if bands[band, _METHOD] < 0:
            return MISSING
    at = start
    for _ in range(members):
        reason, other, at = _read_entry(blob, at, end, entry)
        header = entry[_HEADER] + shift
        for band in range(bands.shape[0]):
            if band != other and bands[band, _HEADER] <= header < bands[band, _START]:
                bands[band, _START] = header
    return READ


@kernel
def _find_data(blob: _Bytes, band: _Longs, letter: int) -> int:
    """Check the local header of a member, and set `_START`; a reason."""
    limit, header, length = band[_START], band[_HEADER], band[_NAME]
    name = header + _LOCAL_BYTES
    if band[_SIZE] > MAX_MEMBER_BYTES:
        return OVERSIZED
    same = _number(blob, header + 26, 2) == length and _band_of(blob, name, length) == letter
    if _number(blob, header, 4) != _LOCAL_SIGNATURE or not same:
        return BAD_ZIP
    start = name + length + _number(blob, header + 28, 2)
    if band[_COMPRESSED] > limit - start:
        return BAD_ZIP
    if band[_METHOD] == STORED and band[_COMPRESSED] != band[_SIZE]:
        return BAD_ZIP
    band[_START] = start
    return READ


@kernel
def _walk_one(blob: _Bytes, bands: _Longs) -> int:
    """Where the three bands of a blob are, shape (3, 7), and the reason."""
    if blob.size == 0:
        return EMPTY
    if _number(blob, 0, 4) != _LOCAL_SIGNATURE:
        return NOT_ZIP
    reason = _read_directory(blob, bands)
    for band in range(bands.shape[0]):
        if reason == READ:
            reason = _find_data(blob, bands[band], band)
    return reason


@kernel
def _walk_all(data: _Bytes, bounds: _Longs, bands: _Longs, reasons: _Longs) -> None:
    """Walk blob i, the bytes from ``bounds[i]`` to ``bounds[i + 1]``, for all i.

    The starts that are left in `bands`, shape (n, 3, 7), count from the start of `data`.
    """
    for row in range(reasons.size):
        reasons[row] = _walk_one(data[bounds[row] : bounds[row + 1]], bands[row])
        bands[row, :, _START] += bounds[row]

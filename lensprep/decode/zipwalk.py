"""Where the bands are in the zip archives of many stamps: a walk in compiled code.

``zipfile`` makes objects and seeks for every member, which takes longer than inflating it; here a
blob takes less than a microsecond. The result is what ``zipfile`` would find (the end record,
Zip64, the shift of an archive behind other bytes), with the exceptions that
`lensprep.decode.stampnpz.decode` lists. Nothing is inflated and nothing is trusted: a claim that
goes beyond the blob, or `most_member_bytes`, ends the walk.

An index out of bounds in a kernel is not an error but a read of unrelated memory, and a sum that
wraps is worse: the compiler may assume that it does not, and drop the check after it. So

- the bytes of a blob are touched by `_number` and `_matches` alone, and both compare the position
  that they are given with the size of the blob before they add anything to it;
- what a blob says is added to a position by `_after`, `_before` and `_shifted` alone, and they
  compare it with what room there is before they add. A position is an offset within the blob, or
  -1 for one outside it: nothing can be read at -1, and nothing follows it.

Source of the layout: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lensprep.dataset.layout import BANDS, STAMP_SIZE
from lensprep.kernel import kernel

_Bytes = npt.NDArray[np.uint8]
_Longs = npt.NDArray[np.int64]

READ, EMPTY, NOT_ZIP, TRUNCATED, BAD_ZIP, UNSUPPORTED, DUPLICATE, MISSING, OVERSIZED = range(9)
"""What `walk` says of a blob: the first means that it knows where the three bands are."""

STORED, DEFLATED = 0, 8
"""Methods of compression that are read."""

MAX_HEADER_CHARS = 10_000
"""Longest .npy header that is parsed; the limit of ``np.load`` itself."""

MAX_NAME_CHARS = 8
"""Longest name of a band."""

_LOCAL_SIGNATURE, _CENTRAL_SIGNATURE, _END_SIGNATURE = 0x04034B50, 0x02014B50, 0x06054B50
_LOCATOR_SIGNATURE, _END64_SIGNATURE = 0x07064B50, 0x06064B50
_LOCAL_BYTES, _CENTRAL_BYTES, _END_BYTES, _LOCATOR_BYTES, _END64_BYTES = 30, 46, 22, 20, 56
_END64_SIZE = _END64_BYTES - 12  # as the record states it: what follows its first two fields
_COMMENT_MAX = 0xFFFF
_NEWEST_VERSION = 63
_UNREADABLE_FLAGS = 0x1 | 0x20 | 0x40  # encrypted, patch data, strong encryption
_UNREADABLE = 0xFFFF + 1  # in place of the method of such a member, or of one we do not know
_IN_EXTRA = 0xFFFF_FFFF  # the 32-bit field is full: the value is in the Zip64 extra field
_ZIP64_TAG = 1

_START, _COMPRESSED, _SIZE, _CRC, _METHOD, _HEADER, _NAME = range(7)
"""Columns of what the directory says of a band: where its data begin, and at the end the position
of its local header and the length of its name, 0 for a name that np.load finds but is not plain."""

FIELDS = 5
"""How many of these columns leave this module."""

_STEM = np.frombuffer(b"image_", np.uint8)
_SUFFIX = np.frombuffer(b".npy", np.uint8)


def most_member_bytes(bands: int, side: int) -> int:
    """Largest member that is inflated: one whole stamp as float64, and the longest header."""
    return bands * side * side * 8 + MAX_HEADER_CHARS + 12


def walk(
    data: memoryview, bounds: _Longs, bands: Sequence[str] = BANDS, side: int = STAMP_SIZE
) -> tuple[list[int], list[int]]:
    """Find the bands of many blobs that lie one after the other in memory.

    Parameters
    ----------
    data : memoryview of bytes
    bounds : ndarray of int64, shape (n + 1,)
        Blob i is ``data[bounds[i]:bounds[i + 1]]``.
    bands : sequence of str
        Names of the bands: letters and digits, at most `MAX_NAME_CHARS`.
    side : int
        Pixels along each side of a band.

    Returns
    -------
    places : list of n * len(bands) * `FIELDS` int
        Of each band of each blob: start in `data`, compressed size, size, CRC-32, method. Flat,
        since a thousand small lists set off the garbage collector.
    codes : list of n int
        `READ`, or why the bands of this blob are meaningless.

    Raises
    ------
    ValueError
        If the bounds descend, or lie outside `data`, or a name is no name of a band.
    """
    n = len(bounds) - 1
    array = np.frombuffer(data, np.uint8)
    array.flags.writeable = False  # always, so that the kernels compile once
    found = np.zeros((n, len(bands), _NAME + 1), np.int64)
    codes = np.empty(n, np.int64)
    most = most_member_bytes(len(bands), side)
    if not _walk_all(array, bounds, _as_numbers(tuple(bands)), most, found, codes):
        raise ValueError(f"bounds of blobs descend, or lie outside of {array.size} bytes")
    return found[:, :, :FIELDS].reshape(-1).tolist(), codes.tolist()


@lru_cache(maxsize=16)
def _as_numbers(bands: tuple[str, ...]) -> _Longs:
    """Each name as a little-endian number, as it is compared, and its length; shape (bands, 2)."""
    for band in bands:
        if not (band.isascii() and band.isalnum() and len(band) <= MAX_NAME_CHARS):
            raise ValueError(f"{band!r} is no name of a band")
    numbers = [(int.from_bytes(band.encode(), "little"), len(band)) for band in bands]
    return np.array(numbers, np.int64)


# ---------------------------------------------------------------------------------------------
# Positions and numbers: the only kernels that read bytes or add what a blob says
# ---------------------------------------------------------------------------------------------


@kernel
def _number(blob: _Bytes, at: int, offset: int, width: int) -> np.int64:
    """Little-endian number of `width` bytes, `offset` bytes after a position.

    Negative if it is not in the blob, or 2**63 and more. `offset` and `width` are small constants;
    `at` may be anything.
    """
    if at < 0 or at > blob.size - offset - width:
        return np.int64(-1)
    value = np.int64(0)
    for i in range(width):
        value |= np.int64(blob[at + offset + i]) << np.int64(8 * i)
    return value


@kernel
def _matches(blob: _Bytes, at: int, offset: int, text: _Bytes) -> bool:
    """Whether the text stands in the blob, `offset` bytes after a position; as `_number`."""
    if at < 0 or at > blob.size - offset - text.size:
        return False
    same = True
    for i in range(text.size):
        same = same and blob[at + offset + i] == text[i]
    return same


@kernel
def _after(at: int, length: int, end: int) -> int:
    """The position `length` bytes after another, but not after `end`; -1 if there is none.

    `length` may be anything.
    """
    if at < 0 or length < 0 or length > end - at:
        return -1
    return at + length


@kernel
def _before(at: int, length: int) -> int:
    """The position `length` bytes before another; -1 if there is none. `length` may be anything."""
    return at - length if 0 <= length <= at else -1


@kernel
def _shifted(blob: _Bytes, offset: int, shift: int) -> int:
    """The position of an offset in an archive that begins `shift` bytes after the blob; or -1.

    `offset` may be anything; `shift` is the difference of two positions.
    """
    if offset < 0 or offset > blob.size:
        return -1
    at = offset + shift
    return at if 0 <= at <= blob.size else -1


# ---------------------------------------------------------------------------------------------
# The records of an archive
# ---------------------------------------------------------------------------------------------


@kernel
def _band_of(blob: _Bytes, at: int, length: int, names: _Longs) -> tuple[int, int]:
    """Band of a member by its name, ``image_g`` or ``image_g.npy``, and the length of the name.

    The band is -1 if it is none. A NUL ends a name for ``zipfile``, hence for ``np.load``: such a
    name is the band's too, but its length is given as 0.
    """
    stem = _STEM.size
    if length <= stem or not _matches(blob, at, 0, _STEM):
        return -1, 0
    for band in range(names.shape[0]):
        size = stem + names[band, 1]
        if length < size or _number(blob, at, stem, names[band, 1]) != names[band, 0]:
            continue
        if length >= size + _SUFFIX.size and _matches(blob, at, size, _SUFFIX):
            size += _SUFFIX.size
        if length == size:
            return band, size
        if _number(blob, at, size, 1) == 0:
            return band, 0
    return -1, 0


@kernel
def _find_end(blob: _Bytes) -> int:
    """Where the end record is, which a comment or other bytes may follow; -1 if there is none."""
    last = blob.size - _END_BYTES
    if _number(blob, last, 0, 4) == _END_SIGNATURE and _number(blob, last, 20, 2) == 0:
        return last
    first = max(last - _COMMENT_MAX - 1, 0)
    for at in range(blob.size - 4, first - 1, -1):
        if _number(blob, at, 0, 4) == _END_SIGNATURE:
            return at if at <= last else -1
    return -1


@kernel
def _find_directory(blob: _Bytes) -> tuple[int, int, int, int]:
    """Reason, positions of start and end of the central directory, and the shift of its offsets."""
    end = _find_end(blob)
    if end < 0:
        return TRUNCATED, 0, 0, 0
    size, offset = _number(blob, end, 12, 4), _number(blob, end, 16, 4)
    locator = _before(end, _LOCATOR_BYTES)
    if _number(blob, locator, 0, 4) == _LOCATOR_SIGNATURE:
        if _number(blob, locator, 4, 4) != 0 or _number(blob, locator, 16, 4) > 1:
            return UNSUPPORTED, 0, 0, 0
        end = _before(locator, _END64_BYTES)
        if _number(blob, end, 0, 4) != _END64_SIGNATURE or _number(blob, end, 4, 8) != _END64_SIZE:
            return BAD_ZIP, 0, 0, 0
        size, offset = _number(blob, end, 40, 8), _number(blob, end, 48, 8)
        stop = _after(offset, size, blob.size)
        if stop < 0 or stop != _number(blob, locator, 8, 8):
            return BAD_ZIP, 0, 0, 0
    start = _before(end, size)
    if start < 0 or offset < 0 or offset > blob.size:
        return BAD_ZIP, 0, 0, 0
    return READ, start, end, start - offset


@kernel
def _read_zip64(blob: _Bytes, at: int, end: int, entry: _Longs) -> int:
    """Replace sizes and offset of an entry by those of its Zip64 extra field; a reason."""
    while end - at >= 4:
        tag, length = _number(blob, at, 0, 2), _number(blob, at, 2, 2)
        at = _after(at, 4, end)
        stop = _after(at, length, end)
        if stop < 0:
            return BAD_ZIP
        if tag == _ZIP64_TAG:
            for field in (_SIZE, _COMPRESSED, _HEADER):
                if entry[field] == _IN_EXTRA:
                    if stop - at < 8:
                        return BAD_ZIP
                    entry[field] = _number(blob, at, 0, 8)
                    at = _after(at, 8, stop)
                    if entry[field] < 0:
                        return BAD_ZIP
        at = stop
    return READ


@kernel
def _read_entry(
    blob: _Bytes, at: int, end: int, names: _Longs, entry: _Longs
) -> tuple[int, int, int]:
    """Read one entry of the directory: its reason, its band (-1: another), and where it ends."""
    name = _after(at, _CENTRAL_BYTES, end)
    if name < 0 or _number(blob, at, 0, 4) != _CENTRAL_SIGNATURE:
        return BAD_ZIP, -1, end
    if _number(blob, at, 6, 1) > _NEWEST_VERSION:
        return UNSUPPORTED, -1, end
    flags = _number(blob, at, 8, 2)
    entry[_METHOD] = _number(blob, at, 10, 2)
    entry[_CRC] = _number(blob, at, 16, 4)
    entry[_COMPRESSED], entry[_SIZE] = _number(blob, at, 20, 4), _number(blob, at, 24, 4)
    entry[_HEADER] = _number(blob, at, 42, 4)
    length = _number(blob, at, 28, 2)
    extra = _after(name, length, end)
    comment = _after(extra, _number(blob, at, 30, 2), end)
    stop = _after(comment, _number(blob, at, 32, 2), end)
    if stop < 0:
        return BAD_ZIP, -1, end
    reason = _read_zip64(blob, extra, comment, entry)
    if reason != READ:
        return reason, -1, end
    band, entry[_NAME] = _band_of(blob, name, length, names)
    known = entry[_METHOD] == STORED or entry[_METHOD] == DEFLATED
    if not known or flags & _UNREADABLE_FLAGS:
        entry[_METHOD] = _UNREADABLE
    return READ, band, stop


@kernel
def _read_directory(blob: _Bytes, names: _Longs, bands: _Longs) -> int:
    """Fill one row a band, shape (bands, 7), and return the reason.

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
        reason, band, at = _read_entry(blob, at, end, names, entry)
        if reason != READ:
            return reason
        members += 1
        if band >= 0:
            if bands[band, _METHOD] >= 0:
                return DUPLICATE
            bands[band, :] = entry
            bands[band, _HEADER] = _shifted(blob, entry[_HEADER], shift)
            bands[band, _START] = start
    for band in range(bands.shape[0]):
        if bands[band, _METHOD] < 0:
            return MISSING
    at = start
    for _ in range(members):
        reason, other, at = _read_entry(blob, at, end, names, entry)
        header = _shifted(blob, entry[_HEADER], shift)
        for band in range(bands.shape[0]):
            if band != other and bands[band, _HEADER] <= header < bands[band, _START]:
                bands[band, _START] = header
    return READ


@kernel
def _find_data(blob: _Bytes, names: _Longs, most: int, number: int, band: _Longs) -> int:
    """Check the local header of the member of a band, and set `_START`; a reason."""
    limit, header, length = band[_START], band[_HEADER], band[_NAME]
    if band[_METHOD] == _UNREADABLE:
        return UNSUPPORTED
    if band[_SIZE] > most:
        return OVERSIZED
    if _number(blob, header, 0, 4) != _LOCAL_SIGNATURE or _number(blob, header, 26, 2) != length:
        return BAD_ZIP
    name = _after(header, _LOCAL_BYTES, limit)
    if _band_of(blob, name, length, names) != (number, length):
        return BAD_ZIP
    start = _after(_after(name, length, limit), _number(blob, header, 28, 2), limit)
    if _after(start, band[_COMPRESSED], limit) < 0:
        return BAD_ZIP
    if band[_METHOD] == STORED and band[_COMPRESSED] != band[_SIZE]:
        return BAD_ZIP
    band[_START] = start
    return READ


@kernel
def _walk_one(blob: _Bytes, names: _Longs, most: int, bands: _Longs) -> int:
    """Where the bands of a blob are, shape (bands, 7), and the reason."""
    if blob.size == 0:
        return EMPTY
    if _number(blob, 0, 0, 4) != _LOCAL_SIGNATURE:
        return NOT_ZIP
    reason = _read_directory(blob, names, bands)
    for band in range(bands.shape[0]):
        if reason == READ:
            reason = _find_data(blob, names, most, band, bands[band])
    return reason


@kernel
def _walk_all(
    data: _Bytes, bounds: _Longs, names: _Longs, most: int, bands: _Longs, reasons: _Longs
) -> bool:
    """Walk blob i, the bytes from ``bounds[i]`` to ``bounds[i + 1]``, for all i.

    The starts that are left in `bands`, shape (n, bands, 7), count from the start of `data`. False
    if there are no such bytes; then nothing is walked.
    """
    for row in range(reasons.size):
        if not 0 <= bounds[row] <= bounds[row + 1] <= data.size:
            return False
    for row in range(reasons.size):
        reasons[row] = _walk_one(data[bounds[row] : bounds[row + 1]], names, most, bands[row])
        bands[row, :, _START] += bounds[row]
    return True

"""Records as bytes: build them for a batch of stamps, and check them one by one (pure)."""

from __future__ import annotations

import io
import math
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from json.encoder import encode_basestring_ascii
from reprlib import repr as shortened
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import layout
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.strictjson import parse_json

_CHECKSUM = slice(148, 156)
_PLACEHOLDER = "0" * layout.KEY_HEX_DIGITS


def _tar_header(name: str, size: int) -> bytes:
    """Header block of one ustar member with fixed mtime, owner and mode."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, layout.TAR_MODE, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


def _npy_header(geometry: Geometry) -> bytes:
    """Header of the ``.npy`` members, as NumPy itself writes it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer,
        {"descr": layout.STAMP_DTYPE.str, "fortran_order": False, "shape": geometry.shape},
    )
    header = buffer.getvalue()
    if len(header) != layout.NPY_HEADER_BYTES:  # pragma: no cover - a NumPy that pads otherwise
        raise AssertionError(f"NumPy wrote a .npy header of {len(header)} bytes, not 128")
    return header


@cache
def _template(geometry: Geometry) -> tuple[NDArray[np.uint8], int, int]:
    """One record without key, pixels and JSON, and its two header sums less the key's bytes."""
    record = bytearray(geometry.stride)
    record[: layout.BLOCK] = _tar_header(_PLACEHOLDER + layout.STAMP_SUFFIX, geometry.npy_bytes)
    record[layout.BLOCK : layout.PAYLOAD_OFFSET] = _npy_header(geometry)
    record[geometry.json_header_offset : geometry.json_offset] = _tar_header(
        _PLACEHOLDER + layout.JSON_SUFFIX, layout.JSON_BYTES
    )
    record[geometry.json_offset :] = b" " * layout.JSON_BYTES
    zeros = sum(_PLACEHOLDER.encode())
    sums = []
    for offset in (0, geometry.json_header_offset):
        header = bytearray(record[offset : offset + layout.BLOCK])
        header[_CHECKSUM] = b" " * 8
        sums.append(sum(header) - zeros)
    return np.frombuffer(bytes(record), np.uint8), sums[0], sums[1]


def new_records(rows: int, geometry: Geometry = DECALS) -> NDArray[np.uint8]:
    """Records that lack only key, JSON and pixels.

    Returns
    -------
    ndarray of uint8, shape (rows, geometry.stride)
        The pixels are undefined.
    """
    records = np.empty((rows, geometry.stride), np.uint8)
    blank_records(records, geometry)
    return records


def blank_records(records: NDArray[np.uint8], geometry: Geometry = DECALS) -> None:
    """Make any memory into records as `new_records` gives them, in place."""
    template, _, _ = _template(geometry)
    end = layout.PAYLOAD_OFFSET + geometry.payload_bytes
    for span in (slice(0, layout.PAYLOAD_OFFSET), slice(end, None)):
        records[:, span] = template[span]


def payload_view(records: NDArray[np.uint8], geometry: Geometry = DECALS) -> NDArray[np.float16]:
    """Pixels of records as a strided view, (rows, bands, side, side) float16; nothing is copied."""
    rows = records.shape[0]
    return _payload(records, geometry).view(layout.STAMP_DTYPE).reshape(rows, *geometry.shape)


def _payload(records: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Bytes of the pixels of records."""
    return records[:, layout.PAYLOAD_OFFSET : layout.PAYLOAD_OFFSET + geometry.payload_bytes]


def set_keys(records: NDArray[np.uint8], keys: Sequence[str], geometry: Geometry = DECALS) -> None:
    """Write the keys (32 hex digits each) into both headers of each record, in place."""
    rows = len(keys)
    _, stamp_sum, json_sum = _template(geometry)
    names = np.frombuffer("".join(keys).encode("ascii"), np.uint8).reshape(
        rows, layout.KEY_HEX_DIGITS
    )
    name_sums = names.sum(axis=1, dtype=np.int64)
    for offset, base in ((0, stamp_sum), (geometry.json_header_offset, json_sum)):
        records[:, offset : offset + layout.KEY_HEX_DIGITS] = names
        octal = b"".join(b"%06o\0 " % total for total in (name_sums + base).tolist())
        checksums = np.frombuffer(octal, np.uint8).reshape(rows, 8)
        records[:, offset + _CHECKSUM.start : offset + _CHECKSUM.stop] = checksums


def encode_json(columns: Mapping[str, Sequence[Any]]) -> list[bytes | None]:
    """JSON members of many records, each padded with spaces to its fixed size.

    Parameters
    ----------
    columns : mapping of str to sequence
        Values of all records for some or all of ``JSON_MEMBERS``, of which ``JSON_OPTIONAL`` are
        written where they are not null; others are ignored.

    Returns
    -------
    list of bytes or None
        None where the text does not fit. NaN and infinity, for which JSON has no number, are null.

    Notes
    -----
    Written by hand: `json.dumps` of a dictionary takes three times as long, once for each row.
    """
    names = [field for field in layout.JSON_FIELDS if field in columns]
    template = "{" + ",".join(f'"{name}":%s' for name in names) + "}"
    written = (_json_values(columns[name]) for name in names)
    texts = [template % row for row in zip(*written, strict=True)]
    for name in layout.JSON_OPTIONAL:
        for row, value in enumerate(columns.get(name, ())):
            if value is not None:
                texts[row] = f'{texts[row][:-1]},"{name}":{encode_basestring_ascii(value)}}}'
    return [
        t.encode("ascii").ljust(layout.JSON_BYTES) if len(t) <= layout.JSON_BYTES else None
        for t in texts
    ]


def _json_values(values: Sequence[Any]) -> list[str]:
    """A column's values as JSON; a repeated text is encoded once."""
    if not isinstance(next((value for value in values if value is not None), None), str):
        # Not by looking values up: 0.0 and -0.0 are equal, and are not written alike.
        return ["null" if v is None or not math.isfinite(v) else repr(v) for v in values]
    known: dict[str | None, str] = {None: "null"}
    return [known.get(v) or known.setdefault(v, encode_basestring_ascii(v)) for v in values]


def set_json(
    records: NDArray[np.uint8], texts: Sequence[bytes], geometry: Geometry = DECALS
) -> None:
    """Write the padded JSON members (see `encode_json`) into the records, in place."""
    block = np.frombuffer(b"".join(texts), np.uint8).reshape(len(texts), layout.JSON_BYTES)
    records[:, geometry.json_offset :] = block


def payload_crc32(records: NDArray[np.uint8], geometry: Geometry = DECALS) -> NDArray[np.uint32]:
    """CRC-32 of each record's pixels, shape (rows,)."""
    try:
        from deflate import crc32
    except ImportError:  # the contract itself needs NumPy alone; zlib is only slower
        crc32 = zlib.crc32
    return np.fromiter((crc32(row) for row in _payload(records, geometry)), np.uint32, len(records))


def record_key(record: NDArray[np.uint8]) -> str:
    """Key of one record, read from its first header."""
    return bytes(record[: layout.KEY_HEX_DIGITS]).decode("ascii", "replace")


def record_json(record: NDArray[np.uint8], geometry: Geometry = DECALS) -> dict[str, Any]:
    """JSON member of one record.

    Raises
    ------
    ValueError
        If it is not valid JSON, or a field of `JSON_MEMBERS` has the wrong type.
    """
    fields = parse_json(bytes(record[geometry.json_offset :]))
    if not isinstance(fields, dict):
        raise ValueError("it is not an object")
    for name in layout.JSON_MEMBERS:
        value = fields.get(name)
        kinds: tuple[type, ...] = (str,)
        if name in layout.NUMBERS:
            kinds = (float, int)
        elif name in layout.WHOLE_NUMBERS:
            kinds = (int,)
        if value is None:
            continue
        if type(value) not in kinds or (type(value) is int and abs(value) >= 1 << 53):
            raise ValueError(f"{name} is {shortened(value)}")
    return fields


def header_faults(records: NDArray[np.uint8], geometry: Geometry = DECALS) -> NDArray[np.int64]:
    """Rows whose headers or padding are not exactly what the writer makes of their own key.

    Parameters
    ----------
    records : ndarray of uint8, shape (rows, geometry.stride)
    geometry : Geometry

    Returns
    -------
    ndarray of int64
        Positions of the faulty rows.
    """
    rows = len(records)
    expected = new_records(rows, geometry)
    keys = ["".join(map(chr, row)) for row in records[:, : layout.KEY_HEX_DIGITS].tolist()]
    hexadecimal = np.array([set(key) <= set("0123456789abcdef") for key in keys], bool)
    safe = [key if good else _PLACEHOLDER for key, good in zip(keys, hexadecimal, strict=True)]
    set_keys(expected, safe, geometry)
    bad = ~hexadecimal
    end = layout.PAYLOAD_OFFSET + geometry.payload_bytes
    for span in (slice(0, layout.PAYLOAD_OFFSET), slice(end, geometry.json_offset)):
        bad |= (records[:, span] != expected[:, span]).any(axis=1)
    return np.flatnonzero(bad)

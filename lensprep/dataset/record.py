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
from lensprep.dataset.strictjson import parse_json

_CHECKSUM = slice(148, 156)
_PLACEHOLDER = "0" * layout.KEY_HEX_DIGITS


def _tar_header(name: str, size: int) -> bytes:
    """Header block of one ustar member with fixed mtime, owner and mode."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, layout.TAR_MODE, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


def _npy_header() -> bytes:
    """Header of the ``.npy`` members, as NumPy itself writes it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer,
        {"descr": layout.STAMP_DTYPE.str, "fortran_order": False, "shape": layout.STAMP_SHAPE},
    )
    header = buffer.getvalue()
    if len(header) != layout.NPY_HEADER_BYTES:  # pragma: no cover - a NumPy that pads otherwise
        raise AssertionError(f"NumPy wrote a .npy header of {len(header)} bytes, not 128")
    return header


@cache
def _template() -> tuple[NDArray[np.uint8], int, int]:
    """One record without key, pixels and JSON, and its two header sums less the key's bytes."""
    record = bytearray(layout.RECORD_STRIDE)
    record[: layout.BLOCK] = _tar_header(_PLACEHOLDER + layout.STAMP_SUFFIX, layout.NPY_BYTES)
    record[layout.BLOCK : layout.PAYLOAD_OFFSET] = _npy_header()
    record[layout.JSON_HEADER_OFFSET : layout.JSON_OFFSET] = _tar_header(
        _PLACEHOLDER + layout.JSON_SUFFIX, layout.JSON_BYTES
    )
    record[layout.JSON_OFFSET :] = b" " * layout.JSON_BYTES
    zeros = sum(_PLACEHOLDER.encode())
    sums = []
    for offset in (0, layout.JSON_HEADER_OFFSET):
        header = bytearray(record[offset : offset + layout.BLOCK])
        header[_CHECKSUM] = b" " * 8
        sums.append(sum(header) - zeros)
    return np.frombuffer(bytes(record), np.uint8), sums[0], sums[1]


def new_records(rows: int) -> NDArray[np.uint8]:
    """Records that lack only key, JSON and pixels.

    Returns
    -------
    ndarray of uint8, shape (rows, RECORD_STRIDE)
        The pixels are undefined.
    """
    records = np.empty((rows, layout.RECORD_STRIDE), np.uint8)
    blank_records(records)
    return records


def blank_records(records: NDArray[np.uint8]) -> None:
    """Make any memory into records as `new_records` gives them, in place."""
    template, _, _ = _template()
    end = layout.PAYLOAD_OFFSET + layout.PAYLOAD_BYTES
    for span in (slice(0, layout.PAYLOAD_OFFSET), slice(end, None)):
        records[:, span] = template[span]


def payload_view(records: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Pixels of records as a strided view, shape (rows, 3, 64, 64) float16; nothing is copied."""
    rows = records.shape[0]
    payload = records[:, layout.PAYLOAD_OFFSET : layout.PAYLOAD_OFFSET + layout.PAYLOAD_BYTES]
    return payload.view(layout.STAMP_DTYPE).reshape(rows, *layout.STAMP_SHAPE)


def set_keys(records: NDArray[np.uint8], keys: Sequence[str]) -> None:
    """Write the keys (32 hex digits each) into both headers of each record, in place."""
    rows = len(keys)
    _, stamp_sum, json_sum = _template()
    names = np.frombuffer("".join(keys).encode("ascii"), np.uint8).reshape(
        rows, layout.KEY_HEX_DIGITS
    )
    name_sums = names.sum(axis=1, dtype=np.int64)
    for offset, base in ((0, stamp_sum), (layout.JSON_HEADER_OFFSET, json_sum)):
        records[:, offset : offset + layout.KEY_HEX_DIGITS] = names
        octal = b"".join(b"%06o\0 " % total for total in (name_sums + base).tolist())
        checksums = np.frombuffer(octal, np.uint8).reshape(rows, 8)
        records[:, offset + _CHECKSUM.start : offset + _CHECKSUM.stop] = checksums


def encode_json(columns: Mapping[str, Sequence[Any]]) -> list[bytes | None]:
    """JSON members of many records, each padded with spaces to its fixed size.

    Parameters
    ----------
    columns : mapping of str to sequence
        Values of all records for some or all of ``JSON_FIELDS``, and for ``COUNTERFACTUAL``, which
        is written where it is not null; others are ignored.

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
    for row, kind in enumerate(columns.get(layout.COUNTERFACTUAL, ())):
        if kind is not None:
            member = f'"{layout.COUNTERFACTUAL}":{encode_basestring_ascii(kind)}'
            texts[row] = f"{texts[row][:-1]},{member}}}"
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


def set_json(records: NDArray[np.uint8], texts: Sequence[bytes]) -> None:
    """Write the padded JSON members (see `encode_json`) into the records, in place."""
    block = np.frombuffer(b"".join(texts), np.uint8).reshape(len(texts), layout.JSON_BYTES)
    records[:, layout.JSON_OFFSET :] = block


def payload_crc32(records: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """CRC-32 of each record's pixels, shape (rows,)."""
    try:
        from deflate import crc32
    except ImportError:  # the contract itself needs NumPy alone; zlib is only slower
        crc32 = zlib.crc32
    payload = records[:, layout.PAYLOAD_OFFSET : layout.PAYLOAD_OFFSET + layout.PAYLOAD_BYTES]
    return np.fromiter((crc32(row) for row in payload), np.uint32, len(payload))


def record_key(record: NDArray[np.uint8]) -> str:
    """Key of one record, read from its first header."""
    return bytes(record[: layout.KEY_HEX_DIGITS]).decode("ascii", "replace")


def record_json(record: NDArray[np.uint8]) -> dict[str, Any]:
    """JSON member of one record.

    Raises
    ------
    ValueError
        If it is not valid JSON, or a field of `JSON_MEMBERS` has the wrong type.
    """
    fields = parse_json(bytes(record[layout.JSON_OFFSET :]))
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


def header_faults(records: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rows whose headers or padding are not exactly what the writer makes of their own key.

    Parameters
    ----------
    records : ndarray of uint8, shape (rows, RECORD_STRIDE)

    Returns
    -------
    ndarray of int64
        Positions of the faulty rows.
    """
    rows = len(records)
    expected = new_records(rows)
    keys = ["".join(map(chr, row)) for row in records[:, : layout.KEY_HEX_DIGITS].tolist()]
    hexadecimal = np.array([set(key) <= set("0123456789abcdef") for key in keys], bool)
    set_keys(
        expected, [k if good else _PLACEHOLDER for k, good in zip(keys, hexadecimal, strict=True)]
    )
    bad = ~hexadecimal
    end = layout.PAYLOAD_OFFSET + layout.PAYLOAD_BYTES
    for span in (slice(0, layout.PAYLOAD_OFFSET), slice(end, layout.JSON_OFFSET)):
        bad |= (records[:, span] != expected[:, span]).any(axis=1)
    return np.flatnonzero(bad)

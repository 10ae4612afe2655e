"""Sorted runs of finished records in an object store, read by the stretches that a task needs.

    send_run(store, "run-000000-000", records, table)
    stretches = fetch_stretches(store, names, split, low, high, path)

A run is one object, ``NAME.run``, in the order of `lensprep.convert.spill`:

    records | sidecar rows, ``_INDEX_ROWS`` to an Arrow message | index | length of the index

Beside what the sidecar will hold, a row has the CRC-32 of its record.

The index (where each message begins, and the first place in it) comes with the end of the object
and is kept by the process, so that a task then asks each run for two ranges: sidecar rows, and
records. The records go to one local file, as large as the task's shards, and are stretches of that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
from deflate import crc32
from numpy.typing import NDArray

from lensprep.convert.spill import Stretch, bisect_places, sort_run
from lensprep.dataset.layout import SPLITS
from lensprep.decode.placement import PLACE
from lensprep.errors import StorageError
from lensprep.store import Piece, RemoteStore
from lensprep.store.transfer import SMALL_PART_BYTES, give_back, take_memory, upload_parts

RUN_SUFFIX: Final = ".run"

_INDEX_ROWS: Final = 64
"""Sidecar rows of one message: 50 kB, somewhat more than a task needs of a run of a large tree."""
_TAIL_BYTES: Final = 64 << 10
"""Read from the end of a run for its index: a table of at most 64 messages, and its schema."""
_LENGTH_BYTES: Final = 8
_UNREADABLE: Final = (OSError, pa.ArrowException, ValueError)
"""What pyarrow raises for damaged bytes."""
_CRC: Final = "record_crc32"
"""Column of a run's sidecar rows: of the whole record, which nothing else can verify."""
_READINGS: Final = 4
"""Attempts to read records whose CRC-32 is wrong: a network may have altered them."""


def send_run(store: RemoteStore, name: str, records: NDArray[np.uint8], table: pa.Table) -> None:
    """Write one run, sorted; see `lensprep.convert.spill.write_run`.

    Raises
    ------
    StorageError
        If the store refuses or does not answer; no unfinished run is left.
    """
    order, rows, starts = sort_run(table)
    rows = rows.append_column(_CRC, pa.array(_crc32(records[row] for row in order), pa.uint32()))
    end = _pack_rows(rows, starts)
    stride = records.shape[1]
    size = len(order) * stride + len(end)
    rows = -(-SMALL_PART_BYTES // stride)  # no part but the last may be smaller
    parts = _parts(store, records, order, rows, end)
    upload_parts(store, name + RUN_SUFFIX, parts, size, rows * stride)


def _crc32(records: Iterable[NDArray[np.uint8]]) -> list[int]:
    return [crc32(record) for record in records]


def _parts(
    store: RemoteStore, records: NDArray[np.uint8], order: NDArray[np.intp], rows: int, end: bytes
) -> Iterator[bytes | bytearray]:
    """Sorted records in parts of so many rows, the last one with the end of the object."""
    stride = records.shape[1]
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        part = take_memory(store, rows * stride)
        view = np.frombuffer(part, np.uint8).reshape(rows, stride)[: len(chosen)]
        np.take(records, chosen, axis=0, out=view, mode="clip")  # "raise" would make a copy
        if first + rows < len(order):
            yield part
        else:
            yield b"".join((view.data, end))
            give_back(store, part, rows * stride)


def _pack_rows(rows: pa.Table, starts: list[int]) -> bytes:
    """Sidecar rows as messages, then the index, then its length."""
    batches = rows.replace_schema_metadata(None).to_batches(max_chunksize=_INDEX_ROWS)
    messages = [bytes(batch.serialize()) for batch in batches]
    offsets = [0, *accumulate(map(len, messages))]
    places = [batch[PLACE][0].as_py() for batch in batches] + [0]
    index = pa.table(
        {"offset": pa.array(offsets, pa.int64()), "place": pa.array(places, pa.uint64())}
    ).replace_schema_metadata(
        {
            "starts": ",".join(map(str, starts)),
            "rows": str(_INDEX_ROWS),
            "schema": rows.schema.remove_metadata().serialize().to_pybytes(),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, index.schema) as writer:
        writer.write_table(index)
    packed = sink.getvalue().to_pybytes()
    return b"".join((*messages, packed, len(packed).to_bytes(_LENGTH_BYTES, "little")))


# ----------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class _Index:
    """Where the rows of one run are."""

    name: str
    stride: int
    """Bytes of a record."""
    starts: tuple[int, ...]
    """Row at which each split begins, and the number of all rows."""
    rows: int
    """Rows of a message; the last one may have fewer."""
    offsets: NDArray[np.int64]
    """Byte of the object at which each message begins, and at which the last one ends."""
    places: NDArray[np.uint64]
    """Place of the first row of each message."""
    schema: pa.Schema

    def messages(self, split: int, low: int, high: int) -> tuple[int, int]:
        """First message, and the one after the last, that may hold rows of a range of places."""
        begin, end = self.starts[split], self.starts[split + 1]
        if begin == end:
            return 0, 0
        first, last = begin // self.rows, -(-end // self.rows)
        # Places of the messages that begin inside the split are sorted; before them lies one
        # message that may begin in the split before.
        inside = -(-begin // self.rows)
        places = self.places[inside:last]
        start = max(first, inside + bisect_places(places, low) - 1)
        return start, inside + bisect_places(places, high)


_indexes: dict[tuple[str, str], dict[str, _Index]] = {}
_schemas: dict[bytes, pa.Schema] = {}
"""One object for the schema of all runs: a large tree has thousands of them."""


def _indexes_of(store: RemoteStore, conversion: str, names: Sequence[str]) -> list[_Index]:
    """Indexes of runs, kept for the next task of the same conversion."""
    key = (store.uri, conversion)
    if key not in _indexes:
        _indexes.clear()
        _schemas.clear()
        _indexes[key] = {}
    known = _indexes[key]
    missing = [name for name in names if name not in known]
    futures = [store.connection.threads.submit(_read_index, store, name) for name in missing]
    known.update(zip(missing, store.connection.results(futures), strict=True))
    return [known[name] for name in names]


def _read_index(store: RemoteStore, name: str) -> _Index:
    tail, entry = store.read_tail(name + RUN_SUFFIX, _TAIL_BYTES)
    length = int.from_bytes(tail[-_LENGTH_BYTES:], "little")
    stop = entry.bytes - _LENGTH_BYTES
    if length > stop:
        raise _unusable(store, name)
    if length > len(tail) - _LENGTH_BYTES:
        packed = store.read_version(entry, stop - length, stop)
    else:
        packed = tail[-_LENGTH_BYTES - length : -_LENGTH_BYTES]
    try:
        index = pa.ipc.open_stream(packed).read_all()
        metadata = index.schema.metadata
        starts = tuple(int(n) for n in metadata[b"starts"].split(b","))
        rows = int(metadata[b"rows"])
    except (*_UNREADABLE, KeyError, TypeError):
        raise _unusable(store, name) from None
    text = metadata[b"schema"]
    if text not in _schemas:
        _schemas[text] = pa.ipc.read_schema(pa.py_buffer(text))
    if _CRC not in _schemas[text].names:
        raise _unusable(store, name, "was written by an earlier version")
    offsets = index["offset"].to_numpy()
    records = stop - length - int(offsets[-1])  # what is before the messages
    stride, rest = divmod(records, starts[-1])
    if rest or stride <= 0:
        raise _unusable(store, name)
    offsets, places = offsets + records, index["place"].to_numpy()[:-1]
    return _Index(name, stride, starts, rows, offsets, places, _schemas[text])


def _unusable(store: RemoteStore, name: str, what: str = "is damaged") -> StorageError:
    return StorageError(
        f"{store.locate(name + RUN_SUFFIX)} {what}. Remove it and "
        f"{name.rpartition('-')[0]}.json next to it, and run the same command with --resume."
    )


def fetch_stretches(
    store: RemoteStore,
    conversion: str,
    names: Sequence[str],
    split: str,
    low: int,
    high: int,
    path: Path,
) -> list[Stretch]:
    """Rows of a split with ``low <= place < high``, one stretch a run, with their records.

    Parameters
    ----------
    store : RemoteStore
    conversion : str
        Distinguishes this conversion from an earlier one with runs of the same names.
    names : sequence of str
        Runs.
    split : str
    low, high : int
        Range of places, in [0, 2**64].
    path : Path
        Local file for the records; created or overwritten.

    Raises
    ------
    StorageError
        If a run is missing or damaged, the store does not answer, or the disk is full.
    """
    indexes = _indexes_of(store, conversion, names)
    threads, number = store.connection.threads, SPLITS.index(split)
    futures = [threads.submit(_fetch_rows, store, index, number, low, high) for index in indexes]
    found: list[tuple[int, pa.Table]] = store.connection.results(futures)
    firsts = [0, *accumulate(table.num_rows for _, table in found)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb", opener=partial(os.open, mode=0o600)) as file:
            jobs = [
                threads.submit(_fetch_records, store, index, row + done, piece, file, first + done)
                for index, (row, table), first in zip(indexes, found, firsts, strict=False)
                for step in [max(1, SMALL_PART_BYTES // index.stride)]
                for done in range(0, table.num_rows, step)
                for piece in [table.slice(done, step)]
            ]
            store.connection.results(jobs)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error
    return [
        Stretch(path, first, table.drop_columns([_CRC]))
        for (_, table), first in zip(found, firsts, strict=False)
    ]


def _fetch_rows(
    store: RemoteStore, index: _Index, split: int, low: int, high: int
) -> tuple[int, pa.Table]:
    """Row at which a stretch begins, and its sidecar rows."""
    first, stop = index.messages(split, low, high)
    if first >= stop:
        return 0, index.schema.empty_table()
    begin, end = int(index.offsets[first]), int(index.offsets[stop])
    data = bytearray(end - begin)
    store.fill(Piece(index.name + RUN_SUFFIX, begin, memoryview(data)))
    bounds = (index.offsets[first : stop + 1] - begin).tolist()
    buffer = pa.py_buffer(data)
    try:
        batches = [
            pa.ipc.read_record_batch(buffer.slice(a, b - a), index.schema)
            for a, b in pairwise(bounds)
        ]
    except _UNREADABLE:
        raise _unusable(store, index.name) from None
    table = pa.Table.from_batches(batches)
    # The first and the last message may hold rows of the neighbouring splits too.
    row = first * index.rows
    skip = max(0, index.starts[split] - row)
    table = table.slice(skip, index.starts[split + 1] - row - skip)
    places = table[PLACE].to_numpy()
    start, end = bisect_places(places, low), bisect_places(places, high)
    # A copy: a slice would keep all that was read.
    return row + skip + start, table.take(pa.array(np.arange(start, end))).combine_chunks()


def _fetch_records(
    store: RemoteStore, index: _Index, row: int, table: pa.Table, file: BinaryIO, target: int
) -> None:
    """Copy neighbouring records to their rows of the local file, once their CRC-32 is right."""
    data, stride = take_memory(store, SMALL_PART_BYTES), index.stride
    view, offset = memoryview(data)[: table.num_rows * stride], target * stride
    records = np.frombuffer(view, np.uint8).reshape(-1, stride)
    for _ in range(_READINGS):
        store.fill(Piece(index.name + RUN_SUFFIX, row * stride, view, checked=True))
        if _crc32(records) == table[_CRC].to_pylist():
            break
    else:
        raise _unusable(store, index.name)
    while view:
        count = os.pwrite(file.fileno(), view, offset)
        view, offset = view[count:], offset + count
    give_back(store, data, SMALL_PART_BYTES)

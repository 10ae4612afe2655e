"""Sorted runs of finished records on local disk: the external shuffle of a conversion.

Runs in an object store (`lensprep.convert.spill_remote`) are read as the same stretches.

A run is two files: ``NAME.dat``, the records, and ``NAME.arrow``, their sidecar rows. Both are
sorted by (split, place), so the rows of any shard, or of several neighbouring ones, are one stretch
of each run, found by bisection. Memory is that of one run while writing and of a block of a shard
while reading, however many rows there are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset.layout import SOURCE_COLUMNS, SPLITS
from lensprep.decode.placement import PLACE, sort_order
from lensprep.errors import StorageError
from lensprep.store import atomic_writer

_IOV_MAX = 1024
"""Buffers that the kernel takes in one vectored read."""

_WRITE_BYTES = 64 * 26_624
"""Of records gathered and written at a time. One vectored write of many rows without gathering them
is no faster, and several times slower where memory is fragmented, since the kernel then looks for
large ranges of free pages."""


def write_run(stem: Path, records: NDArray[np.uint8], table: pa.Table) -> None:
    """Write one run, sorted.

    Parameters
    ----------
    stem : Path
        Path of both files without their endings.
    records : ndarray of uint8, shape (rows, stride)
    table : pyarrow.Table
        Sidecar rows in the same order, with ``place`` (uint64), ``key`` and ``region_split``.

    Raises
    ------
    StorageError
        If the disk refuses; nothing is left under the final names.
    """
    order, sorted_table, starts = sort_run(table)
    step = max(1, _WRITE_BYTES // records.shape[1])
    with atomic_writer(stem.with_suffix(".dat")) as file:
        for first in range(0, len(order), step):
            file.write(records[order[first : first + step]].data)
    metadata = {"starts": ",".join(map(str, starts))}
    sorted_table = sorted_table.replace_schema_metadata(metadata)
    with (
        atomic_writer(stem.with_suffix(".arrow")) as file,
        pa.ipc.new_file(file, sorted_table.schema) as writer,
    ):
        writer.write_table(sorted_table)


def sort_run(table: pa.Table) -> tuple[NDArray[np.intp], pa.Table, list[int]]:
    """Order of a run's rows, its sorted table, and where each split begins (and the last ends)."""
    split = _split_codes(table["region_split"])
    places = table[PLACE].to_numpy()
    order = np.lexsort((table["key"].to_numpy(zero_copy_only=False), places, split))
    starts = np.searchsorted(split[order], np.arange(len(SPLITS) + 1))
    return order, table.take(order).combine_chunks(), starts.tolist()


def _split_codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return pc.index_in(column, pa.array(SPLITS)).to_numpy()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of one run that belong to a range of places of one split; there may be none."""

    data: Path
    first: int
    """Row of the run's data file at which the stretch begins."""
    table: pa.Table
    """Sidecar rows of the stretch, sorted by place."""

    def between(self, low: int, high: int) -> Stretch:
        """The rows with ``low <= place < high``; both in [0, 2**64]."""
        places = self.table[PLACE].to_numpy()
        start, stop = bisect_places(places, low), bisect_places(places, high)
        return Stretch(self.data, self.first + start, self.table.slice(start, stop - start))


def bisect_places(places: NDArray[np.uint64], place: int) -> int:
    """Number of sorted places below one in [0, 2**64]."""
    return len(places) if place >= 1 << 64 else int(np.searchsorted(places, np.uint64(place)))


def read_stretches(stems: Sequence[Path], split: str, low: int, high: int) -> list[Stretch]:
    """Sidecar rows of a split with ``low <= place < high`` (in [0, 2**64]), one stretch per run."""
    return [_read_stretch(stem, SPLITS.index(split), low, high) for stem in stems]


def _read_stretch(stem: Path, split: int, low: int, high: int) -> Stretch:
    with pa.memory_map(str(stem.with_suffix(".arrow"))) as file:
        table = pa.ipc.open_file(file).read_all()
        starts = [int(n) for n in table.schema.metadata[b"starts"].split(b",")]
        begin, end = starts[split], starts[split + 1]
        places = table[PLACE].slice(begin, end - begin).to_numpy()
        first, stop = begin + bisect_places(places, low), begin + bisect_places(places, high)
        # A copy: a slice would keep the whole run mapped, and count as this process's memory.
        rows = table.take(pa.array(np.arange(first, stop)))
        return Stretch(stem.with_suffix(".dat"), first, rows.replace_schema_metadata(None))


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of one shard in final order, and where their records are."""

    table: pa.Table
    """Sidecar rows in tar order."""
    dropped: pa.Table
    """Duplicates (same task_id and pixels), which are left out."""
    stretches: list[tuple[Path, int, NDArray[np.int64]]]
    """For each stretch: data file, first row, and each row's row in the tar (-1: dropped)."""


def arrange(stretches: Sequence[Stretch]) -> ShardRows:
    """Put the rows of a shard in order and drop duplicates.

    Of rows with the same key the one whose other columns sort first is kept, so that the choice
    does not depend on the order of the files; only if all are equal does the source decide.
    """
    table = pa.concat_tables(s.table for s in stretches)
    keys = table["key"].to_numpy(zero_copy_only=False).astype("S")
    order = sort_order(table[PLACE].to_numpy(), keys)
    keep = np.ones(len(order), bool)
    keep[1:] = keys[order][1:] != keys[order][:-1]
    if not keep.all():
        order = _order_equals(table, order, keep)
    target = np.full(len(order), -1, np.int64)
    target[order[keep]] = np.arange(keep.sum())
    found, start = [], 0
    for stretch in stretches:
        stop = start + stretch.table.num_rows
        found.append((stretch.data, stretch.first, target[start:stop]))
        start = stop
    return ShardRows(
        table.take(order[keep]).drop_columns([PLACE]),
        table.take(order[~keep]).drop_columns([PLACE]),
        found,
    )


def _order_equals(
    table: pa.Table, order: NDArray[np.intp], new: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Sort rows of equal keys by their content, then by their source; ``new`` marks other keys."""
    content = [name for name in table.column_names if name not in (PLACE, *SOURCE_COLUMNS)]
    positions = np.flatnonzero(~new | ~np.r_[new[1:], True])
    rows = table.take(order[positions]).select([*content, *SOURCE_COLUMNS]).to_pylist()
    texts = [repr(tuple(row.values())) for row in rows]
    # Rows of one key are already neighbours, so they are only sorted within their group.
    group = np.cumsum(new)[positions]
    ranked = sorted(range(len(texts)), key=lambda i: (group[i], texts[i]))
    result = order.copy()
    result[positions] = order[positions[ranked]]
    return result


def read_records(rows: ShardRows, records: NDArray[np.uint8], first: int = 0) -> NDArray[np.uint8]:
    """Read some neighbouring records of a shard in tar order, each straight into its row.

    Parameters
    ----------
    rows : ShardRows
    records : ndarray of uint8, shape (n, stride)
        Where to put them; also returned.
    first : int
        Row of the tar that is the first of `records`.

    Raises
    ------
    StorageError
        If a run is shorter than its sidecar says.
    """
    stride = records.shape[1]
    scratch = np.empty(stride, np.uint8).data
    for path, start, in_tar in rows.stretches:
        targets = in_tar - first
        wanted = np.flatnonzero((targets >= 0) & (targets < len(records)))
        if not len(wanted):
            continue
        # Sorted by place: the wanted rows are neighbours, but for those left out among them.
        low, high = int(wanted[0]), int(wanted[-1]) + 1
        inside = (targets[low:high] >= 0) & (targets[low:high] < len(records))
        buffers = [
            records[row].data if kept else scratch
            for row, kept in zip(targets[low:high].tolist(), inside.tolist(), strict=True)
        ]
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for i in range(0, len(buffers), _IOV_MAX):
                offset = (start + low + i) * stride
                _read_all(descriptor, buffers[i : i + _IOV_MAX], offset, path)
        finally:
            os.close(descriptor)
    return records


def _read_all(descriptor: int, buffers: list[memoryview], offset: int, path: Path) -> None:
    stride = len(buffers[0])
    if os.preadv(descriptor, buffers, offset) == len(buffers) * stride:
        return
    # A short read in the middle is legal though rare: then row by row, each to its end.
    for number, buffer in enumerate(buffers):
        view, position = buffer, offset + number * stride
        while len(view):
            count = os.preadv(descriptor, [view], position)
            if not count:
                size = os.fstat(descriptor).st_size
                raise StorageError(f"{path} ends at byte {size}: truncated during conversion.")
            view, position = view[count:], position + count

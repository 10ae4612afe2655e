"""The two rounds of tasks of a conversion: row groups -> sorted runs, then runs -> shards.

A task leaves a small JSON file when it is done. Its files have fixed names and its shards fixed
bytes, so doing it again, here or elsewhere, is harmless. Where runs lie (`lensprep.workfolder`) and
where shards go, here or in an object store, makes no difference to them.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.account import UNLABELLED, Account
from lensprep.contract import STAMP_COLUMN, FilterRules
from lensprep.dataset.layout import RECORD_STRIDE
from lensprep.dataset.manifest import NormalizationSpec
from lensprep.dataset.record import blank_records
from lensprep.dataset.s3 import S3Store
from lensprep.dataset.writer import send_shard, write_shard
from lensprep.errors import InputError
from lensprep.normalize import Normalizer
from lensprep.placement import shard_range
from lensprep.places import Scratch
from lensprep.prepare import REJECT_SCHEMA, Prepared, Preparer, duplicate_rows, unreadable_rows
from lensprep.source import Source, SourceFile
from lensprep.spill import ShardRows, Stretch, arrange, read_records
from lensprep.stampnpz import RejectReason
from lensprep.workfolder import Work

RUN_ROWS = 4096
"""Rows of one run: 109 MB of records in memory."""

BATCH_ROWS = 1024
"""Rows whose scalar columns are handled at a time; a multiple of ``READ_ROWS``."""

READ_ROWS = 128
"""Blobs read from parquet at a time."""

BLOB_ROWS = 32
"""Blobs decoded at a time: pixels (1.5 MB) and records stay in the cache while they are needed."""

_WRITE_ROWS = 64
"""Records hashed and written at a time: 1.7 MB, still in the cache when they are written."""


@contextmanager
def _without_collector() -> Iterator[None]:
    """Let the search for cycles rest: a task makes none, and looking costs it three per cent."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@dataclass(frozen=True, slots=True)
class RunTask:
    """First round: some row groups -> sorted runs."""

    index: int
    source: Source
    parts: tuple[tuple[SourceFile, int], ...]
    """File and row group."""
    seed: int
    rules: FilterRules
    spec: NormalizationSpec
    skip_bad_files: bool
    work: Work

    @property
    def name(self) -> str:
        """Name of the task's files without ending."""
        return f"run-{self.index:06d}"


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Second round: the rows of some neighbouring shards -> those shards."""

    split: str
    first: int
    stop: int
    shards: int
    """Number of shards of the whole split."""
    root: Path | None
    """Local folder in which the shards stay; they go through ``scratch`` if there is none."""
    store: S3Store | None
    """Object store that they are sent to."""
    work: Work
    scratch: Scratch
    runs: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Names of the shards' files in the work folder, without ending."""
        return [f"shard-{self.split}-{index:06d}" for index in range(self.first, self.stop)]


def peak_rss_bytes() -> int:
    """Largest resident memory that this process has had so far, bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        # Not Linux. There `ru_maxrss` would be too high: a new process inherits its parent's.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --------------------------------------------------------------------------- first round


@_without_collector()
def run_rows(task: RunTask) -> dict[str, Any]:
    """Do one task of the first round; a task that is done already only reports.

    Returns
    -------
    dict
        ``rows`` read, ``account`` (see `Account.to_list`), ``runs``: names, ``peak_rss_bytes``.
    """
    (done,) = task.work.read_markers([task.name])
    if done is not None:
        return dict(done)
    account, left_out = Account(), [REJECT_SCHEMA.empty_table()]
    preparer = Preparer(task.seed, task.rules, Normalizer(task.spec), BLOB_ROWS)
    runs = _RunWriter(task)
    for table, blobs in _batches(task, account, left_out):
        prepared = preparer(table, blobs, runs.space(table.num_rows))
        runs.add(prepared)
        left_out.append(prepared.left_out)
    runs.flush()
    account.merge(preparer.account)
    task.work.write_left_out(task.name, pa.concat_tables(left_out))
    result = {
        "rows": account.input_rows,
        "account": account.to_list(),
        "runs": runs.names,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    task.work.write_marker(task.name, result)
    return result


class _RunWriter:
    """Collects finished records in memory and writes them as a run when it is full."""

    def __init__(self, task: RunTask) -> None:
        rows = sum(file.row_groups[group].rows for file, group in task.parts)
        self._task = task
        self._records = _scratch(min(rows, RUN_ROWS))
        blank_records(self._records)
        self._tables: list[pa.Table] = []
        self._used = 0
        self.names: list[str] = []

    def space(self, rows: int) -> NDArray[np.uint8]:
        """Room for so many records more."""
        if self._used + rows > len(self._records):
            self.flush()
        return self._records[self._used :]

    def add(self, prepared: Prepared) -> None:
        """Count what was put into the room as written."""
        self._used += prepared.rows
        self._tables.append(prepared.table)

    def flush(self) -> None:
        """Write what there is."""
        if self._used:
            name = f"{self._task.name}-{len(self.names):03d}"
            table = pa.concat_tables(self._tables)
            self._task.work.write_run(name, self._records[: self._used], table)
            self.names.append(name)
            self._tables, self._used = [], 0
            # What parquet pages were decoded in would stay with the allocator, a third of a worker.
            pa.default_memory_pool().release_unused()


_memory: NDArray[np.uint8] = np.empty((0, RECORD_STRIDE), np.uint8)


def _scratch(rows: int) -> NDArray[np.uint8]:
    """Memory for so many records, the same at each call: fresh memory must be zeroed first."""
    global _memory
    if len(_memory) < rows:
        _memory = np.empty((rows, RECORD_STRIDE), np.uint8)
    return _memory[:rows]


def _batches(
    task: RunTask, account: Account, left_out: list[pa.Table]
) -> Iterator[tuple[pa.Table, Iterator[pa.ChunkedArray]]]:
    """Scalar columns of a task's rows with the ``source_*`` columns, and their blobs.

    With ``skip_bad_files`` each row group is read to its end before its first row is used, since
    it is left out whole if any part of it is corrupt.
    """
    light = [name for name in task.source.schema.names if name != STAMP_COLUMN]
    for file, group in task.parts:
        if task.skip_bad_files and not _readable(task.source, file, group):
            rows = file.row_groups[group].rows
            left_out.append(unreadable_rows(file.path, file.split, group, rows))
            split = file.split or UNLABELLED
            account.counts[split, UNLABELLED, RejectReason.UNREADABLE.value] += rows
            continue
        row = 0
        blobs = task.source.iter_row_group(file, group, [STAMP_COLUMN], batch_rows=READ_ROWS)
        for table in task.source.iter_row_group(file, group, light, batch_rows=BATCH_ROWS):
            yield _with_source(table, file, group, row), _next_blobs(blobs, table.num_rows)
            row += table.num_rows
        next(blobs, None)  # a damaged end of the column is found only by reading on


def _with_source(table: pa.Table, file: SourceFile, group: int, first: int) -> pa.Table:
    rows = table.num_rows
    return (
        table.append_column("source_file", pa.array([file.path] * rows, pa.string()))
        .append_column("source_row_group", pa.array(np.full(rows, group, np.int32)))
        .append_column("source_row", pa.array(np.arange(first, first + rows)))
    )


def _next_blobs(blobs: Iterator[pa.Table], rows: int) -> Iterator[pa.ChunkedArray]:
    """The next blobs, as many as there are rows, a few at a time."""
    while rows > 0:
        column = next(blobs)[STAMP_COLUMN]
        rows -= len(column)
        for start in range(0, len(column), BLOB_ROWS):
            yield column.slice(start, BLOB_ROWS)


def _readable(source: Source, file: SourceFile, group: int) -> bool:
    try:
        rows = sum(t.num_rows for t in source.iter_row_group(file, group, batch_rows=BLOB_ROWS))
    except InputError:
        return False
    return rows == file.row_groups[group].rows


# -------------------------------------------------------------------------- second round


@_without_collector()
def write_shards(task: ShardTask) -> list[dict[str, Any]]:
    """Do one task of the second round; shards that are done already are only reported.

    Returns
    -------
    list of dict
        For each shard ``shard`` (as `ShardInfo`), ``classes``, ``regions``, ``dropped``: the
        rows that were there twice, by class, and ``peak_rss_bytes``.
    """
    found = task.work.read_markers(task.names)
    if all(result is not None for result in found):
        return found
    low, _ = shard_range(task.first, task.shards)
    _, high = shard_range(task.stop - 1, task.shards)
    with (
        task.scratch.folder(task.names[0]) as scratch,
        task.work.stretches(task.runs, task.split, low, high, scratch) as stretches,
    ):
        return [
            result or _write_shard(task, index, stretches, scratch)
            for index, result in zip(range(task.first, task.stop), found, strict=True)
        ]


def _write_shard(
    task: ShardTask, index: int, stretches: Sequence[Stretch], scratch: Path
) -> dict[str, Any]:
    """Write one shard, send it if it is to go elsewhere, and say that it is done."""
    places = shard_range(index, task.shards)
    rows = arrange([stretch.between(*places) for stretch in stretches])
    root = task.root or scratch
    shard = write_shard(root, task.split, index, _record_blocks(rows), rows.table)
    if task.store is not None:
        send_shard(root, shard, task.store, keep=task.root is not None)
    name = task.names[index - task.first]
    task.work.write_left_out(name, duplicate_rows(rows.dropped))
    result = {
        "shard": asdict(shard),
        "classes": _value_counts(rows.table["label"]),
        "regions": pc.unique(rows.table["region_id"]).to_pylist(),
        "dropped": _value_counts(rows.dropped["label"]),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    task.work.write_marker(name, result)
    return result


def _record_blocks(rows: ShardRows) -> Iterator[NDArray[np.uint8]]:
    """Records of a shard in tar order, a few at a time; no more is in memory than in a run."""
    count = rows.table.num_rows
    for first in range(0, count, RUN_ROWS):
        records = read_records(rows, _scratch(min(RUN_ROWS, count - first)), first)
        for start in range(0, len(records), _WRITE_ROWS):
            yield records[start : start + _WRITE_ROWS]


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {str(e["values"]): e["counts"] for e in pc.value_counts(column).to_pylist()}

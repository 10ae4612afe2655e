"""The two rounds of tasks of a conversion: row groups -> sorted runs, then runs -> shards.

A task leaves a small JSON file when it is done. Its files have fixed names and its shards fixed
bytes, so doing it again, here or elsewhere, is harmless. Where runs lie
(`lensprep.convert.workfolder`) and where shards go, here or in an object store, makes no difference
to them.
"""

from __future__ import annotations

import gc
import logging
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.convert.sites import Scratch
from lensprep.convert.spill import ShardRows, Stretch, arrange, read_records
from lensprep.convert.workfolder import LocalWork, Work
from lensprep.dataset.layout import RECORD_STRIDE, shard_name
from lensprep.dataset.normalization import NormalizationSpec, normalization_spec
from lensprep.dataset.record import blank_records
from lensprep.dataset.writer import send_shard, write_shard
from lensprep.decode.account import UNLABELLED, Account
from lensprep.decode.normalize import Normalizer
from lensprep.decode.placement import shard_range
from lensprep.decode.prepare import (
    BLOB_ROWS,
    REJECT_SCHEMA,
    Prepared,
    Preparer,
    duplicate_rows,
    unreadable_rows,
)
from lensprep.decode.stampnpz import RejectReason
from lensprep.engine.trial import find_fatal
from lensprep.errors import InputError, size_text
from lensprep.source.contract import STAMP_COLUMN, FilterRules
from lensprep.source.tree import Source, SourceFile
from lensprep.store.s3 import S3Store

_log = logging.getLogger("lensprep.rounds")

RUN_ROWS = 4096
"""Rows of one run: 109 MB of records in memory."""

BATCH_ROWS = 1024
"""Rows whose scalar columns are handled at a time; a multiple of ``READ_ROWS``."""

READ_ROWS = 128
"""Blobs read from parquet at a time."""

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

    @property
    def label(self) -> str:
        """What a person calls it."""
        groups: dict[str, list[int]] = {}
        for file, group in self.parts:
            groups.setdefault(file.path, []).append(group)
        return "; ".join(
            f"{path}, row group{'' if len(of) == 1 else 's'} {' to '.join(map(str, _ends(of)))}"
            for path, of in groups.items()
        )


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

    @property
    def label(self) -> str:
        """What a person calls it."""
        ends = _ends(range(self.first, self.stop))
        return " to ".join(shard_name(self.split, index) for index in ends)


def _ends(numbers: Sequence[int]) -> list[int]:
    """First and last of some numbers, once if they are the same."""
    return sorted({numbers[0], numbers[-1]})


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

    While it goes on a note says so. One that is there already was left by a process that died, of
    what it read or of something else: that is found out before any of it is read here.

    Returns
    -------
    dict
        ``rows`` read, ``account`` (see `Account.to_list`), ``read_again``: rows, ``runs``: names,
        ``peak_rss_bytes``.

    Raises
    ------
    InputError
        If a row group cannot be read, or kills whoever reads it, and ``skip_bad_files`` is not set.
    """
    note = f"begun-{task.name}"
    done, begun = task.work.read_markers([task.name, note])
    if done is not None:
        return dict(done)
    fatal = find_fatal(partial(_try_part, task), task.parts) if begun is not None else []
    if fatal and not task.skip_bad_files:
        file, group = fatal[0]
        raise InputError(
            f"{file.path}, row group {group} kills the process that reads it; a second one, which "
            "read nothing else, died too: it is damaged, or there is not enough memory for its "
            f"{size_text(file.row_groups[group].bytes)}. Use fewer --workers, copy the file again, "
            "or leave the row group out with --skip-bad-files."
        )
    task.work.write_marker(note, task.label)
    account, left_out = Account(), [REJECT_SCHEMA.empty_table()]
    runs = _RunWriter(task)
    for prepared in _prepared(task, fatal, runs.space, account, left_out):
        runs.add(prepared)
    runs.flush()
    task.work.write_left_out(task.name, pa.concat_tables(left_out))
    result = {
        "rows": account.input_rows,
        "account": account.to_list(),
        "read_again": account.read_again,
        "runs": runs.names,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    task.work.write_marker(task.name, result)
    task.work.remove_marker(note)
    return result


def _try_part(task: RunTask, part: tuple[SourceFile, int]) -> None:
    """All that is done with a row group until its records are written."""
    for _ in _prepared(replace(task, parts=(part,)), [], _scratch, Account(), []):
        pass


def left_out_rows(source: Source, file: SourceFile) -> pa.Table:
    """Rows of a file that conversion leaves out without being asked to, as in ``rejects.parquet``.

    Rows that are there twice are not among them: they are found when shards are gathered.
    """
    parts = tuple((file, number) for number, _ in file.filled)
    spec = normalization_spec("mad_stamp", 10.0)
    task = RunTask(0, source, parts, 0, FilterRules(), spec, True, LocalWork(Path()))
    left_out = [REJECT_SCHEMA.empty_table()]
    for _ in _prepared(task, [], _scratch, Account(), left_out):
        pass
    return pa.concat_tables(left_out)


def _prepared(
    task: RunTask,
    fatal: Sequence[tuple[SourceFile, int]],
    space: Callable[[int], NDArray[np.uint8]],
    account: Account,
    left_out: list[pa.Table],
) -> Iterator[Prepared]:
    """Finished records of a task's rows, in room that is asked for; other rows are accounted for.

    With ``skip_bad_files`` each row group is read to its end before its first row is used, since
    it is left out whole if any part of it is corrupt.
    """
    preparer = Preparer(task.seed, task.rules, Normalizer(task.spec), BLOB_ROWS)
    for file, group in task.parts:
        rows, reading = file.row_groups[group].rows, _RowGroup(task.source, file, group)
        lost = None
        if (file, group) in fatal:
            lost = RejectReason.CRASHED
        elif task.skip_bad_files and not reading.is_readable(rows):
            lost = RejectReason.UNREADABLE
        if lost is not None:
            left_out.append(unreadable_rows(file.path, file.split, group, rows, lost))
            account.counts[file.split or UNLABELLED, UNLABELLED, lost.value] += rows
            continue
        for table, blobs in reading.batches():
            prepared = preparer(table, blobs, space(table.num_rows), reading.again)
            left_out.append(prepared.left_out)
            yield prepared
        account.read_again += rows if reading.was_again else 0
    account.merge(preparer.account)


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


class _RowGroup:
    """One row group: scalar columns a batch at a time, stamps a few at a time.

    What comes over a network and is damaged is read a second time, carefully, before it is believed
    (`Source.iter_row_group`).
    """

    def __init__(self, source: Source, file: SourceFile, group: int) -> None:
        self._source, self._file, self._group = source, file, group
        self._read = partial(source.iter_row_group, file, group, on_again=self._begin_again)
        self._careful = not source.is_remote
        self._blobs, self._taken = self._pieces(careful=False), 0
        self.was_again = False
        """Whether something was read a second time."""

    def _begin_again(self) -> None:
        self.was_again = True

    def is_readable(self, rows: int) -> bool:
        """Read it to its end."""
        try:
            return rows == sum(table.num_rows for table in self._read(batch_rows=BLOB_ROWS))
        except InputError:
            return False

    def batches(self) -> Iterator[tuple[pa.Table, Iterator[pa.ChunkedArray]]]:
        """Scalar columns with the ``source_*`` columns, and the blobs of the same rows."""
        light = [name for name in self._source.schema.names if name != STAMP_COLUMN]
        row = 0
        for table in self._read(light, batch_rows=BATCH_ROWS):
            yield self._with_source(table, row), self._next_blobs(table.num_rows)
            row += table.num_rows
        next(self._blobs, None)  # a damaged end of the column is found only by reading on

    def again(self) -> pa.ChunkedArray | None:
        """The blobs that came last, from a careful reading, as are those that follow.

        None if they are from one already.
        """
        if self._careful:
            return None
        _log.warning(
            "%s, row group %d has a damaged stamp. Reading it again.", self._file.path, self._group
        )
        self._careful = self.was_again = True
        self._blobs = islice(self._pieces(careful=True), self._taken - 1, None)
        return next(self._blobs)

    def _pieces(self, *, careful: bool) -> Iterator[pa.ChunkedArray]:
        """All blobs, a few at a time."""
        for table in self._read([STAMP_COLUMN], batch_rows=READ_ROWS, careful=careful):
            for start in range(0, table.num_rows, BLOB_ROWS):
                yield table[STAMP_COLUMN].slice(start, BLOB_ROWS)

    def _next_blobs(self, rows: int) -> Iterator[pa.ChunkedArray]:
        """The next blobs, as many as there are rows."""
        while rows > 0:
            piece = next(self._blobs)
            self._taken += 1
            rows -= len(piece)
            yield piece

    def _with_source(self, table: pa.Table, first: int) -> pa.Table:
        rows = table.num_rows
        return (
            table.append_column("source_file", pa.array([self._file.path] * rows, pa.string()))
            .append_column("source_row_group", pa.array(np.full(rows, self._group, np.int32)))
            .append_column("source_row", pa.array(np.arange(first, first + rows)))
        )


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

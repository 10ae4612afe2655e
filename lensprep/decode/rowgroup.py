"""Row groups of a Phase 4c source -> finished records, their sidecar rows, and the rows left out.

Only this module decides what is read, and what is read again after damage: conversion, the check of
a source and the scoring of a tree see the same rows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset.layout import RECORD_STRIDE
from lensprep.dataset.normalization import normalization_spec
from lensprep.decode.account import UNLABELLED
from lensprep.decode.normalize import Normalizer
from lensprep.decode.prepare import (
    BLOB_ROWS,
    REJECT_SCHEMA,
    Prepared,
    Preparer,
    unreadable_rows,
)
from lensprep.decode.reasons import RejectReason
from lensprep.errors import InputError
from lensprep.source.contract import FilterRules
from lensprep.source.footers import SourceFile
from lensprep.source.survey import STAMP_COLUMN
from lensprep.source.tree import Source

_log = logging.getLogger("lensprep.decode")

BATCH_ROWS = 1024
"""Rows whose scalar columns are handled at a time; a multiple of ``READ_ROWS``."""

READ_ROWS = 128
"""Blobs read from parquet at a time."""

_memory = threading.local()


def record_memory(rows: int) -> NDArray[np.uint8]:
    """Memory of this thread for this many records, always the same: new memory is zeroed first."""
    if len(getattr(_memory, "records", ())) < rows:
        _memory.records = np.empty((rows, RECORD_STRIDE), np.uint8)
    return cast(NDArray[np.uint8], _memory.records[:rows])


def prepare_row_groups(
    source: Source,
    row_groups: Iterable[tuple[SourceFile, int]],
    preparer: Preparer,
    space: Callable[[int], NDArray[np.uint8]] = record_memory,
    *,
    skip_unreadable: bool = False,
    fatal: Collection[tuple[SourceFile, int]] = (),
) -> Iterator[Prepared]:
    """Prepare the rows of some row groups; all of them enter the account of the preparer.

    Parameters
    ----------
    source : Source
    row_groups : iterable of (SourceFile, int)
        File and number of each.
    preparer : Preparer
    space : callable
        Gives room for this many records; by default room that the next batch reuses.
    skip_unreadable : bool
        Leave out whole row groups that cannot be read to their end. Each is then read to its end
        before its first row is used.
    fatal : collection of (SourceFile, int)
        Row groups to leave out whole without reading them, since reading kills the process.

    Yields
    ------
    Prepared
        One for each batch of rows; one with an empty ``table`` for a row group left out whole.

    Raises
    ------
    InputError
        If a row group cannot be read and is not to be skipped.
    """
    account = preparer.account
    for file, group in row_groups:
        rows, reading = file.row_groups[group].rows, _RowGroup(source, file, group)
        lost = None
        if (file, group) in fatal:
            lost = RejectReason.CRASHED
        elif skip_unreadable and not reading.is_readable(rows):
            lost = RejectReason.UNREADABLE
        if lost is not None:
            account.counts[file.split or UNLABELLED, UNLABELLED, lost.value] += rows
            left_out = unreadable_rows(file.path, file.split, group, rows, lost)
            yield Prepared(record_memory(0), pa.table({}), left_out)
            continue
        for table, blobs in reading.batches():
            yield preparer(table, blobs, space(table.num_rows), reading.again)
        account.read_again += rows if reading.was_again else 0


def left_out_rows(source: Source, file: SourceFile) -> pa.Table:
    """Rows of a file that conversion would leave out by default, as in ``rejects.parquet``.

    Duplicates are not among them: they are only found when shards are gathered.
    """
    preparer = Preparer(0, FilterRules(), Normalizer(normalization_spec()))
    row_groups = ((file, number) for number, _ in file.filled)
    prepared = prepare_row_groups(source, row_groups, preparer, skip_unreadable=True)
    return pa.concat_tables([REJECT_SCHEMA.empty_table(), *(each.left_out for each in prepared)])


class _RowGroup:
    """One row group: scalar columns a batch at a time, stamps a few at a time.

    What arrives damaged over a network is read a second time, carefully (`Source.iter_row_group`).
    """

    def __init__(self, source: Source, file: SourceFile, group: int) -> None:
        self._source, self._file, self._group = source, file, group
        self._read = partial(source.iter_row_group, file, group, on_again=self._begin_again)
        self._careful = not source.is_remote(file)
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
        next(self._blobs, None)  # damage at the column's end is found only by reading on

    def again(self) -> pa.ChunkedArray | None:
        """The last blobs, read again carefully, as those that follow; None if they were already."""
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

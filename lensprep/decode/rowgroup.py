"""Row groups of a Phase 4c source -> finished records, their sidecar rows, and the rows left out.

Only this module decides what is read, and what is read again after damage: conversion, the check of
a source and the scoring of a tree see the same rows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.layout import REAL, SIMULATED
from lensprep.decode.account import UNLABELLED
from lensprep.decode.cutoutfile import read_catalog_cutout
from lensprep.decode.normalize import Normalizer
from lensprep.decode.prepare import (
    BLOB_ROWS,
    REJECT_SCHEMA,
    Piece,
    Prepared,
    Preparer,
    unreadable_rows,
)
from lensprep.decode.reasons import DAMAGE, RejectReason
from lensprep.decode.stampnpz import decode_batch
from lensprep.errors import InputError
from lensprep.source.catalog import CatalogPart, CutoutSource, fill_origin
from lensprep.source.contract import FilterRules, Labels
from lensprep.source.footers import SourceFile
from lensprep.source.survey import STAMP_COLUMN
from lensprep.source.tree import Source

_log = logging.getLogger("lensprep.decode")

BATCH_ROWS = 1024
"""Rows whose scalar columns are handled at a time, `Geometry.scaled_rows`; a multiple of
``READ_ROWS``."""

READ_ROWS = 128
"""Blobs read from parquet at a time, scaled too."""

_memory = threading.local()


def record_memory(rows: int, geometry: Geometry = DECALS) -> NDArray[np.uint8]:
    """Memory of this thread for this many records, always the same: new memory is zeroed first."""
    size = rows * geometry.stride
    if len(getattr(_memory, "bytes", ())) < size:
        _memory.bytes = np.empty(size, np.uint8)
    return cast(NDArray[np.uint8], _memory.bytes[:size].reshape(rows, geometry.stride))


def prepare_row_groups(
    source: Source,
    row_groups: Iterable[tuple[SourceFile, int]],
    preparer: Preparer,
    space: Callable[[int], NDArray[np.uint8]] | None = None,
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
    account, geometry = preparer.account, preparer.geometry
    space = space or partial(record_memory, geometry=geometry)
    for file, group in row_groups:
        name = source.name_of(file) if isinstance(source, CutoutSource) else None
        rows = file.row_groups[group].rows
        reading: _RowGroup | _CatalogRows = (
            _CatalogRows(file, geometry)
            if isinstance(file, CatalogPart)
            else _RowGroup(source, file, group, geometry)
        )
        lost = None
        if (file, group) in fatal:
            lost = RejectReason.CRASHED
        elif skip_unreadable and not reading.is_readable(rows):
            lost = RejectReason.UNREADABLE
        if lost is not None:
            account.counts[file.split or UNLABELLED, UNLABELLED, lost.value] += rows
            if name is not None:
                origin = REAL if isinstance(file, CatalogPart) else SIMULATED
                account.sources[name, origin, UNLABELLED, lost.value] += rows
            first = file.first if isinstance(file, CatalogPart) else 0
            left_out = unreadable_rows(file.path, file.split, group, rows, lost, first)
            yield Prepared(record_memory(0, geometry), pa.table({}), left_out)
            continue
        for table, pieces in reading.batches():
            prepared = preparer(table, pieces, space(table.num_rows), reading.labels, name)
            yield reading.with_details(prepared)
        account.read_again += rows if reading.was_again else 0


def left_out_rows(source: Source, file: SourceFile) -> pa.Table:
    """Rows of a file that conversion would leave out by default, as in ``rejects.parquet``.

    Duplicates are not among them: they are only found when shards are gathered.
    """
    survey = source.survey
    normalizer = Normalizer(survey.normalization(), survey.geometry)
    preparer = Preparer(0, FilterRules(), normalizer, survey)
    row_groups = ((file, number) for number, _ in file.filled)
    prepared = prepare_row_groups(source, row_groups, preparer, skip_unreadable=True)
    return pa.concat_tables([REJECT_SCHEMA.empty_table(), *(each.left_out for each in prepared)])


class _RowGroup:
    """One row group: scalar columns a batch at a time, stamps a few at a time.

    What arrives damaged over a network is read a second time, carefully (`Source.iter_row_group`).
    """

    def __init__(self, source: Source, file: SourceFile, group: int, geometry: Geometry) -> None:
        self._source, self._file, self._group = source, file, group
        self._scaled, self._bands = geometry.scaled_rows, geometry.bands
        self._read = partial(source.iter_row_group, file, group, on_again=self._begin_again)
        self._careful = not source.is_remote(file)
        self._is_mixed = isinstance(source, CutoutSource)
        self._blobs, self._taken = self._pieces(careful=False), 0
        self.was_again = False
        """Whether something was read a second time."""
        self.labels: Labels | None = None
        """None: they are in the table."""

    def _begin_again(self) -> None:
        self.was_again = True

    def is_readable(self, rows: int) -> bool:
        """Read it to its end."""
        try:
            tables = self._read(batch_rows=self._scaled(BLOB_ROWS))
            return rows == sum(table.num_rows for table in tables)
        except InputError:
            return False

    def batches(self) -> Iterator[tuple[pa.Table, Iterator[Piece]]]:
        """Scalar columns with the ``source_*`` columns, and the stamps of the same rows."""
        light = [name for name in self._source.schema.names if name != STAMP_COLUMN]
        row = 0
        for table in self._read(light, batch_rows=self._scaled(BATCH_ROWS)):
            if self._is_mixed:
                table = fill_origin(table)
            yield with_source(table, self._file, self._group, row), self._next(table.num_rows)
            row += table.num_rows
        next(self._blobs, None)  # damage at the column's end is found only by reading on

    def with_details(self, prepared: Prepared) -> Prepared:
        """What was prepared, as it is."""
        return prepared

    def _decode(
        self, blobs: pa.ChunkedArray, rows: NDArray[np.intp], out: NDArray[np.float32]
    ) -> Sequence[str | None]:
        rejects = decode_batch(_taken(blobs, rows), out, self._bands)
        if not DAMAGE.isdisjoint(rejects) and (fresh := self._again()) is not None:
            rejects = decode_batch(_taken(fresh, rows), out, self._bands)
        return rejects

    def _again(self) -> pa.ChunkedArray | None:
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
        rows, few = self._scaled(READ_ROWS), self._scaled(BLOB_ROWS)
        for table in self._read([STAMP_COLUMN], batch_rows=rows, careful=careful):
            for start in range(0, table.num_rows, few):
                yield table[STAMP_COLUMN].slice(start, few)

    def _next(self, rows: int) -> Iterator[Piece]:
        """The next stamps, as many as there are rows."""
        while rows > 0:
            blobs = next(self._blobs)
            self._taken += 1
            rows -= len(blobs)
            yield Piece(len(blobs), partial(self._decode, blobs))


class _CatalogRows:
    """One row group of a catalogue: its rows, and their cutouts file by file."""

    was_again = False

    def __init__(self, part: CatalogPart, geometry: Geometry) -> None:
        self._part, self._geometry = part, geometry
        self._most = geometry.scaled_rows(BLOB_ROWS)
        self._details: list[str | None] = part.facts["detail"].to_pylist()
        self.labels: Labels | None = Labels(
            part.facts["label"].to_numpy(), np.array(part.facts["reason"].to_pylist())
        )
        """What the catalogue says."""

    def is_readable(self, _: int) -> bool:
        """Files are refused one by one."""
        return True

    def batches(self) -> Iterator[tuple[pa.Table, Iterator[Piece]]]:
        """The rows with the ``source_*`` columns, and their stamps."""
        part = self._part
        yield with_source(part.table, part, 0, part.first), self._pieces()

    def with_details(self, prepared: Prepared) -> Prepared:
        """What was prepared, and what was found in the files of rows that are left out."""
        rows = prepared.left_out["source_row"].to_numpy() - self._part.first
        details = pa.array([self._details[row] for row in rows], pa.string())
        return replace(prepared, left_out=prepared.left_out.append_column("detail", details))

    def _pieces(self) -> Iterator[Piece]:
        for first in range(0, self._part.rows, self._most):
            rows = min(self._most, self._part.rows - first)
            yield Piece(rows, partial(self._decode, first))

    def _decode(
        self, first: int, rows: NDArray[np.intp], out: NDArray[np.float32]
    ) -> Sequence[str | None]:
        part, reasons = self._part, list[str | None]()
        ra, dec = (part.table[name].to_numpy() for name in ("ra", "dec"))
        for row, pixels in zip((first + rows).tolist(), out, strict=True):
            file, position = part.facts["file"][row].as_py(), (ra[row], dec[row])
            refusal = read_catalog_cutout(
                part.folder, file, pixels, self._geometry, part.options, position
            )
            reasons.append(refusal and refusal.reason)
            self._details[row] = refusal and f"{file}: {refusal.detail}"
        return reasons


def with_source(table: pa.Table, file: SourceFile, group: int, first: int) -> pa.Table:
    """Rows with the columns that say where they came from."""
    rows = table.num_rows
    return (
        table.append_column("source_file", pa.array([file.path] * rows, pa.string()))
        .append_column("source_row_group", pa.array(np.full(rows, group, np.int32)))
        .append_column("source_row", pa.array(np.arange(first, first + rows)))
    )


def _taken(blobs: pa.ChunkedArray, rows: NDArray[np.intp]) -> pa.ChunkedArray:
    return blobs if len(rows) == len(blobs) else blobs.take(pa.array(rows))

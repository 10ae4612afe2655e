"""Shards of an object store, read by ranges ahead of their use, within a memory budget.

Shards of which there is a local copy (`lenstrain.data.cache`) are mapped instead.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import Dataset, Geometry, ShardInfo
from lensprep.dataset.record import payload_crc32
from lensprep.errors import BudgetError, ChangedError, NotFoundError, ShardError, StorageError
from lenstrain.data.cache.mapped import LocalCopies, MappedCopies
from lenstrain.data.sidecar import Column
from lenstrain.data.sources.base import Reading, ShardSource, check_gather
from lenstrain.data.sources.cells import Cells, cut_into_cells
from lenstrain.data.sources.local import row_offset
from lenstrain.data.sources.mappedrows import MappedRows, copy_rows, rows_ahead
from lenstrain.data.sources.races import RACES_AT_ONCE
from lenstrain.data.sources.reader import RangeReader
from lenstrain.data.sources.schedule import RUN_CELLS

logger = logging.getLogger("lenstrain.data")

_FEWEST_BUFFERS = 4
_LEAST_AHEAD = 2
"""Ranges on their way besides those in use, or there would be no reading ahead."""
_MOST_STEPS = 1024
_REMEDY = "Upload or convert the dataset again, or run `lensprep verify`."


class RemoteSource(ShardSource):
    """Rows of a split in an object store.

    Announced rows are read ahead in ranges of whole records into memory that is used again and
    again, never more than the budget; a row is copied once, from there into its batch.

    Parameters
    ----------
    dataset : Dataset
        In an object store.
    split : str
    checksums : column
        CRC-32 of every row of the split, by position.
    reading : Reading
    copies : LocalCopies, optional
        Shards that need not be read from the store; closed with the source.

    Raises
    ------
    ShardError
        If a shard is missing or has not the size that the manifest states.
    BudgetError
        If the budget holds less than a few ranges.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        checksums: Column,
        reading: Reading,
        copies: LocalCopies | None = None,
    ) -> None:
        self.copies = copies or LocalCopies()
        self._geometry = geometry = dataset.geometry
        self.shape = geometry.shape
        self.depth = reading.depth(geometry.payload_bytes, streamed=True)
        self._store = dataset.store
        self._split, self._uri = split, dataset.uri
        self._shards = dataset.split(split).shards
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self.cells = cut_into_cells(self._starts, geometry.stride)
        self.cell_rows = self.cells.most_rows
        memory = reading.streamed_bytes(geometry.payload_bytes) - self.copies.beside_bytes
        self.buffers = memory // self.cells.most_bytes
        if self.buffers < _FEWEST_BUFFERS:
            raise BudgetError(
                f"The memory budget leaves {max(0, memory) / 2**20:.1f} MiB for "
                f"ranges of {self._uri}, which hold {self.cells.most_bytes / 2**20:.1f} "
                f"MiB each; {_FEWEST_BUFFERS} are the least. Raise memory_budget "
                "(data.memory_budget_gb), or use smaller batches."
            )
        self._batch = reading.batch_size
        compared = reading.verify != "size"
        expected = checksums if compared and self.copies.offers_any else None
        self.local = MappedCopies(
            self.copies, self._shards, self._starts, expected, geometry.stride
        )
        self._rows = MappedRows(self._starts, self.local.bases, geometry)
        self._copying, self._mapping = threading.Lock(), threading.Lock()
        # The reading threads hold the reader and this, not the source: they end when nobody has the
        # source any more.
        where = (self.cells, self._shards, self._starts, self._uri, geometry)
        check = partial(_compare, *where, checksums)
        self.reader = RangeReader(
            dataset.store,  # type: ignore[arg-type]  # a RemoteStore, as the dataset is remote
            self._shards,
            self.cells,
            self.buffers,
            check if compared else None,
        )
        weakref.finalize(self, self.reader.stop).atexit = False
        self.check()

    @property
    def lookahead(self) -> int:  # type: ignore[override]
        """Steps to know in advance: as many rows as fit into memory, or as a disk has use for."""
        rows = self.buffers * self.cell_rows
        if self.local.complete:
            rows = rows_ahead(self._geometry)
        return min(_MOST_STEPS, max(1, rows // self._batch))

    def check(self) -> None:
        """Compare every shard with the manifest, and its version with what was read, by listing.

        Where listing is not allowed, each range is compared when it is read.
        """
        if not self._shards:
            return
        for number in self.local.changed():
            self._drop_copy(number)
        try:
            entries = self._store.entries(f"{self._split}/")
        except StorageError as error:
            logger.warning("%s Shards are compared as they are read.", error)
            return
        found = {entry.name: entry for entry in entries}
        for number, shard in enumerate(self._shards):
            where, entry = f"{self._uri}/{shard.name}", found.get(shard.name)
            if entry is None:
                raise ShardError(f"{where} (offset 0) is missing. {_REMEDY}")
            if entry.bytes != shard.bytes:
                raise ShardError(
                    f"{where} has {entry.bytes} bytes where the manifest states {shard.bytes}: "
                    f"cut or replaced, offset {min(entry.bytes, shard.bytes)}. {_REMEDY}"
                )
            if self.reader.versions.setdefault(number, entry.version) != entry.version:
                raise ShardError(
                    f"{where} (offset 0) was replaced while it was in use. Leave a dataset alone "
                    "while it is read, run `lensprep verify`, and start again."
                )

    def prepare(
        self, rows: NDArray[np.int64] | None, steps: Iterable[NDArray[np.int64]] | None
    ) -> None:
        """Have the rows in the cache, or see that the memory is enough for their order.

        Raises
        ------
        BudgetError
            If it is not: rows would be read again and again. It names the budget that is enough.
        """
        cells = np.arange(len(self.cells)) if rows is None else self.cells.of(rows)
        self.copies.narrow(np.unique(self.cells.shard[cells]))
        if steps is not None:
            self._check_window(steps)
            # From now on: a validation split is cached before it is first read.
            self.copies.fill_beside(self.reader.hungry)
            return
        shortage = self.copies.fill_first()
        if streamed := len(self._streamed(cells)):
            self._demand(streamed + RACES_AT_ONCE, 'shuffle="block", ', shortage)

    def start_epoch(self) -> None:
        """Look at every shard, and fetch what is not cached while batches are streamed."""
        self.check()
        self.copies.fill_beside(self.reader.hungry)

    def _check_window(self, steps: Iterable[NDArray[np.int64]]) -> None:
        """Refuse an order whose steps, as they follow each other, need more ranges than fit."""
        if len(self.cells) + RACES_AT_ONCE <= self.buffers:
            return
        used = [self._streamed(self.cells.of(rows)) for rows in steps]
        first = np.full(len(self.cells), len(used))
        last = np.full(len(self.cells), -1)
        for step, cells in enumerate(used):
            first[cells] = np.minimum(first[cells], step)
            last[cells] = step
        change = np.zeros(len(used) + 1, np.int64)
        seen = last >= 0
        np.add.at(change, first[seen], 1)
        np.add.at(change, last[seen] + 1, -1)
        held = int(np.cumsum(change).max(initial=0))
        demand = min(held + _LEAST_AHEAD, len(self.cells)) + RACES_AT_ONCE
        self._demand(demand)
        self.reader.schedule.reach = min(2 * RUN_CELLS, 1 + self.buffers - demand)

    def _streamed(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of these cells that are not read from a local copy."""
        with self._mapping:
            self.local.map(np.unique(self.cells.shard[cells]))
        return cells[self.local.bases[self.cells.shard[cells]] == 0]

    def _demand(self, buffers: int, other_order: str = "", shortage: str = "") -> None:
        """Refuse an order that needs more ranges in memory at once than the budget holds."""
        if buffers > self.buffers:
            missing = (buffers - self.buffers) * self.cells.most_bytes
            text = (
                f"This order of {self._uri} needs {buffers} ranges of {self.cell_rows} stamps in "
                f"memory at once, and the budget holds {self.buffers}: every range would be read "
                f"many times. Use {other_order}a cache_dir, or a memory_budget larger by "
                f"{-(-missing // (1 << 20))} MiB (data.shuffle, data.cache_dir, "
                "data.memory_budget_gb)."
            )
            raise BudgetError(f"{shortage} {text}".lstrip())

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Have these rows on their way, as soon as there is memory."""
        if not self.local.complete:
            cells = self.cells.of(rows)
            self._use_copies(cells)  # or they would be read from the store meanwhile
            self.reader.expect(cells)
        if self.copies.offers_any:
            self._rows.expect(rows)

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Take back one `expect` whose rows will not be gathered after all."""
        self.reader.forget(self.cells.of(rows))
        self._rows.forget(rows)

    def gather(self, rows: NDArray[np.int64], out: NDArray[np.float16]) -> None:
        """Copy the pixels of `rows` into `out`, when they have come.

        Raises
        ------
        ShardError
            If a shard is missing, cut, replaced or altered.
        StorageError
            If the store refuses, or does not answer.
        IndexError, ValueError
            If a row lies outside the split; if `out` does not fit, or the source is closed.
        """
        check_gather(rows, int(self._starts[-1]), self.shape, out)
        while True:
            copied = None if self._copy_mapped(rows, out) else self._copy_streamed(rows, out)
            faulty = self.local.faulty(rows, out, copied)
            if not faulty:
                return
            for number in faulty:
                self._drop_copy(number)

    def _copy_mapped(self, rows: NDArray[np.int64], out: NDArray[np.float16]) -> bool:
        """Copy rows as from a local dataset, if the whole split is on the local disk."""
        if not self.local.complete:
            return False
        with self._copying:
            if self.reader.closed:
                raise ValueError("the loader is closed")
            done = self._rows.copy(rows, out.ctypes.data)
        if done and self.reader.holds_anything():  # from before the split was complete
            self.reader.forget(self.cells.of(rows))
            self.reader.release_idle()
        return done

    def _copy_streamed(
        self, rows: NDArray[np.int64], out: NDArray[np.float16]
    ) -> NDArray[np.bool_]:
        """Copy rows, some of them from the store; returns which came from a local copy."""
        cells = self.cells.of(rows)
        try:
            while True:
                self._use_copies(cells)
                self.reader.need(cells)
                with self._copying:
                    if self.reader.closed:
                        raise ValueError("the loader is closed")
                    if self._copy_cells(rows, out):
                        self._rows.copied(len(rows))
                        return self._from_copies(rows)
                # Another thread has just given up a copy: its cells are read from the store now.
        except StorageError as error:
            text = f"{str(error).rstrip('.')} ({self._named_in(cells, error)})."
            if isinstance(error, NotFoundError | ChangedError):
                raise ShardError(f"{text} {_REMEDY}") from error
            raise StorageError(text) from error
        finally:
            self.reader.forget(cells)

    def _copy_cells(self, rows: NDArray[np.int64], out: NDArray[np.float16]) -> bool:
        """Copy rows from cells in memory; False if one of these is not there."""
        places = (self.cells.bounds, self.reader.addresses, out.ctypes.data)
        return bool(copy_rows(rows, *places, self.cells.stride, self._geometry.payload_bytes))

    def _from_copies(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows lie in a mapped copy; memory may hold a cell of its shard from before."""
        if not self.copies.offers_any:
            return np.zeros(len(rows), np.bool_)
        cells = np.searchsorted(self.cells.bounds, rows, side="right") - 1
        bases = self.local.bases[self.cells.shard[cells]]
        places = bases + self.cells.first[cells] * self.cells.stride
        mine: NDArray[np.bool_] = (bases != 0) & (self.reader.addresses[cells] == places)
        return mine

    def _use_copies(self, cells: NDArray[np.int64]) -> None:
        """Take these cells from local copies of their shards, where there are any."""
        if not self.copies.offers_any:
            return
        numbers = self.cells.shard[cells]
        with self._mapping:
            self.local.map(np.unique(numbers))
            bases = self.local.bases[numbers]
            new = (bases != 0) & (self.reader.addresses[cells] == 0)
            if new.any():
                starts = self.cells.first[cells[new]] * self.cells.stride
                self.reader.put(cells[new], bases[new] + starts)

    def _drop_copy(self, number: int) -> None:
        """Read a shard from the store although there was a copy."""
        with self._mapping, self._copying:
            self.reader.withdraw(np.flatnonzero(self.cells.shard == number))
            self.local.drop(number)

    def _named_in(self, cells: NDArray[np.int64], error: Exception) -> str:
        """Shard and offset of the first of these cells in the shard that an error names."""
        names = [self._shards[number].name for number in self.cells.shard[cells]]
        first = next((i for i, name in enumerate(names) if name in str(error)), 0)
        return f"{names[first]}, offset {self.cells.offset(cells[first])}"

    def locate(self, row: int) -> tuple[str, int]:
        """URI of the shard that holds a row (or path of its copy), and the offset of its pixels."""
        shard, offset = row_offset(self._starts, row, self.cells.stride)
        return str(self.local.path_of(shard) or f"{self._uri}/{self._shards[shard].name}"), offset

    def describe(self) -> dict[str, Any]:
        """What was read so far and in which way, for logs and benches."""
        reader = self.reader
        return asdict(reader.counters) | {
            "raced": reader.races.begun,
            "races_won": reader.races.won,
            "peak_buffers": reader.buffers.peak,
            "mapped_shards": int(np.count_nonzero(self.local.bases)),
            "buffers": self.buffers,
            "buffer_bytes": self.cells.most_bytes,
        }

    def close(self) -> None:
        """End the reading threads, after the copy that is under way."""
        self.reader.stop()
        with self._copying:
            self._rows.close()
            self.reader.addresses[:] = 0
            self.local.close()
        self.copies.close()


def _compare(
    cells: Cells,
    shards: Sequence[ShardInfo],
    starts: NDArray[np.int64],
    uri: str,
    geometry: Geometry,
    checksums: Column,
    cell: int,
    data: NDArray[np.uint8],
) -> None:
    """Compare the CRC-32 of every stamp of a cell with what conversion stored."""
    start = int(cells.bounds[cell])
    found = payload_crc32(data.reshape(-1, geometry.stride), geometry)
    expected = checksums[np.arange(start, start + len(found))]
    bad = np.flatnonzero(found != expected)
    if bad.size:
        shard, offset = row_offset(starts, start + int(bad[0]), geometry.stride)
        raise ShardError(
            f"{uri}/{shards[shard].name}: the stamp at offset {offset} is not the one that was "
            f"written (CRC-32 {found[bad[0]]:08x}, expected {expected[bad[0]]:08x}). {_REMEDY}"
        )

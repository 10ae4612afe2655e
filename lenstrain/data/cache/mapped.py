"""Shards of an object store of which there are copies on a local disk, mapped and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import ShardInfo
from lensprep.errors import ShardError
from lenstrain.data.sidecar import Column, PayloadCheck
from lenstrain.data.sources.local import FileMap, file_identity, row_offset

logger = logging.getLogger("lenstrain.data")


class LocalCopies:
    """Shards of an object store that are on a local disk too; here: of which there are none.

    Used by several threads. `lenstrain.data.cache.filling.CachedSplit` is one that has some.
    """

    offers_any = False
    """Whether there can be a copy at all."""
    beside_bytes = 0
    """Memory that `fill_beside` takes."""

    def path(self, shard: ShardInfo) -> Path | None:
        """Path of a complete, checked copy of a shard, or None to read it from the store.

        Called whenever some of the shard is about to be read. From then on the file must stay as
        it is until the reader is closed (it is mapped; its name may go, as the map keeps it).
        """
        return None

    def damaged(self, shard: ShardInfo) -> None:
        """Never offer this copy again: it is damaged."""

    def narrow(self, numbers: NDArray[np.int64]) -> None:
        """Want only the shards of these numbers."""

    def fill_first(self) -> str:
        """Have copies of all shards that fit; in words what is missing, if some do not."""
        return ""

    def fill_beside(self, hungry: Callable[[], bool]) -> None:
        """Make copies while rows are read, more slowly while the reader waits (`hungry`)."""

    def close(self) -> None:
        """End filling; copies that are mapped stay."""


class MappedCopies:
    """Copies of a split's shards, mapped when first needed.

    The bytes were right when they were fetched; disks forget. So each stamp's CRC-32 is compared
    when it is first read from a copy. A copy that is not right is given up with a warning, and the
    store is read instead.

    Shard ``k`` of the split has the rows ``starts[k] ... starts[k + 1] - 1``; `expected` is the
    CRC-32 of every row, without which nothing is compared. Records have `stride` bytes.
    """

    def __init__(
        self,
        copies: LocalCopies,
        shards: Sequence[ShardInfo],
        starts: NDArray[np.int64],
        expected: Column | None,
        stride: int,
    ) -> None:
        self._copies, self._shards, self._starts, self._stride = copies, shards, starts, stride
        self._payloads = None if expected is None else PayloadCheck(expected, int(starts[-1]))
        self._maps: dict[int, tuple[FileMap, Path]] = {}
        self.bases = np.zeros(len(shards), np.int64)
        """Address of each shard's records, 0 where it is not mapped."""
        self.complete = False
        """Every shard of the split is mapped."""

    def map(self, numbers: NDArray[np.int64]) -> None:
        """Map those of these shards of which there is a copy; one thread at a time."""
        if not self._copies.offers_any:
            return
        for number in numbers[self.bases[numbers] == 0].tolist():
            shard = self._shards[number]
            path = self._copies.path(shard)
            if path is None:
                continue
            try:
                mapped = FileMap(path, shard.bytes)
            except ShardError as error:
                logger.warning("%s It is read from the store.", error)
                continue
            self._maps[number] = mapped, path
            self.bases[number] = mapped.address
        self.complete = bool(self.bases.all())

    def path_of(self, number: int) -> Path | None:
        """Path of the copy that a shard is read from, if it is."""
        return self._maps[number][1] if number in self._maps else None

    def changed(self) -> list[int]:
        """Mapped shards whose files were written to; a file that was unlinked is unchanged."""
        found = []
        for number, (mapped, path) in list(self._maps.items()):
            try:
                same = file_identity(path) == mapped.identity
            except OSError as error:
                same = isinstance(error, FileNotFoundError)
            if not same:
                name = self._shards[number].name
                logger.warning("%s (%s) was written to; the store is read instead.", path, name)
                found.append(number)
        return found

    def faulty(
        self,
        rows: NDArray[np.int64],
        pixels: NDArray[np.float16],
        copied: NDArray[np.bool_] | None = None,
    ) -> list[int]:
        """Shards whose copies gave another stamp than was written.

        `copied` says which rows came from a copy; all if it is not given.
        """
        if self._payloads is None:
            return []
        faults = self._payloads.faults(rows, pixels, copied)
        bad = dict(row_offset(self._starts, row, self._stride) for row, _, _ in reversed(faults))
        for number, offset in bad.items():
            logger.warning(
                "%s (%s): the stamp at offset %d is not the one that was written (CRC-32). The "
                "copy is removed, and the store is read instead.",
                self.path_of(number),
                self._shards[number].name,
                offset,
            )
        return list(bad)

    def drop(self, number: int) -> None:
        """Give up a copy; nobody may be copying from it now."""
        self.bases[number], self.complete = 0, False
        self._maps.pop(number, None)
        if self._payloads is not None:
            self._payloads.forget(slice(self._starts[number], self._starts[number + 1]))
        self._copies.damaged(self._shards[number])

    def close(self) -> None:
        """Unmap all; nobody may be copying now."""
        self.bases[:], self.complete = 0, False
        self._maps.clear()

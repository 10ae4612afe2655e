"""What the loader reads from the sidecars: labels, and checksums where bytes are checked."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from deflate import crc32
from numpy.typing import DTypeLike, NDArray

from lensprep.dataset import Dataset
from lensprep.errors import ShardError
from lensprep.store import is_remote

_THREADS = 4
_REMOTE_THREADS = 16
"""Of sidecars in an object store, where a request is mostly waiting."""


class Column(Protocol):
    """One value a row."""

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[Any]:
        """Values of some rows."""


class SidecarColumns:
    """Numeric columns of a split, read together; a shard's sidecar is read when first asked for.

    The first batch of a thousand shards then waits for the sidecars of its own rows only. `columns`
    says in which type each column is kept; none may hold nulls.
    """

    def __init__(self, dataset: Dataset, split: str, columns: Mapping[str, DTypeLike]) -> None:
        self._dataset = dataset
        self._shards = dataset.split(split).shards
        self.starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self.values = {name: np.zeros(self.starts[-1], dtype) for name, dtype in columns.items()}
        self.loaded = np.zeros(len(self._shards), np.bool_)
        self._locks = [threading.Lock() for _ in self._shards]
        self._threads = _REMOTE_THREADS if is_remote(dataset.uri) else _THREADS

    def load(self, numbers: NDArray[np.int64]) -> None:
        """Read the columns of these shards, unless they have been read."""
        if len(numbers):
            with ThreadPoolExecutor(min(self._threads, len(numbers))) as pool:
                list(pool.map(self._load_one, numbers.tolist()))

    def _load_one(self, number: int) -> None:
        with self._locks[number]:
            if self.loaded[number]:
                return
            shard = self._shards[number]
            table = self._dataset.read_shard_sidecar(shard, list(self.values))
            part = slice(self.starts[number], self.starts[number + 1])
            for name, values in self.values.items():
                column = table.column(name)
                if column.null_count:
                    raise ShardError(
                        f"{self._dataset.uri}/{shard.sidecar} has nulls in column {name!r}. "
                        "Convert again."
                    )
                # Not to_numpy: where pandas is installed that imports it, which takes a second.
                values[part] = np.from_dlpack(column.combine_chunks())
            self.loaded[number] = True


class SidecarColumn:
    """One numeric column of a split by position, read together with the others."""

    def __init__(self, columns: SidecarColumns, name: str) -> None:
        self._columns, self._values = columns, columns.values[name]
        self._complete = False

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Values of some rows.

        Raises
        ------
        DatasetError
            If there is no such column.
        ShardError
            If a sidecar is missing, damaged, has a null, or not the rows that the manifest states.
        """
        columns = self._columns
        if not self._complete:
            wanted = np.zeros(len(columns.loaded), np.bool_)
            wanted[np.searchsorted(columns.starts, index, side="right") - 1] = True
            columns.load(np.flatnonzero(wanted & ~columns.loaded))
            self._complete = bool(columns.loaded.all())
        return self._values[index]

    def all(self) -> NDArray[Any]:
        """Values of all rows; errors as for some of them."""
        self._columns.load(np.flatnonzero(~self._columns.loaded))
        return self._values


class PayloadCheck:
    """Compare pixels with the checksums that conversion stored, each row when it is first read.

    `expected` is the CRC-32 of each of the `rows` of the split, by position.
    """

    def __init__(self, expected: Column, rows: int) -> None:
        self._expected = expected
        self._checked = np.zeros(rows, np.bool_)

    def faults(
        self,
        index: NDArray[np.int64],
        pixels: NDArray[np.float16],
        among: NDArray[np.bool_] | None = None,
    ) -> list[tuple[int, int, int]]:
        """Rows whose bytes are not those written, with the CRC-32 found and the one expected.

        Rows of `index` that were right before are not looked at again, nor those not `among`.
        """
        unchecked = ~self._checked[index]
        new = np.flatnonzero(unchecked if among is None else unchecked & among)
        faults = []
        expected = self._expected[index[new]].tolist() if new.size else []
        for i, stated in zip(new.tolist(), expected, strict=True):
            found = crc32(pixels[i].reshape(-1).view(np.uint8))
            if found == stated:
                self._checked[index[i]] = True
            else:
                faults.append((int(index[i]), found, stated))
        return faults

    def forget(self, rows: slice = slice(None)) -> None:
        """Check these rows again when they are next read."""
        self._checked[rows] = False

"""What the loader reads of the sidecars: labels, and checksums where bytes are to be checked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from deflate import crc32
from numpy.typing import DTypeLike, NDArray

from lensprep.dataset import Dataset
from lensprep.errors import ShardError
from lenstrain.data.source import ShardSource

_THREADS = 4


class Column(Protocol):
    """One value a row."""

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[Any]:
        """Values of some rows."""


class SidecarColumn:
    """One numeric column of a split by position; a shard's sidecar is read when first asked for.

    The first batch of a thousand shards then waits for the sidecars of its own rows only.

    Parameters
    ----------
    dataset : Dataset
    split : str
    name : str
        A numeric column without nulls.
    dtype : dtype_like
        Type to keep it in.
    """

    def __init__(self, dataset: Dataset, split: str, name: str, dtype: DTypeLike) -> None:
        self._dataset, self._name = dataset, name
        self._shards = dataset.split(split).shards
        rows = np.array([shard.rows for shard in self._shards], np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows)])
        self._values = np.zeros(self._starts[-1], dtype)
        self._loaded = np.zeros(len(self._shards), np.bool_)
        self._complete = False

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Values of some rows.

        Raises
        ------
        DatasetError
            If there is no such column.
        ShardError
            If a sidecar is missing, damaged, has a null, or not the rows that the manifest states.
        """
        if not self._complete:
            wanted = np.zeros(len(self._shards), np.bool_)
            wanted[np.searchsorted(self._starts, index, side="right") - 1] = True
            self._load(np.flatnonzero(wanted & ~self._loaded))
        return self._values[index]

    def all(self) -> NDArray[Any]:
        """Values of all rows; errors as for a part of them."""
        self._load(np.flatnonzero(~self._loaded))
        return self._values

    def _load(self, numbers: NDArray[np.int64]) -> None:
        if len(numbers):
            with ThreadPoolExecutor(min(_THREADS, len(numbers))) as pool:
                list(pool.map(self._load_one, numbers.tolist()))
        self._complete = bool(self._loaded.all())

    def _load_one(self, number: int) -> None:
        shard = self._shards[number]
        column = self._dataset.read_shard_sidecar(shard, [self._name]).column(self._name)
        if column.null_count:
            raise ShardError(
                f"{self._dataset.path(shard.sidecar)} has nulls in column {self._name!r}. "
                "Convert again."
            )
        part = slice(self._starts[number], self._starts[number + 1])
        self._values[part] = column.to_numpy()
        self._loaded[number] = True


class PayloadCheck:
    """Compare pixels with the checksums that conversion stored, each row when it is first read.

    Parameters
    ----------
    expected : column
        CRC-32 of every row of the split, by position.
    rows : int
        Rows of the split.
    source : ShardSource
        Where the rows come from, to name the place of a bad one.
    """

    def __init__(self, expected: Column, rows: int, source: ShardSource) -> None:
        self._expected = expected
        self._source = source
        self._checked = np.zeros(rows, np.bool_)

    def __call__(self, index: NDArray[np.int64], pixels: NDArray[np.float16]) -> None:
        """Check the rows among `index` that were not checked before.

        Raises
        ------
        ShardError
            Naming the shard and the offset of the first row whose bytes are not those written.
        """
        new = np.flatnonzero(~self._checked[index])
        for i, expected in zip(new.tolist(), self._expected[index[new]].tolist(), strict=True):
            row = int(index[i])
            found = crc32(pixels[i].reshape(-1).view(np.uint8))
            if found != expected:
                shard, offset = self._source.place(row)
                raise ShardError(
                    f"{shard}: the stamp at offset {offset} is not the one that was written "
                    f"(CRC-32 {found:08x}, expected {expected:08x}). Run `lensprep "
                    "verify`, and copy the shard again, or convert again."
                )
            self._checked[row] = True

    def forget(self) -> None:
        """Check every row again when it is next read."""
        self._checked[:] = False

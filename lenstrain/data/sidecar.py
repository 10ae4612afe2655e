"""What the loader reads of the sidecars: labels, and checksums where bytes are to be checked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from deflate import crc32
from numpy.typing import NDArray

from lensprep.dataset import Dataset
from lensprep.errors import DatasetError, ShardError
from lenstrain.data.source import ShardSource

_THREADS = 4


def read_column(dataset: Dataset, split: str, name: str) -> NDArray[np.generic]:
    """One column of a split, in split order; shards are read by a few threads.

    Parameters
    ----------
    dataset : Dataset
    split : str
    name : str
        A numeric column without nulls.

    Raises
    ------
    DatasetError
        If the column is missing or has a null.
    ShardError
        If a sidecar is missing, damaged, or has not the rows that the manifest states.
    """
    shards = dataset.split(split).shards
    if not shards:
        raise DatasetError(f"{dataset.uri}: split {split!r} is empty.")
    with ThreadPoolExecutor(min(_THREADS, len(shards))) as pool:
        tables = pool.map(lambda shard: dataset.read_shard_sidecar(shard, [name]), shards)
        columns = [table.column(name) for table in tables]
    for shard, column in zip(shards, columns, strict=True):
        if column.null_count:
            raise ShardError(f"{dataset.path(shard.sidecar)} has nulls in column {name!r}.")
    return np.concatenate([column.to_numpy() for column in columns])


class PayloadCheck:
    """Compare pixels with the checksums that conversion stored, each row when it is first read.

    Parameters
    ----------
    expected : ndarray of uint32, shape (rows,)
        CRC-32 of every row of the split.
    source : ShardSource
        Where the rows come from, to name the place of a bad one.
    """

    def __init__(self, expected: NDArray[np.uint32], source: ShardSource) -> None:
        self._expected = expected
        self._source = source
        self._checked = np.zeros(len(expected), np.bool_)

    def __call__(self, index: NDArray[np.int64], pixels: NDArray[np.float16]) -> None:
        """Check the rows among `index` that were not checked before.

        Raises
        ------
        ShardError
            Naming the shard and the offset of the first row whose bytes are not those written.
        """
        for i in np.flatnonzero(~self._checked[index]).tolist():
            row = int(index[i])
            found = crc32(pixels[i].reshape(-1).view(np.uint8))
            if found != self._expected[row]:
                shard, offset = self._source.place(row)
                raise ShardError(
                    f"{shard}: the stamp at offset {offset} is not the one that was written "
                    f"(CRC-32 {found:08x}, expected {self._expected[row]:08x}). Run `lensprep "
                    "verify`, and copy the shard again, or convert again."
                )
            self._checked[row] = True

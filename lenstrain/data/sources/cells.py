"""The cells of a split: stretches of at most 256 records of one shard, which are read as a whole.

They are the blocks of its block shuffle, or equal parts of these where records are large.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.order import BLOCK_ROWS

MOST_BYTES = 16 << 20
"""Most bytes of a cell: a few must fit into the memory that a run has for reading ahead."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Where the cells of a split lie."""

    bounds: NDArray[np.int64]
    """Rows of cell ``c`` are ``bounds[c] ... bounds[c + 1] - 1``."""
    shard: NDArray[np.int64]
    """Number of the shard that holds each cell."""
    first: NDArray[np.int64]
    """First row of each cell in its shard."""
    stride: int
    """Bytes of a record."""

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def most_rows(self) -> int:
        """Rows of the largest cell."""
        return int(np.diff(self.bounds).max(initial=1))

    @property
    def most_bytes(self) -> int:
        """Bytes of the largest cell's records."""
        return self.most_rows * self.stride

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cells that hold these rows, ascending, each once."""
        return np.unique(np.searchsorted(self.bounds, rows, side="right") - 1)

    def bytes(self, cell: int) -> int:
        """Bytes of a cell's records."""
        return int(self.bounds[cell + 1] - self.bounds[cell]) * self.stride

    def offset(self, cell: int) -> int:
        """First byte of a cell in its shard."""
        return int(self.first[cell]) * self.stride


def cell_rows(stride: int) -> int:
    """Most records of a cell, where each has `stride` bytes; a power of 2."""
    rows = BLOCK_ROWS
    while rows * stride > MOST_BYTES:
        rows //= 2
    return rows


def cut_into_cells(starts: NDArray[np.int64], stride: int) -> Cells:
    """Cells of a split whose shard ``k`` has the rows ``starts[k] ... starts[k + 1] - 1``.

    Its records have `stride` bytes.
    """
    rows = cell_rows(stride)
    parts = [np.arange(first, last, rows, dtype=np.int64) for first, last in pairwise(starts)]
    bounds = np.concatenate([*parts, starts[-1:]])
    shard = np.searchsorted(starts, bounds[:-1], side="right") - 1
    return Cells(bounds, shard, bounds[:-1] - starts[shard], stride)

"""The cells of a split: stretches of at most 256 records of one shard, which are read as a whole.

They are the blocks of its block shuffle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import RECORD_STRIDE
from lenstrain.data.order import block_bounds


@dataclass(frozen=True, slots=True)
class Cells:
    """Where the cells of a split lie."""

    bounds: NDArray[np.int64]
    """Rows of cell ``c`` are ``bounds[c] ... bounds[c + 1] - 1``."""
    shard: NDArray[np.int64]
    """Number of the shard that holds each cell."""
    first: NDArray[np.int64]
    """First row of each cell in its shard."""

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def most_rows(self) -> int:
        """Rows of the largest cell."""
        return int(np.diff(self.bounds).max(initial=1))

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cells that hold these rows, ascending, each once."""
        return np.unique(np.searchsorted(self.bounds, rows, side="right") - 1)

    def bytes(self, cell: int) -> int:
        """Bytes of a cell's records."""
        return int(self.bounds[cell + 1] - self.bounds[cell]) * RECORD_STRIDE

    def offset(self, cell: int) -> int:
        """First byte of a cell in its shard."""
        return int(self.first[cell]) * RECORD_STRIDE


def cut_into_cells(starts: NDArray[np.int64]) -> Cells:
    """Cells of a split whose shard ``k`` has the rows ``starts[k] ... starts[k + 1] - 1``."""
    bounds = block_bounds(np.diff(starts))
    shard = np.searchsorted(starts, bounds[:-1], side="right") - 1
    return Cells(bounds, shard, bounds[:-1] - starts[shard])

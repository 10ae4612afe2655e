"""Where the cells of a split lie."""

from __future__ import annotations

import numpy as np

from lensprep.dataset import RECORD_STRIDE
from lenstrain.data.sources.cells import cut_into_cells


def test_no_cell_crosses_a_shard_and_each_row_lies_in_one():
    cells = cut_into_cells(np.array([0, 300, 300, 700]), RECORD_STRIDE)  # the second shard is empty
    assert cells.bounds.tolist() == [0, 256, 300, 556, 700]
    assert cells.shard.tolist() == [0, 0, 2, 2]
    assert [cells.offset(c) // RECORD_STRIDE for c in range(len(cells))] == [0, 256, 0, 256]
    assert [cells.bytes(c) // RECORD_STRIDE for c in range(len(cells))] == [256, 44, 256, 144]
    assert cells.most_rows == 256
    assert cells.of(np.array([699, 255, 256, 3])).tolist() == [0, 1, 3]

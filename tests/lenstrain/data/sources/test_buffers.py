"""Cells in memory: never more than there may be, and none that is needed goes."""

from __future__ import annotations

import numpy as np
import pytest

from lensprep.dataset import RECORD_STRIDE
from lenstrain.data.sources.buffers import ABSENT, HERE, CellBuffers
from lenstrain.data.sources.cells import cut_into_cells


@pytest.fixture
def buffers():
    return CellBuffers(cut_into_cells(np.array([0, 5 * 256]), RECORD_STRIDE), 3, reserve=1)


def bring(buffers, *cells):
    for cell in cells:
        buffers.keep(cell, buffers.take())


def test_memory_is_made_when_needed_up_to_the_most(buffers):
    assert (buffers.made, buffers.room()) == (0, 2)  # one is kept in reserve
    bring(buffers, 0, 1)
    assert (buffers.made, buffers.room()) == (2, 0)
    assert buffers.state.tolist() == [HERE, HERE, ABSENT, ABSENT, ABSENT]
    assert (buffers.addresses != 0).tolist() == [True, True, False, False, False]


def test_the_cell_that_was_idle_first_makes_place(buffers):
    bring(buffers, 0, 1, 2)
    for cell in (1, 0):
        buffers.set_needed(cell, False)
    assert buffers.room() == 1
    bring(buffers, 3)
    assert buffers.state.tolist() == [HERE, ABSENT, HERE, HERE, ABSENT]
    assert buffers.addresses[1] == 0
    buffers.set_needed(0, True)
    assert buffers.room() == -1
    assert (buffers.made, buffers.peak) == (3, 3)


def test_memory_of_idle_cells_goes_back_to_the_system(buffers):
    bring(buffers, 0, 1)
    buffers.set_needed(0, False)
    buffers.release()
    assert buffers.made == 1
    assert buffers.state.tolist()[:2] == [ABSENT, HERE]
    assert buffers.peak == 2


def test_mapped_cells_take_no_memory_and_memory_is_not_withdrawn(buffers):
    bring(buffers, 0)
    mine = int(buffers.addresses[0])
    buffers.put(np.array([0, 1]), np.array([111, 222]))
    assert buffers.addresses.tolist() == [mine, 222, 0, 0, 0]
    buffers.set_needed(1, False)  # it is no memory of ours that could be used again
    assert (buffers.made, buffers.room()) == (1, 1)
    assert buffers.withdraw(np.array([0, 1, 2])) == [1]
    assert buffers.addresses.tolist() == [mine, 0, 0, 0, 0]


def test_the_newest_of_the_others_is_known(buffers):
    bring(buffers, 2, 0, 1)
    assert buffers.newest(but={1}) == 0
    assert buffers.newest(but={0, 1, 2}) is None

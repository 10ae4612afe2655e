"""What is read next: cells in the order in which they are first needed, neighbours together."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.sources.buffers import ABSENT
from lenstrain.data.sources.cells import Cells

RUN_CELLS = 8
"""Most cells of one request: 54 MB. Longer ones cost the store less, but memory comes back late."""


class Schedule:
    """Which cells are needed, and in which order; its user holds a lock.

    `state` is `CellBuffers.state`.
    """

    def __init__(self, cells: Cells, state: NDArray[np.int8]) -> None:
        self._cells, self.state, self._cell_rows = cells, state, cells.most_rows
        self.pending = np.zeros(len(cells), np.int32)
        """Announced uses of each cell that are not over."""
        self._turn = np.zeros(len(cells), np.int64)
        """Position of each cell in the order of first needs."""
        self._turns = 0
        self._wanted: deque[int] = deque()
        self.reach = len(cells)
        """How much later in the order of first needs a neighbour may be that is read in the same
        request: memory for more of them could be missing for what is needed next."""

    def announce(self, cells: NDArray[np.int64]) -> None:
        """Note one future use of each of these cells, after the uses announced before."""
        new = cells[self.pending[cells] == 0]
        self._turn[new] = self._turns + np.arange(len(new))
        self._turns += len(new)
        self.pending[cells] += 1
        self._wanted.extend(cells[self.state[cells] == ABSENT].tolist())

    def forget(self, cells: NDArray[np.int64]) -> list[int]:
        """Note that one use of each of these cells is over; returns those with no use left."""
        self.pending[cells] = np.maximum(self.pending[cells] - 1, 0)
        over: list[int] = cells[self.pending[cells] == 0].tolist()
        return over

    def want_again(self, cell: int, *, last: bool = False) -> None:
        """Read an absent cell again if anybody needs it: next, or last of all."""
        if self.pending[cell]:
            (self._wanted.append if last else self._wanted.appendleft)(cell)

    def want_first(self, cells: list[int]) -> None:
        """Read these cells next: somebody waits for them."""
        if not self._wanted or self._wanted[0] != cells[0]:  # not again at every look
            self._wanted.extendleft(reversed(cells))

    def next_run(self, room: int, *, whole: bool) -> list[int]:
        """Neighbouring cells to read now in one request; none if there is nothing, or no room.

        There are at most `room` of them. With `whole` there are none before there is room for all
        wanted neighbours: it comes back a cell at a time.
        """
        while self._wanted:
            cell = self._wanted[0]
            if self.state[cell] == ABSENT and self.pending[cell]:
                break
            self._wanted.popleft()
        else:
            return []
        first, last = self._neighbours(cell)
        if room < 1 or (last - first >= room and whole):
            return []
        if last - first >= room:
            first, last = cell, min(cell + room - 1, last)
        return list(range(first, last + 1))

    def _neighbours(self, cell: int) -> tuple[int, int]:
        """First and last of the cells around this one that can be read in one request."""

        def joins(other: int) -> bool:
            return bool(
                self._cells.shard[other] == self._cells.shard[cell]
                and self.state[other] == ABSENT
                and self.pending[other]
                and self._turn[other] - self._turn[cell] < self.reach
            )

        first, last = cell, cell
        # Backwards only to a multiple, so that requests of a random order do not split a shard
        # into ever smaller pieces.
        within = int(self._cells.first[cell]) // self._cell_rows
        for other in range(cell - 1, cell - 1 - within % RUN_CELLS, -1):
            if not joins(other):
                break
            first = other
        for other in range(cell + 1, min(first + RUN_CELLS, len(self.state))):
            if not joins(other):
                break
            last = other
        return first, last

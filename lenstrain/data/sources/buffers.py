"""Cells in memory: a fixed number of buffers, used again and again."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.sources.cells import Cells

Bytes = NDArray[np.uint8]

ABSENT, COMING, HERE = 0, 1, 2


class CellBuffers:
    """Which cells are in memory, where, and what memory is left; its user holds a lock.

    At most `most` cells are in memory. `room` does not count `reserve` of their buffers, which are
    for cells that are requested a second time.
    """

    def __init__(self, cells: Cells, most: int, reserve: int) -> None:
        self.state = np.zeros(len(cells), np.int8)
        """`ABSENT`, `COMING` or `HERE`, for each cell."""
        self.addresses = np.zeros(len(cells), np.int64)
        """Address of each cell's records, 0 where it is not in memory."""
        self.most, self._reserve = most, reserve
        self._bytes = cells.most_bytes
        self.made, self.peak = 0, 0
        self._memory: dict[int, Bytes] = {}
        self._idle: dict[int, None] = {}
        self._free: list[Bytes] = []

    def room(self) -> int:
        """Buffers that are free or can be freed, but for the reserve."""
        return len(self._free) + self.most - self.made + len(self._idle) - self._reserve

    def take(self) -> Bytes:
        """Return memory for a cell, that of the cell idle for longest if there is no other."""
        if not self._free and self.made < self.most:
            self.made += 1
            self.peak = max(self.peak, self.made)
            return np.empty(self._bytes, np.uint8)
        if not self._free:
            self.drop(next(iter(self._idle)))
        return self._free.pop()

    def give_back(self, buffer: Bytes) -> None:
        """Take back memory that holds no cell."""
        self._free.append(buffer)

    def keep(self, cell: int, buffer: Bytes) -> None:
        """A cell has come, in this memory."""
        self._memory[cell] = buffer
        self.addresses[cell], self.state[cell] = buffer.ctypes.data, HERE

    def put(self, cells: NDArray[np.int64], addresses: NDArray[np.int64]) -> None:
        """Note that cells lie at these addresses already, in a mapped file."""
        new = self.state[cells] == ABSENT
        self.addresses[cells[new]], self.state[cells[new]] = addresses[new], HERE

    def withdraw(self, cells: NDArray[np.int64]) -> list[int]:
        """Undo `put` for these cells; returns those that are now absent."""
        gone = [cell for cell in cells.tolist()
                if self.state[cell] == HERE and cell not in self._memory]  # fmt: skip
        self.addresses[gone], self.state[gone] = 0, ABSENT
        return gone

    def set_needed(self, cell: int, needed: bool) -> None:
        """Say whether a cell has to stay in memory."""
        if needed:
            self._idle.pop(cell, None)
        elif cell in self._memory:
            self._idle[cell] = None

    def drop(self, cell: int) -> None:
        """Give up a cell that is in memory."""
        self._idle.pop(cell, None)
        self.addresses[cell], self.state[cell] = 0, ABSENT
        self._free.append(self._memory.pop(cell))

    def drop_idle(self) -> None:
        """Give up all cells that nobody needs now; their memory is kept for other cells."""
        for cell in list(self._idle):
            self.drop(cell)

    def release(self) -> None:
        """Return to the system all memory that nobody needs now."""
        self.drop_idle()
        self.made -= len(self._free)
        self._free.clear()

    def newest(self, but: Container[int]) -> int | None:
        """The cell that came last, of those that are in memory but not among these."""
        return next((cell for cell in reversed(self._memory) if cell not in but), None)

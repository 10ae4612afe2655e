"""Cells of shards read from an object store ahead of their use, within a fixed number of buffers.

A cell is a stretch of at most 256 records of one shard, the unit of memory. Neighbouring cells that
are wanted together are read in one request (a run). A few threads read runs in the order in which
their cells are first needed, while there is memory; a cell gives its memory back when nothing that
was announced needs it any more. A cell that somebody waits for and that takes much longer than
others is asked for a second time, and the first answer wins.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import RECORD_STRIDE, ShardInfo
from lensprep.errors import BudgetError, ChangedError, ProjectError
from lensprep.store import Entry, Piece, Reception, RemoteStore, Scatter

logger = logging.getLogger("lenstrain.data")

Bytes = NDArray[np.uint8]
Check = Callable[[int, Bytes], None]
"""Given a cell and its records; raises if they are not what was written."""

RUN_CELLS = 8
"""Most cells of one request: 54 MB. Longer ones cost the store less, but memory comes back late."""
RACES_AT_ONCE = 2
RACE_RATIO = 5.0
"""A cell is slow that takes so many times the median of the last ones ..."""
RACE_SECONDS = 0.5
"""... and at least so long."""
_FIRST_RACE_SECONDS = 5.0
"""What counts as slow before there is anything to compare with."""
_SAMPLES = 64
_STOP_SECONDS = 1.0
"""How long the end of the threads is waited for; one without an answer's first byte ends later."""
_ABSENT, _COMING, _HERE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Cells:
    """Where the cells of a split lie."""

    bounds: NDArray[np.int64]
    """Rows of cell ``c`` are ``bounds[c] ... bounds[c + 1] - 1``."""
    shard: NDArray[np.int64]
    """Number of the shard that holds each cell."""
    first: NDArray[np.int64]
    """First row of each cell in its shard."""

    def rows(self, cell: int) -> int:
        """Rows of a cell."""
        return int(self.bounds[cell + 1] - self.bounds[cell])

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cells that hold these rows, ascending, each once."""
        return np.unique(np.searchsorted(self.bounds, rows, side="right") - 1)


@dataclass(slots=True)
class Counters:
    """What reading has cost so far."""

    requests: int = 0
    cells: int = 0
    bytes: int = 0
    raced: int = 0
    """Ranges asked for a second time because they were slow."""
    races_won: int = 0
    reread: int = 0
    """Cells read again because their CRC-32 was wrong the first time."""
    evicted: int = 0
    """Cells given up although they were announced: the budget was too small for the order."""
    peak_buffers: int = 0
    waited_s: float = 0.0


@dataclass(eq=False)
class _Run(Reception):
    """Neighbouring cells of one shard, read by one request."""

    reader: RangeReader
    cells: list[int]
    buffers: list[Bytes]
    race: bool = False
    done_cells: int = 0
    mark: float = field(default_factory=time.monotonic)
    """When the request began, or the last cell was complete."""

    def __post_init__(self) -> None:
        Reception.__init__(self)
        self._ends = np.cumsum([self.reader.cell_bytes(cell) for cell in self.cells]).tolist()

    def began(self, entry: Entry, body: Any) -> None:
        super().began(entry, body)
        self.reader.see_version(self.cells[0], entry)

    def moved(self, done: int) -> None:
        while self.done_cells < len(self.cells) and done >= self._ends[self.done_cells]:
            self.reader.arrived(self, self.done_cells)
            self.done_cells += 1

    @property
    def waits_for(self) -> int | None:
        """The cell that comes next."""
        return self.cells[self.done_cells] if self.done_cells < len(self.cells) else None


class RangeReader:
    """Reads cells of one split with a few threads; all its methods may be called by any thread.

    Parameters
    ----------
    store : RemoteStore
    shards : sequence of ShardInfo
    cells : Cells
    buffers : int
        Most cells in memory.
    check : callable, optional
        Look at every cell that has come.
    """

    def __init__(
        self,
        store: RemoteStore,
        shards: Sequence[ShardInfo],
        cells: Cells,
        buffers: int,
        check: Check | None,
    ) -> None:
        self.store, self.shards, self.cells = store, shards, cells
        self.counters = Counters()
        self.change = threading.Condition()
        count = len(cells.shard)
        self.addresses = np.zeros(count, np.int64)
        """Address of each cell's records, 0 where it is not in memory."""
        self._rows = max((cells.rows(c) for c in range(count)), default=0)
        self._most = buffers
        self._check = check
        self._state = np.zeros(count, np.int8)
        self._pending = np.zeros(count, np.int32)
        self._turn = np.zeros(count, np.int64)
        """Place of each cell in the order of first needs."""
        self._turns = 0
        self._memory: dict[int, Bytes] = {}
        self._idle: dict[int, None] = {}
        self._free: list[Bytes] = []
        self._made = 0
        self._wanted: deque[int] = deque()
        self._runs: set[_Run] = set()
        self._errors: dict[int, BaseException] = {}
        self.versions: dict[int, str | None] = {}
        self._times: deque[float] = deque(maxlen=_SAMPLES)
        self._queue: SimpleQueue[_Run | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._at_once = store.options.connections
        self._waiting = 0
        self.reach = count
        """Neighbours so much later in the order of first needs are read in the same request: memory
        for more of them could be missing for what is needed next."""
        self.closed = False

    def hungry(self) -> bool:
        """Whether somebody waits for cells right now."""
        return self._waiting > 0

    def cell_bytes(self, cell: int) -> int:
        """Bytes of a cell's records."""
        return self.cells.rows(cell) * RECORD_STRIDE

    # ------------------------------------------------------------------ what is needed

    def expect(self, cells: NDArray[np.int64]) -> None:
        """One use of each of these cells will come, after those announced before."""
        with self.change:
            self._announce(cells)  # reading begins with `need`: neighbours may be announced yet

    def forget(self, cells: NDArray[np.int64]) -> None:
        """One announced use of each of these cells is over, or will not come."""
        with self.change:
            self._pending[cells] = np.maximum(self._pending[cells] - 1, 0)
            for cell in cells[self._pending[cells] == 0].tolist():
                self._errors.pop(cell, None)
                if self._state[cell] == _HERE and cell in self._memory:
                    self._idle[cell] = None
            self._schedule()

    def need(self, cells: NDArray[np.int64]) -> None:
        """Wait until all these cells are in memory, where they stay until `forget`.

        Raises
        ------
        ProjectError
            What went wrong with one of them.
        BudgetError
            If they are more than there is memory for.
        """
        start = time.monotonic()
        with self.change:
            unannounced = cells[self._pending[cells] == 0]
            self._announce(unannounced)
            self._schedule()
            self._waiting += 1
            try:
                while not self.closed and not (self._state[cells] == _HERE).all():
                    for cell in cells.tolist():
                        if cell in self._errors:
                            raise self._errors.pop(cell)
                    self._hurry(cells)
                    self.change.wait(0.05)
            finally:
                self._waiting -= 1
                self.counters.waited_s += time.monotonic() - start
            if self.closed:
                raise ValueError("the loader is closed")

    def _announce(self, cells: NDArray[np.int64]) -> None:
        new = cells[self._pending[cells] == 0]
        self._turn[new] = self._turns + np.arange(len(new))
        self._turns += len(new)
        self._pending[cells] += 1
        for cell in cells.tolist():
            self._idle.pop(cell, None)
            if self._state[cell] == _ABSENT:
                self._wanted.append(cell)

    def put(self, cells: NDArray[np.int64], addresses: NDArray[np.int64]) -> None:
        """Cells lie at these addresses anyway, such as in a mapped file."""
        with self.change:
            new = self._state[cells] == _ABSENT
            self.addresses[cells[new]], self._state[cells[new]] = addresses[new], _HERE
            self.change.notify_all()

    def withdraw(self, cells: NDArray[np.int64]) -> None:
        """These cells lie where `put` said no more; what is in memory of them stays."""
        with self.change:
            gone = [cell for cell in cells.tolist()
                    if self._state[cell] == _HERE and cell not in self._memory]  # fmt: skip
            self.addresses[gone], self._state[gone] = 0, _ABSENT
            self._wanted.extend(cell for cell in gone if self._pending[cell])

    # ------------------------------------------------------------------ memory

    def holds_anything(self) -> bool:
        """Whether there is memory of cells that were read, or anything announced."""
        return self._made > 0 or bool(self._pending.any())

    def drop_idle(self) -> None:
        """Forget cells that nobody needs now; their memory is kept for others."""
        with self.change:
            for cell in list(self._idle):
                self._drop(cell)

    def release_idle(self) -> None:
        """Give memory back to the system that nobody needs now."""
        with self.change:
            self.drop_idle()
            self._made -= len(self._free)
            self._free.clear()

    def _room(self) -> int:
        """Buffers that are free or can be freed, but for those kept for races."""
        return len(self._free) + self._most - self._made + len(self._idle) - RACES_AT_ONCE

    def _take(self) -> Bytes:
        if not self._free and self._made < self._most:
            self._made += 1
            self.counters.peak_buffers = max(self.counters.peak_buffers, self._made)
            return np.empty(self._rows * RECORD_STRIDE, np.uint8)
        if not self._free:
            self._drop(next(iter(self._idle)))
        return self._free.pop()

    def _drop(self, cell: int) -> None:
        """Give up a cell that is in memory."""
        self._idle.pop(cell, None)
        self.addresses[cell], self._state[cell] = 0, _ABSENT
        self._free.append(self._memory.pop(cell))

    # ------------------------------------------------------------------ what is read next

    def _schedule(self, *, hurry: bool = False) -> None:
        """Begin runs while there are wanted cells, memory and threads (under the lock)."""
        while not self.closed and self._busy() < self._at_once and self._wanted:
            cell = self._wanted[0]
            if self._state[cell] != _ABSENT or not self._pending[cell]:
                self._wanted.popleft()
                continue
            first, length = self._stretch(cell)
            room = self._room()
            # Memory comes back a cell at a time: wait for that of a whole run, unless the
            # consumer would run dry.
            if room < 1 or (length > room and self._runs and not hurry):
                return
            if length > room:
                first, length = cell, min(room, first + length - cell)
            cells = list(range(first, first + length))
            self._start(_Run(self, cells, [self._take() for _ in cells]))

    def _busy(self) -> int:
        """Runs that bring something; one that was stopped may yet wait for its answer."""
        return sum(not run.stopped for run in self._runs)

    def _stretch(self, cell: int) -> tuple[int, int]:
        """First cell and number of cells around this one that can be read in one request."""

        def joins(other: int) -> bool:
            return bool(
                self.cells.shard[other] == self.cells.shard[cell]
                and self._state[other] == _ABSENT
                and self._pending[other]
                and self._turn[other] - self._turn[cell] < self.reach
            )

        first, last = cell, cell
        # Backwards only to a multiple, so that requests of a random order do not split a shard
        # into ever smaller pieces.
        within = int(self.cells.first[cell]) // self._rows
        for other in range(cell - 1, cell - 1 - within % RUN_CELLS, -1):
            if not joins(other):
                break
            first = other
        for other in range(cell + 1, min(first + RUN_CELLS, len(self._state))):
            if not joins(other):
                break
            last = other
        return first, last - first + 1

    def _start(self, run: _Run) -> None:
        self._runs.add(run)
        self._state[run.cells] = _COMING
        self.counters.requests += 1
        busy = len(self._runs)
        if len(self._threads) < min(busy, self._at_once + RACES_AT_ONCE):
            thread = threading.Thread(
                target=_read_runs, args=(self, self._queue), name="lenstrain-s3", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._queue.put(run)

    def _hurry(self, cells: NDArray[np.int64]) -> None:
        """Somebody waits for these cells (under the lock)."""
        missing = cells[self._state[cells] == _ABSENT].tolist()
        if missing:
            if not self._wanted or self._wanted[0] != missing[0]:  # not again at every look
                self._wanted.extendleft(reversed(missing))
            if self._room() < 1 and not self._busy():
                self._evict(set(cells.tolist()))
            self._schedule(hurry=True)
        for cell in cells[self._state[cells] == _COMING].tolist():
            self._race(cell)

    def _evict(self, needed: set[int]) -> None:
        """Give up a cell that will be needed, but later than those that are needed now."""
        others = [cell for cell in self._memory if cell not in needed]
        if not others:
            raise BudgetError(
                f"One batch needs {len(needed)} ranges of {self._rows} stamps at once, and the "
                f"memory budget holds {self._most}. Raise memory_budget, or use smaller batches."
            )
        self.counters.evicted += 1
        self._drop(others[-1])
        self._wanted.append(others[-1])

    # ------------------------------------------------------------------ races

    def slow_after(self) -> float:
        """Seconds after which a cell is slow."""
        if len(self._times) < 4:
            return _FIRST_RACE_SECONDS
        return max(RACE_SECONDS, RACE_RATIO * statistics.median(self._times))

    def _race(self, cell: int) -> None:
        """Ask a second time for a cell that takes too long."""
        runs = [run for run in self._runs if run.waits_for == cell and not run.stopped]
        now, racing = time.monotonic(), sum(run.race for run in self._runs)
        if len(runs) != 1 or now - runs[0].mark < self.slow_after():
            return
        bounded = self.counters.raced < 2 + self.counters.requests // 50
        if not bounded or racing >= RACES_AT_ONCE or self._room() + RACES_AT_ONCE < 1:
            return
        shard = self.shards[int(self.cells.shard[cell])].name
        logger.warning(
            "%s: a range takes %.2f s, much longer than others; asking a second time",
            self.store.locate(shard),
            now - runs[0].mark,
        )
        self.counters.raced += 1
        self._start(_Run(self, [cell], [self._take()], race=True))

    # ------------------------------------------------------------------ in the reading threads

    def see_version(self, cell: int, entry: Entry) -> None:
        """All bytes of a shard come from one version of it."""
        number = int(self.cells.shard[cell])
        with self.change:
            version = self.versions.setdefault(number, entry.version)
        if version != entry.version:
            where = self.store.locate(self.shards[number].name)
            raise ChangedError(f"{where} was replaced while it was read.")

    def piece(self, run: _Run) -> Piece:
        """The range of a run."""
        number = int(self.cells.shard[run.cells[0]])
        shard = self.shards[number]
        parts = zip(run.buffers, run.cells, strict=True)
        views = [buffer.data[: self.cell_bytes(cell)] for buffer, cell in parts]
        start = int(self.cells.first[run.cells[0]]) * RECORD_STRIDE
        version, view = self.versions.get(number), Scatter(views)
        # Without a check the reader wants none: bytes that it times, or does not look at.
        return Piece(shard.name, start, view, shard.bytes, shard.sha256, version, checked=True)

    def arrived(self, run: _Run, number: int) -> None:
        """A cell of a run is complete: check it and hand it over, unless another was faster."""
        cell, buffer = run.cells[number], run.buffers[number]
        data = buffer[: self.cell_bytes(cell)]
        if self._check is not None:
            self._checked(run, cell, data)
        with self.change:
            now = time.monotonic()
            self._times.append(now - run.mark)
            run.mark = now
            self.counters.bytes += data.size
            if self._state[cell] == _HERE or self.closed:
                self._free.append(buffer)
            else:
                self._keep(run, cell, buffer)
            self._schedule()
            self.change.notify_all()

    def _keep(self, run: _Run, cell: int, buffer: Bytes) -> None:
        self._memory[cell] = buffer
        self.addresses[cell], self._state[cell] = buffer.ctypes.data, _HERE
        self.counters.cells += 1
        self.counters.races_won += run.race
        if not self._pending[cell]:
            self._idle[cell] = None
        for other in self._runs:
            # The slower one of a race.
            if other is not run and other.waits_for == cell and not other.stopped:
                other.stop()
                self._leave(other)

    def _leave(self, run: _Run) -> None:
        """What a stopped run has not brought is read by others (under the lock).

        Its thread may yet wait for an answer's first byte, for as long as the store takes.
        """
        others = self._on_their_way(run)
        for cell in reversed(run.cells[run.done_cells + 1 :]):
            if self._state[cell] == _COMING and cell not in others:
                self._state[cell] = _ABSENT
                if self._pending[cell]:
                    self._wanted.appendleft(cell)

    def _on_their_way(self, but: _Run) -> set[int]:
        """Cells that runs will bring which are not stopped (under the lock)."""
        runs = (run for run in self._runs if run is not but and not run.stopped)
        return {cell for run in runs for cell in run.cells[run.done_cells :]}

    def _checked(self, run: _Run, cell: int, data: Bytes) -> None:
        assert self._check is not None
        try:
            self._check(cell, data)
        except ProjectError as error:
            # Damaged on the way, or in the store? A second look tells.
            logger.warning("%s Reading it again.", error)
            with self.change:
                self.counters.reread += 1
            start = int(self.cells.first[cell]) * RECORD_STRIDE
            number = int(self.cells.shard[cell])
            version, name = self.versions.get(number), self.shards[number].name
            self.store.fill(Piece(name, start, data.data, version=version))
            self._check(cell, data)

    def finished(self, run: _Run, error: BaseException | None) -> None:
        """A run is over: what it did not bring is wanted again, or has failed."""
        with self.change:
            self._runs.discard(run)
            racing = self._on_their_way(run)
            for number in range(run.done_cells, len(run.cells)):
                cell = run.cells[number]
                self._free.append(run.buffers[number])
                if self._state[cell] != _COMING or cell in racing:
                    continue
                self._state[cell] = _ABSENT
                if not self._pending[cell]:
                    continue  # an error that nobody hears would be told to the next epoch
                if error is not None and not run.stopped and number == run.done_cells:
                    self._errors[cell] = error
                else:
                    self._wanted.appendleft(cell)
            self._schedule()
            self.change.notify_all()

    def stop(self) -> None:
        """End all threads; those that wait for the store are woken."""
        with self.change:
            self.closed = True
            runs, threads = list(self._runs), list(self._threads)
            for _ in threads:
                self._queue.put(None)
            self.change.notify_all()
        for run in runs:
            run.stop()
        end = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))


def _read_runs(reader: RangeReader, queue: SimpleQueue[_Run | None]) -> None:
    """Body of a reading thread."""
    while (run := queue.get()) is not None:
        error: BaseException | None = None
        try:
            run.mark = time.monotonic()
            if not run.stopped:
                reader.store.fill(reader.piece(run), watch=run)
        except BaseException as caught:  # handed to whoever waits for the cells
            error = caught
        reader.finished(run, error)

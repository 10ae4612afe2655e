"""Reads cells of shards from an object store ahead of their use.

Neighbouring cells that are wanted together are read in one request (a run). A few threads read runs
in the order in which their cells are first needed (`schedule`), while there is memory (`buffers`);
a cell gives its memory back when no announced use needs it any more. A cell that somebody waits for
and that takes much longer than others is requested a second time, and the first answer wins
(`races`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import ShardInfo
from lensprep.errors import BudgetError, ChangedError, ProjectError
from lensprep.store import Entry, Piece, RemoteStore
from lensprep.store.ranges import Reception, Scatter
from lenstrain.data.sources.buffers import ABSENT, COMING, HERE, Bytes, CellBuffers
from lenstrain.data.sources.cells import Cells
from lenstrain.data.sources.races import RACES_AT_ONCE, Races
from lenstrain.data.sources.schedule import Schedule

logger = logging.getLogger("lenstrain.data")

Check = Callable[[int, Bytes], None]
"""Given a cell and its records; raises if they are not what was written."""

_STOP_SECONDS = 1.0
"""How long the end of the threads is waited for; one without an answer's first byte ends later."""


@dataclass(slots=True)
class Counters:
    """What reading has cost so far."""

    requests: int = 0
    cells: int = 0
    bytes: int = 0
    reread: int = 0
    """Cells read again because their CRC-32 was wrong the first time."""
    evicted: int = 0
    """Announced cells that were given up: the budget was too small for the order."""
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
        self._ends = np.cumsum([self.reader.cells.bytes(cell) for cell in self.cells]).tolist()

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

    At most `buffers` cells are in memory. `check` is called with every cell that has come.
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
        self.change = threading.Condition()
        self.buffers = CellBuffers(cells, buffers, reserve=RACES_AT_ONCE)
        self.schedule = Schedule(cells, self.buffers.state)
        self.races, self.counters = Races(), Counters()
        self.addresses = self.buffers.addresses
        self.versions: dict[int, str | None] = {}
        self.closed = False
        self._check = check
        self._runs: set[_Run] = set()
        self._errors: dict[int, BaseException] = {}
        self._queue: SimpleQueue[_Run | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._at_once = store.options.connections
        self._waiting = 0

    def hungry(self) -> bool:
        """Whether somebody waits for cells right now."""
        return self._waiting > 0

    # ------------------------------------------------------------------ what is needed

    def expect(self, cells: NDArray[np.int64]) -> None:
        """Announce one use of each of these cells, after the uses announced before."""
        with self.change:
            self._announce(cells)  # reading begins with `need`: neighbours may still be announced

    def forget(self, cells: NDArray[np.int64]) -> None:
        """End one announced use of each of these cells: it is over, or will not come."""
        with self.change:
            for cell in self.schedule.forget(cells):
                self._errors.pop(cell, None)
                self.buffers.set_needed(cell, False)
            self.read_on()

    def need(self, cells: NDArray[np.int64]) -> None:
        """Wait until all these cells are in memory, where they stay until `forget`.

        Raises
        ------
        ProjectError
            If reading one of them failed.
        BudgetError
            If there is not enough memory for all of them.
        """
        start = time.monotonic()
        with self.change:
            self._announce(cells[self.schedule.pending[cells] == 0])
            self.read_on()
            self._waiting += 1
            try:
                while not self.closed and not (self.buffers.state[cells] == HERE).all():
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
        self.schedule.announce(cells)
        for cell in cells.tolist():
            self.buffers.set_needed(cell, True)

    def put(self, cells: NDArray[np.int64], addresses: NDArray[np.int64]) -> None:
        """Note that cells lie at these addresses already, in a mapped file."""
        with self.change:
            self.buffers.put(cells, addresses)
            self.change.notify_all()

    def withdraw(self, cells: NDArray[np.int64]) -> None:
        """Undo `put` for these cells; those that were read into memory stay."""
        with self.change:
            for cell in self.buffers.withdraw(cells):
                self.schedule.want_again(cell, last=True)

    def holds_anything(self) -> bool:
        """Whether there is memory for cells, or an announced use."""
        return self.buffers.made > 0 or bool(self.schedule.pending.any())

    def drop_idle(self) -> None:
        """Forget cells that nobody needs now; their memory is kept for other cells."""
        with self.change:
            self.buffers.drop_idle()

    def release_idle(self) -> None:
        """Return to the system all memory that nobody needs now."""
        with self.change:
            self.buffers.release()

    # ------------------------------------------------------------------ requests

    def read_on(self, *, hurry: bool = False) -> None:
        """Begin runs while there are wanted cells, memory and threads (under the lock)."""
        while not self.closed and self._busy() < self._at_once:
            # In no hurry if others bring something: the consumer does not run dry.
            whole = bool(self._runs) and not hurry
            cells = self.schedule.next_run(self.buffers.room(), whole=whole)
            if not cells:
                return
            self._start(_Run(self, cells, [self.buffers.take() for _ in cells]))

    def _busy(self) -> int:
        """Runs that bring something; a stopped one may still wait for its answer."""
        return sum(not run.stopped for run in self._runs)

    def _start(self, run: _Run) -> None:
        self._runs.add(run)
        self.buffers.state[run.cells] = COMING
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
        """Read these cells sooner: somebody waits for them (under the lock)."""
        state = self.buffers.state[cells]
        missing = cells[state == ABSENT].tolist()
        if missing:
            self.schedule.want_first(missing)
            if self.buffers.room() < 1 and not self._busy():
                self._evict(set(cells.tolist()))
            self.read_on(hurry=True)
        for cell in cells[self.buffers.state[cells] == COMING].tolist():
            self._race(cell)

    def _evict(self, needed: set[int]) -> None:
        """Give up a cell that will be needed, but later than those that are needed now."""
        other = self.buffers.newest(but=needed)
        if other is None:
            raise BudgetError(
                f"One batch needs {len(needed)} ranges of {self.cells.most_rows} stamps at once, "
                f"and the memory budget holds {self.buffers.most}. Raise memory_budget, or use "
                "smaller batches."
            )
        self.counters.evicted += 1
        self.buffers.drop(other)
        self.schedule.want_again(other, last=True)

    def _race(self, cell: int) -> None:
        """Request a cell a second time if it takes too long."""
        now = time.monotonic()
        slow = self.races.slow(cell, self._runs, now, self.counters.requests)
        if slow is None or self.buffers.room() + RACES_AT_ONCE < 1:
            return
        logger.warning(
            "%s: a range takes %.2f s, much longer than others; requesting it a second time",
            self.store.locate(self._shard_of(cell).name),
            now - slow.mark,
        )
        self.races.begun += 1
        self._start(_Run(self, [cell], [self.buffers.take()], race=True))

    # ------------------------------------------------------------------ in the reading threads

    def _shard_of(self, cell: int) -> ShardInfo:
        return self.shards[int(self.cells.shard[cell])]

    def see_version(self, cell: int, entry: Entry) -> None:
        """Make sure that all bytes of a shard come from one version of it."""
        with self.change:
            version = self.versions.setdefault(int(self.cells.shard[cell]), entry.version)
        if version != entry.version:
            where = self.store.locate(self._shard_of(cell).name)
            raise ChangedError(f"{where} was replaced while it was read.")

    def piece(self, run: _Run) -> Piece:
        """The range of a run."""
        cell = run.cells[0]
        shard, version = self._shard_of(cell), self.versions.get(int(self.cells.shard[cell]))
        parts = zip(run.buffers, run.cells, strict=True)
        view = Scatter([buffer.data[: self.cells.bytes(cell)] for buffer, cell in parts])
        start = self.cells.offset(cell)
        # Without a check the reader wants none: bytes that it times, or does not look at.
        return Piece(shard.name, start, view, shard.bytes, shard.sha256, version, checked=True)

    def arrived(self, run: _Run, number: int) -> None:
        """A cell of a run is complete: check it and hand it over, unless another was faster."""
        cell, buffer = run.cells[number], run.buffers[number]
        data = buffer[: self.cells.bytes(cell)]
        if self._check is not None:
            self._checked(self._check, cell, data)
        with self.change:
            now = time.monotonic()
            self.races.took(now - run.mark)
            run.mark = now
            self.counters.bytes += data.size
            if self.buffers.state[cell] == HERE or self.closed:
                self.buffers.give_back(buffer)
            else:
                self._keep(run, cell, buffer)
            self.read_on()
            self.change.notify_all()

    def _keep(self, run: _Run, cell: int, buffer: Bytes) -> None:
        self.buffers.keep(cell, buffer)
        self.counters.cells += 1
        self.races.won += run.race
        if not self.schedule.pending[cell]:
            self.buffers.set_needed(cell, False)
        for other in self._runs:
            # The slower one of a race.
            if other is not run and other.waits_for == cell and not other.stopped:
                other.stop()
                self._leave(other)

    def _leave(self, run: _Run) -> None:
        """What a stopped run has not brought is read by others (under the lock).

        Its thread may still wait for an answer's first byte, for as long as the store takes.
        """
        others = self._on_their_way(run)
        for cell in reversed(run.cells[run.done_cells + 1 :]):
            if self.buffers.state[cell] == COMING and cell not in others:
                self.buffers.state[cell] = ABSENT
                self.schedule.want_again(cell)

    def _on_their_way(self, but: _Run) -> set[int]:
        """Cells that runs will bring which are not stopped (under the lock)."""
        runs = (run for run in self._runs if run is not but and not run.stopped)
        return {cell for run in runs for cell in run.cells[run.done_cells :]}

    def _checked(self, check: Check, cell: int, data: Bytes) -> None:
        try:
            check(cell, data)
        except ProjectError as error:
            # Damaged on the way, or in the store? Reading it again decides.
            logger.warning("%s Reading it again.", error)
            with self.change:
                self.counters.reread += 1
            version = self.versions.get(int(self.cells.shard[cell]))
            name, start = self._shard_of(cell).name, self.cells.offset(cell)
            self.store.fill(Piece(name, start, data.data, version=version))
            check(cell, data)

    def finished(self, run: _Run, error: BaseException | None) -> None:
        """End a run: what it did not bring is wanted again, or has failed."""
        with self.change:
            self._runs.discard(run)
            racing = self._on_their_way(run)
            for number in range(run.done_cells, len(run.cells)):
                cell = run.cells[number]
                self.buffers.give_back(run.buffers[number])
                if self.buffers.state[cell] != COMING or cell in racing:
                    continue
                self.buffers.state[cell] = ABSENT
                if error is None or run.stopped or number != run.done_cells:
                    self.schedule.want_again(cell)
                elif self.schedule.pending[cell]:  # or the next epoch would raise it
                    self._errors[cell] = error
            self.read_on()
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

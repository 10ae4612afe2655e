"""What the thread that feeds the device need not wait for: columns are read, and parts written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Final, Self, TypeVar

from lensprep.store import WAKE_SECONDS
from lensprep.store.connection import cancel, finish

T = TypeVar("T")

AHEAD: Final = 2
"""Scored parts in memory that are not written yet; with so many the device has to wait."""


class Background:
    """One thread that reads and one that writes, each doing what it is given in that order.

    An error of either is raised by the next call of a method here, or at the end of the block, and
    nothing more is written. If the block ends with an error of its own, what the writer was given
    is still written.
    """

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, "lenstrain-columns")
        self._writer = ThreadPoolExecutor(1, "lenstrain-parts")
        self._reading: deque[Future[Any]] = deque()
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                finish(list(self._writing))
            while wait(self._writing, WAKE_SECONDS).not_done:
                pass
        finally:
            cancel([*self._reading, *self._writing])
            self._reader.shutdown()
            self._writer.shutdown()

    def read(self, function: Callable[[], T]) -> Future[T]:
        """Begin to read."""
        self.check()
        self._reading.append(self._reader.submit(function))
        return self._reading[-1]

    def write(self, function: Callable[[], None]) -> None:
        """Begin to write, once fewer than `AHEAD` others wait for that or are being written."""
        self.check()
        while len(self._writing) >= AHEAD:
            wait(self._writing, WAKE_SECONDS, FIRST_COMPLETED)
            self.check()
        self._writing.append(self._writer.submit(function))

    def check(self) -> None:
        """Raise the error of what has failed; this waits for nothing."""
        for futures in (self._reading, self._writing):
            while futures and futures[0].done():
                try:
                    futures.popleft().result()
                except BaseException:
                    for future in self._writing:
                        future.cancel()
                    raise

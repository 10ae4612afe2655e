"""What the requests of one process to one object store share: threads, memory, and retries.

tries = Tries(connection)    counts failures and waits between two tries of one request
connection.stop()            nothing is retried any more
stop_retries()               ... by any connection of this process
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from lensprep.store.options import S3Options

logger = logging.getLogger("lensprep.s3")

WAKE_SECONDS: Final = 0.5
"""Longest wait of a main thread: a signal that comes as it begins is seen only when it wakes."""
_NAP_SECONDS: Final = 0.1
"""How soon a pause before a retry notices that retries were stopped."""
_LOG_SECONDS: Final = 5.0
"""A fault that many requests meet at once is logged once in this time."""

_T = TypeVar("_T")
_connections: list[Connection] = []


class Connection:
    """Threads and memory for requests.

    Parameters
    ----------
    options : S3Options
    plain : bool
        Whether the connection has no TLS: then only digests show that bytes arrived as sent.
    """

    def __init__(self, options: S3Options, *, plain: bool) -> None:
        self.options, self.plain = options, plain
        self.stopped = False
        """Nothing is to be retried."""
        self.threads = ThreadPoolExecutor(options.connections, "lensprep-s3")
        self.slots = threading.BoundedSemaphore(options.connections + 2)
        """Parts held in memory at once, over all files of a transfer."""
        self.buffers: list[bytearray] = []
        """Memory of parts already written: fresh pages would cost half as much as receiving."""
        self.told: dict[str, float] = {}
        """When each fault was logged last."""
        _connections.append(self)

    def stop(self) -> None:
        """Give up after an interrupt: nothing is retried, and the next request connects anew."""
        self.stopped = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        if self in _connections:
            _connections.remove(self)

    @contextmanager
    def giving_up(self) -> Iterator[None]:
        """Retry nothing inside the block."""
        before, self.stopped = self.stopped, True
        try:
            yield
        finally:
            self.stopped = before

    def results(self, futures: Sequence[Future[_T]]) -> list[_T]:
        """Results of all; the first failure drops the rest, an interrupt ends the retries."""
        try:
            finish(futures)
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            with self.giving_up():
                cancel(futures)
            raise
        finally:
            cancel(futures)


@dataclass(slots=True)
class Tries:
    """The tries of one request: how many have failed in a row, and whether there is another."""

    connection: Connection
    base_s: float = 1.0
    """Longest pause after the first failure; it doubles with each further one."""
    longest_s: float = 60.0
    failed: int = 0
    _progress: int = 0

    def again(self, fault: str, progress: int = 0, *, enough: bool = False) -> bool:
        """Count a failure; if there is to be another try, log the fault and wait for a random time.

        Parameters
        ----------
        fault : str
        progress : int
            The count starts anew when this has changed.
        enough : bool
            Whether to give up now, however few tries there were.
        """
        self.failed = self.failed + 1 if progress == self._progress else 1
        self._progress = progress
        if enough or self.connection.stopped or self.failed >= self.connection.options.attempts:
            return False
        now, told = time.monotonic(), self.connection.told
        if now - told.get(fault, -_LOG_SECONDS) >= _LOG_SECONDS:
            told[fault] = now
            logger.warning("%s (attempt %d); trying again", fault, self.failed)
        until = now + random.random() * min(self.longest_s, self.base_s * 2 ** (self.failed - 1))
        while not self.connection.stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_SECONDS))
        return not self.connection.stopped


def stop_retries() -> None:
    """Stop the retries of all requests under way, on a signal (see `interrupts.interruptible`)."""
    for connection in _connections.copy():
        connection.stopped = True


def finish(futures: Sequence[Future[Any]]) -> None:
    """Wait for all, until the first failure."""
    waiting = list(futures)
    while waiting:
        wait(waiting, WAKE_SECONDS, FIRST_EXCEPTION)
        raise_failed(futures)
        # `wait` never hears of futures cancelled after their threads were shut down.
        waiting = [future for future in waiting if not future.done()]


def cancel(futures: Sequence[Future[Any]]) -> None:
    """Drop those that have not begun, and wait for those that have."""
    # `wait` never hears of futures cancelled after their threads were shut down.
    begun = [future for future in futures if not future.cancel()]
    while wait(begun, WAKE_SECONDS).not_done:
        pass


def raise_failed(futures: Sequence[Future[Any]]) -> None:
    """Raise the error of the first that failed."""
    for future in futures:
        if future.done() and not future.cancelled() and (error := future.exception()):
            raise error

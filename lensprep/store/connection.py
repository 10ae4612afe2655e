"""What the requests of one process to one object store share: threads, memory, and their end.

connection.persist(attempt, may_pass)    the one loop in which anything is tried again
connection.stop()                        nothing more is tried
stop_retries()                           ... by any connection of this process
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar

from lensprep.store.options import S3Options

logger = logging.getLogger("lensprep.s3")

WAKE_SECONDS: Final = 0.5
"""Longest wait of a main thread: a signal that comes as it begins is seen only when it wakes."""
_NAP_SECONDS: Final = 0.1
"""How soon a pause before another try notices that there is to be none."""
_LONGEST_PAUSE: Final = 60.0
_LOG_SECONDS: Final = 5.0
"""A fault that many requests meet at once is told once in so many seconds."""

_T = TypeVar("_T")
_connections: list[Connection] = []


class Connection:
    """Threads and memory for requests, and the loop that makes them again.

    Parameters
    ----------
    options : S3Options
    plain : bool
        Whether it goes without TLS: then only digests tell whether bytes are those sent.
    """

    def __init__(self, options: S3Options, *, plain: bool) -> None:
        self.options, self.plain = options, plain
        self.stopped = False
        """Nothing shall be tried again."""
        self.threads = ThreadPoolExecutor(options.connections, "lensprep-s3")
        self.slots = threading.BoundedSemaphore(options.connections + 2)
        """Parts held in memory at once, over all files of a transfer."""
        self.buffers: list[bytearray] = []
        """Memory of parts that were written: fresh pages would cost half as much as receiving."""
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()
        _connections.append(self)

    def stop(self) -> None:
        """Let go after an interrupt: nothing is tried again, and the next one starts anew."""
        self.stopped = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        if self in _connections:
            _connections.remove(self)

    @contextmanager
    def giving_up(self) -> Iterator[None]:
        """Try nothing again inside the block."""
        before, self.stopped = self.stopped, True
        try:
            yield
        finally:
            self.stopped = before

    def persist(
        self,
        attempt: Callable[[], _T],
        may_pass: Callable[[Exception], bool],
        *,
        tell: Callable[[Exception, int], None],
        give_up: Callable[[Exception, int], NoReturn],
        progress: Callable[[], int] = lambda: 0,
        is_enough: Callable[[], bool] = lambda: False,
        base_s: float = 1.0,
        longest_s: float = _LONGEST_PAUSE,
    ) -> _T:
        """Try until it succeeds, fails for good, or has failed `attempts` times in turn.

        Pauses are random and grow: ``base_s`` at most after the first try, then twice that, ...

        Parameters
        ----------
        attempt : callable
        may_pass : callable
            Whether after this error another try may succeed; else it is raised.
        tell : callable
            Logs an error, with the number of the try, before a pause.
        give_up : callable
            Raises what the last error and the number of tries come to.
        progress : callable
            Tries are counted anew when its value has changed.
        is_enough : callable
            Whether to give up sooner.
        """
        made, seen = 0, progress()
        fault: Any = None
        try:
            return attempt()
        except Exception as error:
            first: Exception | None = error
        import tenacity  # only now: nearly all succeed, and it takes longer than a small request

        def count(_: object) -> None:
            nonlocal made, seen
            now = progress()
            made, seen = (made + 1 if now == seen else 1), now

        def unless_stopped() -> _T:
            nonlocal first
            if first is not None:
                error, first = first, None
                raise error
            if self.stopped:
                raise fault
            return attempt()

        def keep(error: BaseException) -> bool:
            nonlocal fault
            again = isinstance(error, Exception) and (error is fault or may_pass(error))
            if again:
                fault = error
            return again

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(keep),
            after=count,
            stop=lambda _: self.stopped or made >= self.options.attempts or is_enough(),
            wait=lambda _: random.random() * min(longest_s, base_s * 2 ** (made - 1)),
            before_sleep=lambda _: tell(fault, made),
            sleep=self.pause,
            retry_error_callback=lambda _: give_up(fault, made),
        )
        return retrying(unless_stopped)

    def pause(self, seconds: float) -> None:
        """Wait before another try, but not when there is to be none."""
        until = time.monotonic() + seconds
        while not self.stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_SECONDS))

    def tell(self, what: str, attempt: int) -> None:
        """Log a fault, but not the same one many times within a few seconds."""
        now = time.monotonic()
        with self._lock:
            if now - self._told.get(what, -_LOG_SECONDS) < _LOG_SECONDS:
                return
            self._told[what] = now
        logger.warning("%s (attempt %d); trying again", what, attempt)

    def results(self, futures: Sequence[Future[_T]]) -> list[_T]:
        """Results of all; at the first failure the rest is dropped; an interrupt ends the tries."""
        try:
            finish(futures)
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            with self.giving_up():
                cancel(futures)
            raise
        finally:
            cancel(futures)


def stop_retries() -> None:
    """Try nothing again that is under way: what a signal does, see `interrupts.interruptible`."""
    for connection in _connections.copy():
        connection.stopped = True


def finish(futures: Sequence[Future[Any]]) -> None:
    """Wait for all, until the first failure."""
    waiting = list(futures)
    while waiting:
        wait(waiting, WAKE_SECONDS, FIRST_EXCEPTION)
        raise_failed(futures)
        # Of futures that were cancelled `wait` never hears when their threads have been shut down.
        waiting = [future for future in waiting if not future.done()]


def cancel(futures: Sequence[Future[Any]]) -> None:
    """Drop those that have not begun, and wait for those that have."""
    # Of futures that were cancelled `wait` never hears when their threads have been shut down.
    begun = [future for future in futures if not future.cancel()]
    while wait(begun, WAKE_SECONDS).not_done:
        pass


def raise_failed(futures: Sequence[Future[Any]]) -> None:
    """Raise the error of the first that failed."""
    for future in futures:
        if future.done() and not future.cancelled() and (error := future.exception()):
            raise error

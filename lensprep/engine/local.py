"""Processes of this machine that run tasks."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Self

from lensprep.engine.base import AHEAD, Result, Task, default_workers, while_it_did
from lensprep.errors import ProjectError
from lensprep.store import WAKE_SECONDS
from lensprep.store.interrupts import killed_by

if TYPE_CHECKING:
    from lensprep.kernel import Notice

MOST_LOSSES = 4
"""A task that has lost so many workers ends the run, as it does on Dask and Spark."""

_log = logging.getLogger("lensprep.engine")


class LocalEngine:
    """Processes of this machine; they start with the first run and are kept for later ones.

    Parameters
    ----------
    workers : int
        Processes. With 1, everything runs in the caller's process.
    apart : bool
        Start a process even for one worker, so that it works while the caller uses a result.
    """

    def __init__(self, workers: int | None = None, *, apart: bool = False) -> None:
        self.workers = workers or default_workers()
        self._apart = apart
        self._pool: ProcessPoolExecutor | None = None
        self._held: Any = None
        """Process id and task of each worker, in turn, written by the workers."""
        self._compiling: Any = None
        """Set by a worker that compiles; the driver then logs it once for all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is not None:
            _shut_down(self._pool, finished=kind is None)
            self._pool = None

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a function over tasks; see `Engine.run`."""
        if self.workers <= 1 and not self._apart:
            return map(function, tasks)
        return self._run_in_pool(function, tasks)

    def _run_in_pool(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[Result]:
        waiting = deque(range(len(tasks)))
        pending: dict[Future[Result], int] = {}
        losses = Counter[int]()
        while waiting or pending:
            pool = self._pool or self._start()
            try:
                while waiting and len(pending) < AHEAD * self.workers:
                    future = pool.submit(_call, function, waiting[0], tasks[waiting[0]])
                    pending[future] = waiting.popleft()
                done = wait(pending, WAKE_SECONDS, FIRST_COMPLETED).done
                if not done and any(p.exitcode is not None for p in _processes(pool)):
                    _end(pool)
                if self._compiling.value:
                    _notice().say()
                for future in done:
                    result = future.result()
                    del pending[future], losses[_NOBODY]
                    yield result
            except BrokenProcessPool:
                number, end = self._clear_up(pool)
                losses[number] += 1
                said = f"A worker process {end}{while_it_did(tasks, number)}"
                if losses[number] >= MOST_LOSSES:
                    raise ProjectError(
                        f"{said}, {losses[number]} times. Run the same command again, perhaps with "
                        "fewer --workers; a conversion continues with --resume."
                    ) from None
                _log.warning("%s. Its task is repeated.", said)
                waiting.extendleft(sorted(pending.values(), reverse=True))
                pending.clear()

    def _start(self) -> ProcessPoolExecutor:
        # spawn: a forked child would inherit the threads' locks of pyarrow and boto3.
        context = multiprocessing.get_context("spawn")
        held = context.Array("q", [_NOBODY] * 2 * self.workers)
        self._held = held.get_obj()
        self._compiling = context.RawValue("b", 0)  # no lock, which a killed worker would hold
        self._pool = ProcessPoolExecutor(
            self.workers, context, initializer=_start_worker, initargs=(held, self._compiling)
        )
        return self._pool

    def _clear_up(self, pool: ProcessPoolExecutor) -> tuple[int, str]:
        """End a broken pool; returns the task that its dead worker held, and how that ended."""
        processes = _processes(pool)
        pool.shutdown()
        self._pool = None
        held = dict(zip(self._held[::2], self._held[1::2], strict=True))
        for process in processes:
            # The pool itself ends the others, with SIGTERM.
            code = process.exitcode
            if code not in (None, 0, -signal.SIGTERM):
                end = (
                    f"ended (exit status {code})" if code > 0 else f"was killed ({killed_by(code)})"
                )
                return held.get(process.pid, _NOBODY), end
        return _NOBODY, "was killed (SIGTERM)"


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int | None,
    apart: bool = False,
) -> Generator[Result, None, None]:
    """Run a function over tasks with processes of this machine that end with the tasks.

    The parameters are those of `Engine.run` and `LocalEngine`; no more processes are started than
    there are tasks.
    """
    most = min(workers or default_workers(), max(1, len(tasks)))
    with LocalEngine(most, apart=apart) as engine:
        yield from engine.run(function, tasks)


_NOBODY = -1
"""Stands for no process or no task."""

_held: Any = None
"""In a worker: `LocalEngine._held` of the driver, in shared memory."""


def _call(function: Callable[[Task], Result], number: int, task: Task) -> Result:
    """Do a task in a worker, and record which one for the driver: the worker may die of it."""
    mine = 2 * _held[::2].index(os.getpid()) + 1
    _held[mine] = number
    result = function(task)
    _held[mine] = _NOBODY
    return result


def _notice() -> Notice:
    from lensprep.kernel import notice  # numba, which a command line that prints its help can spare

    return notice


def _start_worker(held: Any, compiling: Any) -> None:
    """Leave interrupts from the terminal to the driver, and exit when the driver is gone."""
    global _held
    with held.get_lock():
        _held = held.get_obj()
        _held[2 * _held[::2].index(_NOBODY)] = os.getpid()
    _notice().tell = partial(setattr, compiling, "value", 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_with_driver() -> None:
    """Exit when the driver was killed: otherwise workers would wait forever for their next task."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def _shut_down(pool: ProcessPoolExecutor, finished: bool) -> None:
    """End the workers; unless the work is finished, without waiting for their tasks."""
    if not finished:
        _end(pool)
    pool.shutdown(cancel_futures=True)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the workers at once, and a result that one of them, or one that died, has half sent.

    The thread of the pool that reads results would wait for the rest forever: it sees no end of the
    pipe while the driver's own copy of the writing side is open.
    """
    processes = _processes(pool)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
    pool._result_queue._writer.close()  # type: ignore[attr-defined]


def _processes(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    return list((pool._processes or {}).values())

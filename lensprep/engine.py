"""Runs independent tasks and yields their small results: processes of this machine.

A task may run twice (after a kill, or on another machine): its files have fixed names and fixed
bytes, so that is harmless. Only the caller commits.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, Self, TypeVar

from lensprep.errors import ProjectError

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2
"""Tasks handed out per worker: one running, one waiting, so that none is idle."""


def default_workers() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


class Engine(Protocol):
    """Something that runs tasks; a context manager that gives its workers back at the end."""

    workers: int
    """Tasks that run at the same time."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None: ...

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a function over tasks; results come as they finish, in no fixed order.

        Parameters
        ----------
        function : callable
            A module-level function of one task; must be harmless when repeated.
        tasks : sequence

        Yields
        ------
        object
            What the function returned.

        Raises
        ------
        ProjectError
            If the workers are lost. Any error of a task ends the run; tasks not begun are dropped.
        """
        ...


class LocalEngine:
    """Processes of this machine; they start with the first run and serve the later ones too.

    Parameters
    ----------
    workers : int
        Processes. With 1, everything runs in the caller's process.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or default_workers()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is not None:
            _shut_down(self._pool, finished=kind is None)
            self._pool = None

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a function over tasks; see `Engine.run`."""
        if self.workers <= 1:
            return map(function, tasks)
        if self._pool is None:
            # spawn: a forked child would inherit the threads' locks of pyarrow and boto3.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, context, initializer=_start_worker)
        return _run_in_pool(self._pool, function, tasks, self.workers)


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int
) -> Iterator[Result]:
    """Run a function over tasks with processes of this machine that end with them.

    Parameters are those of `Engine.run`; no more processes are started than there are tasks.
    """
    with LocalEngine(min(workers, max(1, len(tasks)))) as engine:
        yield from engine.run(function, tasks)


def _run_in_pool(
    pool: ProcessPoolExecutor,
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
) -> Iterator[Result]:
    remaining = iter(tasks)
    pending: set[Future[Result]] = set()
    try:
        for task in remaining:
            pending.add(pool.submit(function, task))
            if len(pending) >= _AHEAD * workers:
                break
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                for task in remaining:
                    pending.add(pool.submit(function, task))
                    break
    except BrokenProcessPool:
        raise ProjectError(
            "A worker process was killed (out of memory?). What is finished is kept: run the "
            "same command again with --resume, perhaps with fewer --workers."
        ) from None


def _start_worker() -> None:
    """Leave an interrupt at the terminal to the driver, and end when the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_with_driver() -> None:
    """Exit when the driver was killed: a pool's workers would wait for ever for their next task."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def _shut_down(pool: ProcessPoolExecutor, finished: bool) -> None:
    """End the workers; unless all is finished, without waiting for what they do."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=finished, cancel_futures=True)
    if not finished:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()

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
from typing import TypeVar

from lensprep.errors import ProjectError

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2
"""Tasks handed out per worker: one running, one waiting, so that none is idle."""


def default_workers() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
) -> Iterator[Result]:
    """Run a function over tasks; results come as they finish, in no fixed order.

    Parameters
    ----------
    function : callable
        A module-level function of one task; must be harmless when repeated.
    tasks : sequence
    workers : int
        Processes. With 1, everything runs in this process.

    Yields
    ------
    object
        What the function returned.

    Raises
    ------
    ProjectError
        If a worker was killed. Any error of a task ends the run; tasks not begun are dropped.
    """
    if workers <= 1:
        for task in tasks:
            yield function(task)
        return
    yield from _run_in_processes(function, tasks, min(workers, max(1, len(tasks))))


def _run_in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    # spawn: a forked child would inherit the threads' locks of pyarrow and boto3.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    remaining = iter(tasks)
    pending: set[Future[Result]] = set()
    finished = False
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
        finished = True
    except BrokenProcessPool:
        raise ProjectError(
            "A worker process was killed (out of memory?). What is finished is kept: run the "
            "same command again with --resume, perhaps with fewer --workers."
        ) from None
    finally:
        _shut_down(pool, finished)


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

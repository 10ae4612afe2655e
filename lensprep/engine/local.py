"""Runs independent tasks and yields their small results: here, or on a cluster that exists.

    with make_engine("dask", scheduler="tcp://host:8786") as engine:
        for result in engine.run(function, tasks): ...

A task may run twice (after a kill, or on another machine): its files have fixed names and fixed
bytes, so that is harmless. Only the caller commits. Scheduling, and trying again what a lost worker
was doing, are the cluster's own; `lensprep.engine.dask` and `lensprep.engine.spark` speak to it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Literal, Protocol, Self, TypeVar, get_args

from lensprep import __version__
from lensprep.errors import ConfigError, ProjectError
from lensprep.kernel import notice
from lensprep.store import WAKE_SECONDS
from lensprep.store.interrupts import killed_by

Task = TypeVar("Task")
Result = TypeVar("Result")

EngineName = Literal["local", "dask", "spark"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

AHEAD = 2
"""Tasks handed out per worker: one running, one waiting, so that none is idle."""

MOST_LOSSES = 4
"""A task that has lost so many workers ends the run, as it does on Dask and Spark."""

_log = logging.getLogger("lensprep.engine")


def default_workers() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


class Engine(Protocol):
    """Something that runs tasks; a context manager that gives its workers back at the end."""

    @property
    def workers(self) -> int:
        """Tasks that run at the same time."""
        ...

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


def make_engine(
    name: EngineName, *, workers: int | None = None, scheduler: str | None = None
) -> Engine:
    """Choose an engine; it starts when it is entered.

    Parameters
    ----------
    name : {"local", "dask", "spark"}
    workers : int, optional
        Processes of this machine; as many as processors if not given.
    scheduler : str, optional
        Address of a Dask scheduler, or master URL of a Spark cluster, to use instead.

    Raises
    ------
    ConfigError
        If the options contradict each other, or the engine is not installed.
    """
    if scheduler is not None and name == "local":
        raise ConfigError("--scheduler needs --engine dask or --engine spark.")
    if scheduler is not None and workers is not None:
        raise ConfigError(
            "--workers counts processes of this machine; a cluster (--scheduler) has its own. "
            "Give one of the two."
        )
    if name == "dask":
        from lensprep.engine.dask import DaskEngine

        return DaskEngine(scheduler, workers=workers)
    if name == "spark":
        from lensprep.engine.spark import SparkEngine

        return SparkEngine(scheduler, workers=workers)
    return LocalEngine(workers)


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
        self._held: Any = None
        """Process and task of each worker, one after the other, as the workers tell."""
        self._compiling: Any = None
        """Whether a worker compiles: it tells, and the driver says it once for all."""

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
                if self._compiling.value:
                    notice.say()
                for future in done:
                    result = future.result()
                    del pending[future], losses[_NOBODY]
                    yield result
            except BrokenProcessPool:
                number, fate = self._clear_up(pool)
                losses[number] += 1
                require_patience(losses[number], tasks, number, fate)
                waiting.extendleft(sorted(pending.values(), reverse=True))
                pending.clear()

    def _start(self) -> ProcessPoolExecutor:
        # spawn: a forked child would inherit the threads' locks of pyarrow and boto3.
        context = multiprocessing.get_context("spawn")
        held = context.Array("q", [_NOBODY] * 2 * self.workers)
        self._held = held.get_obj()
        self._compiling = context.RawValue("b", 0)  # no lock, which a killed worker would keep
        self._pool = ProcessPoolExecutor(
            self.workers, context, initializer=_start_worker, initargs=(held, self._compiling)
        )
        return self._pool

    def _clear_up(self, pool: ProcessPoolExecutor) -> tuple[int, str]:
        """End a broken pool; says which task its dead worker held, and what it died of."""
        processes = dict(pool._processes or {})
        pool.shutdown()
        self._pool = None
        held = dict(zip(self._held[::2], self._held[1::2], strict=True))
        for pid, process in processes.items():
            # The pool itself ends the others, with SIGTERM.
            if process.exitcode not in (None, 0, -signal.SIGTERM):
                return held.get(pid, _NOBODY), _fate(process.exitcode)
        return _NOBODY, "SIGTERM"


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int
) -> Iterator[Result]:
    """Run a function over tasks with processes of this machine that end with them.

    Parameters are those of `Engine.run`; no more processes are started than there are tasks.
    """
    with LocalEngine(min(workers, max(1, len(tasks)))) as engine:
        yield from engine.run(function, tasks)


def require_patience(losses: int, tasks: Sequence[Any], number: int, fate: str) -> None:
    """Tell of a worker that was killed while it did a task; there is an end to that."""
    how = "ended" if fate.startswith(_ENDED) else "was killed"
    said = f"A worker process {how} ({fate}){while_it_did(tasks, number)}"
    if losses < MOST_LOSSES:
        _log.warning("%s. It is done again.", said)
        return
    raise ProjectError(
        f"{said}, {losses} times. Run the same command again, perhaps with fewer --workers; a "
        "conversion goes on with --resume."
    )


def while_it_did(tasks: Sequence[Any], number: int) -> str:
    """Words to follow "was killed"; none if the task is not known, or has no name for people."""
    label = getattr(tasks[number], "label", None) if 0 <= number < len(tasks) else None
    return f" while it did {label}" if label else ""


def _fate(exit_code: int) -> str:
    """What a process died of."""
    return f"{_ENDED} {exit_code}" if exit_code > 0 else killed_by(exit_code)


_ENDED = "exit status"
_NOBODY = -1
"""In place of a process or a task that is not there."""

_held: Any = None
"""In a worker: `LocalEngine._held` of the driver, in memory that they share."""


def _call(function: Callable[[Task], Result], number: int, task: Task) -> Result:
    """Do a task in a worker, and let the driver see which one: the worker may die of it."""
    mine = 2 * _held[::2].index(os.getpid()) + 1
    _held[mine] = number
    result = function(task)
    _held[mine] = _NOBODY
    return result


def _start_worker(held: Any, compiling: Any) -> None:
    """Leave an interrupt at the terminal to the driver, and end when the driver is gone."""
    global _held
    with held.get_lock():
        _held = held.get_obj()
        _held[2 * _held[::2].index(_NOBODY)] = os.getpid()
    notice.tell = partial(setattr, compiling, "value", 1)
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


# ------------------------------------------------------------------- calls sent to a cluster


def pack(function: Callable[[Task], Any], task: Task) -> bytes:
    """A call as bytes for a worker elsewhere.

    Compressed, since a task of the second round names all runs, which are alike: of 100 million
    rows 390 kB, as 50 kB. And bytes, so that no scheduler looks into a task or takes it apart.
    """
    call = zlib.compress(pickle.dumps((function, task), pickle.HIGHEST_PROTOCOL), 1)
    return pickle.dumps((__version__, call))


_one_at_a_time = threading.Lock()


def call_packed(packed: bytes) -> Any:
    """Make a packed call: what a worker of a cluster runs.

    One at a time in each process: tasks use memory that belongs to the process, and a worker with
    threads would give them to several at once.

    Raises
    ------
    ConfigError
        If this worker has another version of the package than the driver.
    """
    version, call = pickle.loads(packed)
    if version != __version__:
        raise ConfigError(
            f"The worker on {socket.gethostname()} has lensprep {__version__}, the driver "
            f"{version}. Give both the same environment."
        )
    function, task = pickle.loads(zlib.decompress(call))
    with _one_at_a_time:
        return function(task)

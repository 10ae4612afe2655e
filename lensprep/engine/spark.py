"""Tasks on Spark: the context of `spark-submit`, another cluster, or this machine.

All tasks are one Spark job with a partition for each, so that Spark alone schedules them and
repeats the work of a lost executor or Python worker (``spark.task.maxFailures``). `collect` would
return nothing before the last task is done, `toLocalIterator` runs one partition after the other,
and a job for each wave waits for its slowest task. So results come through an accumulator, which
Spark sends at the end of each task and counts exactly once, however often a task ran.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from lensprep.engine.base import Result, Task, call_packed, default_workers, pack, while_it_did
from lensprep.errors import ProjectError

if TYPE_CHECKING:
    from pyspark import Accumulator, SparkContext

_POLL_SECONDS = 0.1
"""Time between two looks at the results."""

_LOCAL_FAILURES = 4
"""Attempts at a task on this machine; plain ``local[N]`` gives up after the first."""

_LOOPBACK = "127.0.0.1"

_WORKER_ENVIRONMENT = ("MIMALLOC_PURGE_DELAY", "NUMBA_CACHE_DIR")
"""Variables that executors take over from the driver."""

Outcome = tuple[bool, bytes]
"""Whether a task succeeded; its result or error, pickled."""


class SparkEngine:
    """Executors of a Spark cluster (see `lensprep.engine.base.Engine`).

    Parameters
    ----------
    master : str, optional
        URL of a cluster's master. If not given: the running context if there is one, the master of
        ``spark-submit`` if that started this program, and otherwise this machine.
    workers : int, optional
        Processes, if Spark runs on this machine; as many as processors if not given.
    """

    def __init__(self, master: str | None = None, *, workers: int | None = None) -> None:
        self._master = master
        self._local_workers = workers or default_workers()
        self._context: SparkContext | None = None
        self._owned = False

    @property
    def workers(self) -> int:
        """Tasks that Spark runs at a time by default: the cores of its executors."""
        return self._context.defaultParallelism if self._context else self._local_workers

    def __enter__(self) -> Self:
        from pyspark import SparkContext

        self._owned = SparkContext._active_spark_context is None
        self._context = self._start() if self._owned else SparkContext.getOrCreate()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._context is not None and self._owned:
            _hush(self._context)
            self._context.stop()
        self._context = None

    def _start(self) -> SparkContext:
        from pyspark import SparkConf, SparkContext

        conf = SparkConf().setAppName("lensprep convert")
        conf.set("spark.ui.showConsoleProgress", "false")
        for name in _WORKER_ENVIRONMENT:
            if name in os.environ:
                conf.setExecutorEnv(name, os.environ[name])
        submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # set by spark-submit for its program
        master = self._master
        if master is None and not submitted:
            master = f"local[{self._local_workers},{_LOCAL_FAILURES}]"
        if master is not None:
            conf.setMaster(master)
        if master is not None and master.startswith("local"):
            _stay_here(conf)
        handler = signal.getsignal(signal.SIGINT)
        try:
            context = SparkContext(conf=conf)
        except Exception as error:  # from Python if Java does not start at all, else from Java
            raise ProjectError(
                f"Spark does not start with master {master or 'of spark-submit'}: "
                f"{_java_message(error)} The output of Java is above. If there is no Java (17 or "
                "later), install it, or set JAVA_HOME."
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # Spark's handler ends all jobs of the context
        return context

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a function over tasks; see `Engine.run`."""
        if self._context is None:
            raise RuntimeError("The engine is used outside of its `with` block.")
        if not tasks:
            return
        job = _Job(self._context, tasks, [pack(function, task) for task in tasks])
        try:
            for succeeded, pickled in job.outcomes():
                value = pickle.loads(pickled)
                if not succeeded:
                    raise value
                yield value
        finally:
            job.cancel()


class _Job:
    """One Spark job in a separate thread; its outcomes come while it runs."""

    def __init__(self, context: SparkContext, tasks: Sequence[Any], calls: list[bytes]) -> None:
        self._context, self._tasks = context, tasks
        self._group = f"lensprep-{uuid.uuid4().hex}"
        self._found: Accumulator[list[Outcome]] = context.accumulator([], _Collected())
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(calls,), daemon=True)
        self._thread.start()

    def _run(self, calls: list[bytes]) -> None:
        context = self._context
        try:
            # For this thread only; the Python worker of an interrupted task is ended.
            context.setJobGroup(self._group, "lensprep convert", interruptOnCancel=True)
            context.parallelize(calls, len(calls)).foreach(partial(_work, self._found))
        except Exception as error:
            self._error = error

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes in the order in which they arrive; ProjectError if Spark gives up."""
        seen, over = 0, False
        while not over:
            self._thread.join(_POLL_SECONDS)
            over = not self._thread.is_alive()  # asked before looking, so that no result is missed
            found = self._found.value
            while seen < len(found):
                yield found[seen]
                seen += 1
        if self._error is not None:
            said = _java_message(self._error)
            lost = re.search(r"Task (\d+) in stage", said)
            held = while_it_did(self._tasks, int(lost[1])) if lost else ""
            raise ProjectError(
                f"Spark gave up{held}: {said} Finished work is kept: run the "
                "same command again with --resume."
            ) from self._error

    def cancel(self) -> None:
        """End the job if it is still running."""
        if self._thread.is_alive():
            self._context.cancelJobGroup(self._group)
            self._thread.join()


class _Collected:
    """Tells an accumulator how to join lists."""

    def zero(self, value: list[Outcome]) -> list[Outcome]:
        return []

    def addInPlace(self, value: list[Outcome], more: list[Outcome]) -> list[Outcome]:  # noqa: N802
        value.extend(more)
        return value


def _work(found: Accumulator[list[Outcome]], packed: bytes) -> None:
    """Make a call on an executor. Its error is an outcome: repeating the call would not help."""
    try:
        outcome = True, pickle.dumps(call_packed(packed))
    except Exception as error:
        outcome = False, pickle.dumps(_portable(error))
    found.add([outcome])


def _portable(error: Exception) -> Exception:
    """The error, with its traceback as a note, or its text if it cannot be pickled."""
    if not isinstance(error, ProjectError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _stay_here(conf: Any) -> None:
    """Settings for this machine: this Python, loopback only, no web page."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", _LOOPBACK)
    conf.set("spark.driver.bindAddress", _LOOPBACK).set("spark.driver.host", _LOOPBACK)
    conf.set("spark.ui.enabled", "false").set("spark.log.level", "ERROR")


def _hush(context: SparkContext) -> None:
    """Keep the accumulators' server from reporting a closed connection as a fault."""
    server = getattr(context, "_accumulatorServer", None)
    if server is not None:
        server.handle_error = lambda request, address: None


def _java_message(error: Exception) -> str:
    """First line of Java's message, with the Python error in it if there is one."""
    java = getattr(error, "java_exception", None)
    text = str(java.getMessage() if java is not None else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [repr(error)]
    causes = [line for line in lines[1:] if line.split(":")[0].endswith("Error")]
    return ". ".join([lines[0].rstrip(".:"), *causes[-1:]]) + "."

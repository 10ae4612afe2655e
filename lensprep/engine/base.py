"""What all engines share: the protocol, tasks as bytes, and messages about a lost worker.

A task may run twice (after a kill, or on another machine): its files have fixed names and fixed
bytes, so that is harmless. Only the caller commits. Scheduling, and repeating what a lost worker
was doing, are left to the cluster.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self, TypeVar

from lensprep import __version__
from lensprep.errors import ConfigError

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 2
"""Tasks handed out per worker: one running and one waiting, so that no worker is idle."""


def default_workers() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


class Engine(Protocol):
    """Runs tasks; a context manager that gives its workers back at the end."""

    @property
    def workers(self) -> int:
        """Tasks that run at the same time."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None: ...

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a function over tasks; results come as tasks finish, in no fixed order.

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
            If the workers are lost. Any error of a task ends the run; waiting tasks are dropped.
        """
        ...


def while_it_did(tasks: Sequence[Any], number: int) -> str:
    """Words to follow "was killed"; none if the task is unknown, or has no label."""
    label = getattr(tasks[number], "label", None) if 0 <= number < len(tasks) else None
    return f" while it did {label}" if label else ""


def pack(function: Callable[[Task], Any], task: Task) -> bytes:
    """A call as bytes for a worker elsewhere.

    Compressed, since a task of the second round names all runs, and their names are alike: for 100
    million rows 390 kB become 50 kB. And bytes, so that no scheduler inspects or splits a task.
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

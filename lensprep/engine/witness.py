"""Work only where the driver's folders are visible: files written elsewhere would never be found.

    with WitnessEngine(engine, folders) as pool:
        for result in pool.run(function, tasks): ...

Every task first looks for a file that the driver left in each folder.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Self

from lensprep.engine.base import Engine, Result, Task
from lensprep.errors import StorageError
from lensprep.store import write_atomic


class WitnessEngine:
    """An engine whose tasks begin only on workers that see some folders of the driver.

    The driver leaves a file with a new name in each, and every task looks for it first. It is
    removed at the end, so that a task that a cluster starts later, or again, does nothing.

    Parameters
    ----------
    engine : Engine
        Already entered; it is left open, with no task of this run running.
    folders : sequence of Path
        Absolute; none if everything is in an object store.
    """

    def __init__(self, engine: Engine, folders: Sequence[Path]) -> None:
        self._engine = engine
        name = f".seen-{secrets.token_hex(8)}"
        self._files = tuple(folder / name for folder in folders)
        self._results: Generator[Any] | None = None

    @property
    def workers(self) -> int:
        """Tasks that run at the same time."""
        return self._engine.workers

    def __enter__(self) -> Self:
        for file in self._files:
            write_atomic(file, b"", sync=False)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if self._results is not None:
                self._results.close()
        finally:
            for file in self._files:
                with suppress(OSError):
                    file.unlink(missing_ok=True)

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a function over tasks; see `Engine.run`.

        Raises
        ------
        StorageError
            If a worker does not see a folder.
        """
        call = update_wrapper(partial(call_where_seen, self._files, function), function)
        self._results = _each(self._engine.run(call, tasks))
        return self._results


def _each(results: Iterator[Result]) -> Generator[Result]:
    yield from results


def call_where_seen(
    files: Sequence[Path], function: Callable[[Task], Result], task: Task
) -> Result:
    """Call a function if some files are there."""
    for file in files:
        if not file.exists():
            raise StorageError(
                f"The worker on {socket.gethostname()} does not see {file.parent}, which the "
                "driver made. Dataset and --work must lie on a disk that all workers share, under "
                "the same path, or in an object store."
            )
    return function(task)

"""Work only where the driver's folder is seen: elsewhere files would be written and never found.

with WitnessEngine(engine, folder) as pool:
    for result in pool.run(function, tasks): ...
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Self

from lensprep.dataset.storage import write_atomic
from lensprep.engine import Engine, Result, Task
from lensprep.errors import StorageError


class WitnessEngine:
    """An engine whose tasks begin only on workers that see a folder of the driver.

    The driver leaves a file of a new name there, and each task looks for it first. It is gone
    at the end, so that a task that a cluster begins later, or once more, does nothing.

    Parameters
    ----------
    engine : Engine
        Entered already; it is left open, with no task of this run going on.
    folder : Path
        Absolute.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._file = folder / f".seen-{secrets.token_hex(8)}"
        self._results: Generator[Any] | None = None

    @property
    def workers(self) -> int:
        """Tasks that run at the same time."""
        return self._engine.workers

    def __enter__(self) -> Self:
        write_atomic(self._file, b"", sync=False)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if self._results is not None:
                self._results.close()
        finally:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a function over tasks; see `Engine.run`.

        Raises
        ------
        StorageError
            If a worker does not see the folder.
        """
        call = update_wrapper(partial(call_where_seen, self._file, function), function)
        self._results = _each(self._engine.run(call, tasks))
        return self._results


def _each(results: Iterator[Result]) -> Generator[Result]:
    yield from results


def call_where_seen(file: Path, function: Callable[[Task], Result], task: Task) -> Result:
    """Call a function if a file is there."""
    if not file.exists():
        raise StorageError(
            f"The worker on {socket.gethostname()} does not see {file.parent}, which the driver "
            "made. The dataset must lie on a disk that all workers share, under the same path."
        )
    return function(task)

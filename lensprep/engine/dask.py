"""Tasks on Dask: an existing scheduler with its workers, or a local cluster made for the run.

Dask itself hands the tasks of a lost worker to another one (``distributed.scheduler.
allowed-failures``, three times); this module does not.
"""

from __future__ import annotations

import logging
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lensprep.engine.base import (
    AHEAD,
    Result,
    Task,
    call_packed,
    default_workers,
    pack,
    while_it_did,
)
from lensprep.errors import ProjectError, error_line

if TYPE_CHECKING:
    from distributed import Client, Future

_ENDING_SECONDS = 60.0
"""Longest wait for calls that cannot be cancelled; a call takes seconds."""

_POLL_SECONDS = 0.1

_log = logging.getLogger("lensprep.engine")


class DaskEngine:
    """Workers of a Dask cluster (see `lensprep.engine.base.Engine`).

    Parameters
    ----------
    scheduler : str, optional
        Address of a running scheduler (``tcp://host:8786``), or ``file:///...`` of its scheduler
        file. Its workers are left running at the end. If not given, a cluster of processes of
        this machine is started, which ends with the engine.
    workers : int, optional
        Processes of that local cluster; as many as processors if not given.
    client : distributed.Client, optional
        An open client, such as one of dask-jobqueue; it is left open.
    """

    def __init__(
        self,
        scheduler: str | None = None,
        *,
        workers: int | None = None,
        client: Client | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._local_workers = workers or default_workers()
        self._client = client
        self._owned: list[Any] = []
        """What is closed at the end: client, then cluster."""
        self._pending: set[Future] = set()

    @property
    def workers(self) -> int:
        """Worker processes at this moment; the number may change."""
        if self._client is None:
            return self._local_workers
        return max(1, len(self._client.nthreads()))

    def __enter__(self) -> Self:
        if self._client is None:
            self._client = self._connect() if self._scheduler else self._start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for owned in self._owned:
            with suppress(OSError, TimeoutError):  # a scheduler that is gone needs no goodbye
                owned.close()
        if self._owned:
            self._client, self._owned = None, []

    def _connect(self) -> Client:
        from distributed import Client

        where = str(self._scheduler)
        try:
            if where.startswith("file://"):
                # Dask would wait for the file forever, without a message.
                file = Path(where.removeprefix("file://")).resolve(strict=True)
                client = Client(scheduler_file=str(file))
            else:
                client = Client(where)
        except (FileNotFoundError, ValueError) as error:
            raise ProjectError(
                f"--scheduler {where}: {error_line(error)}. Give the address of a Dask "
                "scheduler, such as tcp://host:8786, or the file that it has written."
            ) from error
        except (OSError, TimeoutError) as error:
            raise ProjectError(
                f"No Dask scheduler answers at {where} ({error_line(error)}). Start one with "
                "`dask scheduler`, and workers with `dask worker`."
            ) from error
        self._owned = [client]
        _tell_of_workers(client, where)
        return client

    def _start(self) -> Client:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(
            n_workers=self._local_workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # we keep memory: a worker that Dask pauses for it would never resume
            host="127.0.0.1",
            dashboard_address=None,
            # Even without a dashboard there is a server for its metrics: here, on a free port.
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            preload=[__name__],
        )
        client = Client(cluster)
        self._owned = [client, cluster]
        return client

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a function over tasks; see `Engine.run`."""
        from distributed import as_completed

        client = self._client
        if client is None:
            raise RuntimeError("The engine is used outside of its `with` block.")
        name = f"{getattr(function, '__name__', 'task')}-{uuid.uuid4().hex[:8]}"
        calls = ((f"{name}-{n}", pack(function, task)) for n, task in enumerate(tasks))
        completed = as_completed()
        with self._clear_errors(tasks):
            try:
                completed.update(self._submit(client, calls))
                while self._pending:
                    batch = completed.next_batch()
                    results = [future.result() for future in batch]
                    self._pending.difference_update(batch)
                    completed.update(self._submit(client, calls))
                    yield from results
            finally:
                self._cancel(client, name)

    def _submit(self, client: Client, calls: Iterator[tuple[str, bytes]]) -> list[Future]:
        """Hand out as many calls as the present workers can be kept busy with."""
        room = AHEAD * self.workers - len(self._pending)
        chosen = list(islice(calls, max(0, room)))
        if not chosen:
            return []
        keys, packed = zip(*chosen, strict=True)
        futures = client.map(call_packed, packed, key=list(keys), pure=False)
        self._pending.update(futures)
        return futures

    def _cancel(self, client: Client, name: str) -> None:
        """Cancel waiting calls, and wait a while for running ones, which may still write."""
        if not self._pending:
            return
        pending, self._pending = list(self._pending), set()
        with suppress(OSError, TimeoutError):  # of a scheduler that is gone
            client.cancel(pending)
            deadline = time.monotonic() + _ENDING_SECONDS
            while _runs(client, name) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)

    @contextmanager
    def _clear_errors(self, tasks: Sequence[Any]) -> Iterator[None]:
        from distributed import CancelledError, KilledWorker
        from distributed.comm import CommClosedError

        try:
            yield
        except KilledWorker as error:
            raise ProjectError(
                f"{error.allowed_failures + 1} workers were killed (out of memory?)"
                f"{while_it_did(tasks, int(str(error.task).rpartition('-')[2]))}; the last was "
                f"{error.last_worker.address}. Finished work is kept: run the same "
                "command again with --resume, with more memory a worker."
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise ProjectError(
                f"The Dask scheduler is gone, or dropped the tasks ({error_line(error)}). "
                "Finished work is kept: run the same command again with --resume."
            ) from error


def dask_setup(worker: object) -> None:
    """Leave interrupts from the terminal to the driver; Dask calls this in each local worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _tell_of_workers(client: Client, where: str) -> None:
    """Warn if there are no workers yet, or some with threads that would be idle."""
    threads = client.nthreads().values()
    if not threads:
        _log.warning("%s has no workers yet; the work begins with the first one.", where)
    elif max(threads) > 1:
        _log.warning(
            "%s has workers of several threads, of which a conversion uses one. Start them with "
            "`dask worker --nworkers auto --nthreads 1`.",
            where,
        )


def _runs(client: Client, name: str) -> bool:
    """Whether a worker is still making one of these calls, even if it was cancelled."""
    stacks = client.call_stack() or {}
    return any(str(key).startswith(name) for keys in stacks.values() for key in keys)

"""What a conversion keeps until its manifest is written: runs, rows left out, finished tasks.

    work = open_work(store, conversion)         on a local disk, or in an object store
    work.write_run(name, records, table)        first round
    with work.stretches(names, split, low, high, scratch) as stretches:     second round
    work.write_marker(name, result); work.read_markers(names)               finished tasks
    work.write_left_out(name, table); work.left_out()                       `rejects.parquet`

A `Work` is pickled with every task. The names and content of its files are fixed, so writing one
again is harmless.
"""

from __future__ import annotations

import io
import json
import shutil
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.convert.spill import Stretch, read_stretches, write_run
from lensprep.convert.spill_remote import fetch_stretches, send_run
from lensprep.errors import NotFoundError, StorageError
from lensprep.store import LocalStore, RemoteStore, Store, remove_partials, write_atomic
from lensprep.store.transfer import abort_unfinished

Result = TypeVar("Result")
Buffer = bytes | bytearray

PLAN_NAME: Final = "plan.json"
"""The plan of the conversion, which is removed last."""
_LEFT_OUT: Final = ".rejects"
_AT_ONCE: Final = 16
"""Concurrent small requests to an object store."""
_SMALL_BYTES: Final = 256 << 10


class Work(ABC):
    """Files of an unfinished conversion. Errors are StorageError or its subclasses."""

    __slots__ = ()

    @property
    @abstractmethod
    def uri(self) -> str:
        """Path or URI of the folder."""

    @abstractmethod
    def write_run(self, name: str, records: NDArray[np.uint8], table: pa.Table) -> None:
        """Write one run, sorted; see `lensprep.convert.spill.write_run`."""

    @abstractmethod
    def stretches(
        self, names: Sequence[str], split: str, low: int, high: int, scratch: Path
    ) -> AbstractContextManager[list[Stretch]]:
        """Stretches of all runs while the block lasts (see `lensprep.convert.spill`).

        Records that have to be on a local disk for that go into the folder ``scratch``.
        """

    @abstractmethod
    def tidy(self) -> None:
        """Remove unfinished files of killed tasks; no task may be running."""

    @abstractmethod
    def remove(self) -> None:
        """Remove all files, the plan last."""

    @abstractmethod
    def _names(self, prefix: str) -> list[str]:
        """Names that begin with ``prefix``, sorted."""

    @abstractmethod
    def _read(self, names: Iterable[str]) -> Iterator[Buffer | None]:
        """Files in the order given, read only a few ahead; None for a missing one."""

    @abstractmethod
    def _write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""

    @abstractmethod
    def _delete(self, name: str) -> None:
        """Remove a file if it is there."""

    def read_markers(self, names: Sequence[str]) -> list[Any]:
        """Results of tasks; None for each that is not finished."""
        found = self._read(f"{name}.json" for name in names)
        return [None if data is None else json.loads(data) for data in found]

    def write_marker(self, name: str, result: Any) -> None:
        """Keep the result of a task; the last thing that it does."""
        self._write(f"{name}.json", json.dumps(result).encode())

    def remove_marker(self, name: str) -> None:
        """Remove what `write_marker` wrote."""
        self._delete(f"{name}.json")

    def write_left_out(self, name: str, table: pa.Table) -> None:
        """Keep rows for ``rejects.parquet``."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self._write(f"{name}{_LEFT_OUT}", buffer.getvalue())

    def left_out(self) -> Iterator[pa.Table]:
        """Rows left out of the first round, in the order of its tasks, then of the second."""
        names = [name for kind in ("run-", "shard-") for name in self._names(kind)]
        for data in self._read(name for name in names if name.endswith(_LEFT_OUT)):
            yield pq.ParquetFile(pa.BufferReader(data)).read()

    def is_begun(self) -> bool:
        """Whether a task of the first round is done."""
        return any(name.endswith(".json") for name in self._names("run-"))


def open_work(store: Store, conversion: str) -> Work:
    """Work in a folder; ``conversion`` distinguishes it from an earlier one in the same folder."""
    if isinstance(store, RemoteStore):
        return RemoteWork(store, conversion)
    assert isinstance(store, LocalStore)
    return LocalWork(store.root)


@dataclass(frozen=True, slots=True)
class LocalWork(Work):
    """A folder on a local disk, or on one that all machines share (see `Work`)."""

    folder: Path

    @property
    def uri(self) -> str:
        """Path of the folder."""
        return str(self.folder)

    def write_run(self, name: str, records: NDArray[np.uint8], table: pa.Table) -> None:
        """Write one run, sorted."""
        write_run(self.folder / name, records, table)

    @contextmanager
    def stretches(
        self, names: Sequence[str], split: str, low: int, high: int, scratch: Path
    ) -> Iterator[list[Stretch]]:
        """Stretches of all runs, read in place."""
        yield read_stretches([self.folder / name for name in names], split, low, high)

    def tidy(self) -> None:
        """Remove unfinished files of killed tasks."""
        remove_partials(self.folder)

    def remove(self) -> None:
        """Remove the folder, the plan last."""
        if not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != PLAN_NAME:
                path.unlink()
        shutil.rmtree(self.folder)

    def _names(self, prefix: str) -> list[str]:
        return sorted(path.name for path in self.folder.glob(f"{prefix}*"))

    def _read(self, names: Iterable[str]) -> Iterator[Buffer | None]:
        paths = (self.folder / name for name in names)
        return (path.read_bytes() if path.exists() else None for path in paths)

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(self.folder / name, data, sync=False)

    def _delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RemoteWork(Work):
    """A folder in an object store (see `Work`)."""

    store: RemoteStore
    conversion: str

    @property
    def uri(self) -> str:
        """URI of the folder."""
        return self.store.uri

    def write_run(self, name: str, records: NDArray[np.uint8], table: pa.Table) -> None:
        """Write one run, sorted."""
        send_run(self.store, name, records, table)

    @contextmanager
    def stretches(
        self, names: Sequence[str], split: str, low: int, high: int, scratch: Path
    ) -> Iterator[list[Stretch]]:
        """Stretches of all runs, fetched into one local file."""
        path = scratch / f"{split}.dat"
        try:
            yield fetch_stretches(self.store, self.conversion, names, split, low, high, path)
        finally:
            path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Abort unfinished uploads."""
        with suppress(StorageError):  # they cost little, and `remove` aborts them at the latest
            abort_unfinished(self.store)

    def remove(self) -> None:
        """Remove every object and abort unfinished uploads; the plan goes last."""
        abort_unfinished(self.store)
        for _ in _side_by_side(self._delete, (n for n in self._names("") if n != PLAN_NAME)):
            pass
        self._delete(PLAN_NAME)

    def _names(self, prefix: str) -> list[str]:
        return [entry.name for entry in self.store.entries(prefix)]

    def _read(self, names: Iterable[str]) -> Iterator[Buffer | None]:
        return _side_by_side(self._read_one, names)

    def _read_one(self, name: str) -> Buffer | None:
        try:
            data, entry = self.store.read_tail(name, _SMALL_BYTES)
        except NotFoundError:
            return None
        return data if entry.bytes == len(data) else self.store.read(name)

    def _write(self, name: str, data: bytes) -> None:
        self.store.write(name, data)

    def _delete(self, name: str) -> None:
        self.store.delete(name)


def _side_by_side(function: Callable[[str], Result], names: Iterable[str]) -> Iterator[Result]:
    """Results in the order of the names; the next few are requested while one is used."""
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for name in names:
            ahead.append(threads.submit(function, name))
            if len(ahead) > _AT_ONCE:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

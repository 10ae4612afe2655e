"""What a conversion keeps until its manifest is written: runs, rows left out, and what is done.

    work = open_work(store, conversion)         here, or in an object store
    work.write_run(name, records, table)        first round
    with work.stretches(names, split, low, high, scratch) as stretches:     second round
    work.write_marker(name, result); work.read_markers(names)               what is done
    work.write_left_out(name, table); work.left_out()                       `rejects.parquet`

A `Work` is pickled with every task. Files have fixed names and the same content whoever writes
them, so writing one again is harmless.
"""

from __future__ import annotations

import io
import json
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.convert.spill import Stretch, read_stretches, write_run
from lensprep.convert.spill_remote import fetch_stretches, send_run
from lensprep.errors import NotFoundError, StorageError
from lensprep.store import (
    Entry,
    LocalStore,
    RemoteStore,
    Store,
    abort_unfinished,
    atomic_writer,
    remove_partials,
    write_atomic,
)

PLAN_NAME: Final = "plan.json"
"""What the conversion is of; the last file that goes."""
_LEFT_OUT: Final = ".rejects"
_AT_ONCE: Final = 16
"""Small requests to an object store side by side."""
_SMALL_BYTES: Final = 256 << 10


class Work(Protocol):
    """Files of a conversion that goes on. Errors are StorageError or its subclasses."""

    @property
    def uri(self) -> str:
        """Where it is."""

    def read_markers(self, names: Sequence[str]) -> list[Any]:
        """What tasks left when they were done; None for each that is not."""

    def write_marker(self, name: str, result: Any) -> None:
        """Say that a task is done, and what came of it; the last thing that it does."""

    def remove_marker(self, name: str) -> None:
        """Take back what was said with `write_marker`."""

    def write_left_out(self, name: str, table: pa.Table) -> None:
        """Keep rows for ``rejects.parquet``."""

    def left_out(self) -> Iterator[pa.Table]:
        """These rows: of the first round in the order of its tasks, then of the second."""

    def write_run(self, name: str, records: NDArray[np.uint8], table: pa.Table) -> None:
        """Write one run, sorted; see `lensprep.convert.spill.write_run`."""

    @contextmanager
    def stretches(
        self, names: Sequence[str], split: str, low: int, high: int, scratch: Path
    ) -> Iterator[list[Stretch]]:
        """Stretches of all runs, for as long as it lasts (`lensprep.convert.spill.read_stretches`).

        What has to lie on a local disk for that goes into the folder ``scratch``.
        """

    def is_begun(self) -> bool:
        """Whether a task of the first round is done."""

    def tidy(self) -> None:
        """Remove what tasks that were killed left half done; nobody may be writing there now."""

    def remove(self) -> None:
        """Remove all of it."""


def open_work(store: Store, conversion: str) -> Work:
    """Work folder at a location.

    Parameters
    ----------
    store : Store
        Folder that is used for nothing else.
    conversion : str
        What tells this conversion from an earlier one at the same place.
    """
    if isinstance(store, RemoteStore):
        return RemoteWork(store, conversion)
    assert isinstance(store, LocalStore)
    return LocalWork(store.root)


@dataclass(frozen=True, slots=True)
class LocalWork:
    """A folder on a local disk, or on one that all machines share (see `Work`)."""

    folder: Path

    @property
    def uri(self) -> str:
        """Path of the folder."""
        return str(self.folder)

    def read_markers(self, names: Sequence[str]) -> list[Any]:
        """What tasks left when they were done; None for each that is not."""
        paths = [self.folder / f"{name}.json" for name in names]
        return [json.loads(path.read_bytes()) if path.exists() else None for path in paths]

    def write_marker(self, name: str, result: Any) -> None:
        """Say that a task is done."""
        write_atomic(self.folder / f"{name}.json", json.dumps(result).encode(), sync=False)

    def remove_marker(self, name: str) -> None:
        """Take back what was said with `write_marker`."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def write_left_out(self, name: str, table: pa.Table) -> None:
        """Keep rows for ``rejects.parquet``."""
        with atomic_writer(self.folder / f"{name}{_LEFT_OUT}") as file:
            pq.write_table(table, file)

    def left_out(self) -> Iterator[pa.Table]:
        """These rows, in order."""
        for kind in ("run", "shard"):
            for path in sorted(self.folder.glob(f"{kind}-*{_LEFT_OUT}")):
                yield pq.ParquetFile(path).read()

    def write_run(self, name: str, records: NDArray[np.uint8], table: pa.Table) -> None:
        """Write one run, sorted."""
        write_run(self.folder / name, records, table)

    @contextmanager
    def stretches(
        self, names: Sequence[str], split: str, low: int, high: int, scratch: Path
    ) -> Iterator[list[Stretch]]:
        """Stretches of all runs, where they are."""
        yield read_stretches([self.folder / name for name in names], split, low, high)

    def is_begun(self) -> bool:
        """Whether a task of the first round is done."""
        return any(self.folder.glob("run-*.json"))

    def tidy(self) -> None:
        """Remove what tasks that were killed left half done."""
        remove_partials(self.folder)

    def remove(self) -> None:
        """Remove the folder; the plan goes last."""
        if not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != PLAN_NAME:
                path.unlink()
        shutil.rmtree(self.folder)


@dataclass(frozen=True, slots=True)
class RemoteWork:
    """A folder in an object store (see `Work`)."""

    store: RemoteStore
    conversion: str

    @property
    def uri(self) -> str:
        """URI of the folder."""
        return self.store.uri

    def read_markers(self, names: Sequence[str]) -> list[Any]:
        """What tasks left when they were done; None for each that is not."""
        if len(names) == 1:
            return [self._read_marker(names[0])]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(self._read_marker, names))

    def _read_marker(self, name: str) -> Any:
        try:
            text, entry = self.store.read_tail(f"{name}.json", _SMALL_BYTES)
        except NotFoundError:
            return None
        if entry.bytes > len(text):
            text = self.store.read(f"{name}.json")
        return json.loads(text)

    def write_marker(self, name: str, result: Any) -> None:
        """Say that a task is done."""
        self.store.write(f"{name}.json", json.dumps(result).encode())

    def remove_marker(self, name: str) -> None:
        """Take back what was said with `write_marker`."""
        self.store.delete(f"{name}.json")

    def write_left_out(self, name: str, table: pa.Table) -> None:
        """Keep rows for ``rejects.parquet``."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self.store.write(f"{name}{_LEFT_OUT}", buffer.getvalue())

    def left_out(self) -> Iterator[pa.Table]:
        """These rows, in order; a few files are on their way while one is used."""
        entries = [
            entry
            for kind in ("run", "shard")
            for entry in self.store.entries(f"{kind}-")
            if entry.name.endswith(_LEFT_OUT)
        ]
        ahead: deque[Future[pa.Table]] = deque()
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for entry in entries:
                ahead.append(threads.submit(self._read_table, entry))
                if len(ahead) > _AT_ONCE:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _read_table(self, entry: Entry) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.store.read_version(entry, 0, entry.bytes)))

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

    def is_begun(self) -> bool:
        """Whether a task of the first round is done."""
        return any(entry.name.endswith(".json") for entry in self.store.entries("run-"))

    def tidy(self) -> None:
        """Nothing is ever half there, but uploads may be unfinished."""
        with suppress(StorageError):  # they cost little, and are aborted at the end at the latest
            abort_unfinished(self.store)

    def remove(self) -> None:
        """Remove every object, and uploads that were left unfinished; the plan goes last."""
        abort_unfinished(self.store)
        names = [entry.name for entry in self.store.entries() if entry.name != PLAN_NAME]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(self.store.delete, names))
        self.store.delete(PLAN_NAME)

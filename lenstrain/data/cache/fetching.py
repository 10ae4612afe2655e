"""Fetching shards into a cache: each by one process of the node, none above the limits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lensprep.dataset import ShardInfo
from lensprep.errors import (
    ChangedError,
    NotFoundError,
    ProjectError,
    ShardError,
    StorageError,
    size_text,
)
from lensprep.store import RemoteStore, open_remote
from lensprep.store.transfer import download_file
from lenstrain.data.cache.folder import (
    CachedDataset,
    CacheFolder,
    Refusal,
    download_slot,
    is_disk_full,
)

logger = logging.getLogger("lenstrain.data")

LONGEST_PAUSE = 2.0
_LOOK_SECONDS = 0.2
"""Time between two looks at what other processes fetch."""
_ENOUGH_BYTES = 1 << 30
"""Of less it cannot be said how fast a disk is."""


def fetch_shard(
    store: RemoteStore,
    shard: ShardInfo,
    path: Path,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Copy a shard of an object store to a file, in parallel ranges.

    Parameters
    ----------
    store : RemoteStore
    shard : ShardInfo
    path : Path
        The copy gets this name when it is whole, has the manifest's SHA-256, and is on the disk.
    progress : callable, optional
        Called from any thread with the number of bytes that have just arrived.

    Raises
    ------
    ShardError
        If the shard is missing, or has not the size or digest that the manifest states.
    StorageError
        If the store or the disk refuses.
    """
    try:
        download_file(
            store,
            shard.name,
            path,
            size=shard.bytes,
            sha256=shard.sha256,
            progress=progress,
        )
    except (NotFoundError, ChangedError) as error:
        raise ShardError(
            f"{str(error).rstrip('.')} ({shard.name}, offset 0). Upload or convert the dataset "
            "again, or run `lensprep verify`."
        ) from error


@dataclass(frozen=True, slots=True)
class Filled:
    """Result of filling."""

    fetched: int
    """Shards fetched by this process."""
    fetched_bytes: int
    full: bool
    """There was no room for some shards."""


def with_connections(store: RemoteStore, most: int) -> RemoteStore:
    """The same store over at most so many connections: a second client if it has more."""
    if store.options.connections <= most:
        return store
    return open_remote(store.uri, replace(store.options, connections=most))


class _StoppedError(Exception):
    """Filling shall end."""


class Fetching:
    """Fetches shards that no other process is fetching; used by several threads."""

    def __init__(
        self,
        folder: CacheFolder,
        held: CachedDataset,
        store: RemoteStore,
        stop: threading.Event,
        moved: Callable[[int], None],
    ) -> None:
        self.folder, self.held, self.store = folder, held, store
        self.stop, self.moved = stop, moved
        self.over, self.full = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._fetched: list[int] = []
        self._errors: list[BaseException] = []
        self._began = time.monotonic()
        self._fetching, self._settling = 0.0, 0.0

    def run(self, shards: Sequence[ShardInfo]) -> None:
        """Fetch these shards or wait for them, as far as there is room; keeps an error."""
        waiting = list(shards)
        try:
            while waiting and not self._ended():
                # Where there is no room, what others fetch is still waited for.
                still = [shard for shard in waiting if (
                    self.held.coming(shard) if self.full.is_set() else self._get(shard) == "taken"
                )]  # fmt: skip
                if len(still) == len(waiting):
                    self.stop.wait(_LOOK_SECONDS)
                waiting = still
        except _StoppedError:
            pass
        except BaseException as error:
            self._errors.append(error)
            self.over.set()  # the other threads need not continue

    def _ended(self) -> bool:
        return self.stop.is_set() or self.over.is_set()

    def raise_error(self) -> None:
        """Raise what ended a thread, if anything did."""
        if self._errors:
            raise self._errors[0]

    def _get(self, shard: ShardInfo) -> Refusal:
        if self._ended():
            raise _StoppedError
        with download_slot(self.folder) as free:
            found = self.held.claim(shard) if free else "taken"
            if isinstance(found, str):
                if found == "full":
                    self.full.set()
                return found
            with found:
                return self._fetch(shard)

    def _fetch(self, shard: ShardInfo) -> Refusal:
        began = arrived = time.monotonic()

        def moved(count: int) -> None:
            nonlocal arrived
            self._moved(count)
            arrived = time.monotonic()

        try:
            fetch_shard(self.store, shard, self.held.file(shard), moved)
        except StorageError as error:
            if not is_disk_full(error):
                raise
            logger.warning("%s What is not in the cache is streamed.", error)
            self.full.set()
            return "full"
        with self._lock:
            self._fetched.append(shard.bytes)
            self._fetching += arrived - began
            self._settling += time.monotonic() - arrived
        return "there"

    def _moved(self, count: int) -> None:
        if self._ended():
            raise _StoppedError
        self.moved(count)

    def result(self) -> Filled:
        """Result so far; logs the rate, with a warning if the disk is slower than the store."""
        filled = Filled(len(self._fetched), sum(self._fetched), self.full.is_set())
        if filled.fetched:
            rate = filled.fetched_bytes / (time.monotonic() - self._began) / 1e6
            size = size_text(filled.fetched_bytes)
            logger.info("filled the cache with %s, %.0f MB/s", size, rate)
            # What has arrived is in memory; a disk that keeps up has written most of it by then.
            if self._settling > self._fetching and filled.fetched_bytes >= _ENOUGH_BYTES:
                logger.warning(
                    "The disk of the cache %s is slower than the store: %s came in %.0f s, and "
                    "writing them took %.0f s more. Streaming, without the cache, may be faster.",
                    self.folder.root,
                    size,
                    self._fetching,
                    self._settling,
                )
        return filled


def fetch_quietly(fetching: Fetching, shards: Sequence[ShardInfo]) -> None:
    """Body of the thread that fills during the stream."""
    try:
        fetching.run(shards)
        fetching.raise_error()
        fetching.result()
    except ShardError as error:
        logger.warning("%s It is not cached.", error)
    except ProjectError as error:
        logger.warning("%s Caching ends for this epoch; the rest is streamed.", error)
    except RuntimeError:  # the program ends: no thread can be started any more
        if threading.main_thread().is_alive():
            raise
    finally:
        fetching.store.connection.buffers.clear()


class Pace:
    """Half speed while a consumer waits: after every few bytes a pause as long as they took."""

    def __init__(self, stop: threading.Event, hungry: Callable[[], bool]) -> None:
        self._stop, self._hungry = stop, hungry
        self._mark = time.monotonic()

    def __call__(self, count: int) -> None:
        """Pause after `count` more bytes, if somebody waits."""
        if self._hungry():
            self._stop.wait(min(time.monotonic() - self._mark, LONGEST_PAUSE))
        self._mark = time.monotonic()

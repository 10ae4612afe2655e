"""Splits of a dataset in a cache: which of their shards are cached, and fetching the others.

copies = CachedSplit(folder, dataset, "train")      a `lenstrain.data.cache.mapped.LocalCopies`
copies.fill(...)                                    now, all that fits, several shards at once
copies.fill_beside(hungry)                          in a thread, while the epoch streams
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import Dataset, ShardInfo
from lensprep.errors import size_text
from lensprep.store import PART_BYTES, RemoteStore
from lenstrain.data.cache.fetching import (
    LONGEST_PAUSE,
    Fetching,
    Filled,
    Pace,
    fetch_quietly,
    with_connections,
)
from lenstrain.data.cache.folder import CachedDataset, CacheFolder
from lenstrain.data.cache.mapped import LocalCopies
from lenstrain.data.sources.base import Reading

logger = logging.getLogger("lenstrain.data")

_MOST_BESIDE = 4
"""Most requests of a shard that is fetched while others are streamed."""
_AT_ONCE = 4
_LINE_SECONDS = 10.0

Progress = Callable[[int, int], None]
"""Called with bytes done, or in the cache, and bytes in all."""


def open_copies(dataset: Dataset, split: str, reading: Reading) -> LocalCopies:
    """The copies of a remote split in the cache, if one is named; logs which they are."""
    level = logging.INFO if reading.log else logging.DEBUG
    what = f"split {split!r} of {dataset.uri}"
    if reading.cache_dir is None:
        logger.log(level, "%s is streamed: there is no cache (data.cache_dir).", what)
        return LocalCopies()
    folder = CacheFolder.open(reading.cache_dir, reading.cache)
    stamp_bytes = dataset.geometry.payload_bytes
    copies = CachedSplit(folder, dataset, split, memory=reading.streamed_bytes(stamp_bytes))
    there = copies.present()
    logger.log(
        level,
        "%s is read from the cache %s (%d of %d shards cached, %s of %s).",
        what,
        folder.root,
        len(there),
        len(copies.shards),
        size_text(sum(shard.bytes for shard in there)),
        size_text(copies.bytes),
    )
    return copies


class CachedSplit(LocalCopies):
    """Shards of a dataset's splits in a cache; in use, hence never evicted, until `close`.

    Parameters
    ----------
    folder : CacheFolder
    dataset : Dataset
        In an object store.
    *splits : str
    memory : int, optional
        Most bytes that `fill` may hold on their way to the disk; `fill_beside` takes
        `beside_bytes` of them.
    """

    offers_any = True

    def __init__(
        self, folder: CacheFolder, dataset: Dataset, *splits: str, memory: int = 1 << 30
    ) -> None:
        assert isinstance(dataset.store, RemoteStore)
        self.folder, self.splits, self._store = folder, splits, dataset.store
        self.shards = [shard for split in splits for shard in dataset.split(split).shards]
        self._all = self.shards
        self._memory = memory
        self._beside_connections = min(_MOST_BESIDE, max(1, memory // 4 // PART_BYTES - 2))
        self.beside_bytes = (self._beside_connections + 2) * PART_BYTES
        self.held: CachedDataset = folder.use(dataset)
        self._asked: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._beside: RemoteStore | None = None
        # Also when nobody closes it: the thread ends and others may evict.
        weakref.finalize(self, _end, self._stop, self.held).atexit = False

    @property
    def bytes(self) -> int:
        """Bytes of all wanted shards."""
        return sum(shard.bytes for shard in self.shards)

    def narrow(self, numbers: NDArray[np.int64]) -> None:
        """Want only the shards of these numbers."""
        self.shards = [self._all[number] for number in numbers.tolist()]

    # ------------------------------------------------------------------ as LocalCopies

    def path(self, shard: ShardInfo) -> Path | None:
        """Path of a complete copy, or None; looks for a missing one at most once a second."""
        now = time.monotonic()
        if now - self._asked.get(shard.name, -1.0) < 1.0:
            return None
        if _usable(self.held, shard):
            return self.held.file(shard)
        self._asked[shard.name] = now
        return None

    def damaged(self, shard: ShardInfo) -> None:
        """Remove a damaged copy; it may be fetched again."""
        self.held.remove(shard)

    # ------------------------------------------------------------------ what is there

    def present(self) -> list[ShardInfo]:
        """Shards of which there is a copy of the right size."""
        return [shard for shard in self.shards if _usable(self.held, shard)]

    def missing(self) -> list[ShardInfo]:
        """Shards of which there is no such copy."""
        return [shard for shard in self.shards if not _usable(self.held, shard)]

    def shortage(self) -> str:
        """What is missing, in words, when not all shards fit."""
        missing, options = self.missing(), self.folder.options
        return (
            f"The cache {self.folder.root} holds {len(self.shards) - len(missing)} of "
            f"{len(self.shards)} shards that are needed and has no room for "
            f"{size_text(sum(shard.bytes for shard in missing))} more (limit "
            f"{size_text(options.limit_bytes)}, {size_text(options.reserve_bytes)} of the disk "
            f"stay free, {size_text(self.folder.free())} are free)."
        )

    # ------------------------------------------------------------------ filling

    def fill_first(self) -> str:
        """Fetch every missing shard that fits; in words what is missing, if some do not."""
        return self.shortage() if self.fill().full else ""

    def fill(self, progress: Progress | None = None) -> Filled:
        """Fetch every missing shard that fits, and wait for those that others are fetching.

        The processes of a node share the work.

        Raises
        ------
        ShardError
            If a shard is missing in the store, or is not the one that the manifest names.
        StorageError
            If the store refuses, or does not answer.
        """
        missing = self.missing()
        if not missing:
            return Filled(0, 0, full=False)
        report = _Report(self, progress)
        store = with_connections(self._store, max(1, self._memory // PART_BYTES - 2))
        fetching = Fetching(self.folder, self.held, store, self._stop, report.add)
        try:
            with ThreadPoolExecutor(_AT_ONCE, "lenstrain-fill") as threads:
                try:
                    list(threads.map(fetching.run, [missing[n::_AT_ONCE] for n in range(_AT_ONCE)]))
                except BaseException:  # an interrupt
                    fetching.over.set()
                    raise
        finally:
            store.connection.buffers.clear()
        fetching.raise_error()
        return fetching.result()

    def fill_beside(self, hungry: Callable[[], bool]) -> None:
        """Fetch what is missing in the background, at half speed while a consumer waits.

        A fault ends it with a warning: what is missing is streamed.
        """
        self._asked.clear()  # an epoch begins: look at once
        if self._stop.is_set() or (self._thread is not None and self._thread.is_alive()):
            return
        # The last shards first: an epoch in stored order begins with the others.
        missing = self.missing()[::-1]
        if not missing:
            return
        self._beside = with_connections(self._store, self._beside_connections)
        pace = Pace(self._stop, hungry)
        fetching = Fetching(self.folder, self.held, self._beside, self._stop, pace)
        self._thread = threading.Thread(
            target=fetch_quietly, args=(fetching, missing), name="lenstrain-cache", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End filling, and let others evict."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(LONGEST_PAUSE)
            if self._thread.is_alive() and self._beside is not None:
                self._beside.connection.stop()  # the interpreter would wait for all its tries
        self.held.close()


def _end(stop: threading.Event, held: CachedDataset) -> None:
    stop.set()
    held.close()


def _usable(held: CachedDataset, shard: ShardInfo) -> bool:
    """Whether there is a copy of the right size; another is removed."""
    size = held.size(shard)
    if size is None or size == shard.bytes:
        return size is not None
    logger.warning(
        "%s (%s) has %d bytes where the manifest states %d: it was cut or written to. It is "
        "removed and read from the store again.",
        held.file(shard),
        shard.name,
        size,
        shard.bytes,
    )
    held.remove(shard)
    return False


class _Report:
    """Reports how far filling is: to a callback, else in lines of the log."""

    def __init__(self, copies: CachedSplit, progress: Progress | None) -> None:
        self._copies, self._progress = copies, progress
        self._began = self._shown = self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._base = self._first = sum(shard.bytes for shard in copies.present())
        self._own = 0
        if progress is not None:
            progress(self._base, copies.bytes)

    def add(self, count: int) -> None:
        """Count bytes that have come to this process."""
        with self._lock:
            self._own += count
            done = min(self._copies.bytes, self._first + self._own)
            now = time.monotonic()
            if now - self._looked > 1.0:  # what the other processes have finished meanwhile
                self._looked = now
                self._base = sum(shard.bytes for shard in self._copies.present())
            done = max(done, self._base)
            if self._progress is not None:
                self._progress(done, self._copies.bytes)
            elif now - self._shown > _LINE_SECONDS:
                self._shown = now
                rate = (done - self._first) / (now - self._began)
                logger.info(
                    "filling the cache with split %s: %s of %s, %.0f MB/s, %.0f s left",
                    ", ".join(map(repr, self._copies.splits)),
                    size_text(done),
                    size_text(self._copies.bytes),
                    rate / 1e6,
                    (self._copies.bytes - done) / rate if rate else float("inf"),
                )

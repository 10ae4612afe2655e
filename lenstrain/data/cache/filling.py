"""One split of a dataset in a cache: which of its shards are there, and getting the others.

copies = CachedSplit(folder, dataset, "train")      a `lenstrain.data.sources.remote.LocalCopies`
copies.fill(...)                                    now, all that fits, several shards at once
copies.fill_beside(hungry)                          in a thread, while the epoch streams
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import Dataset, RemoteDataset, ShardInfo
from lensprep.errors import ProjectError, ShardError, StorageError, size_text
from lensprep.store.s3 import PART_BYTES, S3Store
from lenstrain.data.cache.folder import (
    CachedDataset,
    CacheFolder,
    CacheOptions,
    Claim,
    Refusal,
    download_slot,
    is_disk_full,
)
from lenstrain.data.cache.rates import available_memory, choose, disk_rate, store_rate
from lenstrain.data.sources.remote import fetch_shard

logger = logging.getLogger("lenstrain.data")

_MOST_BESIDE = 4
"""Most requests of a shard that is fetched while others are streamed."""
_AT_ONCE = 4
_LOOK_SECONDS = 0.2
"""Time between two looks at what other processes fetch."""
_LONGEST_PAUSE = 2.0
_LINE_SECONDS = 10.0

Progress = Callable[[int, int], None]
"""Called with bytes that are in the cache and bytes of all shards."""


def open_copies(
    dataset: Dataset,
    split: str,
    cache_dir: str | PathLike[str],
    options: CacheOptions | None,
    *,
    required: bool,
    memory: int,
    tell: bool,
) -> CachedSplit | None:
    """The copies of a split in a cache, or None where streaming is faster; says which and why.

    Parameters
    ----------
    dataset : Dataset
        In an object store.
    split : str
    cache_dir : path
    options : CacheOptions, optional
    required : bool
        The order cannot be read from the store.
    memory : int
        Most bytes that filling may hold.
    tell : bool
        Write the one line that says it.

    Raises
    ------
    StorageError
        If the folder cannot be a cache.
    """
    folder = CacheFolder.open(cache_dir, options)
    copies = CachedSplit(folder, dataset, split, memory)
    choice = choose(
        disk_rate(folder),
        store_rate(folder, dataset, split),
        copies.bytes,
        available_memory(),
        required=required,
        always=folder.options.use == "always",
    )
    what = f"split {split!r} of {dataset.uri}"
    if not choice.cached:
        if tell:
            logger.info("%s is streamed, past the cache %s: %s.", what, folder.root, choice.why)
        copies.close()
        return None
    if tell:
        there = copies.present()
        logger.info(
            "%s is read from the cache %s (%d of %d shards are there, %s of %s): %s.",
            what,
            folder.root,
            len(there),
            len(copies.shards),
            size_text(sum(shard.bytes for shard in there)),
            size_text(copies.bytes),
            choice.why,
        )
    return copies


def beside_bytes(memory: int) -> int:
    """Memory that fetching beside the stream takes, of so much."""
    return (_beside_connections(memory) + 2) * PART_BYTES


def _beside_connections(memory: int) -> int:
    return min(_MOST_BESIDE, max(1, memory // 4 // PART_BYTES - 2))


@dataclass(frozen=True, slots=True)
class Filled:
    """What came of filling."""

    fetched: int
    """Shards fetched by this process."""
    fetched_bytes: int
    full: bool
    """There was no room for some."""


class CachedSplit:
    """Shards of one split in a cache; in use, hence never evicted, until `close`.

    Parameters
    ----------
    folder : CacheFolder
    dataset : Dataset
        In an object store.
    split : str
    memory : int, optional
        Most bytes that `fill` may hold on their way to the disk; `fill_beside` takes
        `beside_bytes` of them.
    """

    def __init__(
        self, folder: CacheFolder, dataset: Dataset, split: str, memory: int = 1 << 30
    ) -> None:
        self.folder, self.dataset, self.split = folder, dataset, split
        self.shards: Sequence[ShardInfo] = dataset.split(split).shards
        self._memory = memory
        self.held: CachedDataset = folder.use(dataset)
        self._asked: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._beside: S3Store | None = None
        # Also when nobody closes it: the thread ends and others may evict.
        weakref.finalize(self, _end, self._stop, self.held).atexit = False

    @property
    def bytes(self) -> int:
        """Bytes of all shards that are wanted."""
        return sum(shard.bytes for shard in self.shards)

    def narrow(self, numbers: NDArray[np.int64]) -> None:
        """Want only these shards of the split."""
        shards = self.dataset.split(self.split).shards
        self.shards = [shards[number] for number in numbers.tolist()]

    # ------------------------------------------------------------------ as LocalCopies

    def path(self, shard: ShardInfo) -> Path | None:
        """Path of a complete copy, or None; one that is not there is looked for once a second."""
        now = time.monotonic()
        if now - self._asked.get(shard.name, -1.0) < 1.0:
            return None
        if _usable(self.held, shard):
            return self.held.file(shard)
        self._asked[shard.name] = now
        return None

    def damaged(self, shard: ShardInfo) -> None:
        """Remove a copy that is not what it should be; it may be fetched again."""
        self.held.remove(shard)

    # ------------------------------------------------------------------ what is there

    def present(self) -> list[ShardInfo]:
        """Shards of which there is a copy of the right size."""
        return [shard for shard in self.shards if _usable(self.held, shard)]

    def missing(self) -> list[ShardInfo]:
        """Shards of which there is none."""
        return [shard for shard in self.shards if not _usable(self.held, shard)]

    def shortage(self) -> str:
        """What lacks, in words, where not all shards fit."""
        missing, options = self.missing(), self.folder.options
        return (
            f"The cache {self.folder.root} holds {len(self.shards) - len(missing)} of "
            f"{len(self.shards)} shards that are needed and has no room for "
            f"{size_text(sum(shard.bytes for shard in missing))} more (limit "
            f"{size_text(options.limit_bytes)}, {size_text(options.reserve_bytes)} of the disk "
            f"stay free, {size_text(self.folder.free())} are free)."
        )

    # ------------------------------------------------------------------ filling

    def fill(self, progress: Progress | None = None) -> Filled:
        """Fetch every shard that is missing and fits, and wait for those that others fetch.

        The processes of a node share the work.

        Raises
        ------
        ShardError
            If a shard is missing in the store, or is not the one that the manifest names.
        StorageError
            If the store does not let us, or does not answer.
        """
        missing = self.missing()
        if not missing:
            return Filled(0, 0, full=False)
        told = _Told(self, progress)
        dataset = _with_connections(self.dataset, max(1, self._memory // PART_BYTES - 2))
        work = _Work(self.folder, self.held, dataset, self._stop, told.add)
        store = dataset.store
        try:
            with ThreadPoolExecutor(_AT_ONCE, "lenstrain-fill") as threads:
                try:
                    list(threads.map(work.run, _parts(missing)))
                except BaseException:  # an interrupt
                    work.over.set()
                    raise
        finally:
            if isinstance(store, S3Store):
                store.connection.buffers.clear()
        work.raise_error()
        return work.result()

    def fill_beside(self, hungry: Callable[[], bool]) -> None:
        """Fetch what is missing in the background, at half speed while a consumer waits.

        A fault ends it with a warning: what is missing is streamed.

        Parameters
        ----------
        hungry : callable
            Whether a consumer waits for rows.
        """
        self._asked.clear()  # an epoch begins: look at once
        if self._stop.is_set() or (self._thread is not None and self._thread.is_alive()):
            return
        # The last shards first: an epoch in stored order begins with the others.
        missing = self.missing()[::-1]
        if not missing:
            return
        pace = _Pace(self._stop, hungry)
        beside = _with_connections(self.dataset, _beside_connections(self._memory))
        self._beside = beside.store if isinstance(beside.store, S3Store) else None
        work = _Work(self.folder, self.held, beside, self._stop, pace)
        self._thread = threading.Thread(
            target=_fill_quietly, args=(work, missing), name="lenstrain-cache", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End filling, and let others evict."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LONGEST_PAUSE)
            if self._thread.is_alive() and self._beside is not None:
                self._beside.connection.stop()  # the interpreter would wait for all its tries
        self.held.close()


def _end(stop: threading.Event, held: CachedDataset) -> None:
    stop.set()
    held.close()


def _usable(held: CachedDataset, shard: ShardInfo) -> bool:
    """Whether there is a copy; one of another size is removed."""
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


def _parts(shards: Sequence[ShardInfo]) -> list[list[ShardInfo]]:
    """Shards for each of a few threads."""
    return [list(shards[number::_AT_ONCE]) for number in range(_AT_ONCE)]


def _with_connections(dataset: Dataset, most: int) -> Dataset:
    """The same dataset over few connections of its own, if it has more."""
    store = dataset.store
    if not isinstance(store, S3Store) or store.options.connections <= most:
        return dataset
    options = replace(store.options, connections=most)
    return RemoteDataset(S3Store(store.uri, options), dataset.manifest)


class _StoppedError(Exception):
    """Filling was told to end."""


class _Work:
    """Fetching shards that nobody else fetches; used by several threads."""

    def __init__(
        self,
        folder: CacheFolder,
        held: CachedDataset,
        dataset: Dataset,
        stop: threading.Event,
        moved: Callable[[int], None],
    ) -> None:
        self.folder, self.held, self.dataset = folder, held, dataset
        self.stop, self.moved = stop, moved
        self.over, self.full = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._fetched: list[int] = []
        self._errors: list[BaseException] = []

    def run(self, shards: Sequence[ShardInfo]) -> None:
        """Have these shards there, or know that there is no room for them; keeps what fails."""
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
            self.over.set()  # the other threads need not go on

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
            if not isinstance(found, Claim):
                if found == "full":
                    self.full.set()
                return found
            with found:
                return self._fetch(shard)

    def _fetch(self, shard: ShardInfo) -> Refusal:
        try:
            fetch_shard(self.dataset, shard, self.held.file(shard), self._moved)
        except StorageError as error:
            if not is_disk_full(error):
                raise
            logger.warning("%s What is not in the cache is streamed.", error)
            self.full.set()
            return "full"
        with self._lock:
            self._fetched.append(shard.bytes)
        return "there"

    def _moved(self, count: int) -> None:
        if self._ended():
            raise _StoppedError
        self.moved(count)

    def result(self) -> Filled:
        """What was done."""
        return Filled(len(self._fetched), sum(self._fetched), self.full.is_set())


def _fill_quietly(work: _Work, shards: Sequence[ShardInfo]) -> None:
    """Body of the thread that fills beside the stream."""
    try:
        work.run(shards)
        work.raise_error()
    except ShardError as error:
        logger.warning("%s It is not cached.", error)
    except ProjectError as error:
        logger.warning("%s Caching ends for this epoch; the rest is streamed.", error)
    except RuntimeError:  # the program ends: no thread can be started any more
        if threading.main_thread().is_alive():
            raise
    finally:
        store = work.dataset.store
        if isinstance(store, S3Store):
            store.connection.buffers.clear()


class _Pace:
    """Half speed while a consumer waits: each part is followed by a pause as long as it took."""

    def __init__(self, stop: threading.Event, hungry: Callable[[], bool]) -> None:
        self._stop, self._hungry = stop, hungry
        self._mark = time.monotonic()

    def __call__(self, count: int) -> None:
        if self._hungry():
            self._stop.wait(min(time.monotonic() - self._mark, _LONGEST_PAUSE))
        self._mark = time.monotonic()


class _Told:
    """Tells how far filling is: to whoever listens, or else in lines of the log."""

    def __init__(self, copies: CachedSplit, progress: Progress | None) -> None:
        self._copies, self._progress = copies, progress
        self._began = self._shown = self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._base = self._first = sum(shard.bytes for shard in copies.present())
        self._own = 0
        if progress is not None:
            progress(self._base, copies.bytes)

    def add(self, count: int) -> None:
        """So many bytes more have come to this process."""
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
                self._log(done, now)

    def _log(self, done: int, now: float) -> None:
        rate = (done - self._first) / (now - self._began)
        left = (self._copies.bytes - done) / rate if rate else float("inf")
        logger.info(
            "filling the cache with split %r: %s of %s, %.0f MB/s, %.0f s left",
            self._copies.split,
            size_text(done),
            size_text(self._copies.bytes),
            rate / 1e6,
            left,
        )

"""One split of a dataset in a cache: which of its shards are there, and getting the others.

copies = CachedSplit(folder, dataset, "train")      a `lenstrain.data.cache.mapped.LocalCopies`
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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import Dataset, ShardInfo
<<<<<<< HEAD
from lensprep.dataset.remote import RemoteDataset
from lensprep.errors import (
    ChangedError,
    NotFoundError,
    ProjectError,
    ShardError,
    StorageError,
    size_text,
)
from lensprep.store import PART_BYTES, RemoteStore, open_remote
from lensprep.store.transfer import download_file
from lenstrain.data.cache.folder import (
    CachedDataset,
    CacheFolder,
    Claim,
    Refusal,
    download_slot,
    is_disk_full,
=======
from lensprep.errors import StorageError, size_text
from lensprep.store.s3 import PART_BYTES, S3Store
from lenstrain.data.cache.fetching import (
    LONGEST_PAUSE,
    Fetching,
    Filled,
    Pace,
    fetch_quietly,
    with_connections,
>>>>>>> house-data
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
"""Called with bytes that are in the cache and bytes of all shards."""


def open_copies(dataset: Dataset, split: str, reading: Reading) -> LocalCopies:
    """The copies of a split in the cache that is named, if one is; logs which.

    Parameters
    ----------
    dataset : Dataset
        In an object store.
    split : str
    reading : Reading

    Raises
    ------
    StorageError
        If the folder cannot be a cache.
    """
    level = logging.INFO if reading.log else logging.DEBUG
    what = f"split {split!r} of {dataset.uri}"
    if reading.cache_dir is None:
        logger.log(level, "%s is streamed: there is no cache (data.cache_dir).", what)
        return LocalCopies()
    folder = CacheFolder.open(reading.cache_dir, reading.cache)
    copies = CachedSplit(folder, dataset, split, reading.streamed_bytes)
    there = copies.present()
    logger.log(
        level,
        "%s is read from the cache %s (%d of %d shards are there, %s of %s).",
        what,
        folder.root,
        len(there),
        len(copies.shards),
        size_text(sum(shard.bytes for shard in there)),
        size_text(copies.bytes),
    )
    return copies


<<<<<<< HEAD
def fetch_shard(
    dataset: Dataset,
    shard: ShardInfo,
    path: Path,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Copy a shard of an object store to a file, in parallel ranges.

    Parameters
    ----------
    dataset : Dataset
        In an object store.
    shard : ShardInfo
    path : Path
        It gets this name when it is whole, has the manifest's SHA-256, and is on the disk.
    progress : callable, optional
        Told, from any thread, how many bytes more have come.

    Raises
    ------
    ShardError
        If the shard is missing, or has not the size or digest that the manifest states.
    StorageError
        If the store or the disk refuses.
    """
    if not isinstance(dataset.store, RemoteStore):
        raise StorageError(f"{dataset.uri} is on a local disk already; there is nothing to fetch.")
    try:
        download_file(
            dataset.store,
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
    """What came of filling."""

    fetched: int
    """Shards fetched by this process."""
    fetched_bytes: int
    full: bool
    """There was no room for some."""


=======
>>>>>>> house-data
class CachedSplit(LocalCopies):
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

    offers_any = True

    def __init__(
        self, folder: CacheFolder, dataset: Dataset, split: str, memory: int = 1 << 30
    ) -> None:
        if not isinstance(dataset.store, S3Store):
            raise StorageError(f"{dataset.uri} is on a local disk already: nothing to fetch.")
        self.folder, self.dataset, self.split = folder, dataset, split
        self._store = dataset.store
        self.shards: Sequence[ShardInfo] = dataset.split(split).shards
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

    def fill_first(self) -> str:
        """Fetch every shard that is missing and fits; what lacks, in words, if some do not."""
        return self.shortage() if self.fill().full else ""

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
        store = with_connections(self._store, max(1, self._memory // PART_BYTES - 2))
        fetching = Fetching(self.folder, self.held, store, self._stop, told.add)
        try:
            with ThreadPoolExecutor(_AT_ONCE, "lenstrain-fill") as threads:
                try:
                    list(threads.map(fetching.run, [missing[n::_AT_ONCE] for n in range(_AT_ONCE)]))
                except BaseException:  # an interrupt
                    fetching.over.set()
                    raise
        finally:
<<<<<<< HEAD
            if isinstance(store, RemoteStore):
                store.connection.buffers.clear()
        work.raise_error()
        return work.result()
=======
            store.connection.buffers.clear()
        fetching.raise_error()
        return fetching.result()
>>>>>>> house-data

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
<<<<<<< HEAD
        pace = _Pace(self._stop, hungry)
        beside = _with_connections(self.dataset, self._beside_connections)
        self._beside = beside.store if isinstance(beside.store, RemoteStore) else None
        work = _Work(self.folder, self.held, beside, self._stop, pace)
=======
        self._beside = with_connections(self._store, self._beside_connections)
        pace = Pace(self._stop, hungry)
        fetching = Fetching(self.folder, self.held, self._beside, self._stop, pace)
>>>>>>> house-data
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


<<<<<<< HEAD
def _parts(shards: Sequence[ShardInfo]) -> list[list[ShardInfo]]:
    """Shards for each of a few threads."""
    return [list(shards[number::_AT_ONCE]) for number in range(_AT_ONCE)]


def _with_connections(dataset: Dataset, most: int) -> Dataset:
    """The same dataset over few connections of its own, if it has more."""
    store = dataset.store
    if not isinstance(store, RemoteStore) or store.options.connections <= most:
        return dataset
    options = replace(store.options, connections=most)
    return RemoteDataset(open_remote(store.uri, options), dataset.manifest)


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
        self._began = time.monotonic()
        self._fetching, self._settling = 0.0, 0.0

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
        began = arrived = time.monotonic()

        def moved(count: int) -> None:
            nonlocal arrived
            self._moved(count)
            arrived = time.monotonic()

        try:
            fetch_shard(self.dataset, shard, self.held.file(shard), moved)
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
        """What was done; the log tells how fast, and warns of a disk slower than the store."""
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


def _fill_quietly(work: _Work, shards: Sequence[ShardInfo]) -> None:
    """Body of the thread that fills beside the stream."""
    try:
        work.run(shards)
        work.raise_error()
        work.result()
    except ShardError as error:
        logger.warning("%s It is not cached.", error)
    except ProjectError as error:
        logger.warning("%s Caching ends for this epoch; the rest is streamed.", error)
    except RuntimeError:  # the program ends: no thread can be started any more
        if threading.main_thread().is_alive():
            raise
    finally:
        store = work.dataset.store
        if isinstance(store, RemoteStore):
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


=======
>>>>>>> house-data
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

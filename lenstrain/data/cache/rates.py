"""How fast the cache's disk and the object store are, and which of the two to read.

Both are measured for less than a second each, unless told; what was measured is kept in the cache's
folder for a day, so that the processes of a node and the next run measure nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lensprep.dataset import Dataset, ShardInfo
from lensprep.errors import StorageError
from lensprep.store import PART_BYTES, Piece, Reception, RemoteStore, Scatter, write_atomic
from lenstrain.data.cache.folder import CacheFolder

_FILE: Final = "rates.json"
_KEPT_SECONDS: Final = 24 * 3600.0
_SECONDS: Final = 0.4
"""Longest time of one measurement: writing, reading and the store each."""
_FIRST_SECONDS: Final = 1.0
"""How long the store's first byte is waited for."""
_PROBE: Final = ".rate-probe"
_PROBE_BYTES: Final = 128 << 20
_BLOCK: Final = 1 << 20
_SIP: Final = 1 << 18
"""Bytes taken from a connection at once: with more, much of what has come is not yet counted."""
_READERS: Final = 4
"""A flash disk reaches its rate only when it is asked for several things at once."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One rate and where it comes from."""

    mb_per_s: float | None
    """None if it could not be measured."""
    how: str
    """``told``, ``measured`` or ``measured before``."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether a cache is used, and why, in words."""

    cached: bool
    why: str


def choose(
    disk: Rate,
    store: Rate,
    split_bytes: int,
    memory_bytes: int | None,
    *,
    required: bool,
    always: bool,
) -> Choice:
    """Decide where a split is read from.

    Parameters
    ----------
    disk, store : Rate
        Of the cache's disk, and of the object store.
    split_bytes : int
    memory_bytes : int or None
        Memory that the page cache could have.
    required : bool
        The order cannot be read from the store: too much of it is needed at once.
    always : bool
        The cache was asked for, whatever the rates.
    """
    rates = f"disk {_words(disk)}, store {_words(store)}"
    if required:
        return Choice(True, f"a global shuffle reads rows one by one; {rates}")
    if always:
        return Choice(True, f"asked for by cache = always; {rates}")
    if disk.mb_per_s is None or store.mb_per_s is None or disk.mb_per_s >= store.mb_per_s:
        return Choice(True, f"the disk is not slower than the store; {rates}")
    if memory_bytes is not None and split_bytes <= memory_bytes // 2:
        return Choice(True, f"the split stays in the page cache once it was read; {rates}")
    return Choice(False, f"the disk is slower than the store; {rates}")


def _words(rate: Rate) -> str:
    if rate.mb_per_s is None:
        return "unknown"
    return f"{rate.mb_per_s:,.0f} MB/s ({rate.how})"


def available_memory() -> int | None:
    """Bytes that the system could give to the page cache, where it says so."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


# ----------------------------------------------------------------------------------- kept


def disk_rate(folder: CacheFolder) -> Rate:
    """Rate of the cache's disk: told, kept, or measured now."""
    told = folder.options.disk_mb_per_s
    if told is not None:
        return Rate(told, "told")
    if folder.free() < folder.options.reserve_bytes + _PROBE_BYTES:
        return Rate(None, "measured")
    return _kept(folder, "disk", lambda: measure_disk(folder.root))


def store_rate(folder: CacheFolder, dataset: Dataset, split: str) -> Rate:
    """Rate of a dataset's store: told, kept, or measured now."""
    told, store = folder.options.store_mb_per_s, dataset.store
    if told is not None:
        return Rate(told, "told")
    if not isinstance(store, RemoteStore) or not dataset.split(split).shards:
        return Rate(None, "measured")
    shard = dataset.split(split).shards[0]
    # A digest, because an address may hold what nobody should read here.
    place = f"{store.endpoint}/{store.uri.split('/')[2]}"
    key = "store-" + hashlib.sha256(place.encode()).hexdigest()[:16]
    return _kept(folder, key, lambda: measure_store(store, shard))


def known_rates(folder: CacheFolder) -> dict[str, float]:
    """What was measured before, by name."""
    return {name: float(entry["mb_per_s"]) for name, entry in _read(folder.root / _FILE).items()}


def _kept(folder: CacheFolder, key: str, measure: Callable[[], float | None]) -> Rate:
    """A rate that was measured within a day, or is now; of several processes one measures."""
    path = folder.root / _FILE
    descriptor = os.open(folder.root / "rates.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        known = _read(path)
        entry = known.get(key, {})
        if 0 <= time.time() - float(entry.get("at", 0)) < _KEPT_SECONDS:
            return Rate(float(entry["mb_per_s"]), "measured before")
        found = measure()
        if found is None:
            return Rate(None, "measured")
        known[key] = {"mb_per_s": round(found, 1), "at": int(time.time())}
        with suppress(StorageError):  # a full disk: it is measured again
            write_atomic(path, json.dumps(known, indent=1).encode(), sync=False)
        return Rate(found, "measured")
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return {n: e for n, e in found.items() if e["mb_per_s"] > 0 and e["at"] > 0}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return {}  # it is measured again


# ----------------------------------------------------------------------------------- the disk


def measure_disk(folder: Path) -> float | None:
    """MB/s at which a disk gives back what is not in memory; None if nothing can be written.

    A file of at most 128 MiB is written and forced to the disk, and read by several threads past
    the page cache (``O_DIRECT``; where there is none, after it was dropped from the cache). One
    process at a time; what a killed one left is written over.
    """
    path = folder / _PROBE
    try:
        size = _write_probe(path)
        return _read_probe(path, size) / 1e6 if size else None
    except OSError:
        return None
    finally:
        path.unlink(missing_ok=True)


def _write_probe(path: Path) -> int:
    block, size = os.urandom(_BLOCK), 0
    end = time.monotonic() + _SECONDS
    with path.open("wb", buffering=0) as file:
        while size < _PROBE_BYTES and time.monotonic() < end:
            size += file.write(block)
            if size % (16 * _BLOCK) == 0:
                os.fsync(file.fileno())  # or the end of it would take many times as long
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size


def _read_probe(path: Path, size: int) -> float:
    """Bytes per second of several readers."""
    blocks = iter(range(0, size // _BLOCK * _BLOCK, _BLOCK))
    lock, end = threading.Lock(), time.monotonic() + _SECONDS

    def read() -> int:
        descriptor = _open_direct(path)
        done = 0
        try:
            with mmap.mmap(-1, _BLOCK) as memory:  # aligned, as O_DIRECT needs it
                while time.monotonic() < end:
                    with lock:
                        start = next(blocks, None)
                    if start is None:
                        break
                    done += os.preadv(descriptor, [memory], start)
        finally:
            os.close(descriptor)
        return done

    with ThreadPoolExecutor(_READERS) as threads:
        began = time.monotonic()
        done = sum(future.result() for future in [threads.submit(read) for _ in range(_READERS)])
        return done / (time.monotonic() - began)


def _open_direct(path: Path) -> int:
    with suppress(OSError):  # such as a file system in memory
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


# ----------------------------------------------------------------------------------- the store


class _Waste(Scatter):
    """Memory of one block, however long the range is."""

    def __init__(self, size: int) -> None:
        self._size, self._block = size, memoryview(bytearray(_SIP))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> memoryview:
        return self._block[: part.stop - part.start]


class _Counted(Reception):
    """Counts what has come."""

    done = 0

    def moved(self, done: int) -> None:
        self.done = done


def measure_store(store: RemoteStore, shard: ShardInfo) -> float | None:
    """MB/s at which a store gives a shard's ranges over all connections; None if it gives nothing.

    What comes is thrown away; connections that are not done in time are broken off.
    """
    ends = range(PART_BYTES, shard.bytes + PART_BYTES, PART_BYTES)
    starts = [end - PART_BYTES for end in ends]
    many = [starts[number % len(starts)] for number in range(store.options.connections)]
    counted: list[_Counted] = []
    lock, over = threading.Lock(), threading.Event()

    def read(start: int) -> None:
        size = min(PART_BYTES, shard.bytes - start)
        while not over.is_set():
            watch = _Counted()
            with lock:
                counted.append(watch)
            with suppress(StorageError):  # broken off, or the store's own trouble: told elsewhere
                store.fill(Piece(shard.name, start, _Waste(size), checked=True), watch=watch)
                continue
            return

    def arrived() -> int:
        with lock:
            return sum(watch.done for watch in counted)

    with ThreadPoolExecutor(len(many)) as threads:
        futures = [threads.submit(read, start) for start in many]
        wait = time.monotonic() + _FIRST_SECONDS
        while not (before := arrived()) and time.monotonic() < wait:
            if all(future.done() for future in futures):
                break
            time.sleep(0.005)
        # What connecting takes is no part of the rate: it is paid once.
        began = time.monotonic()
        time.sleep(_SECONDS if before else 0.0)
        done, seconds = arrived() - before, time.monotonic() - began
        over.set()
        with lock:
            for watch in counted:
                watch.stop()
        for future in futures:
            future.result()
    return done / seconds / 1e6 if done else None

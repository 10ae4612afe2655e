"""Measure the loader on a local dataset that is not in memory, beside the disk's random reads.

A data set that is larger than the memory comes from the disk in every epoch. Here its pages are
dropped from the page cache (``posix_fadvise``), as they would be by then.
"""

from __future__ import annotations

import itertools
import mmap
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import PAYLOAD_OFFSET, Dataset, Geometry
from lensprep.errors import StorageError
from lenstrain.bench.loader import (
    ROUNDS,
    Progress,
    Round,
    conditions,
    medians,
    one_thread,
    run_rounds,
    stall_fraction,
)
from lenstrain.data import StampLoader
from lenstrain.data.order import Shuffle
from lenstrain.data.sources.base import MEMORY_BUDGET

READS_AT_ONCE = (16, 64)
"""Random reads at a time, of which the faster counts: enough for a disk, few enough for Python."""
_DRAWN = 4096
"""Places that are drawn for each thread."""
_BLOCK = 512
"""Bytes of a block in the system's account of what a process had read."""
_LEAST_READ = 0.5
"""Bytes from the disk a byte of pixels, below which the pages were not dropped."""


def run_cold_bench(
    dataset: str | Path,
    *,
    split: str = "train",
    batch_size: int = 256,
    consumer_rate: float | None = None,
    seconds: float = 20.0,
    shuffle: Shuffle = "global",
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the loader and plain random reads on shards whose pages are dropped before each.

    Both are measured one after the other in interleaved rounds, so that a busy machine slows both;
    medians are reported. Parameters are those of `lenstrain.bench.loader.run_loader_bench`.

    Returns
    -------
    dict
        Medians ``samples_per_s``; ``random_reads_per_s``, of the pages of one stamp each, at random
        places, past the page cache, so many at a time as is faster; ``over_random_reads``, the
        median of the ratios within a round; ``read_over_payload``, bytes that came from the disk a
        byte of pixels handed out; ``stall_fraction``; ``rounds`` and the conditions.

    Raises
    ------
    DatasetError, ConfigError
        If there is no such dataset or split, or an option does not fit.
    StorageError
        If the pages stay in memory.
    """
    tell = progress or (lambda what, done: None)
    data = Dataset.open(dataset)
    shards, geometry = data.split(split).shards, data.geometry
    paths = [data.path(shard.name) for shard in shards]
    starts = np.cumsum([0, *(shard.rows for shard in shards)])
    options: dict[str, Any] = {"shuffle": shuffle, "memory_budget": memory_budget}
    parts = 1 + len(READS_AT_ONCE) + (consumer_rate is not None)
    share = seconds / (ROUNDS * parts)

    def cold_loader() -> closing[StampLoader]:
        loader = StampLoader(dataset, split, batch_size, **options)
        drop_pages(paths)  # before a shard is mapped: what is mapped stays
        return closing(loader)

    def measure() -> Round:
        found = cold_rate(cold_loader, share, geometry.payload_bytes)
        if found["read_over_payload"] < _LEAST_READ:
            raise StorageError(
                f"{data.uri} stays in memory, so that nothing can be measured cold: its file "
                "system is in memory, does not drop pages or does not count what is read from its "
                "disk, or another process has them mapped."
            )
        reads = max(
            random_reads(paths, starts, at_once, share, geometry) for at_once in READS_AT_ONCE
        )
        found |= {
            "random_reads_per_s": reads,
            "over_random_reads": found["samples_per_s"] / reads,
        }
        if consumer_rate is not None:
            with cold_loader() as loader:
                found["stall_fraction"] = stall_fraction(iter(loader), consumer_rate, share)
        return found

    with one_thread():
        rounds = run_rounds(measure, tell)
        with cold_loader() as loader:
            facts = conditions(data, split, loader, consumer_rate)
    return {"stall_fraction": None} | medians(rounds) | facts | {"rounds": rounds}


def drop_pages(paths: Sequence[Path]) -> None:
    """Write files to their disk and drop their pages, but for those that a process has mapped."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cold_rate(
    cold_loader: Callable[[], closing[StampLoader]], seconds: float, stamp_bytes: int
) -> Round:
    """Read with one cold loader after the other, each for at most an epoch."""
    samples, spent, blocks = 0, 0.0, 0
    while spent < seconds:
        with cold_loader() as loader:
            before, start = _blocks_read(), time.perf_counter()
            for batch in loader:
                samples += len(batch.labels)
                if spent + time.perf_counter() - start >= seconds:
                    break
            spent += time.perf_counter() - start
            blocks += _blocks_read() - before
    return {
        "samples_per_s": samples / spent,
        "read_over_payload": blocks * _BLOCK / (samples * stamp_bytes),
    }


def random_reads(
    paths: Sequence[Path],
    starts: NDArray[np.int64],
    at_once: int,
    seconds: float,
    geometry: Geometry,
) -> float:
    """Reads per second of the pages of random rows, `at_once` at a time, past the page cache."""
    drop_pages(paths)
    counts, over = [0] * at_once, threading.Event()
    with ExitStack() as opened:
        files = [_open_direct(path) for path in paths]
        for file in files:
            opened.callback(os.close, file)

        def read(thread: int, places: Sequence[tuple[int, int, int]]) -> None:
            # Direct reads need memory that begins at a page, as a map does.
            room = mmap.mmap(-1, geometry.payload_bytes + 2 * mmap.PAGESIZE)
            with room, memoryview(room) as view:
                for file, first, size in itertools.cycle(places):
                    with view[:size] as part:
                        os.preadv(file, [part], first)
                    counts[thread] += 1
                    if over.is_set():
                        return

        # Drawn before: what Python does meanwhile keeps the disk waiting.
        places = [_random_places(files, starts, geometry, thread) for thread in range(at_once)]
        with ThreadPoolExecutor(at_once) as pool:
            start = time.perf_counter()
            reading = list(map(pool.submit, [read] * at_once, range(at_once), places))
            try:
                time.sleep(seconds)
                found = sum(counts) / (time.perf_counter() - start)
            finally:
                over.set()
            for each in reading:
                each.result()
    return found


def _random_places(
    files: Sequence[int], starts: NDArray[np.int64], geometry: Geometry, seed: int
) -> list[tuple[int, int, int]]:
    """File, first byte and size of the pages of random rows."""
    rows = np.random.default_rng((seed, time.perf_counter_ns())).integers(0, starts[-1], _DRAWN)
    shard = np.searchsorted(starts, rows, side="right") - 1
    offset = (rows - starts[shard]) * geometry.stride + PAYLOAD_OFFSET
    first = offset - offset % mmap.PAGESIZE
    size = -(-(offset + geometry.payload_bytes - first) // mmap.PAGESIZE) * mmap.PAGESIZE
    return list(zip(np.array(files)[shard].tolist(), first.tolist(), size.tolist(), strict=True))


def _open_direct(path: Path) -> int:
    """Open a file for reading past the page cache, or through it where that is not possible."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return os.open(path, os.O_RDONLY)


def _blocks_read() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock

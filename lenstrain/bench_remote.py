"""Measure the loader on an object store, beside what the same client reads without it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lensprep.dataset import RECORD_STRIDE, Dataset, ShardInfo
from lensprep.dataset.s3 import Piece, S3Store
from lensprep.dataset.s3client import S3Options
from lensprep.errors import StorageError
from lenstrain.bench import (
    ROUNDS,
    Progress,
    check_rows,
    check_times,
    conditions,
    one_thread,
    waited_share,
)
from lenstrain.data import StampLoader
from lenstrain.data.fetch import MEMORY_BUDGET, RemoteSource
from lenstrain.data.order import BLOCK_ROWS, Shuffle
from lenstrain.data.ranges import RUN_CELLS

_PROBE_ROWS = 8 * BLOCK_ROWS
"""Read first, to know how much can be read in the time that there is."""
_COUNTERS = ("requests", "bytes", "raced", "reread", "evicted", "waited_s")


def run_remote_bench(
    dataset: str,
    *,
    split: str = "train",
    batch_size: int = 256,
    consumer_rate: float | None = None,
    seconds: float = 20.0,
    shuffle: Shuffle = "block",
    memory_budget: int = MEMORY_BUDGET,
    s3: S3Options | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the loader and a plain client on the same objects, by turns.

    In every round the loader reads one epoch of rows at the start of the split, from its first
    request to its last batch, and the client reads the objects that hold these rows once: the same
    client with as many requests at once, in ranges as long as the loader's mean one, into memory
    that is used again, and nothing is done with the bytes. Each round begins with nothing in
    memory. There are as many rows as the client can read in a round's share of `seconds`.

    Parameters
    ----------
    dataset : str
        ``s3://bucket/folder``.
    split : str
    batch_size : int
    consumer_rate : float, optional
        Samples per second of a simulated consumer (`lenstrain.bench.stall_fraction`), in an epoch
        of its own; its waiting for the first batch does not count.
    seconds : float
        Time for all measurements together.
    shuffle : {"global", "block", None}
        A global shuffle needs all the rows in memory.
    memory_budget : int
        Most bytes that the loader's read-ahead holds.
    s3 : S3Options, optional
        How to reach the store; the usual AWS variables and profiles apply in any case.
    progress : callable, optional

    Returns
    -------
    dict
        Medians ``samples_per_s``, ``plain_client_samples_per_s``, ``over_plain_client`` (of the
        ratios within a round), ``first_batch_s``, ``open_s`` (the loader's making: manifest and
        listing), ``cpu_cores``, ``stall_fraction`` (None without a `consumer_rate`); ``rounds``
        with what each of them read; and the conditions.

    Raises
    ------
    DatasetError, ConfigError, StorageError
        If there is no such dataset or split, an option does not fit, or the store does not let us.
    """
    check_times(seconds, consumer_rate)
    tell = progress or (lambda what, done: None)
    data = Dataset.open(dataset, s3)
    check_rows(data, split)
    store = data.store
    if not isinstance(store, S3Store):
        raise StorageError(f"{data.uri} is on a local disk: use `run_loader_bench`.")
    share = seconds / (ROUNDS * (2 if consumer_rate is None else 3))
    options: dict[str, Any] = {"shuffle": shuffle, "memory_budget": memory_budget, "s3": s3}
    shards = data.split(split).shards
    with one_thread():
        tell("Reading once", 0.0)
        options["limit"] = _rows_to_read(store, shards, share)

        def open_loader() -> StampLoader:
            return StampLoader(dataset, split, batch_size, **options)

        rounds: list[dict[str, float]] = []
        for number in range(ROUNDS):
            tell("Measuring", number / ROUNDS)
            rounds.append(_measure(open_loader, store, shards, consumer_rate, share))
        with_loader = open_loader()
    tell("Done", 1.0)
    with_loader.close()
    return _summary(rounds) | conditions(data, split, with_loader, consumer_rate) | {
        "memory_budget": memory_budget,
        "connections": store.options.connections,
        "rounds": rounds,
    }  # fmt: skip


def _rows_to_read(store: S3Store, shards: Sequence[ShardInfo], seconds: float) -> int:
    """Rows that the plain client reads in so many seconds, of those that there are."""
    total = sum(shard.rows for shard in shards)
    few = min(total, _PROBE_ROWS * store.options.connections // 4)
    rate, _ = plain_client_rate(store, shards, few, RUN_CELLS * BLOCK_ROWS)  # connects
    rate, _ = plain_client_rate(store, shards, few, RUN_CELLS * BLOCK_ROWS)
    return int(min(total, max(_PROBE_ROWS, rate * seconds)))


def _measure(
    open_loader: Callable[[], StampLoader],
    store: S3Store,
    shards: Sequence[ShardInfo],
    consumer_rate: float | None,
    seconds: float,
) -> dict[str, float]:
    """One round: an epoch of the loader, and the same rows by the plain client."""
    found = epoch_from_store(open_loader)
    mean = found["bytes"] / found["requests"] / RECORD_STRIDE
    rows = int(found["rows"])
    plain, read = plain_client_rate(store, shards, rows, max(1, round(mean)))
    found |= {"plain_client_samples_per_s": plain, "plain_client_bytes": read}
    if consumer_rate is not None:
        loader = open_loader()
        try:
            found["stall_fraction"] = waited_share(iter(loader), consumer_rate, seconds)
        finally:
            loader.close()
    return found


def epoch_from_store(open_loader: Callable[[], StampLoader]) -> dict[str, float]:
    """Read one epoch as fast as it comes, with a loader that has nothing in memory."""
    start, cpu = time.perf_counter(), time.process_time()
    loader = open_loader()
    try:
        opened = time.perf_counter()
        batches = iter(loader)
        samples = int(next(batches).weight.sum())
        first = time.perf_counter()
        for batch in batches:
            samples += int(batch.weight.sum())
            del batch
        end = time.perf_counter()
        assert isinstance(loader.source, RemoteSource)
        counters = loader.source.describe()
    finally:
        loader.close()
    return {
        "samples_per_s": samples / (end - opened),
        "rows": samples,
        "open_s": opened - start,
        "first_batch_s": first - opened,
        "cpu_cores": (time.process_time() - cpu) / (end - start),
        **{name: counters[name] for name in _COUNTERS},
    }


def plain_client_rate(
    store: S3Store, shards: Sequence[ShardInfo], rows: int, range_rows: int
) -> tuple[float, int]:
    """Rows per second that the client alone reads, in ranges of so many rows, and the bytes.

    Parameters
    ----------
    store : S3Store
    shards : sequence of ShardInfo
        Of the split, in manifest order.
    rows : int
        The first rows of them are read.
    range_rows : int
        Rows of one request.
    """
    ranges = list(_ranges(shards, rows, range_rows))
    # Written once: fresh pages would be paid for while reading.
    memory = [np.ones(range_rows * RECORD_STRIDE, np.uint8).data
              for _ in range(store.options.connections)]  # fmt: skip

    def read(place: tuple[str, int, int]) -> int:
        name, first, count = place
        view = memory.pop()
        store.fill(Piece(name, first * RECORD_STRIDE, view[: count * RECORD_STRIDE]))
        memory.append(view)
        return count * RECORD_STRIDE

    start = time.perf_counter()
    with ThreadPoolExecutor(store.options.connections) as pool:
        read_bytes = sum(pool.map(read, ranges))
    return rows / (time.perf_counter() - start), read_bytes


def _ranges(
    shards: Sequence[ShardInfo], rows: int, range_rows: int
) -> Iterator[tuple[str, int, int]]:
    """Shard, first row and number of rows of each request."""
    for shard in shards:
        take = min(rows, shard.rows)
        for first in range(0, take, range_rows):
            yield shard.name, first, min(range_rows, take - first)
        rows -= take


def _summary(rounds: list[dict[str, float]]) -> dict[str, float | None]:
    names = (
        "samples_per_s",
        "plain_client_samples_per_s",
        "first_batch_s",
        "open_s",
        "cpu_cores",
    )
    summary: dict[str, float | None] = {n: statistics.median(r[n] for r in rounds) for n in names}
    summary["over_plain_client"] = statistics.median(
        r["samples_per_s"] / r["plain_client_samples_per_s"] for r in rounds
    )
    stalls = [r["stall_fraction"] for r in rounds if "stall_fraction" in r]
    summary["stall_fraction"] = statistics.median(stalls) if stalls else None
    return summary

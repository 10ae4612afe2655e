"""Compare the loader on an object store with what the same client reads without it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np

from lensprep.dataset import DECALS, Dataset, ShardInfo
from lensprep.errors import DatasetError, StorageError
from lensprep.store import Piece, RemoteStore, S3Options
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
from lenstrain.data.sources.cells import cell_rows
from lenstrain.data.sources.remote import RemoteSource
from lenstrain.data.sources.schedule import RUN_CELLS

_PROBE_ROWS = 8192
"""Read first, to know how much can be read in the time that there is."""
_COUNTERS = ("requests", "bytes", "raced", "reread", "evicted", "waited_s")

Range = tuple[str, int, int]
"""Shard, first byte and length of one request."""


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
    """Time the loader and a plain client on the same objects, in interleaved rounds.

    The loader reads one epoch untimed, and its requests are noted. Then, in every round, it reads
    an epoch with nothing of the dataset in memory, from its first request to its last batch; and
    the same client, with as many requests at once, makes the same requests in the same order into
    memory that is allocated already, and discards the bytes. It also reads the same rows in the
    longest ranges that the loader ever requests. An epoch has as many rows, from the start of the
    split, as the client can read in a round's share of `seconds`.

    Parameters
    ----------
    dataset : str
        ``s3://bucket/folder``.
    split : str
    batch_size : int
    consumer_rate : float, optional
        Samples per second of a simulated consumer (`lenstrain.bench.loader.stall_fraction`), in a
        further epoch; the wait for the first batch does not count.
    seconds : float
        Time for all measurements together, besides the untimed epoch.
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
        Medians ``samples_per_s``, ``plain_client_samples_per_s``, ``long_ranges_samples_per_s``,
        ``over_plain_client`` (of the ratios of the first two within a round), ``first_batch_s``,
        ``cpu_cores``, ``stall_fraction`` (None without a `consumer_rate`); ``open_s`` (making the
        loader: manifest and listing), ``request_bytes`` (mean), ``rounds`` with what the loader
        counted in each, and the conditions.

    Raises
    ------
    DatasetError, ConfigError, StorageError
        If there is no such dataset or split, an option does not fit, or the store refuses.
    """
    tell = progress or (lambda what, done: None)
    data = Dataset.open(dataset, s3)
    store, info = data.store, data.split(split)
    stride = data.geometry.stride
    if not info.rows:
        raise DatasetError(f"{data.uri}: split {split!r} is empty, there is nothing to measure.")
    if not isinstance(store, RemoteStore):
        raise StorageError(f"{data.uri} is on a local disk: use `run_loader_bench`.")
    share = seconds / (ROUNDS * (3 if consumer_rate is None else 4))
    tell("Reading once", 0.0)
    options: dict[str, Any] = {"shuffle": shuffle, "memory_budget": memory_budget, "s3": s3}
    options["limit"] = _rows_to_read(store, info.shards, stride, share)
    start = time.perf_counter()
    with closing(StampLoader(dataset, split, batch_size, **options)) as loader, one_thread():
        opened = time.perf_counter() - start
        rows = loader.spec.rows
        requests, long = _noted_requests(loader), list(long_ranges(info.shards, rows, stride))

        def measure() -> Round:
            found = epoch_from_store(loader)
            plain = rows / plain_client_seconds(store, requests)
            found["plain_client_samples_per_s"] = plain
            found["over_plain_client"] = found["samples_per_s"] / plain
            found["long_ranges_samples_per_s"] = rows / plain_client_seconds(store, long)
            if consumer_rate is not None:
                _source(loader).reader.drop_idle()
                batches = iter(loader)
                found["stall_fraction"] = stall_fraction(batches, consumer_rate, share)
                for _ in batches:  # or the rest would be on its way in the next measurement
                    pass
            return found

        rounds = run_rounds(measure, tell)
    found = {"stall_fraction": None} | medians(rounds, but=_COUNTERS)
    return found | conditions(data, split, loader, consumer_rate) | {
        "open_s": opened,
        "memory_budget": memory_budget,
        "connections": store.options.connections,
        "request_bytes": sum(length for _, _, length in requests) / len(requests),
        "rounds": rounds,
    }  # fmt: skip


def _rows_to_read(
    store: RemoteStore, shards: Sequence[ShardInfo], stride: int, seconds: float
) -> int:
    """Rows of the split that the plain client reads in so many seconds."""
    total = sum(shard.rows for shard in shards)
    few = min(total, _PROBE_ROWS)
    for _ in range(2):  # the first one connects
        spent = plain_client_seconds(store, list(long_ranges(shards, few, stride)))
    return int(min(total, max(_PROBE_ROWS, few / spent * seconds)))


class _NotingStore:
    """A store that notes the ranges requested from it, each once even if two requests race."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self.ranges: dict[Range, None] = {}

    def fill(self, piece: Piece, **options: Any) -> Any:
        self.ranges[piece.name, piece.start, len(piece.view)] = None
        return self._store.fill(piece, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _noted_requests(loader: StampLoader) -> list[Range]:
    """What the loader requests in an epoch; its memory has been used once afterwards."""
    reader = _source(loader).reader
    store, noting = reader.store, _NotingStore(reader.store)
    reader.store = noting  # type: ignore[assignment]
    try:
        for _ in loader:
            pass
    finally:
        reader.store = store
    return list(noting.ranges)


def _source(loader: StampLoader) -> RemoteSource:
    assert isinstance(loader.source, RemoteSource)
    return loader.source


def epoch_from_store(loader: StampLoader) -> Round:
    """Read one epoch as fast as it comes, with nothing of it in memory."""
    source = _source(loader)
    source.reader.drop_idle()
    before = source.describe()
    start, cpu = time.perf_counter(), time.process_time()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter()
    for batch in batches:
        del batch
    spent = time.perf_counter() - start
    after = source.describe()
    return {
        "samples_per_s": loader.spec.rows / spent,
        "first_batch_s": first - start,
        "cpu_cores": (time.process_time() - cpu) / spent,
        **{name: after[name] - before[name] for name in _COUNTERS},
    }


def plain_client_seconds(store: RemoteStore, requests: Sequence[Range]) -> float:
    """Time that the client alone takes for some requests.

    Parameters
    ----------
    store : RemoteStore
    requests : sequence of (str, int, int)
        Shard, first byte and length of each.
    """
    longest = max(length for _, _, length in requests)
    # Written once: fresh pages would be paid for while reading.
    memory = [np.ones(longest, np.uint8).data for _ in range(store.options.connections)]

    def read(request: Range) -> None:
        name, start, length = request
        view = memory.pop()
        store.fill(Piece(name, start, view[:length], checked=True))
        memory.append(view)

    start = time.perf_counter()
    with ThreadPoolExecutor(store.options.connections) as pool:
        list(pool.map(read, requests))
    return time.perf_counter() - start


def long_ranges(
    shards: Sequence[ShardInfo], rows: int, stride: int = DECALS.stride
) -> Iterator[Range]:
    """The longest requests that the loader makes, over the first rows of a split.

    Records have `stride` bytes.
    """
    long = RUN_CELLS * cell_rows(stride)
    for shard in shards:
        take = min(rows, shard.rows)
        for first in range(0, take, long):
            count = min(long, take - first)
            yield shard.name, first * stride, count * stride
        rows -= take

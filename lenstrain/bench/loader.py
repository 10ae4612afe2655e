"""Compare the loader on a dataset with its upper limit and stock WebDataset, in one run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Container, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds

from lensprep.dataset import Dataset
from lenstrain.data import Batch, StampLoader
from lenstrain.data.order import Shuffle
from lenstrain.data.sources.base import MEMORY_BUDGET

Progress = Callable[[str, float], None]
"""Called with what is being measured and the fraction done."""
Round = dict[str, float]
"""What was measured in one round, by name."""

ROUNDS = 5
_MOST_BYTES = 1 << 30
"""Stamps that are read, beyond every cache but the page cache."""
LIMIT_BUFFERS = 10
"""As many output buffers as the loader reuses: fewer would stay in the cache and flatter."""


def run_loader_bench(
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
    """Time loader, memmap limit and stock WebDataset on the same shards, in interleaved rounds.

    Each is measured `ROUNDS` times for a share of `seconds`, one after the other in every round,
    so that a busy machine slows all of them; the medians are reported. They read the first GiB of
    the split, which is in the page cache (it is read once before); torch uses one thread.

    Parameters
    ----------
    dataset : str or path
    split : str
    batch_size : int
    consumer_rate : float, optional
        Samples per second of a simulated consumer, which sleeps for a batch's time without the
        interpreter lock, as a training step on a GPU does. Without it the stalled share is not
        measured (None).
    seconds : float
        Time for all measurements together, besides reading the data into the page cache.
    shuffle : {"global", "block", None}
    memory_budget : int
        Most bytes that the loader's read-ahead holds.
    progress : callable, optional

    Returns
    -------
    dict
        Medians ``samples_per_s`` and ``bytes_per_s`` (of pixels), ``memmap_limit_samples_per_s``,
        ``webdataset_samples_per_s``, ``crc_samples_per_s`` (with the CRC-32 of every stamp
        checked), ``stall_fraction``, and ``cpu_cores`` (processor time of the loader per wall
        time); ``over_limit`` and ``over_webdataset``, medians of the ratios within a round;
        ``rounds`` and the conditions.

    Raises
    ------
    DatasetError, ConfigError
        If there is no such dataset or split, or an option does not fit.
    """
    tell = progress or (lambda what, done: None)
    data = Dataset.open(dataset)
    share = seconds / (ROUNDS * (4 if consumer_rate is None else 5))
    options: dict[str, Any] = {"shuffle": shuffle, "limit": _most_rows(data)}
    options["memory_budget"] = memory_budget
    with (
        closing(StampLoader(dataset, split, batch_size, **options)) as loader,
        closing(StampLoader(dataset, split, batch_size, verify="crc", **options)) as checking,
        one_thread(),
    ):
        tell("Reading once", 0.0)
        contiguous = _warm_up(loader)

        def measure() -> Round:
            cpu, start = time.process_time(), time.perf_counter()
            rate = loader_rate(loader, share)
            cores = (time.process_time() - cpu) / (time.perf_counter() - start)
            limit = memmap_limit_rate(contiguous, batch_size, share)
            stock = webdataset_rate(data, split, batch_size, share)
            found = {
                "samples_per_s": rate,
                "cpu_cores": cores,
                "memmap_limit_samples_per_s": limit,
                "webdataset_samples_per_s": stock,
                "crc_samples_per_s": loader_rate(checking, share),
                "bytes_per_s": rate * data.geometry.payload_bytes,
                "over_limit": rate / limit,
                "over_webdataset": rate / stock,
            }
            if consumer_rate is not None:
                found["stall_fraction"] = stall_fraction(epochs(loader), consumer_rate, share)
            return found

        rounds = run_rounds(measure, tell)
    found = {"stall_fraction": None} | medians(rounds)
    return found | conditions(data, split, loader, consumer_rate) | {"rounds": rounds}


def run_rounds(measure: Callable[[], Round], tell: Progress) -> list[Round]:
    """Measure `ROUNDS` times, and say how far that is."""
    rounds = []
    for number in range(ROUNDS):
        tell("Measuring", number / ROUNDS)
        rounds.append(measure())
    tell("Done", 1.0)
    return rounds


def medians(rounds: list[Round], but: Container[str] = ()) -> dict[str, Any]:
    """Medians over the rounds of all that was measured, but for some names."""
    names = [name for name in rounds[0] if name not in but]
    return {name: statistics.median(each[name] for each in rounds) for name in names}


def conditions(
    data: Dataset, split: str, loader: StampLoader, consumer_rate: float | None
) -> dict[str, Any]:
    """What was read, how, and with which versions: the conditions in a bench's result."""
    return {
        "dataset": data.uri,
        "dataset_id": data.dataset_id,
        "geometry": data.geometry.to_dict(),
        "split": split,
        "rows": loader.spec.rows,
        "batch_size": loader.batch_size,
        "shuffle": loader.spec.shuffle,
        "consumer_rate": consumer_rate,
        "mixing_window_samples": loader.mixing_window,
        "read_ahead_batches": loader.depth,
        "cpus": os.cpu_count(),
        "versions": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "webdataset": wds.__version__,
        },
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _most_rows(data: Dataset) -> int:
    """Rows of `_MOST_BYTES`."""
    return _MOST_BYTES // data.geometry.payload_bytes


def _warm_up(loader: StampLoader) -> torch.Tensor:
    """Bring the rows into the page cache, and into one array."""
    rows = len(loader) * loader.batch_size
    array = torch.empty((rows, *loader.source.shape), dtype=torch.float16)
    for number, batch in enumerate(loader):
        array[number * loader.batch_size :][: len(batch.pixels)] = batch.pixels
    return array


def epochs(loader: StampLoader) -> Iterator[Any]:
    """Batches of one epoch after the other, every stamp compared anew in each."""
    while True:
        loader.forget_checks()
        yield from loader


def loader_rate(loader: StampLoader, seconds: float) -> float:
    """Samples per second of a consumer that takes batches as fast as they come."""
    batches = epochs(loader)
    next(batches)
    return _rate(batches, seconds)


def _rate(batches: Iterator[Any], seconds: float) -> float:
    samples, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        samples += len(next(batches)[0])
    return samples / spent


def memmap_limit_rate(contiguous: torch.Tensor, batch_size: int, seconds: float) -> float:
    """Samples per second of `torch.index_select` from one array into buffers that are there.

    Parameters
    ----------
    contiguous : tensor of float16, shape (rows, bands, side, side)
    batch_size : int
    seconds : float
    """
    rng = np.random.default_rng(0)
    orders = torch.from_numpy(rng.integers(0, len(contiguous), (64, batch_size)))
    shape = (batch_size, *contiguous.shape[1:])
    outs = [torch.empty(shape, dtype=torch.float16) for _ in range(LIMIT_BUFFERS)]
    for out in outs:
        torch.index_select(contiguous, 0, orders[0], out=out)
    turns, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        torch.index_select(contiguous, 0, orders[turns % 64], out=outs[turns % LIMIT_BUFFERS])
        turns += 1
    return turns * batch_size / spent


def webdataset_rate(data: Dataset, split: str, batch_size: int, seconds: float) -> float:
    """Samples per second of ``WebDataset(...).shuffle(1000).decode()`` with its own batching."""
    urls, rows = [], 0
    for shard in data.split(split).shards:
        if rows < _most_rows(data):
            urls.append(str(data.path(shard.name)))
            rows += shard.rows
    pipeline = (
        wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(1000, initial=100)
        .decode()
        .to_tuple("stamp.npy", "json")
        .batched(batch_size)
        .repeat()
    )
    return _rate(iter(pipeline), seconds)


def stall_fraction(batches: Iterator[Batch], rate: float, seconds: float) -> float:
    """Share of time that a consumer of `rate` samples per second waits for its next batch.

    The consumer holds each batch for its step time in `time.sleep`, without the interpreter lock,
    and lets go of it when it takes the next. What a sleep overshoots counts as work, not as wait.
    The first batch is left out; the measurement ends with the batches, if they are too few.
    """
    batch: Batch | None = next(batches)
    assert batch is not None
    step = len(batch.labels) / rate
    waited, start = 0.0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        if (batch := next(batches, None)) is None:
            break
        waited += time.perf_counter() - now
        time.sleep(step)
    return waited / (time.perf_counter() - start)

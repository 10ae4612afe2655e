"""The stages of the loader, with those of WebDataset, and in one process only."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import webdataset as wds

from lensprep.errors import ConfigError
from lenstrain.data import StampLoader
from lenstrain.data.stream import read_ahead
from tests.lenstrain.data.epochs import ROWS, real_index
from tests.waiting import wait_until

# WebDataset


def test_the_pipeline_is_webdatasets_and_takes_its_stages(root, stored):
    loader = StampLoader(root, batch_size=16, shuffle=None)
    pipeline = loader.pipeline()
    assert isinstance(pipeline, wds.DataPipeline)
    doubled = pipeline.compose(wds.map_tuple(lambda x: x.float() * 2), wds.unbatched())
    samples = list(doubled)
    assert len(samples) == 7 * 16
    pixels, label, index, weight = samples[20]
    np.testing.assert_array_equal(pixels.numpy(), stored[0][20].astype(np.float32) * 2)
    assert (int(label), int(index), float(weight)) == (0, 20, 1.0)


def test_the_loader_is_a_first_stage_of_webdataset(root):
    loader = StampLoader(root, batch_size=16)
    pipeline = wds.DataPipeline(loader, wds.map(lambda batch: batch.index))
    first, second = [torch.cat(list(pipeline)) for _ in range(2)]
    assert not torch.equal(first, second)  # the epochs go on
    assert loader.epoch == 2


def test_stock_stages_may_stand_before_read_ahead():
    pipeline = wds.DataPipeline(lambda: range(10), wds.map(lambda x: x + 1), read_ahead(3))
    assert list(pipeline) == list(range(1, 11))


def test_read_ahead_is_bounded():
    taken = []

    def numbers():
        for i in itertools.count():
            taken.append(i)
            yield i

    stream = read_ahead(3)(numbers())
    next(stream)
    time.sleep(0.05)
    assert len(taken) <= 1 + 3 + 1  # taken, waiting, in hand
    stream.close()


def test_read_ahead_hands_on_an_error_after_the_items_before_it():
    def broken():
        yield 1
        raise KeyError("lost")

    stream = read_ahead(3)(broken())
    assert next(stream) == 1
    with pytest.raises(KeyError, match="lost"):
        next(stream)


# The reading thread


def test_the_reading_thread_ends_with_its_iterator(root):
    before = set(threading.enumerate())

    def readers():
        new = set(threading.enumerate()) - before
        return [t for t in new if t.name == "lenstrain-read-ahead"]

    loader = StampLoader(root, batch_size=4)
    next(iter(loader))
    assert len(readers()) == 1
    iter(loader)
    loader.close()
    wait_until(lambda: not readers())
    abandoned = iter(StampLoader(root, batch_size=4))
    next(abandoned)
    assert len(readers()) == 1
    gc.disable()  # letting go is enough: no cycle waits for a collection
    try:
        del abandoned
        wait_until(lambda: not readers())
    finally:
        gc.enable()


def test_a_program_may_end_while_its_reader_is_in_pytorch():
    """Which aborted it: `terminate called without an active exception`."""
    program = """
import torch
from lenstrain.data.stream import read_ahead

def numbers():
    while True:
        yield torch.ones(30_000_000).clone()

stream = read_ahead(2)(numbers())
next(stream)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_iterator_ended_in_a_thread_its_reader_waits_for_does_not_lock_up():
    """As the garbage collector does when it runs in a thread that reads a sidecar."""
    streams, may_end, ended = [], threading.Event(), threading.Event()

    def numbers():
        yield 1
        helper = threading.Thread(target=lambda: may_end.wait() and streams.pop().close())
        helper.start()
        helper.join()
        ended.set()
        yield 2

    streams.append(read_ahead(1)(numbers()))
    assert next(streams[0]) == 1
    may_end.set()
    assert ended.wait(20)


# One process


class FirstInAWorker(torch.utils.data.IterableDataset):
    """What a user would wrap around a loader, which it opens where it is iterated over."""

    def __init__(self, root):
        self.root = root

    def __iter__(self):
        return iter(StampLoader(self.root, batch_size=16))


IN_WORKERS = {
    "loader": lambda root, loader: wds.DataPipeline(loader),
    "stages": lambda root, loader: loader.pipeline(),
    "opened there": lambda root, loader: FirstInAWorker(root),
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize(
    ("start", "dataset"),
    [
        ("fork", "loader"),
        ("fork", "stages"),
        ("fork", "opened there"),
        ("spawn", "loader"),
        ("spawn", "stages"),
        pytest.param("spawn", "opened there", marks=pytest.mark.faults),  # imports torch thrice
    ],
)
def test_workers_of_a_dataloader_are_refused_instead_of_giving_every_row_twice(
    root, start, dataset, read_before, monkeypatch
):
    for module in (torch.utils.data._utils, torch.utils.data._utils.worker):
        monkeypatch.setattr(module, "MP_STATUS_CHECK_INTERVAL", 0.2)  # how soon workers end
    loader = StampLoader(root, batch_size=16)
    iterator = iter(loader)
    if read_before:
        next(iterator)  # its reading thread is not forked with it: a batch would never come
    batches = torch.utils.data.DataLoader(
        IN_WORKERS[dataset](root, loader),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start,
        timeout=60,
    )
    with pytest.raises(ConfigError, match=r"would give every row again\..*num_workers=0"):
        list(batches)
    del batches
    gc.collect()  # ends the workers here, and not in a fork of a later test


def test_a_dataloader_without_workers_gives_every_row_once(root):
    batches = torch.utils.data.DataLoader(wds.DataPipeline(StampLoader(root)), batch_size=None)
    assert sorted(real_index(batches)) == list(range(ROWS))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "use",
    [
        lambda loader, iterator: next(iterator),
        lambda loader, iterator: next(iter(loader)),
        lambda loader, iterator: loader.close(),
    ],
    ids=["next", "iter", "close"],
)
def test_a_forked_process_is_refused_the_loader_of_its_parent(root, use):
    loader = StampLoader(root, batch_size=16)
    iterator = iter(loader)
    next(iterator)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child():
        try:
            answers.put(str(use(loader, iterator)))
        except ConfigError as error:
            answers.put(str(error))

    process = context.Process(target=child)
    process.start()
    process.join(60)
    try:
        assert process.exitcode == 0  # None: it hangs
        assert "Open one in each process" in answers.get()
    finally:
        process.kill()

"""Who owns the memory of a batch, and for how long."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
import torch

from lensprep.dataset import PAYLOAD_BYTES
from lenstrain.data import StampLoader
from lenstrain.data.batch import PixelPool
from tests.lenstrain.data.epochs import ROWS, assert_true_to, real_index


@pytest.mark.parametrize(
    "keep",
    [
        lambda b: b.pixels[2],
        lambda b: b.pixels[2].numpy(),
        lambda b: b.pixels.view(4, -1)[2].view(3, 64, 64),
        lambda b: np.asarray(b.pixels)[2],
        lambda b: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(b.pixels))[2],
    ],
    ids=["slice", "numpy", "view", "array", "dlpack"],
)
def test_a_view_of_a_batch_keeps_its_memory(root, stored, keep):
    kept = []
    for batch in StampLoader(root, batch_size=4):
        kept.append((int(batch.index[2]), keep(batch)))
        del batch
    for row, view in kept:
        np.testing.assert_array_equal(np.asarray(view), stored[0][row])


def test_batches_handed_to_other_threads_stay_right(root, stored):
    wrong = []

    def consume(batch):
        time.sleep(0.01)
        try:
            assert_true_to(batch, stored)
        except AssertionError as error:
            wrong.append(error)

    threads = []
    for batch in StampLoader(root, batch_size=4):
        threads.append(threading.Thread(target=consume, args=(batch,)))
        threads[-1].start()
        del batch
    for thread in threads:
        thread.join()
    assert not wrong


def test_several_threads_may_take_from_one_iterator(root, stored):
    batches, taken, lock = iter(StampLoader(root, batch_size=4)), [], threading.Lock()

    def consume():
        for batch in batches:
            with lock:
                taken.append(batch)

    threads = [threading.Thread(target=consume) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(real_index(taken)) == list(range(ROWS))
    for batch in taken:
        assert_true_to(batch, stored)


def test_memory_that_was_let_go_of_is_used_again(root):
    loader = StampLoader(root, batch_size=4, memory_budget=3 * 4 * PAYLOAD_BYTES)
    addresses = [batch.pixels.data_ptr() for batch in loader]
    assert len(addresses) == 25
    assert len(set(addresses)) <= loader.depth + 4


def test_a_pool_never_lends_what_is_still_looked_at():
    pool = PixelPool(1)
    first = pool.lend()
    view = first[0, 0]
    address = first.data_ptr()
    del first
    assert pool.lend().data_ptr() != address
    del view
    assert pool.lend().data_ptr() == address


def test_a_closed_loader_leaves_its_batches_valid(root, stored):
    loader = StampLoader(root, batch_size=4)
    batch = next(iter(loader))
    loader.close()
    del loader
    gc.collect()
    assert_true_to(batch, stored)

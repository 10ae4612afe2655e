"""Mapped shards: rows are copied from where they lie, and from nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from lensprep.dataset import PAYLOAD_BYTES, PAYLOAD_OFFSET, RECORD_STRIDE, Dataset
from lenstrain.data.sources.base import Reading
from lenstrain.data.sources.local import LocalSource
from lenstrain.data.sources.mappedrows import copy_rows
from tests.lenstrain.data.epochs import ROWS


def test_a_source_refuses_rows_outside_the_split(root):
    dataset = Dataset.open(root)
    source = LocalSource(dataset, dataset.split("train").shards, Reading())
    out = np.empty((1, 3, 64, 64), np.float16)
    for row in (-1, ROWS):
        with pytest.raises(IndexError, match=r"rows must lie in 0 \.\.\. 99"):
            source.gather(np.array([row]), out)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((1, 3, 64, 64), np.float16),
        np.empty((3, 3, 64, 64), np.float16),
        np.empty((2, 3, 64, 64), ">f2"),
        np.empty((2, 3, 64, 32), np.float32),
        np.empty((4, 3, 64, 64), np.float16)[::2],
        np.frombuffer(bytes(2 * 3 * 64 * 64 * 2), np.float16).reshape(2, 3, 64, 64),
    ],
    ids=["short", "long", "byte order", "as many bytes", "strided", "read-only"],
)
def test_a_source_refuses_room_that_its_rows_do_not_fit(root, out):
    dataset = Dataset.open(root)
    source = LocalSource(dataset, dataset.split("train").shards, Reading())
    with pytest.raises(ValueError, match="out must be contiguous, writable and hold 2 stamps"):
        source.gather(np.array([0, 1]), out)


@pytest.mark.parametrize(
    ("row", "starts", "bases"),
    [
        (-1, [0, 40, 100], 2),
        (100, [0, 40, 100], 2),
        (50, [0, 40, 20], 2),
        (10, [60, 40, 100], 2),
        (50, [0, 40, 100], 1),
        (0, [0], 0),
    ],
)
def test_a_row_that_no_shard_holds_is_not_copied(row, starts, bases):
    memory, out = np.zeros(110 * RECORD_STRIDE, np.uint8), np.empty((1, 3, 64, 64), np.float16)
    addresses = np.full(bases, memory.ctypes.data, np.int64)
    where = np.array(starts), addresses, out.ctypes.data
    assert not copy_rows(np.array([row]), *where, RECORD_STRIDE, PAYLOAD_BYTES)


def test_a_source_gathers_across_shards_in_any_order(root, stored):
    dataset = Dataset.open(root)
    source = LocalSource(dataset, dataset.split("train").shards, Reading())
    rows = np.random.default_rng(0).integers(0, ROWS, 300)
    out = np.empty((300, 3, 64, 64), np.float16)
    source.gather(rows, out)
    np.testing.assert_array_equal(out, stored[0][rows])
    path, offset = source.locate(40)
    assert path.endswith("train/train-000002.tar")
    assert offset == (40 - 34) * RECORD_STRIDE + PAYLOAD_OFFSET

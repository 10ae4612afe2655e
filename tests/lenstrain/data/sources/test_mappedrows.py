"""Rows on their way from a disk: which pages are read, and when nobody has to ask."""

from __future__ import annotations

import mmap
from contextlib import closing

import numpy as np
import pytest

from lensprep.dataset import PAYLOAD_BYTES, PAYLOAD_OFFSET, RECORD_STRIDE, Dataset
from lenstrain.bench.cold import drop_pages
from lenstrain.data import StampLoader
from lenstrain.data.sources import mappedrows
from lenstrain.data.sources.base import Reading
from lenstrain.data.sources.local import LocalSource, row_offset
from lenstrain.data.sources.mappedrows import ROWS_TOGETHER, STEPS_ALERT, MappedRows
from tests.datasets import dataset_fixture
from tests.lenstrain.data.residence import pages_in_memory
from tests.waiting import wait_until

ROWS, SHARD_ROWS = 2000, 1000

root = dataset_fixture(ROWS, SHARD_ROWS)


def in_memory(source, rows):
    """Whether all pages of each row's pixels are in memory."""
    shards = {path: pages_in_memory(path) for path in source._paths}
    answers = []
    for row in rows:
        number, offset = row_offset(source._starts, row, RECORD_STRIDE)
        there = shards[source._paths[number]]
        first, last = offset // mmap.PAGESIZE, (offset + PAYLOAD_BYTES - 1) // mmap.PAGESIZE
        answers.append(bool(there[first : last + 1].all()))
    return np.array(answers)


@pytest.fixture
def cold(root):
    """A source none of whose rows is in memory."""
    dataset = Dataset.open(root)
    source = LocalSource(dataset, dataset.split("train").shards, Reading())
    drop_pages(source._paths)
    if in_memory(source, range(ROWS)).any():
        pytest.skip("the file system of temporary files keeps its pages in memory")
    yield source
    source.close()


def test_announced_rows_are_read_and_no_others(cold):
    rows = np.random.default_rng(0).permutation(ROWS)[:200]
    cold.expect(rows)
    wait_until(lambda: in_memory(cold, rows).all(), 10)
    others = np.setdiff1d(np.arange(ROWS), rows)
    # A row shares its first page with the record before, and no more.
    assert not in_memory(cold, others).any()
    share = np.mean(np.concatenate([pages_in_memory(path) for path in cold._paths]))
    assert share < 1.25 * len(rows) / ROWS


def test_a_cold_epoch_gives_the_stored_rows_and_reads_ahead(cold, root):
    direct = Dataset.open(root).read_pixels("train", np.arange(ROWS))
    drop_pages(cold._paths)
    with closing(StampLoader(root, "train", 50)) as loader:
        batches = iter(loader)
        first = next(batches)
        wait_until(lambda: in_memory(cold, range(ROWS)).mean() >= 0.5, 10)
        for batch in [first, *batches]:
            np.testing.assert_array_equal(batch.pixels.numpy(), direct[batch.index.numpy()])


def counting(monkeypatch):
    """Counts the rows that are asked for."""
    asked, real = [], mappedrows.will_need
    monkeypatch.setattr(
        mappedrows, "will_need", lambda rows, *where: asked.append(len(rows)) or real(rows, *where)
    )
    return asked


def steps(count, rows=64):
    rng = np.random.default_rng(1)
    return [rng.permutation(ROWS)[:rows] for _ in range(count)]


def test_nobody_asks_for_long_where_all_is_in_memory(cold, monkeypatch):
    out = np.empty((64, 3, 64, 64), np.float16)
    for rows in np.array_split(np.arange(ROWS), 40):
        cold.gather(rows, out[: len(rows)])
    asked = counting(monkeypatch)
    # Whatever else this process reads meanwhile would count as well.
    monkeypatch.setattr(mappedrows, "_read_from_disk", lambda: (7, 7))
    for rows in steps(2 * STEPS_ALERT):
        cold.expect(rows)
        cold.gather(rows, out)
    assert len(asked) == STEPS_ALERT


def test_a_step_that_came_from_the_disk_unasked_makes_it_ask_again(cold):
    out = np.empty((64, 3, 64, 64), np.float16)
    cold.expect(np.arange(64))
    cold._rows.alert = 0
    cold.gather(np.arange(500, 564), out)
    cold.expect(np.arange(64))
    assert cold._rows.alert == STEPS_ALERT - 1


def test_no_more_rows_are_on_their_way_than_a_disk_has_use_for(cold, monkeypatch):
    """The rest is asked for as rows are copied, piece by piece of a large step."""
    asked = counting(monkeypatch)
    out = np.empty((1000, 3, 64, 64), np.float16)
    cold.expect(np.arange(1000))
    cold.expect(np.arange(1000, 2000))
    assert sum(asked) == 1000 + ROWS_TOGETHER  # the rest of the first step has 40 rows
    cold.gather(np.arange(1000), out)
    assert sum(asked) == 2000
    assert max(asked) == ROWS_TOGETHER
    cold.gather(np.arange(1000, 2000), out)
    assert sum(asked) == 2000


def test_what_a_consumer_that_has_gone_wanted_is_not_asked_for(cold, monkeypatch):
    """And what another one wants, who has begun the next epoch meanwhile, still is."""
    asked, order = counting(monkeypatch), np.random.default_rng(0).permutation(ROWS)
    gone, wanted = order[:1500], order[1500:]  # of one array, as the steps of an epoch are
    cold.expect(gone)
    assert sum(asked) == 1024
    cold.expect(wanted)
    cold.forget(gone)
    out = np.empty((10, 3, 64, 64), np.float16)
    cold.gather(wanted[:10], out)
    assert sum(asked) == 1024 + len(wanted)
    assert cold._rows._asked == len(wanted) - 10


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        ([5], [(1, 5, 1)]),
        ([5, 6, 7, 3], [(1, 5, 3), (1, 3, 1)]),
        ([9, 8], [(1, 9, 1), (1, 8, 1)]),
        ([8, 9, 10, 11, 12], [(1, 8, 2), (2, 0, 3)]),  # neighbours end with their shard
        ([25, 4], [(1, 4, 1)]),  # of the third shard, which is not mapped
        ([-1, 30, 4], [(1, 4, 1)]),
        ([], []),
    ],
)
def test_neighbours_are_asked_for_together(rows, asked, monkeypatch):
    """Of three shards of ten rows, two mapped at made-up addresses."""
    starts, bases = np.array([0, 10, 20, 30]), np.array([1 << 40, 2 << 40, 0])
    calls = []
    monkeypatch.setattr(mappedrows, "_madvise", lambda *arguments: calls.append(arguments))
    mappedrows.will_need.py_func(
        np.array(rows, np.int64), starts, bases, RECORD_STRIDE, PAYLOAD_BYTES
    )
    for (address, size, advice), (shard, row, count) in zip(calls, asked, strict=True):
        begin = (shard << 40) + row * RECORD_STRIDE + PAYLOAD_OFFSET
        end = begin + (count - 1) * RECORD_STRIDE + PAYLOAD_BYTES
        assert address % mmap.PAGESIZE == 0
        assert begin - mmap.PAGESIZE < address <= begin
        assert address + size == end
        assert advice == mmap.MADV_WILLNEED


def test_a_shard_that_is_gone_is_an_error_where_its_rows_would_come(own):
    dataset = Dataset.open(own)
    source = LocalSource(dataset, dataset.split("train").shards, Reading())
    source._paths[1].unlink()
    source.expect(np.arange(40))  # no error yet: the rows of the first shard come before
    out = np.empty((1, 3, 64, 64), np.float16)
    source.gather(np.array([0]), out)
    with pytest.raises(Exception, match="cannot be read"):
        source.gather(np.array([20]), out)


def test_asking_for_rows_of_a_closed_source_does_no_harm(cold):
    cold.expect(np.arange(64))
    cold.close()
    cold.expect(np.arange(64))
    with pytest.raises(ValueError, match="closed"):
        cold.gather(np.arange(64), np.empty((64, 3, 64, 64), np.float16))


def test_addresses_that_are_mapped_no_more_are_passed_over():
    """The system refuses the advice, and nothing else happens."""
    ahead = MappedRows(np.array([0, 100]), np.array([mmap.PAGESIZE]))
    ahead.expect(np.arange(100))

"""Rows of a dataset in an object store: which are read together, and how many are held."""

import numpy as np
import pytest

from lensprep.dataset import BANDS, Dataset, LocalDataset, RemoteDataset, open_dataset
from lensprep.dataset.remote import _GAP_ROWS, _ROWS_AT_ONCE, _batches
from lensprep.transfer import upload
from tests.datasets import tiny_dataset


@pytest.mark.parametrize(
    "rows",
    [
        np.arange(3 * _ROWS_AT_ONCE),
        np.arange(0, 5 * _ROWS_AT_ONCE, _GAP_ROWS),
        np.arange(0, 5 * _ROWS_AT_ONCE, _GAP_ROWS + 1),
        np.array([7]),
        np.array([], int),
    ],
)
def test_batches_hold_every_row_once_and_no_more_than_a_shard_or_two(rows):
    which = rows // 1000  # shards of 1,000 rows
    batches = list(_batches(rows % 1000, which))
    found = [row for batch in batches for low, high in batch for row in rows[low:high]]
    assert found == rows.tolist()
    for batch in batches:
        assert sum(rows[high - 1] - rows[low] + 1 for low, high in batch) <= 2 * _ROWS_AT_ONCE
        assert all(which[low] == which[high - 1] for low, high in batch)


def test_a_long_stretch_of_one_shard_is_cut():
    rows = np.arange(5 * _ROWS_AT_ONCE)
    assert list(_batches(rows, np.zeros_like(rows))) == [
        [(start, start + _ROWS_AT_ONCE)] for start in range(0, len(rows), _ROWS_AT_ONCE)
    ]


def test_each_location_has_its_leaf_and_both_answer_alike(s3, tmp_path):
    root = tiny_dataset(tmp_path, {"train": 50}, 20)
    upload(root, s3.uri, s3.options())
    here, there = open_dataset(root), Dataset.open(s3.uri, s3.options())
    assert (type(here), type(there)) == (LocalDataset, RemoteDataset)
    assert there.columns("train") == here.columns("train")
    assert {f"median_{band}" for band in BANDS} <= {*here.columns("train")}
    for rows in ([49, 0, 21, 21], range(50), []):
        np.testing.assert_array_equal(
            there.read_pixels("train", rows), here.read_pixels("train", rows)
        )
    for dataset in (here, there):
        shard = dataset.split("train").shards[0]
        for read in (
            lambda d=dataset: d.read_pixels("train", [50]),
            lambda d=dataset, s=shard: d.read_shard_pixels(s, [-1]),
        ):
            with pytest.raises(IndexError, match="positions must lie in"):
                read()

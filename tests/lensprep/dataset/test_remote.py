"""A dataset in an object store: it answers as a local one, and reads no more than it must."""

from dataclasses import replace

import numpy as np
import pytest

from lensprep.dataset import BANDS, DECALS, Dataset, LocalDataset, RemoteDataset, open_dataset
from lensprep.dataset.remote import _GAP_ROWS, _ROWS_AT_ONCE, _batches
from lensprep.errors import DatasetError, NotFoundError, ShardError, StorageError
from lensprep.inspection.target import open_target
from lensprep.transfer import upload
from tests.datasets import PAIR, put_folder, tiny_dataset
from tests.faultproxy import FaultProxy


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
    batches = list(_batches(rows % 1000, which, DECALS))
    found = [row for batch in batches for low, high in batch for row in rows[low:high]]
    assert found == rows.tolist()
    for batch in batches:
        assert sum(rows[high - 1] - rows[low] + 1 for low, high in batch) <= 2 * _ROWS_AT_ONCE
        assert all(which[low] == which[high - 1] for low, high in batch)


def test_a_long_stretch_of_one_shard_is_cut():
    rows = np.arange(5 * _ROWS_AT_ONCE)
    assert list(_batches(rows, np.zeros_like(rows), DECALS)) == [
        [(start, start + _ROWS_AT_ONCE)] for start in range(0, len(rows), _ROWS_AT_ONCE)
    ]


def test_large_records_are_read_few_at_a_time_and_neighbours_together():
    large = replace(PAIR, side=256)
    rows = np.delete(np.arange(4000), range(100, 104))
    batches = list(_batches(rows, np.zeros_like(rows), large))
    assert batches[0][:1] == [(0, 100)]  # the rows between are more than another request
    assert max(sum(high - low for low, high in batch) for batch in batches) * large.stride < 880e6


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


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("local"), {"train": 100, "val": 20}, 32)


def test_a_remote_dataset_gives_what_the_local_one_gives(s3, local):
    put_folder(s3.store(), local)
    here, there = Dataset.open(local), Dataset.open(s3.uri, s3.options())
    assert there.dataset_id == here.dataset_id
    assert there.read_sidecar("train").equals(here.read_sidecar("train"))
    columns = ["label", "key"]
    assert there.read_sidecar("val", columns).equals(here.read_sidecar("val", columns))
    rows = np.random.default_rng(0).permutation(100)[:40]
    rows[3] = rows[7]
    for index in (rows, np.arange(100), np.array([], int)):
        np.testing.assert_array_equal(
            there.read_pixels("train", index), here.read_pixels("train", index)
        )
    shard = here.split("train").shards[1]
    np.testing.assert_array_equal(there.read_records(shard, 3, 9), here.read_records(shard, 3, 9))
    np.testing.assert_array_equal(there.read_tar(shard), here.read_tar(shard))
    with pytest.raises(IndexError):
        there.read_pixels("train", [100])
    with pytest.raises(DatasetError, match="no column 'nothing'"):
        there.read_sidecar("val", ["nothing"])
    with pytest.raises(StorageError, match="lensprep download"):
        there.path(shard.name)


@pytest.mark.parametrize(("scheme", "times"), [("https", 1), ("http", 2)])
def test_reading_some_rows_reads_some_bytes(s3, local, scheme, times):
    put_folder(s3.store(), local)
    with FaultProxy(s3.server.ports["https" if scheme == "https" else "s3"]) as proxy:
        url = proxy.url.replace("http", scheme)
        dataset = Dataset.open(s3.uri, s3.options(endpoint_url=url))
        before = proxy.bytes_down
        dataset.read_pixels("train", [0, 1, 2, 60])
        assert proxy.bytes_down - before < times * 6 * 27_000
        before = proxy.bytes_down
        dataset.read_sidecar("train", ["label"])
        assert proxy.bytes_down - before < sum(
            shard.sidecar_bytes + 2000 for shard in dataset.split("train").shards
        )


def test_a_folder_without_manifest_is_no_dataset(s3, local):
    store = s3.store()
    put_folder(store, local)
    store.delete("manifest.json")
    with pytest.raises(DatasetError, match="did not finish"):
        Dataset.open(s3.uri, s3.options())


def test_a_part_of_a_dataset_or_nothing_is_told_from_a_dataset(s3, local):
    put_folder(s3.store(), local)
    for part in ("train", "manifest.json", "train/train-000000.tar"):
        with pytest.raises(DatasetError, match=f"{part} lies inside the dataset {s3.uri}[.]"):
            Dataset.open(f"{s3.uri}/{part}", s3.options())
    with pytest.raises(DatasetError, match="nosuch/ds: nothing is there"):
        Dataset.open(f"{s3.uri}/nosuch/ds", s3.options())
    with pytest.raises(NotFoundError, match=r"nosuch/a/b\.tar: no such"):
        open_target(f"{s3.uri}/nosuch/a/b.tar", None, s3.options())


def test_a_missing_cut_or_replaced_shard_is_an_error_that_names_it(s3, local):
    store = s3.store()
    put_folder(store, local)
    dataset = Dataset.open(s3.uri, s3.options())
    shards = dataset.split("train").shards
    whole = store.read(shards[0].name)
    store.write(shards[0].name, bytes(whole[:-26624]))
    with pytest.raises(ShardError, match=r"train-000000\.tar has .* where .* stated"):
        dataset.read_pixels("train", [0])
    altered = bytearray(whole)
    altered[5000] ^= 1
    store.write(shards[0].name, bytes(altered))  # the same size: its stated digest differs
    with pytest.raises(ShardError, match=r"train-000000\.tar holds other content"):
        dataset.read_pixels("train", [0])
    store.delete(shards[1].name)
    with pytest.raises(ShardError, match=r"train-000001\.tar: no such"):
        dataset.read_pixels("train", [40])


def test_a_sidecar_that_is_not_the_manifests_is_damaged_whatever_is_stated_with_it(s3, local):
    store = s3.store()
    put_folder(store, local)
    dataset = Dataset.open(s3.uri, s3.options())
    shard = dataset.split("train").shards[1]
    data = store.read(shard.sidecar)
    data[700] ^= 1
    store.client.put_object(
        Bucket="bucket", Key=store.key(shard.sidecar), Body=bytes(data),
        Metadata={"sha256": shard.sidecar_sha256},
    )  # fmt: skip
    for columns in (None, ["label"]):
        with pytest.raises(ShardError, match="parquet is damaged"):
            dataset.read_shard_sidecar(shard, columns)

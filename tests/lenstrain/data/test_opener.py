"""Stock WebDataset pipelines read our shards from a real object store, and lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
import webdataset as wds

from lensprep.dataset import RECORD_STRIDE, Dataset
from lensprep.errors import ShardError, StorageError
from lensprep.transfer import upload
from lenstrain.data import register_s3
from tests.datasets import dataset_fixture
from tests.faultproxy import Fault, FaultProxy

ROWS = 900


root = dataset_fixture(ROWS, shard_rows=450)


@pytest.fixture
def url(s3, root, monkeypatch):
    upload(root, s3.uri, s3.options())
    monkeypatch.setitem(wds.gopen_schemes, "s3", None)  # as it was is restored
    register_s3(s3.options())
    return f"{s3.uri}/train/train-{{000000..000001}}.tar"


def samples(url):
    stages = wds.SimpleShardList(url), wds.tarfile_to_samples(), wds.decode()
    return list(wds.DataPipeline(*stages))


def assert_all(found, root):
    pixels = Dataset.open(root).read_pixels("train", np.arange(ROWS))
    np.testing.assert_array_equal(np.stack([s["stamp.npy"] for s in found]), pixels)
    assert [s["json"]["label"] for s in found] == [i % 2 for i in range(ROWS)]


def test_a_pipeline_of_stock_stages_reads_every_sample(url, root):
    assert_all(samples(url), root)


def test_the_stock_dataset_class_reads_every_sample(url, root):
    assert_all(list(wds.WebDataset(url, shardshuffle=False).decode()), root)


def test_a_reset_in_mid_body_is_continued(s3, url, root):
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        register_s3(s3.options(endpoint_url=proxy.url))
        fault = Fault("reset-answer", b"GET", after=700_000, times=3)
        proxy.add(fault)
        assert_all(samples(url), root)
        assert fault.times == 0


def test_a_tar_cut_between_two_members_is_refused_not_taken_for_a_shorter_one(s3, url):
    store = s3.store()
    data = bytes(store.read("train/train-000001.tar"))[: 10 * RECORD_STRIDE]
    store.write("train/train-000001.tar", data)
    with pytest.raises(ShardError, match=rf"train-000001.tar .* offset {10 * RECORD_STRIDE}: cut"):
        samples(url)


def test_a_missing_tar_is_an_error_that_names_it(s3, url):
    s3.store().delete("train/train-000001.tar")
    with pytest.raises(ShardError, match=r"train-000001\.tar: no such object \(offset 0\)"):
        samples(url)


def test_it_takes_the_place_of_another_only_if_asked_to(monkeypatch):
    other = object()
    monkeypatch.setattr(wds, "gopen_schemes", {"s3": other})
    register_s3(replace=False)
    assert wds.gopen_schemes["s3"] is other
    assert "s3a" in wds.gopen_schemes
    register_s3()
    assert wds.gopen_schemes["s3"] is not other


def test_it_reads_only(url):
    with pytest.raises((ValueError, StorageError), match="opened for reading only"):
        wds.gopen(url, "wb")

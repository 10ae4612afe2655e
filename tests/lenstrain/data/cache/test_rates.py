"""Which source is read, and how fast disk and store are."""

from __future__ import annotations

import json
import time

import pytest

from lensprep.dataset import Dataset
from lensprep.transfer import upload
from lenstrain.data.cache import rates
from lenstrain.data.cache.folder import CacheFolder, CacheOptions
from lenstrain.data.cache.rates import Rate, choose, disk_rate, known_rates, store_rate
from tests.datasets import tiny_dataset

GB = 10**9


@pytest.mark.parametrize(("disk", "store", "split", "memory", "cached", "why"), [
    (219.0, 1050.0, 268 * GB, 60 * GB, False, "slower than the store"),  # p3.2xlarge with EBS
    (219.0, 1050.0, 20 * GB, 60 * GB, True, "page cache"),
    (3500.0, 2400.0, 268 * GB, 60 * GB, True, "not slower"),  # p4d with NVMe
    (None, 1050.0, 268 * GB, 60 * GB, True, "unknown"),
    (219.0, None, 268 * GB, None, True, "unknown"),
    (219.0, 1050.0, 20 * GB, None, False, "slower than the store"),
])  # fmt: skip
def test_the_faster_source_is_chosen(disk, store, split, memory, cached, why):
    found = choose(
        Rate(disk, "measured"), Rate(store, "told"), split, memory, required=False, always=False
    )
    assert found.cached is cached
    assert why in found.why


@pytest.mark.parametrize("asked", ["required", "always"])
def test_what_is_needed_or_asked_for_is_cached_whatever_the_rates(asked):
    flags = {"required": False, "always": False} | {asked: True}
    found = choose(Rate(1.0, "told"), Rate(9999.0, "told"), 268 * GB, 0, **flags)
    assert found.cached
    assert "disk 1 MB/s (told), store 9,999 MB/s (told)" in found.why


def test_the_disk_is_measured_shortly_and_leaves_nothing(tmp_path):
    start = time.monotonic()
    found = rates.measure_disk(tmp_path)
    assert time.monotonic() - start < 10  # two times 0.4 s, and the sync of a busy disk
    assert found > 1
    assert list(tmp_path.iterdir()) == []
    assert rates.measure_disk(tmp_path / "missing") is None


def test_a_slow_disk_is_measured_as_slow(tmp_path, monkeypatch):
    real = rates.os.preadv

    def slow(*arguments):
        time.sleep(0.02)
        return real(*arguments)

    monkeypatch.setattr(rates.os, "preadv", slow)
    # 4 readers of 1 MiB each 20 ms: at most 210 MB/s.
    assert 5 < rates.measure_disk(tmp_path) <= 210


def test_a_disk_that_is_almost_full_is_not_filled_to_measure_it(tmp_path, monkeypatch):
    folder = CacheFolder.open(tmp_path / "cache", CacheOptions(reserve_bytes=10**9))
    monkeypatch.setattr(folder, "free", lambda: 10**9 + 1000)
    assert disk_rate(folder) == Rate(None, "measured")


def test_rates_are_kept_for_a_day_and_told_ones_win(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(rates, "measure_disk", lambda root: measured.append(root) or 123.4)
    folder = CacheFolder.open(tmp_path / "cache")
    assert disk_rate(folder) == Rate(123.4, "measured")
    assert disk_rate(folder) == Rate(123.4, "measured before")
    assert len(measured) == 1
    assert known_rates(folder) == {"disk": 123.4}
    told = CacheFolder.open(tmp_path / "cache", CacheOptions(disk_mb_per_s=7.0))
    assert disk_rate(told) == Rate(7.0, "told")
    path = folder.root / "rates.json"
    path.write_text(json.dumps({"disk": {"mb_per_s": 1.0, "at": time.time() - 25 * 3600}}))
    assert disk_rate(folder) == Rate(123.4, "measured")
    path.write_text("[broken")
    assert disk_rate(folder) == Rate(123.4, "measured")


def test_the_store_is_measured_within_its_time(s3, tmp_path, monkeypatch):
    root = tiny_dataset(tmp_path, 1200, 1200)
    upload(root, s3.uri, s3.options())
    data = Dataset.open(s3.uri, s3.options())
    folder = CacheFolder.open(tmp_path / "cache")
    monkeypatch.setattr(rates, "_FIRST_SECONDS", 30.0)  # a busy machine may bring nothing in one
    start = time.monotonic()
    found = store_rate(folder, data, "train")
    assert time.monotonic() - start < 30
    assert found.how == "measured"
    assert 1 < found.mb_per_s < 20_000
    assert store_rate(folder, data, "train").how == "measured before"
    assert s3.server.http not in (folder.root / "rates.json").read_text()


def test_a_store_that_gives_nothing_has_no_rate(s3, tmp_path):
    root = tiny_dataset(tmp_path, 50)
    upload(root, s3.uri, s3.options())
    data = Dataset.open(s3.uri, s3.options())
    s3.store().delete("train/train-000000.tar")
    folder = CacheFolder.open(tmp_path / "cache")
    assert store_rate(folder, data, "train") == Rate(None, "measured")
    assert known_rates(folder) == {}

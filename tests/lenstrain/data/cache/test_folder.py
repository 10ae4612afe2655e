"""The cache of shards: its limits, its locks, and what it does when something is wrong."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch

from lensprep.dataset import PAYLOAD_OFFSET, RECORD_STRIDE, Dataset
from lensprep.dataset.geometry import DECALS
from lensprep.errors import BudgetError, StorageError
from lensprep.transfer import upload
from lenstrain.bench.cold import drop_pages
from lenstrain.data import StampLoader
from lenstrain.data.cache.filling import CachedSplit
from lenstrain.data.cache.folder import CacheFolder, CacheOptions
from lenstrain.data.cache.upkeep import clear, fill, status, verify
from lenstrain.data.sources.mappedrows import ROWS_AHEAD
from tests.datasets import dataset_fixture, tiny_dataset
from tests.faultproxy import Fault
from tests.lenstrain.data.residence import pages_in_memory
from tests.s3server import uploaded
from tests.waiting import wait_until

ROWS = {"train": 600, "val": 100}
SHARD_ROWS = 100
SHARD_BYTES = DECALS.shard_bytes(SHARD_ROWS)
SHARDS = 7


root = dataset_fixture(ROWS, SHARD_ROWS)


@pytest.fixture(scope="module")
def other_root(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data"), {"train": 300}, SHARD_ROWS, seed=9)


@pytest.fixture(scope="module")
def uri(s3_server, root):
    with uploaded(s3_server, root) as made:
        yield made


@pytest.fixture(scope="module")
def other_uri(s3_server, other_root):
    with uploaded(s3_server, other_root) as made:
        yield made


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


def make_folder(tmp_path, limit=10**9, **options):
    known = {"limit_bytes": limit, "reserve_bytes": 0, **options}
    return CacheFolder.open(tmp_path / "cache", CacheOptions(**known))


@pytest.fixture
def load(s3, uri, tmp_path):
    """Makes loaders of the uploaded dataset with the cache, and closes them."""
    made = []

    def make(place=uri, *, via=None, limit=10**9, **options):
        s3_options = s3.options() if via is None else s3.options(endpoint_url=via.url)
        cache = CacheOptions(limit_bytes=limit, reserve_bytes=0)
        settings = {"batch_size": 20, "s3": s3_options, "cache_dir": tmp_path / "cache"}
        made.append(StampLoader(place, **{**settings, "cache": cache, **options}))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def assert_same(left, right):
    for ours, theirs in zip(left, right, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


def shards_of(uri, s3, split="train"):
    return Dataset.open(uri, s3.options()).split(split).shards


def size_of(root):
    return sum(path.stat().st_size for path in root.rglob("*.tar"))


def cached(folder):
    return {path.name: path for path in folder.root.rglob("*.tar")}


def leftovers(folder):
    return [path.name for path in folder.root.rglob("*") if path.suffix in (".claim", ".partial")]


def run_python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


FILL = """
import sys, json
from lensprep.store import S3Options
from lenstrain.data.cache.folder import CacheFolder, CacheOptions
from lenstrain.data.cache.upkeep import fill
url, uri, place, limit = sys.argv[1:]
folder = CacheFolder.open(place, CacheOptions(limit_bytes=int(limit), reserve_bytes=0))
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(fill(folder, uri, s3=S3Options(endpoint_url=url))))
"""


# What is in it


def test_copies_that_are_not_in_memory_are_read_ahead_from_their_disk(load, folder):
    loader = load(shuffle="global")
    assert loader.source.local.complete
    copies = [path for name, path in cached(folder).items() if "val" not in str(path)]
    drop_pages(copies)
    if np.concatenate([pages_in_memory(path) for path in copies]).any():
        pytest.skip("the file system of temporary files keeps its pages in memory")
    rows = np.random.default_rng(0).permutation(ROWS["train"])[:300]
    loader.source.expect(rows)
    wait_until(lambda: np.concatenate([pages_in_memory(p) for p in copies]).mean() > 0.45, 10)
    # As many rows are known in advance as a disk has use for, not as the memory budget holds.
    assert loader.source.lookahead == ROWS_AHEAD // 20


def test_filled_shards_are_the_bytes_of_the_dataset_under_their_digests(s3, uri, root, folder):
    found = fill(folder, uri, s3=s3.options())
    assert (found["shards"], found["fetched"], found["missing"]) == (SHARDS, SHARDS, 0)
    data = Dataset.open(root)
    for split in ROWS:
        for shard in data.split(split).shards:
            copy = folder.home(data.dataset_id) / f"{shard.sha256}.tar"
            assert copy.read_bytes() == (root / shard.name).read_bytes()
    assert leftovers(folder) == []
    again = fill(folder, uri, s3=s3.options())
    assert (again["fetched"], again["bytes"]) == (0, size_of(root))


def test_shards_of_the_same_name_in_other_splits_and_datasets_stay_apart(
    s3, uri, other_uri, root, other_root, folder, load
):
    for place in (uri, other_uri):
        fill(folder, place, s3=s3.options())
    assert len(cached(folder)) == SHARDS + 3
    for place, local in ((uri, root), (other_uri, other_root)):
        assert_same(StampLoader(local, batch_size=20), load(place))
    assert_same(StampLoader(root, "val", 20, shuffle=None), load(split="val", shuffle=None))


def test_a_dataset_that_was_replaced_under_its_uri_is_another_dataset(s3, root, other_root, load):
    upload(root, s3.uri, s3.options())
    assert_same(StampLoader(root, batch_size=20), load(s3.uri))
    store = s3.store()
    for entry in store.entries():
        store.delete(entry.name)
    upload(other_root, s3.uri, s3.options())
    assert_same(StampLoader(other_root, batch_size=20), load(s3.uri))


def test_a_folder_with_other_things_in_it_is_no_cache(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match=r"is no cache: it holds other files \(such as thesis"):
        CacheFolder.open(tmp_path)
    with pytest.raises(StorageError, match=r"such as thesis\.tex\)\.$"):
        CacheFolder.open(tmp_path, create=False)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(StorageError, match="there is no cache"):
        CacheFolder.open(tmp_path / "nowhere", create=False)


@pytest.mark.parametrize("text", ["", "x", "3", "{}", '{"format": "\udcff"}'])
def test_a_damaged_marker_or_description_is_told(tmp_path, s3, uri, text):
    content = text.encode("utf-8", "surrogateescape")
    (tmp_path / "lenstrain-cache.json").write_bytes(content)
    with pytest.raises(StorageError, match="has cache format unknown"):
        status(CacheFolder.open(tmp_path))
    folder = CacheFolder.open(tmp_path / "cache", create=True)
    fill(folder, uri, s3=s3.options())
    (description,) = folder.root.glob("datasets/*/dataset.json")
    description.write_bytes(content)
    (held,) = status(folder)["datasets"]
    assert (held["uri"], held["of"]) == ("?", None)


# Training from it


def test_a_global_shuffle_fills_first_and_reads_nothing_from_the_store_twice(
    root, load, proxy, tmp_path
):
    local = StampLoader(root, batch_size=20, seed=3)
    loader = load(via=proxy, seed=3, memory_budget=100_000_000)
    assert proxy.count("train-000000.tar") == 1
    assert proxy.count("val-") == 0
    for _ in range(2):
        assert_same(local, loader)
    assert loader.source.describe()["requests"] == 0
    assert sum("/train-00000" in line and ".tar" in line for line in proxy.requests) == 6
    assert loader.source.locate(0)[0].startswith(str(tmp_path / "cache"))


def test_without_a_cache_such_an_order_is_refused(load, s3, uri):
    with pytest.raises(BudgetError, match="cache_dir"):
        load(cache_dir=None, memory_budget=4 * SHARD_ROWS * RECORD_STRIDE + 9 * 20 * 24_576)


@pytest.mark.parametrize("shuffle", ["block", None])
def test_an_epoch_that_streams_fills_beside_and_the_next_ones_read_the_disk(
    root, load, shuffle, folder
):
    local = StampLoader(root, batch_size=20, shuffle=shuffle)
    loader = load(shuffle=shuffle)
    assert_same(local, loader)
    wait_until(lambda: len(cached(folder)) == 6)
    assert_same(local, loader)
    before = loader.source.describe()["requests"]
    assert_same(local, loader)
    found = loader.source.describe()
    assert found["requests"] == before
    assert found["mapped_shards"] == 6
    assert not loader.source.reader.holds_anything()  # memory of the stream went back


def test_a_cache_that_is_full_streams_the_rest_and_keeps_what_it_has(root, load, folder):
    loader = load(shuffle="block", limit=3 * SHARD_BYTES)
    local = StampLoader(root, batch_size=20, shuffle="block")
    assert_same(local, loader)
    wait_until(lambda: len(cached(folder)) == 3)
    names = set(cached(folder))
    for _ in range(2):
        assert_same(local, loader)
    assert set(cached(folder)) == names
    assert loader.source.describe()["mapped_shards"] == 3


def test_a_global_shuffle_that_fits_neither_says_what_lacks(load):
    with pytest.raises(BudgetError, match=r"holds 2 of 6 shards .*limit .* needs \d+ ranges"):
        load(limit=2 * SHARD_BYTES + 5, memory_budget=58_000_000)


def test_only_shards_that_are_needed_are_fetched(s3, uri, root, load, folder):
    where = "region_id < 100050"  # three rows a region: the first 150
    assert_same(StampLoader(root, batch_size=20, where=where), load(where=where))
    assert set(cached(folder)) == {f"{shard.sha256}.tar" for shard in shards_of(uri, s3)[:2]}


# Wrong bytes


def damage(path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip(data):
    data[30 * RECORD_STRIDE + PAYLOAD_OFFSET + 77] ^= 4


def test_a_flipped_byte_in_the_cache_is_told_and_the_store_read_instead(
    s3, uri, root, folder, load, caplog
):
    fill(folder, uri, s3=s3.options())
    shard = shards_of(uri, s3)[2]
    copy = cached(folder)[f"{shard.sha256}.tar"]
    damage(copy, flip)
    loader = load()
    assert_same(StampLoader(root, batch_size=20), loader)
    offset = 30 * RECORD_STRIDE + PAYLOAD_OFFSET
    told = [r.getMessage() for r in caplog.records if "CRC-32" in r.getMessage()]
    assert len(told) == 1
    assert f"{copy} ({shard.name}): the stamp at offset {offset}" in told[0]
    assert loader.source.describe()["bytes"] >= SHARD_ROWS * RECORD_STRIDE
    # The next epoch fetches it again.
    assert_same(StampLoader(root, batch_size=20, seed=0), _first_epoch(loader))
    wait_until(copy.exists)
    assert copy.read_bytes() == (root / shard.name).read_bytes()


def _first_epoch(loader):
    loader.set_epoch(0)
    return loader


def test_nobody_looks_if_so_chosen(s3, uri, folder, load):
    fill(folder, uri, s3=s3.options())
    damage(cached(folder)[f"{shards_of(uri, s3)[2].sha256}.tar"], flip)
    loader = load(verify="size")
    assert len(list(loader)) == 30
    assert loader.source.describe()["requests"] == 0


def test_a_cut_copy_is_removed_and_fetched_again(s3, uri, root, folder, load, caplog):
    fill(folder, uri, s3=s3.options())
    shard = shards_of(uri, s3)[1]
    copy = cached(folder)[f"{shard.sha256}.tar"]
    os.truncate(copy, 5000)
    assert_same(StampLoader(root, batch_size=20), load())
    assert f"({shard.name}) has 5000 bytes where the manifest states" in caplog.text
    assert copy.stat().st_size == shard.bytes


def test_swapped_copies_are_found(s3, uri, root, folder, load, caplog):
    fill(folder, uri, s3=s3.options())
    first, second = (cached(folder)[f"{s.sha256}.tar"] for s in shards_of(uri, s3)[:2])
    first.rename(first.with_suffix(".x"))
    second.rename(first)
    first.with_suffix(".x").rename(second)
    assert_same(StampLoader(root, batch_size=20), load())
    assert sum("is not the one that was written" in r.getMessage() for r in caplog.records) == 2


def test_a_copy_written_to_while_in_use_is_noticed_before_the_next_epoch(
    s3, uri, root, folder, load, caplog
):
    local, loader = StampLoader(root, batch_size=20), load()
    assert_same(local, loader)
    copy = cached(folder)[f"{shards_of(uri, s3)[0].sha256}.tar"]
    damage(copy, flip)
    assert_same(local, loader)
    assert f"{copy} (train/train-000000.tar) was written to" in caplog.text


def test_verify_hashes_again_and_removes_what_is_damaged(s3, uri, folder):
    fill(folder, uri, s3=s3.options())
    shard = shards_of(uri, s3, "val")[0]
    assert verify(folder)["ok"]
    damage(cached(folder)[f"{shard.sha256}.tar"], lambda data: data.append(0))
    found = verify(folder, keep=True)
    assert (found["ok"], found["shards"], found["removed"]) == (False, SHARDS, 0)
    assert [one["name"] for one in found["damaged"]] == [shard.name]
    assert verify(folder)["removed"] == 1
    found = verify(folder)
    assert (found["ok"], found["shards"]) == (True, SHARDS - 1)


def test_a_shard_that_is_damaged_in_the_store_is_never_cached(s3, root, folder):
    upload(root, s3.uri, s3.options())
    store, name = s3.store(), "train/train-000003.tar"
    data = bytearray(store.read(name))
    flip(data)
    store.client.put_object(Bucket=store.bucket, Key=store.key(name), Body=bytes(data))
    with pytest.raises(Exception, match=r"damaged.*train-000003\.tar"):
        fill(folder, s3.uri, s3=s3.options())
    digest = Dataset.open(root).split("train").shards[3].sha256
    assert f"{digest}.tar" not in cached(folder)
    assert leftovers(folder) == []


# The limits


def test_two_processes_fetch_each_shard_once_and_pass_no_limit(s3, uri, proxy, tmp_path, root):
    limit = 5 * SHARD_BYTES + 1000
    folder = make_folder(tmp_path, limit)
    proxy.latency_s = 0.05  # so that both want the same at the same time
    both = [
        run_python(FILL, proxy.url, uri, folder.root, limit, stdin=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout.readline() == b"ready\n"
    for process in both:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    most = 0
    while any(process.poll() is None for process in both):
        most = max(most, sum(map(_size, _present(folder))))
        time.sleep(0.01)
    found = []
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        found.append(json.loads(out))
    assert sum(one["fetched"] for one in found) == len(cached(folder)) == 5
    assert all(one["missing"] == 2 for one in found)
    assert most <= limit
    fetched = [line.split()[1] for line in proxy.requests if ".tar" in line]
    assert len(fetched) == len(set(fetched)) == 5
    assert status(folder)["bytes"] == size_of(folder.root)


def _size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it was just given its name
        return 0


def _present(folder):
    names = [*folder.root.rglob("*.tar"), *folder.root.rglob(".*.partial")]
    return [path for path in names if path.exists()]


def test_what_is_on_its_way_counts_in_full(s3, uri, tmp_path):
    shards = shards_of(uri, s3)
    folder = make_folder(tmp_path, 2 * shards[0].bytes + 10)
    with closing(folder.use(Dataset.open(uri, s3.options()))) as held:
        with held.claim(shards[0]) as one, held.claim(shards[1]):
            assert not isinstance(one, str)
            assert held.claim(shards[0]) == "taken"
            assert held.claim(shards[2]) == "full"
        with held.claim(shards[2]) as claim:
            assert not isinstance(claim, str)


def test_the_reserve_of_the_disk_is_kept(s3, uri, tmp_path, monkeypatch):
    shards = shards_of(uri, s3)
    free = 5 * shards[0].bytes
    folder = make_folder(tmp_path, reserve_bytes=free - 2 * shards[0].bytes - 10)
    monkeypatch.setattr(folder, "free", lambda: free)  # as if nothing were written yet
    with (
        closing(folder.use(Dataset.open(uri, s3.options()))) as held,
        held.claim(shards[0]),
        held.claim(shards[1]),
    ):
        assert held.claim(shards[2]) == "full"


def test_a_disk_that_fills_up_all_the_same_streams_the_rest(s3, uri, root, folder, load, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # less than a shard
    try:
        loader = load(shuffle="block")
        assert_same(StampLoader(root, batch_size=20, shuffle="block"), loader)
        wait_until(lambda: "is streamed" in caplog.text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    loader.close()
    wait_until(lambda: leftovers(folder) == [])
    assert cached(folder) == {}


def test_unused_datasets_make_room_the_oldest_first_and_those_in_use_never(
    s3, uri, other_uri, other_root, root, tmp_path
):
    folder = make_folder(tmp_path, 9 * SHARD_BYTES)
    fill(folder, uri, s3=s3.options())  # 7 shards
    train = CachedSplit(folder, Dataset.open(uri, s3.options()), "train")
    assert fill(folder, other_uri, s3=s3.options())["missing"] == 1
    assert len(train.present()) == 6
    train.close()
    assert fill(folder, other_uri, s3=s3.options())["missing"] == 0
    assert len(cached(folder)) == 9
    # Of two that nobody uses, the one that was used less recently goes first.
    older, newer = Dataset.open(other_root).dataset_id, Dataset.open(root).dataset_id
    os.utime(folder.home(older) / "users", (1, 1))
    with folder.locked():
        assert folder.make_room(2 * SHARD_BYTES, "somebody")
    held = {one["dataset_id"]: one["shards"] for one in status(folder)["datasets"]}
    assert held == {older: 1, newer: 6}


def test_nothing_is_evicted_where_that_would_not_do(s3, uri, tmp_path):
    folder = make_folder(tmp_path)
    fill(folder, uri, s3=s3.options())
    with folder.locked():
        assert not folder.make_room(10**9 + 1, "somebody")
    assert len(cached(folder)) == SHARDS


# Processes that end badly


def test_a_process_killed_in_a_download_leaves_nothing_that_hurts(s3, uri, root, proxy, folder):
    proxy.bytes_per_s = 1_000_000
    child = run_python(FILL, proxy.url, uri, folder.root, 10**9, stdin=subprocess.PIPE)
    child.stdin.write(b"go\n")
    child.stdin.flush()
    wait_until(lambda: any(name.endswith(".partial") for name in leftovers(folder)), 60)
    # The first partial file may be there before the claim of the shards to come.
    wait_until(lambda: any(entry["coming"] for entry in status(folder)["datasets"]), 60)
    assert status(folder)["datasets"][0]["in_use"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.communicate()
    assert leftovers(folder)
    now = status(folder)  # which counts, and so finds that nobody holds the claims
    assert leftovers(folder) == []
    assert not now["datasets"][0]["in_use"]
    assert now["bytes"] == size_of(folder.root)
    found = fill(folder, uri, s3=s3.options())
    assert found["missing"] == 0
    assert verify(folder) | {"seconds": 0, "dir": "", "bytes": 0} == {
        "ok": True, "dir": "", "shards": SHARDS, "bytes": 0, "damaged": [], "removed": 0,
        "seconds": 0,
    }  # fmt: skip


def test_a_partial_without_a_claim_is_removed(s3, uri, folder):
    fill(folder, uri, s3=s3.options())
    place = next(iter(cached(folder).values())).parent
    (place / f".{'0' * 64}.tar.123.partial").write_bytes(b"x" * 1000)
    (place / ".dataset.json.123.partial").write_bytes(b"x")
    assert status(folder)["bytes"] == size_of(folder.root)
    assert leftovers(folder) == []


def test_closing_in_mid_download_ends_it_and_a_loader_that_is_dropped_too(
    load, proxy, folder, s3, uri
):
    proxy.bytes_per_s = 1_500_000
    loader = load(via=proxy, shuffle=None, s3=s3.options(endpoint_url=proxy.url, read_timeout_s=30))
    next(iter(loader))
    wait_until(lambda: leftovers(folder) != [])
    loader.close()
    wait_until(lambda: leftovers(folder) == [])
    wait_until(lambda: not status(folder)["datasets"][0]["in_use"])
    cache = CacheOptions(reserve_bytes=0)
    loader = StampLoader(
        uri, batch_size=20, shuffle=None, s3=s3.options(), cache_dir=folder.root, cache=cache
    )
    next(iter(loader))
    del loader

    def gone():
        gc.collect()
        return not any(t.name == "lenstrain-cache" for t in threading.enumerate())

    wait_until(gone)
    wait_until(lambda: not status(folder)["datasets"][0]["in_use"])


# Clearing


def test_clear_keeps_what_is_in_use(s3, uri, other_uri, root, folder, load):
    fill(folder, uri, s3=s3.options())
    fill(folder, other_uri, s3=s3.options())
    loader = load()
    batches = iter(loader)
    first = [next(batches) for _ in range(3)]
    found = clear(folder)
    assert found["kept"] == [Dataset.open(root).dataset_id]
    assert found["removed_bytes"] == 3 * (SHARD_BYTES)
    assert_same(StampLoader(root, batch_size=20), [*first, *batches])
    loader.close()
    assert clear(folder, [found["kept"][0][:8]])["kept"] == []
    assert cached(folder) == {}


def test_shards_whose_names_are_removed_while_mapped_stay_valid(root, load, folder):
    loader = load()
    batches = iter(loader)
    got = [next(batches)]
    for path in cached(folder).values():
        path.unlink()
    assert_same(StampLoader(root, batch_size=20), [*got, *batches])


# Where it is read from


@pytest.mark.parametrize("slow", ["disk", "store"])
def test_the_rate_of_filling_is_told_and_a_disk_slower_than_the_store_warned_of(
    s3, uri, proxy, folder, caplog, monkeypatch, slow
):
    def fsync(descriptor, sync=os.fsync):
        time.sleep(0.5)
        sync(descriptor)

    monkeypatch.setattr("lenstrain.data.cache.fetching._ENOUGH_BYTES", 0)
    caplog.set_level(logging.INFO, "lenstrain.data")
    if slow == "disk":
        monkeypatch.setattr(os, "fsync", fsync)
    else:
        proxy.latency_s = 0.5
    fill(folder, uri, ["val"], s3=s3.options(endpoint_url=proxy.url))
    assert "filled the cache with 2.7 MB" in caplog.text
    warned = f"The disk of the cache {folder.root} is slower than the store" in caplog.text
    assert warned is (slow == "disk")


def test_the_mixing_window_is_told_in_samples(root, caplog):
    caplog.set_level(logging.INFO, "lenstrain.data")
    StampLoader(root, batch_size=4, shuffle="block")
    assert "the block shuffle mixes over 600 of 600 samples" in caplog.text


def test_a_resume_onto_another_transport_is_the_same_epoch(root, load):
    whole = list(StampLoader(root, batch_size=20, seed=5))
    loader = load(seed=5)
    batches = iter(loader)
    got = [next(batches) for _ in range(11)]
    state = loader.state_dict()
    streamed = load(seed=5, cache_dir=None)
    streamed.load_state_dict(state)
    assert_same(whole, [*got, *streamed])


def test_the_store_breaks_while_the_cache_is_filled(root, load, proxy, folder):
    proxy.add(Fault("reset-answer", b"GET", after=700_000, times=3))
    assert_same(StampLoader(root, batch_size=20), load(via=proxy))
    assert len(cached(folder)) == 6


def test_pixels_of_a_batch_do_not_change_when_a_copy_is_dropped(s3, uri, root, folder, load):
    fill(folder, uri, s3=s3.options())
    damage(cached(folder)[f"{shards_of(uri, s3)[4].sha256}.tar"], flip)
    kept = list(load(shuffle="block"))
    pixels = Dataset.open(root).read_pixels("train", np.arange(600))
    for batch in kept:
        np.testing.assert_array_equal(batch.pixels.numpy(), pixels[batch.index.numpy()])

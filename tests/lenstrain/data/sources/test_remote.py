"""Training from a real object store: the same batches as from a disk, whatever happens between."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
import torch

from lensprep.dataset import PAYLOAD_OFFSET, RECORD_STRIDE, Dataset
from lensprep.errors import BudgetError, ShardError, StorageError
from lensprep.store import S3Options, open_store
from lensprep.transfer import upload
from lenstrain.data import StampLoader
from lenstrain.data.cache.fetching import fetch_shard
from lenstrain.data.cache.mapped import LocalCopies
from lenstrain.data.sidecar import SidecarColumn, SidecarColumns
from lenstrain.data.sources.base import Reading
from lenstrain.data.sources.remote import RemoteSource
from tests.datasets import dataset_fixture
from tests.faultproxy import Fault
from tests.s3server import S3Server, uploaded

ROWS, SHARD_ROWS = 2000, 700
CELL = 256 * RECORD_STRIDE
SHARD = "train/train-000001.tar"


root = dataset_fixture(ROWS, SHARD_ROWS)


@pytest.fixture(scope="module")
def uri(s3_server, root):
    with uploaded(s3_server, root) as made:
        yield made


@pytest.fixture
def own_uri(s3, root):
    """The dataset in a place of its own, for a test that damages it."""
    upload(root, s3.uri, s3.options())
    return s3.uri


@pytest.fixture
def load(s3, uri):
    """Makes loaders of the uploaded dataset, and closes them."""
    made = []

    def make(*, via=None, place=uri, attempts=8, timeout=2.0, connections=4, **options):
        url = s3.server.http if via is None else via.url
        s3_options = S3Options(
            endpoint_url=url, read_timeout_s=timeout, attempts=attempts, connections=connections
        )
        made.append(StampLoader(place, **{"batch_size": 32, "s3": s3_options, **options}))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def assert_same(left, right):
    for ours, theirs in zip(left, right, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


def budget(cells, batch=32):
    """Memory for so many ranges, beside the batches that a loader reads ahead."""
    depth = min(8, max(1, cells * CELL // 4 // (batch * 24_576) - 1))
    return cells * CELL + (depth + 4) * batch * 24_576


# The same as from a disk


@pytest.mark.parametrize("shuffle", ["global", "block", None])
def test_batches_are_those_of_the_local_dataset(root, load, shuffle):
    local = StampLoader(root, batch_size=32, seed=3, shuffle=shuffle)
    remote = load(seed=3, shuffle=shuffle)
    for _ in range(2):
        assert_same(local, remote)
    assert remote.source.describe()["evicted"] == 0


@pytest.mark.parametrize("options", [
    {"where": "theta_e_arcsec > 0.9"}, {"sampling": "balanced"}, {"limit": 333},
])  # fmt: skip
def test_selections_are_those_of_the_local_dataset(root, load, options):
    local = StampLoader(root, batch_size=32, shuffle="block", **options)
    assert_same(local, load(shuffle="block", **options))


def test_two_ranks_see_every_row_once_and_what_local_ranks_see(root, load):
    options = {"shuffle": "block", "world_size": 2}
    seen = []
    for rank in range(2):
        local = list(StampLoader(root, batch_size=24, rank=rank, **options))
        remote = list(load(batch_size=24, rank=rank, **options))
        assert_same(local, remote)
        seen += [i for b in remote for i in b.index[b.weight > 0].tolist()]
    assert sorted(seen) == list(range(ROWS))


def test_a_resume_in_mid_epoch_reads_nothing_of_what_was_before(root, load):
    whole = list(StampLoader(root, batch_size=32, shuffle=None))
    loader = load(shuffle=None)
    loader.load_state_dict(loader.state_dict() | {"step": 55})
    assert_same(whole[55:], loader)
    assert loader.source.describe()["cells"] <= 3  # of nine; one for the filler


def test_batches_that_were_kept_do_not_change(root, load):
    loader = load(shuffle="block", memory_budget=budget(11))
    kept = [batch for _ in range(2) for batch in loader]
    pixels = Dataset.open(root).read_pixels("train", np.arange(ROWS))
    for batch in kept:
        np.testing.assert_array_equal(batch.pixels.numpy(), pixels[batch.index.numpy()])


# The budget


def test_memory_never_exceeds_the_budget_and_every_byte_is_read_once(root, load):
    # Batches of 40 divide the rows: a filler would read the first range again.
    loader = load(batch_size=40, shuffle=None, memory_budget=budget(7, 40))
    assert_same(StampLoader(root, batch_size=40, shuffle=None), loader)
    found = loader.source.describe()
    assert found["buffers"] < 9  # less than the dataset has ranges
    assert found["peak_buffers"] <= found["buffers"]
    held = found["peak_buffers"] * found["buffer_bytes"]
    assert held + (loader.depth + 1) * 40 * 24_576 <= budget(7, 40)
    read = ROWS * RECORD_STRIDE  # and what the slower one of two had brought in vain
    assert read <= found["bytes"] <= read + found["raced"] * CELL


def test_an_order_that_the_budget_cannot_hold_is_refused_with_the_budget_that_can(load):
    with pytest.raises(BudgetError, match=r'Use shuffle="block", a cache_dir, or a memory_budget'):
        load(shuffle="global", memory_budget=budget(6))
    with pytest.raises(BudgetError, match="4 are the least"):
        load(shuffle=None, memory_budget=3 * CELL)
    load(shuffle=None, memory_budget=budget(6))


# What breaks on the way


@pytest.mark.parametrize("fault", [
    Fault("reset-answer", b"GET", after=3_000_000, times=4),
    Fault("answer", b"GET", times=3),
    Fault("refuse", b"GET", times=3),
    Fault("stall", b"GET", after=2_000_000, times=2),
])  # fmt: skip
def test_faults_that_pass_are_survived(root, load, proxy, fault):
    loader = load(via=proxy, shuffle="block", timeout=1.0)
    proxy.add(fault)
    assert_same(StampLoader(root, batch_size=32, shuffle="block"), loader)
    assert fault.times == 0


def test_a_slow_range_is_asked_for_a_second_time_and_the_first_answer_wins(root, load, proxy):
    loader = load(via=proxy, shuffle=None, timeout=60.0)
    assert_same(StampLoader(root, batch_size=32, shuffle=None), loader)
    loader.close()
    loader = load(via=proxy, shuffle=None, timeout=60.0, memory_budget=budget(5), connections=2)
    batches, stalled = iter(loader), Fault("stall", b"GET", after=1_000_000)
    got = [next(batches)]
    while not loader.source.reader.races.can_compare:
        got.append(next(batches))
    proxy.add(stalled)
    start = time.monotonic()
    got += list(batches)
    assert_same(StampLoader(root, batch_size=32, shuffle=None), got)
    found = loader.source.describe()
    assert stalled.times == 0
    assert found["races_won"] >= 1
    assert time.monotonic() - start < 30  # the stalled one is given up after 60 s


def test_a_request_that_is_never_answered_holds_up_none_of_its_ranges(root, load, proxy, uri):
    shard = f"/{uri.removeprefix('s3://')}/train/train-000002.tar"
    stalled = Fault("stall", b"GET " + shard.encode())
    proxy.add(stalled)
    loader = load(via=proxy, shuffle=None, timeout=60.0, connections=1)
    start = time.monotonic()
    assert_same(StampLoader(root, batch_size=32, shuffle=None), loader)
    assert time.monotonic() - start < 30  # it is given up after 60 s
    assert stalled.times == 0
    assert loader.source.describe()["races_won"] >= 1


def test_a_fault_that_nobody_heard_of_does_not_end_the_next_epoch(root, load, proxy, uri):
    loader = load(via=proxy, shuffle=None, attempts=1)
    reader, cells = loader.source.reader, np.array([0, 1, 2])
    proxy.add(Fault("answer", b"GET", times=1, status=403, code="AccessDenied"))
    reader.expect(cells)
    with reader.change:
        reader.read_on()
    reader.forget(cells)  # the consumer has gone before the answer came
    assert ends(lambda: not reader._runs)
    assert_same(StampLoader(root, batch_size=32, shuffle=None), loader)


def test_wrong_credentials_are_told_at_once(load, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-never-shown")
    start = time.monotonic()
    with pytest.raises(StorageError, match="does not accept the credentials") as caught:
        load()
    assert "never-shown" not in str(caught.value)
    assert time.monotonic() - start < 20  # trying again would take a minute


# What is wrong in the store: an error that names the shard and the offset


def damage(s3, change):
    """Put another object in a shard's place, with the digest that a copying tool would state."""
    store = s3.store()
    data = bytearray(store.read(SHARD))
    changed = change(data)
    store.client.put_object(Bucket=store.bucket, Key=store.key(SHARD), Body=bytes(changed))


def flip(data):
    data[300 * RECORD_STRIDE + PAYLOAD_OFFSET + 77] ^= 4
    return data


def test_a_flipped_byte_is_found_and_the_stamp_named(s3, own_uri, load):
    damage(s3, flip)
    offset = 300 * RECORD_STRIDE + PAYLOAD_OFFSET
    with pytest.raises(ShardError, match=rf"{SHARD}: the stamp at offset {offset} .*CRC-32"):
        list(load(place=own_uri, shuffle="block"))
    loader = load(place=own_uri, shuffle="block", verify="size")
    assert len(list(loader)) == 63  # nobody looks: by choice


def test_a_missing_shard_is_named_before_the_first_batch(s3, own_uri, load):
    s3.store().delete(SHARD)
    with pytest.raises(ShardError, match=rf"{SHARD} \(offset 0\) is missing"):
        load(place=own_uri)


def test_a_truncated_shard_is_named_with_the_offset_where_it_ends(s3, own_uri, load):
    damage(s3, lambda data: data[:100_000])
    with pytest.raises(ShardError, match=rf"{SHARD} has 100000 bytes .* offset 100000"):
        load(place=own_uri)


def test_swapped_shards_are_found(s3, own_uri, load):
    other = bytes(s3.store().read("train/train-000000.tar"))
    damage(s3, lambda data: other)
    with pytest.raises(ShardError, match=rf"{SHARD}: the stamp at offset {PAYLOAD_OFFSET} "):
        list(load(place=own_uri, shuffle=None))


def test_a_shard_replaced_between_listing_and_reading_is_an_error(s3, own_uri, load):
    loader = load(place=own_uri, shuffle=None)
    damage(s3, flip)
    with pytest.raises(ShardError, match=rf"{SHARD} was replaced .*offset 0"):
        loader.source.gather(np.arange(SHARD_ROWS, SHARD_ROWS + 1), np.empty((1, 3, 64, 64), "f2"))
    with pytest.raises(ShardError, match=rf"{SHARD} \(offset 0\) was replaced while it was in use"):
        list(loader)


def test_a_shard_deleted_during_the_epoch_is_an_error_and_no_shorter_epoch(s3, own_uri, load):
    loader = load(place=own_uri, shuffle=None, memory_budget=budget(6))
    s3.store().delete("train/train-000002.tar")
    got = []
    with pytest.raises(ShardError, match=r"train-000002\.tar.*offset \d+"):
        got.extend(loader.pipeline().iterator1())  # without the look at the listing
    assert len(got) * 32 <= 2 * SHARD_ROWS


# Threads


def reading_threads():
    return [t for t in threading.enumerate() if t.name == "lenstrain-s3"]


def ends(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        gc.collect()
        time.sleep(0.05)
    return True


def test_threads_end_on_close_and_when_the_loader_is_gone(load, s3, uri):
    before = len(reading_threads())
    loader = load(shuffle="block")
    for _ in loader:
        break
    assert len(reading_threads()) > before
    loader.close()
    assert ends(lambda: len(reading_threads()) == before)
    loader = StampLoader(uri, batch_size=32, shuffle=None, s3=s3.options())
    next(iter(loader))
    del loader
    assert ends(lambda: len(reading_threads()) == before)


def test_a_loop_that_is_left_and_begun_again_gives_the_whole_epoch(root, load):
    loader = load(shuffle="block")
    for _ in range(5):
        next(iter(loader))
    assert_same(StampLoader(root, batch_size=32, shuffle="block"), loader)


def test_close_during_a_stall_returns_at_once(load, proxy):
    loader = load(via=proxy, shuffle=None, timeout=60.0)
    proxy.add(Fault("stall", b"GET", after=1_000_000, times=20))
    told = []

    def wait():
        try:
            next(iter(loader))
        except ValueError as error:
            told.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.5)
    start = time.monotonic()
    loader.source.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert told == ["the loader is closed"]
    assert time.monotonic() - start < 5


# A cache in front


def open_source(data, copies):
    columns = SidecarColumns(data, "train", {"payload_crc32": np.uint32})
    crc = SidecarColumn(columns, "payload_crc32")
    return RemoteSource(data, "train", crc, Reading(), copies)


def test_a_shard_is_fetched_whole_and_a_damaged_one_refused(s3, own_uri, root, tmp_path):
    data = Dataset.open(own_uri, s3.options())
    shard = data.split("train").shards[1]
    fetch_shard(data.store, shard, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == (root / SHARD).read_bytes()
    damage(s3, flip)
    with pytest.raises(ShardError, match=rf"damaged.*{SHARD}, offset 0"):
        fetch_shard(data.store, shard, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_shards_that_are_on_the_disk_are_not_read_from_the_store(s3, uri, root):
    class Copies(LocalCopies):
        offers_any = True

        def path(self, shard):
            return root / shard.name if shard.name == SHARD else None

        def damaged(self, shard):
            raise AssertionError(shard.name)

    data = Dataset.open(uri, s3.options())
    source = open_source(data, Copies())
    rows = np.random.default_rng(0).permutation(ROWS)[:300]
    out = np.empty((300, 3, 64, 64), "f2")
    source.gather(rows, out)
    np.testing.assert_array_equal(out, Dataset.open(root).read_pixels("train", rows))
    assert source.describe()["bytes"] == (ROWS - SHARD_ROWS) * RECORD_STRIDE
    source.close()


def test_a_copy_is_compared_when_it_is_read_itself_not_when_memory_stood_in(
    s3, uri, root, tmp_path
):
    class Late(LocalCopies):
        offers_any = True
        ready, refused = None, ()

        def path(self, shard):
            return self.ready if shard.name == SHARD else None

        def damaged(self, shard):
            self.ready, self.refused = None, (*self.refused, shard.name)

    copies, data = Late(), Dataset.open(uri, s3.options())
    source = open_source(data, copies)
    rows = np.arange(SHARD_ROWS, 2 * SHARD_ROWS)
    out, truth = np.empty((SHARD_ROWS, 3, 64, 64), "f2"), Dataset.open(root)
    truth = truth.read_pixels("train", rows)
    source.gather(rows, out)  # from the store
    (tmp_path / "copy.tar").write_bytes(flip(bytearray((root / SHARD).read_bytes())))
    copies.ready = tmp_path / "copy.tar"
    source.gather(rows, out)  # from memory, although there is a copy now
    assert copies.refused == ()
    source.reader.release_idle()
    out[:] = 0
    source.gather(rows, out)
    np.testing.assert_array_equal(out, truth)
    assert copies.refused == (SHARD,)
    source.close()


def test_the_server_may_restart_during_an_epoch(root, tmp_path_factory, s3, monkeypatch):
    monkeypatch.setattr("random.random", lambda: 1.0)  # the longest pauses: two minutes in all
    server = S3Server(tmp_path_factory.mktemp("restarts"))
    try:
        server.start()
        place = "s3://bucket/restarts"
        options = S3Options(endpoint_url=server.http, read_timeout_s=2.0)
        upload(root, place, options)
        assert open_store(place, options).entries()
        loader = StampLoader(
            place, batch_size=32, shuffle=None, s3=options, memory_budget=budget(6)
        )
        batches = iter(loader)
        got = [next(batches)]
        server.kill()
        restart = threading.Timer(1.0, server.start)
        restart.start()
        try:
            got += list(batches)
        finally:
            restart.join()
            loader.close()
        assert_same(StampLoader(root, batch_size=32, shuffle=None), got)
    finally:
        server.kill()

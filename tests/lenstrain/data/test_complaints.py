"""What people complain about in loaders, one test each: the fault where it was reported, and ours.

Numbers are those of public issues: ``webdataset#142`` is
https://github.com/webdataset/webdataset/issues/142, and so on for mosaicml/streaming,
Lightning-AI/litData, huggingface/datasets, ray-project/ray and pytorch/data. Where the loader that
was complained about is at hand (webdataset), the test first shows that the fault is a real one; its
details are tested in `test_loader`, `test_order`, `test_opener` and `test_fetch`.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from lensprep.dataset import PAYLOAD_BYTES, PAYLOAD_OFFSET, RECORD_STRIDE, Dataset
from lensprep.errors import ShardError
from lensprep.transfer import upload
from lenstrain.data import CacheOptions, StampLoader, register_s3
from lenstrain.data.sources import mappedrows
from tests.datasets import tiny_dataset
from tests.faultproxy import Fault, FaultProxy
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]
ROWS, SHARD_ROWS = 96, 16

# Stock webdataset leaves its files to the garbage collector to close.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six equal shards."""
    return tiny_dataset(tmp_path_factory.mktemp("data"), {"train": ROWS, "val": 32}, SHARD_ROWS)


@pytest.fixture(scope="module")
def pixels(root):
    return Dataset.open(root).read_pixels("train", np.arange(ROWS))


@pytest.fixture
def own(tmp_path):
    """The same dataset, for a test that damages it."""
    return tiny_dataset(tmp_path, ROWS, SHARD_ROWS)


KILLED = """
import json, os, signal, sys
from lenstrain.data import StampLoader
loader = StampLoader(sys.argv[1], batch_size=8, seed=4)
loader.set_epoch(2)
batches, taken = iter(loader), []
for _ in range(5):
    taken += next(batches).index.tolist()
shared = [l for l in open("/proc/self/maps") if "/dev/shm" in l or "SYSV" in l]
json.dump([taken, loader.state_dict(), shared], open(sys.argv[2], "w"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed(root, tmp_path_factory):
    """A process that was killed in mid-epoch: its rows, its state, and its shared memory.

    With the files of the dataset before and after.
    """
    saved = tmp_path_factory.mktemp("killed") / "state.json"
    before = sorted(root.rglob("*"))
    command = [sys.executable, "-c", KILLED, root, saved]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -9
    return *json.loads(saved.read_text()), before, sorted(root.rglob("*"))


def shards(root):
    return [str(path) for path in sorted((root / "train").glob("*.tar"))]


def stock(urls, **options):
    """Keys that stock webdataset gives, in its order."""
    options = {"shardshuffle": False, "empty_check": False} | options
    return [sample["__key__"] for sample in wds.WebDataset(urls, **options).decode()]


def rows(batches):
    return [i for b in batches for i in b.index[b.weight > 0].tolist()]


# ------------------------------------------------------------------------------ 1: webdataset#142,
# webdataset#432: a tar that is cut at a member boundary, or has a damaged header, is read as a
# shorter one; a flipped byte of a payload is never seen.


def cut(data):
    del data[5 * RECORD_STRIDE :]


def damage_header(data):
    data[5 * RECORD_STRIDE + 150] ^= 1  # in the checksum of a header


def flip_pixel(data):
    data[5 * RECORD_STRIDE + PAYLOAD_OFFSET + 100] ^= 1


@pytest.mark.parametrize(
    ("damage", "stock_keeps", "message"),
    [
        (cut, ROWS - 11, rf"train-000003\.tar has {5 * RECORD_STRIDE} bytes"),
        (damage_header, ROWS - 11, None),
        (flip_pixel, ROWS, r"train-000003\.tar: the stamp at offset \d+ is not the one"),
    ],
)
def test_1_data_is_lost_or_altered_in_silence(own, pixels, damage, stock_keeps, message):
    path = Path(shards(own)[3])
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    assert len(stock(shards(own))) == stock_keeps  # and no error
    if message is not None:
        with pytest.raises(ShardError, match=message):
            list(StampLoader(own, batch_size=16, verify="crc"))
        return
    batches = list(StampLoader(own, batch_size=16, verify="crc"))  # the grid needs no headers
    assert sorted(rows(batches)) == list(range(ROWS))
    for batch in batches:
        np.testing.assert_array_equal(batch.pixels.numpy(), pixels[batch.index.numpy()])


# ------------------------------------------------------------------------------ 2: webdataset#188,
# #194, #225, #444; streaming#617; litData#452: ranks get unequal numbers of batches, and DDP hangs.


def test_2_ranks_get_unequal_numbers_of_batches_and_hang(root, monkeypatch):
    samples = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "4")
        samples.append(len(stock(shards(root), nodesplitter=wds.split_by_node)))
    assert samples == [32, 32, 16, 16]
    for drop_last in (False, True):
        options = {"batch_size": 5, "world_size": 4, "drop_last": drop_last}
        epochs = [list(StampLoader(root, rank=rank, **options)) for rank in range(4)]
        assert {len(batches) for batches in epochs} == {4 if drop_last else 5}
        assert {len(b.pixels) for batches in epochs for b in batches} == {5}
        seen = [i for batches in epochs for i in rows(batches)]
        assert len(seen) == len(set(seen)) == (80 if drop_last else ROWS)


# ------------------------------------------------------------------------------ 3: webdataset#158,
# #453: resampling, which is the advice against 2, repeats and misses samples.


def test_3_there_is_no_exact_epoch(root):
    # Its draws follow the clock, whatever the seed: ten epochs of six shards are never all even
    resampled = wds.WebDataset(shards(root), resampled=True, shardshuffle=False, seed=1)
    seen = Counter(sample["__key__"] for sample in resampled.with_epoch(10 * ROWS))
    assert sum(seen.values()) == 10 * ROWS
    assert set(seen.values()) != {10}
    loaders = [StampLoader(root, batch_size=7, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(3):
        assert sorted(i for loader in loaders for i in rows(loader)) == list(range(ROWS))


# ------------------------------------------------------------------------------ 4: webdataset#177;
# streaming#437; litData#248; datasets#7444: no resume in mid-epoch, or a broken one.


def test_4_a_run_that_was_killed_cannot_go_on_in_mid_epoch(root, killed):
    taken, state, *_ = killed
    whole = StampLoader(root, batch_size=8, seed=4)
    whole.set_epoch(2)
    order = rows(whole)
    assert taken == order[:40]
    ranks = [StampLoader(root, batch_size=4, seed=4, rank=r, world_size=2) for r in range(2)]
    for loader in ranks:
        loader.load_state_dict(state)  # taken on one rank, and now there are two
    pairs = zip(*ranks, strict=True)
    assert [i for pair in pairs for b in pair for i in b.index.tolist()] == order[40:]


# ------------------------------------------------------------------------------ 5: webdataset#184,
# #345, #411: no s3:// scheme, broken pipes, no retry inside of an object.


def test_5_an_object_store_is_not_read_or_breaks_in_mid_object(root, pixels, s3, monkeypatch):
    upload(root, s3.uri, s3.options())
    url = f"{s3.uri}/train/train-000000.tar"
    monkeypatch.delitem(wds.gopen_schemes, "s3", raising=False)
    with pytest.raises(ValueError, match="s3"):
        stock(url)
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        options = s3.options(endpoint_url=proxy.url)
        register_s3(options)
        resets = [Fault("reset-answer", b"GET", after=200_000, times=2) for _ in range(2)]
        proxy.add(resets[0])
        assert len(stock(url)) == SHARD_ROWS
        loader = StampLoader(s3.uri, batch_size=16, shuffle="block", s3=options)
        proxy.add(resets[1])
        batches = list(loader)
        loader.close()
        assert [fault.times for fault in resets] == [0, 0]  # they were met with
    assert sorted(rows(batches)) == list(range(ROWS))
    for batch in batches:
        np.testing.assert_array_equal(batch.pixels.numpy(), pixels[batch.index.numpy()])


# ------------------------------------------------------------------------------ 6: webdataset#62,
# #71, #299: the shards come in the same order every epoch, and never move between workers.


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_6_every_epoch_has_the_same_order_and_ranks_keep_their_shards(root, shuffle):
    fixed = wds.WebDataset(shards(root), shardshuffle=6, empty_check=False)
    assert len({tuple(sample["__key__"] for sample in fixed) for _ in range(3)}) == 1
    loaders = [StampLoader(root, batch_size=8, shuffle=shuffle, rank=r, world_size=2)
               for r in range(2)]  # fmt: skip
    epochs = [[rows(loader) for loader in loaders] for _ in range(8)]
    assert len({tuple(first) for first, _ in epochs}) == 8
    visited = [{i for epoch in epochs for i in epoch[rank]} for rank in range(2)]
    assert len(visited[0] & visited[1]) > 0.9 * ROWS


# ------------------------------------------------------------------------------ 7: webdataset#471:
# the cache knows a shard by its basename alone.


def test_7_shards_of_one_basename_are_taken_for_each_other(tmp_path, s3):
    places = []
    for number in range(2):
        made = tiny_dataset(tmp_path / str(number), {"train": 24, "val": 24}, 24, seed=2 * number)
        places.append((made, f"{s3.uri}/{number}"))
        upload(made, places[-1][1], s3.options())
    register_s3(s3.options())
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    cached = [
        [s["stamp.npy"][0, 0, 1] for s in wds.WebDataset(
            f"{uri}/train/train-000000.tar", shardshuffle=False, cache_dir=str(theirs)).decode()]
        for _, uri in places
    ]  # fmt: skip
    assert cached[0] == cached[1]  # it gave the stamps of the first dataset for the second's
    for _ in range(2):  # the second time from the cache
        for made, uri in places:
            for split in ("train", "val"):
                options = {"shuffle": None, "cache_dir": ours, "s3": s3.options()}
                options["cache"] = CacheOptions(reserve_bytes=0)
                loader = StampLoader(uri, split, 24, **options)
                stored = Dataset.open(made).read_pixels(split, np.arange(24))
                np.testing.assert_array_equal(next(iter(loader)).pixels.numpy(), stored)
                loader.close()
    wait_until(lambda: len(list(ours.rglob("*.tar"))) >= 4)
    assert len(list(ours.rglob("*.tar"))) == 4  # two datasets, two splits, one basename


# ------------------------------------------------------------------------------ 8: ray#65350;
# data#1317: Python costs time for every sample.


def test_8_python_is_paid_for_by_the_sample(tmp_path, monkeypatch):
    """Where all is in memory; what comes from a disk is asked for and copied in pieces."""
    monkeypatch.setattr(mappedrows, "STEPS_ALERT", 1)
    monkeypatch.setattr(mappedrows, "_read_from_disk", lambda: (0, 0))
    big = tiny_dataset(tmp_path, 2048, shard_rows=512)

    def calls(batch_size):
        """Python and C functions that the loader calls for one batch."""
        loader = StampLoader(big, batch_size=batch_size)
        list(loader)  # maps, compiles
        batches = loader.pipeline().pipeline
        stream = batches[0].run()
        for stage in batches[1:-1]:  # all but the thread
            stream = stage(stream)
        next(stream)
        return _calls(lambda: next(stream))

    assert calls(1024) <= calls(16) + 5
    samples = iter(wds.WebDataset(shards(big), shardshuffle=False, empty_check=False).decode())
    next(samples)
    assert _calls(lambda: next(samples)) > 50  # each of them


def _calls(action):
    count = 0

    def tick(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tick)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


# ------------------------------------------------------------------------------ 9: webdataset#256,
# #267: memory for every worker, and minutes to the first batch. (In seconds and megabytes, for ten
# million rows: `test_scale`.)


def test_9_memory_grows_with_workers_and_the_first_batch_takes_minutes(root, monkeypatch):
    sidecars, read = [], Dataset.read_shard_sidecar

    def count(dataset, shard, columns=None):
        sidecars.append(shard.name)
        return read(dataset, shard, columns)

    monkeypatch.setattr(Dataset, "read_shard_sidecar", count)
    loader = StampLoader(root, batch_size=2, shuffle=None, memory_budget=5 * 2 * PAYLOAD_BYTES)
    assert sidecars == []  # a thousand of them would take minutes
    batches = iter(loader)
    next(batches)
    assert set(sidecars) == {"train/train-000000.tar"}
    buffers = {batch.pixels.data_ptr() for batch in batches}
    assert len(buffers) <= 5 + 2  # the budget, the consumer's, and the one that it lets go of
    assert multiprocessing.active_children() == []  # one thread, and no worker


# ------------------------------------------------------------------------------ 10: streaming#573:
# shared memory that a crash left behind stops the next run.


def test_10_a_crash_leaves_shared_memory_behind(root, killed):
    *_, shared, before, after = killed
    assert shared == []
    assert after == before  # no lock files either
    assert sorted(rows(StampLoader(root, batch_size=4))) == list(range(ROWS))


# ------------------------------------------------------------------------------ 11, which nobody
# has reported: a loader that uses its buffers again while it prefetches overwrites a batch in use.


def test_11_a_batch_is_overwritten_while_it_is_held(root, pixels):
    def assert_true(batch):
        np.testing.assert_array_equal(batch.pixels.numpy(), pixels[batch.index.numpy()])

    for batch in StampLoader(root, batch_size=4):
        time.sleep(0.01)  # by now the reader has filled all that it may
        assert_true(batch)
    kept = list(StampLoader(root, batch_size=4))
    assert len({batch.pixels.data_ptr() for batch in kept}) == len(kept)
    for batch in kept:
        assert_true(batch)

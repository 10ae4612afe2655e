"""The loader: exact epochs over ranks, resume, ownership of batches, nothing lost in silence.

The faults of other loaders are in `test_complaints`, one test each.
"""

from __future__ import annotations

import gc
import io
import itertools
import multiprocessing
import os
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from lensprep.dataset import PAYLOAD_BYTES, PAYLOAD_OFFSET, RECORD_STRIDE, Dataset
from lensprep.errors import CheckpointError, ConfigError, DatasetError, ShardError, StorageError
from lenstrain.data import Batch, StampLoader, hard_negative_weights
from lenstrain.data.batch import PixelPool
from lenstrain.data.sources.base import Reading
from lenstrain.data.sources.local import LocalSource, copy_rows
from lenstrain.data.stream import read_ahead
from tests.datasets import dataset_fixture, tiny_dataset
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]
ROWS = 100


root = dataset_fixture({"train": ROWS, "val": 40}, shard_rows=17)


@pytest.fixture(scope="module")
def stored(root):
    dataset = Dataset.open(root)
    labels = dataset.read_sidecar("train", ["label"])["label"].to_numpy()
    return dataset.read_pixels("train", np.arange(ROWS)), labels


@pytest.fixture
def own(tmp_path):
    """A dataset that the test may damage."""
    return tiny_dataset(tmp_path, ROWS, shard_rows=17)


def real_index(batches):
    return [i for b in batches for i in b.index[b.weight > 0].tolist()]


def assert_true_to(batch, stored):
    pixels, labels = stored
    np.testing.assert_array_equal(batch.pixels.numpy(), pixels[batch.index.numpy()])
    np.testing.assert_array_equal(batch.labels.numpy(), labels[batch.index.numpy()])


def new_epoch_rows(loader):
    return real_index(loader)


# What a batch is


@pytest.mark.parametrize("shuffle", ["global", "block", None])
def test_a_batch_holds_the_pixels_and_labels_of_its_index(root, stored, shuffle):
    for batch in StampLoader(root, batch_size=16, shuffle=shuffle):
        assert isinstance(batch, Batch)
        assert batch.pixels.shape == (16, 3, 64, 64)
        assert [t.dtype for t in batch] == [
            torch.float16, torch.int64, torch.int64, torch.float32,
        ]  # fmt: skip
        assert batch.pixels.is_contiguous()
        assert_true_to(batch, stored)


def test_index_counts_along_the_manifest_and_the_tar(root):
    rows = real_index(StampLoader(root, batch_size=16, shuffle=None))
    assert rows == list(range(ROWS))


def test_the_splits_are_read_apart(root):
    train, val = (next(iter(StampLoader(root, s, 8, shuffle=None))) for s in ("train", "val"))
    assert not torch.equal(train.pixels, val.pixels)
    assert len(StampLoader(root, "val", 8)) == 5


# Exact epochs


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (2, 16), (3, 5), (4, 8), (8, 16)])
@pytest.mark.parametrize("shuffle", ["global", "block", None])
def test_all_ranks_together_see_every_row_once_in_equal_steps(
    root, shuffle, world_size, batch_size
):
    loaders = [
        StampLoader(root, "train", batch_size, 1, shuffle, rank, world_size)
        for rank in range(world_size)
    ]
    epochs = [list(loader) for loader in loaders]
    assert {len(batches) for batches in epochs} == {len(loaders[0])}
    assert sorted(i for batches in epochs for i in real_index(batches)) == list(range(ROWS))
    assert all(len(b.index) == batch_size for batches in epochs for b in batches)


def test_the_order_does_not_depend_on_the_number_of_ranks(root):
    whole = [b.index for b in StampLoader(root, "train", 24, 3)]
    parts = [
        [b.index for b in StampLoader(root, "train", 8, 3, rank=rank, world_size=3)]
        for rank in range(3)
    ]
    for step, index in enumerate(whole):
        assert torch.equal(index, torch.cat([part[step] for part in parts]))


def test_every_epoch_has_another_order_by_itself(root):
    loader = StampLoader(root, batch_size=16, seed=5)
    first, second = new_epoch_rows(loader), new_epoch_rows(loader)
    assert first != second
    assert sorted(first) == sorted(second)
    loader.set_epoch(0)
    assert new_epoch_rows(loader) == first
    assert loader.epoch == 1


def test_another_seed_gives_another_order(root):
    assert new_epoch_rows(StampLoader(root, seed=0)) != new_epoch_rows(StampLoader(root, seed=1))


def test_drop_last_leaves_out_what_does_not_fill_a_batch(root):
    batches = list(StampLoader(root, batch_size=16, drop_last=True))
    assert len(batches) == 6
    assert all((b.weight == 1).all() for b in batches)
    assert len(set(real_index(batches))) == 96


def test_a_broken_off_epoch_starts_again(root):
    loader = StampLoader(root, batch_size=16)
    first = next(iter(loader)).index
    assert torch.equal(next(iter(loader)).index, first)
    assert loader.epoch == 0


# Resume


def rest_after(loader, steps):
    """Take some steps, and return the loader's state there and the batches that would follow."""
    batches = iter(loader)
    for _ in range(steps):
        next(batches)
    state = loader.state_dict()
    return state, [b.index for b in batches]


@pytest.mark.parametrize("shuffle", ["global", "block", None])
@pytest.mark.parametrize("steps", [0, 1, 4, 7])
def test_a_resumed_epoch_goes_on_exactly(root, shuffle, steps):
    loader = StampLoader(root, batch_size=16, seed=2, shuffle=shuffle)
    loader.set_epoch(3)
    state, rest = rest_after(loader, steps)
    resumed = StampLoader(root, batch_size=16, seed=2, shuffle=shuffle)
    resumed.load_state_dict(state)
    if steps == len(loader):
        assert resumed.epoch == 4
    else:
        assert [b.index.tolist() for b in resumed] == [i.tolist() for i in rest]


def test_four_ranks_resume_on_two(root):
    state, rest = rest_after(StampLoader(root, "train", 24, 9), 2)
    loaders = [StampLoader(root, "train", 12, 9, rank=rank, world_size=2) for rank in range(2)]
    four = [StampLoader(root, "train", 6, 9, rank=rank, world_size=4) for rank in range(4)]
    assert all(rest_after(loader, 2)[0] == state for loader in four)
    parts = []
    for loader in loaders:
        loader.load_state_dict(state)
        loader.set_epoch(0)  # as a trainer does at the head of each epoch
        parts.append([b.index for b in loader])
    assert [torch.cat(pair).tolist() for pair in zip(*parts, strict=True)] == [
        i.tolist() for i in rest
    ]


def test_the_state_counts_batches_taken_not_batches_read_ahead(root):
    loader = StampLoader(root, batch_size=8)
    batches = iter(loader)
    next(batches), next(batches)
    time.sleep(0.05)
    assert loader.state_dict()["step"] == 2


def test_the_state_at_the_end_of_an_epoch_is_the_start_of_the_next(root):
    loader = StampLoader(root, batch_size=16, seed=2)
    list(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (1, 0)


def test_resuming_costs_nothing_for_the_steps_before(root):
    loader = StampLoader(root, batch_size=1)
    state = {**loader.state_dict(), "step": 99}
    loader.load_state_dict(state)
    gathered = []
    gather = loader.source.gather
    loader.source.gather = lambda rows, out: (gathered.append(len(rows)), gather(rows, out))
    assert len(list(loader)) == 1
    assert gathered == [1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, r"seed = 0, but this loader has 1"),
        ({"batch_size": 8}, r"global_batch = 16, but this loader has 8"),
        ({"split": "val"}, r"split = 'train', but this loader has 'val'"),
        ({"shuffle": "block"}, r"shuffle = 'global'"),
        ({"drop_last": True}, r"drop_last = False"),
        ({"limit": 50}, r"selection = ''"),
    ],
)
def test_a_foreign_state_is_refused_with_the_reason(root, changes, reason):
    state = StampLoader(root, batch_size=16).state_dict()
    with pytest.raises(CheckpointError, match=reason):
        StampLoader(root, **{"batch_size": 16, **changes}).load_state_dict(state)


def test_a_state_of_another_dataset_is_refused(root, tmp_path):
    other = tiny_dataset(tmp_path, ROWS, seed=9)
    state = StampLoader(root).state_dict()
    with pytest.raises(CheckpointError, match="dataset_id"):
        StampLoader(other).load_state_dict(state)


@pytest.mark.parametrize(
    "bad",
    [{"version": 2}, {"step": 99}, {"epoch": -1}, {"step": 0.5}, {"epoch": None}, {"epoch": "1"}],
)
def test_an_impossible_state_is_refused(root, bad):
    loader = StampLoader(root)
    with pytest.raises(CheckpointError):
        loader.load_state_dict({**loader.state_dict(), **bad})


# Ownership


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


# Nothing silent


def shard_path(root, number):
    return root / "train" / f"train-{number:06d}.tar"


@pytest.mark.parametrize("kept", [0, 5 * RECORD_STRIDE, 5 * RECORD_STRIDE + 777])
def test_a_cut_shard_is_an_error_that_names_it(own, kept):
    """Also where it is cut at a member boundary, which a tar reader takes for the end."""
    os.truncate(shard_path(own, 3), kept)
    with pytest.raises(ShardError, match=rf"train-000003\.tar has {kept} bytes.*offset {kept}"):
        StampLoader(own)


def test_a_missing_shard_is_an_error_that_names_it(own):
    shard_path(own, 5).unlink()
    with pytest.raises(ShardError, match=r"train-000005\.tar .*No such file"):
        StampLoader(own)


def test_a_shard_cut_between_epochs_is_noticed(own):
    loader = StampLoader(own)
    list(loader)
    os.truncate(shard_path(own, 1), RECORD_STRIDE)
    with pytest.raises(ShardError, match=r"train-000001\.tar has"):
        iter(loader)


def test_a_shard_swapped_for_another_of_its_size_is_noticed(own):
    loader = StampLoader(own)
    list(loader)
    content = shard_path(own, 0).read_bytes()
    shard_path(own, 1).unlink()
    shard_path(own, 1).write_bytes(content)
    with pytest.raises(ShardError, match=r"train-000001\.tar was replaced or written to"):
        iter(loader)


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_shards_swapped_under_each_others_names_are_found_by_checksum(own):
    first, second = shard_path(own, 0), shard_path(own, 1)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(ShardError, match=r"train-00000[01]\.tar: the stamp at offset 640 is not"):
        list(StampLoader(own, shuffle=None, verify="crc"))


def test_a_sound_dataset_passes_the_checksums(root, stored):
    for batch in StampLoader(root, batch_size=16, verify="crc"):
        assert_true_to(batch, stored)


def test_a_lost_sidecar_is_an_error_that_names_it(own):
    (own / "train" / "train-000002.parquet").unlink()
    with pytest.raises(ShardError, match=r"train-000002\.parquet: no such file"):
        next(iter(StampLoader(own)))


def test_an_error_while_reading_reaches_the_consumer_at_its_place(own):
    """Batches before the bad one still come; the error is no shorter epoch."""
    flip(shard_path(own, 5), 2 * RECORD_STRIDE + PAYLOAD_OFFSET)
    batches = iter(StampLoader(own, batch_size=10, shuffle=None, verify="crc"))
    assert [len(next(batches).index) for _ in range(8)] == [10] * 8
    with pytest.raises(ShardError, match=r"train-000005\.tar"):
        next(batches)


# Cost


def test_more_shards_than_open_files_are_read(tmp_path):
    many = tiny_dataset(tmp_path, 150, shard_rows=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/proc/self/fd"))  # by what other tests left running
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 60, hard))
    try:
        assert sorted(real_index(StampLoader(many))) == list(range(150))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_reading_thread_ends_with_its_iterator(root):
    before = set(threading.enumerate())

    def readers():
        new = set(threading.enumerate()) - before
        return [t for t in new if t.name == "lenstrain-read-ahead"]

    loader = StampLoader(root, batch_size=4)
    next(iter(loader))
    assert len(readers()) == 1
    iter(loader)
    loader.close()
    wait_until(lambda: not readers())
    abandoned = iter(StampLoader(root, batch_size=4))
    next(abandoned)
    assert len(readers()) == 1
    gc.disable()  # letting go is enough: no cycle waits for a collection
    try:
        del abandoned
        wait_until(lambda: not readers())
    finally:
        gc.enable()


def test_an_iterator_ended_in_a_thread_its_reader_waits_for_does_not_lock_up():
    """As the garbage collector does when it runs in a thread that reads a sidecar."""
    streams, may_end, ended = [], threading.Event(), threading.Event()

    def numbers():
        yield 1
        helper = threading.Thread(target=lambda: may_end.wait() and streams.pop().close())
        helper.start()
        helper.join()
        ended.set()
        yield 2

    streams.append(read_ahead(1)(numbers()))
    assert next(streams[0]) == 1
    may_end.set()
    assert ended.wait(20)


def test_a_loader_may_be_closed_while_it_reads(tmp_path):
    """Unmapping waits for the copy under way; a copy after it is refused, not a crash."""
    big = tiny_dataset(tmp_path, 1024, shard_rows=256)
    for _ in range(20):
        loader = StampLoader(big, batch_size=256)
        next(iter(loader))
        loader.close()
    with pytest.raises(ValueError, match="the loader is closed"):
        loader.source.gather(np.array([0]), np.empty((1, 3, 64, 64), np.float16))


# Choosing rows


def test_where_reads_only_the_rows_that_fit(root):
    table = Dataset.open(root).read_sidecar("train", ["theta_e_arcsec", "psfsize_r"])
    ratio = table["theta_e_arcsec"].to_numpy() / table["psfsize_r"].to_numpy()
    loader = StampLoader(root, batch_size=8, where="theta_e_arcsec / psfsize_r >= 0.5")
    assert sorted(real_index(loader)) == np.flatnonzero(ratio >= 0.5).tolist()


@pytest.mark.parametrize("shuffle", ["global", "block", None])
def test_limit_keeps_the_first_rows(root, shuffle):
    assert sorted(real_index(StampLoader(root, shuffle=shuffle, limit=23))) == list(range(23))
    lenses = StampLoader(root, shuffle=shuffle, where="label == 1", limit=5)
    assert sorted(real_index(lenses)) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "theta_e_arcse > 1"}, "Did you mean theta_e_arcsec"),
        ({"where": "label == 7"}, "keeps no row of split 'train'"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"sampling": "fair"}, "sampling must be 'uniform' or 'balanced', got 'fair'"),
        ({"sampling": "balanced", "where": "label == 1"}, "there is no non-lens row"),
        ({"weights": np.ones(3)}, "one for each of the split's 100 rows"),
        ({"weights": np.zeros(ROWS)}, "must not all be zero, and those of all 100 rows are"),
        ({"weights": np.r_[np.ones(ROWS - 1), -2.0]}, "1 are not, the first that of row 99: -2"),
        (
            {"weights": np.arange(ROWS) % 2 == 0, "sampling": "balanced"},
            "all 50 lens rows have weight 0",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2 ranks"),
        ({"shuffle": "blocks"}, "shuffle must be 'global', 'block' or None"),
        ({"verify": "md5"}, "verify must be 'size' or 'crc'"),
        ({"memory_budget": 10_000}, "memory_budget of 10000 bytes"),
        ({"batch_size": 200, "drop_last": True}, "100 rows an epoch, less than one global batch"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(root, options, message):
    with pytest.raises(ConfigError, match=message):
        StampLoader(root, **options)


def test_an_unknown_split_is_refused(root):
    with pytest.raises(DatasetError, match="no split 'all'; it has: train, val"):
        StampLoader(root, "all")


def test_tars_in_an_object_store_are_refused_before_anything_is_asked_of_it():
    with pytest.raises(StorageError, match="tars without a manifest are read from a local disk"):
        StampLoader("s3a://bucket/a.tar")


def unbalanced(tmp_path):
    root = tiny_dataset(tmp_path, 200, shard_rows=64)
    # One lens in ten of the even rows' class.
    return root, "label == 0 or region_id < 100007"


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_balanced_epochs_hold_both_classes_equally_often(tmp_path, shuffle):
    root, where = unbalanced(tmp_path)
    uniform = StampLoader(root, batch_size=10, where=where)
    rows = len(real_index(uniform))
    loader = StampLoader(root, batch_size=10, where=where, sampling="balanced", shuffle=shuffle)
    for _ in range(3):
        batches = list(loader)
        labels = torch.cat([b.labels[b.weight > 0] for b in batches])
        assert len(labels) == rows
        assert abs(int((labels == 1).sum()) - rows / 2) <= 1
        counts = np.unique(
            [i for i in real_index(batches) if i % 2], return_counts=True
        )[1]  # fmt: skip
        assert counts.max() - counts.min() <= 1  # every lens as often as the others


def test_balanced_epochs_are_divided_and_resumed_like_any_other(tmp_path):
    root, where = unbalanced(tmp_path)
    options = {"where": where, "sampling": "balanced"}
    whole = [b.index for b in StampLoader(root, "train", 12, 3, **options)]
    parts = [
        [b.index for b in StampLoader(root, "train", 4, 3, rank=rank, world_size=3, **options)]
        for rank in range(3)
    ]
    for step, index in enumerate(whole):
        assert torch.equal(index, torch.cat([part[step] for part in parts]))
    state, rest = rest_after(StampLoader(root, "train", 12, 3, **options), 4)
    resumed = StampLoader(root, "train", 12, 3, **options)
    resumed.load_state_dict(state)
    assert [b.index.tolist() for b in resumed] == [i.tolist() for i in rest]


def test_hard_negatives_come_back_by_their_weight(root):
    labels = StampLoader(root).labels
    logits = np.arange(ROWS, dtype=float)
    weights = hard_negative_weights(labels, logits, fraction=0.1, factor=4.0)
    assert np.flatnonzero(weights > 1).tolist() == [90, 92, 94, 96, 98]
    counts = np.zeros(ROWS)
    loader = StampLoader(root, batch_size=10, weights=weights)
    for _ in range(40):
        np.add.at(counts, real_index(loader), 1)
    assert counts[weights > 1].mean() / counts[weights == 1].mean() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("labels", "logits"), [([0, 1], [0.0]), ([1, 1], [0.0, 1.0]), ([0, 1], [np.nan, 0.0])]
)
def test_hard_negatives_need_scores_of_every_row(labels, logits):
    with pytest.raises(DatasetError):
        hard_negative_weights(labels, logits)


# WebDataset


def test_the_pipeline_is_webdatasets_and_takes_its_stages(root, stored):
    loader = StampLoader(root, batch_size=16, shuffle=None)
    pipeline = loader.pipeline()
    assert isinstance(pipeline, wds.DataPipeline)
    doubled = pipeline.compose(wds.map_tuple(lambda x: x.float() * 2), wds.unbatched())
    samples = list(doubled)
    assert len(samples) == 7 * 16
    pixels, label, index, weight = samples[20]
    np.testing.assert_array_equal(pixels.numpy(), stored[0][20].astype(np.float32) * 2)
    assert (int(label), int(index), float(weight)) == (0, 20, 1.0)


def test_the_loader_is_a_first_stage_of_webdataset(root):
    loader = StampLoader(root, batch_size=16)
    pipeline = wds.DataPipeline(loader, wds.map(lambda batch: batch.index))
    first, second = [torch.cat(list(pipeline)) for _ in range(2)]
    assert not torch.equal(first, second)  # the epochs go on
    assert loader.epoch == 2


def test_stock_stages_may_stand_before_read_ahead():
    pipeline = wds.DataPipeline(lambda: range(10), wds.map(lambda x: x + 1), read_ahead(3))
    assert list(pipeline) == list(range(1, 11))


def test_read_ahead_is_bounded():
    taken = []

    def numbers():
        for i in itertools.count():
            taken.append(i)
            yield i

    stream = read_ahead(3)(numbers())
    next(stream)
    time.sleep(0.05)
    assert len(taken) <= 1 + 3 + 1  # taken, waiting, in hand
    stream.close()


def test_read_ahead_hands_on_an_error_after_the_items_before_it():
    def broken():
        yield 1
        raise KeyError("lost")

    stream = read_ahead(3)(broken())
    assert next(stream) == 1
    with pytest.raises(KeyError, match="lost"):
        next(stream)


# One process


class FirstInAWorker(torch.utils.data.IterableDataset):
    """What a user would wrap around a loader, which it opens where it is iterated over."""

    def __init__(self, root):
        self.root = root

    def __iter__(self):
        return iter(StampLoader(self.root, batch_size=16))


IN_WORKERS = {
    "loader": lambda root, loader: wds.DataPipeline(loader),
    "stages": lambda root, loader: loader.pipeline(),
    "opened there": lambda root, loader: FirstInAWorker(root),
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize(
    ("start", "dataset"),
    [
        ("fork", "loader"),
        ("fork", "stages"),
        ("fork", "opened there"),
        ("spawn", "loader"),
        ("spawn", "stages"),
        pytest.param("spawn", "opened there", marks=pytest.mark.faults),  # imports torch thrice
    ],
)
def test_workers_of_a_dataloader_are_refused_instead_of_giving_every_row_twice(
    root, start, dataset, read_before, monkeypatch
):
    for module in (torch.utils.data._utils, torch.utils.data._utils.worker):
        monkeypatch.setattr(module, "MP_STATUS_CHECK_INTERVAL", 0.2)  # how soon workers end
    loader = StampLoader(root, batch_size=16)
    iterator = iter(loader)
    if read_before:
        next(iterator)  # its reading thread is not forked with it: a batch would never come
    batches = torch.utils.data.DataLoader(
        IN_WORKERS[dataset](root, loader),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start,
        timeout=60,
    )
    with pytest.raises(ConfigError, match=r"would give every row again\..*num_workers=0"):
        list(batches)
    del batches
    gc.collect()  # ends the workers here, and not in a fork of a later test


def test_a_dataloader_without_workers_gives_every_row_once(root):
    batches = torch.utils.data.DataLoader(wds.DataPipeline(StampLoader(root)), batch_size=None)
    assert sorted(real_index(batches)) == list(range(ROWS))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "use",
    [
        lambda loader, iterator: next(iterator),
        lambda loader, iterator: next(iter(loader)),
        lambda loader, iterator: loader.close(),
    ],
    ids=["next", "iter", "close"],
)
def test_a_forked_process_is_refused_the_loader_of_its_parent(root, use):
    loader = StampLoader(root, batch_size=16)
    iterator = iter(loader)
    next(iterator)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child():
        try:
            answers.put(str(use(loader, iterator)))
        except ConfigError as error:
            answers.put(str(error))

    process = context.Process(target=child)
    process.start()
    process.join(60)
    try:
        assert process.exitcode == 0  # None: it hangs
        assert "Open one in each process" in answers.get()
    finally:
        process.kill()


# Plain types


def test_numbers_of_numpy_end_as_plain_ones_in_the_state(root):
    loader = StampLoader(
        root, np.str_("train"), np.int64(16), np.int64(3), np.str_("global"), np.int32(0),
        np.uint8(1), drop_last=np.bool_(False), limit=np.int64(50),
    )  # fmt: skip
    loader.set_epoch(np.int64(2))
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert {type(value) for value in state.values()} == {str, int, bool}
    plain = StampLoader(root, batch_size=16, seed=3, limit=50)
    plain.load_state_dict(state)
    assert plain.epoch == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "seed must be of type int, got 1.5"),
        ({"seed": "1"}, "seed must be of type int, got '1'"),
        ({"seed": None}, "seed must be of type int, got None"),
        ({"batch_size": True}, "batch_size must be of type int, got True"),
        ({"batch_size": 16.0}, "batch_size must be of type int"),
        ({"rank": np.bool_(False)}, "rank must be of type int"),
        ({"world_size": 1.0}, "world_size must be of type int"),
        ({"drop_last": 1}, "drop_last must be of type bool, got 1"),
        ({"shuffle": "Global"}, "shuffle must be 'global', 'block' or None"),
        ({"shuffle": False}, "shuffle must be of type str"),
        ({"limit": 2.5}, "limit must be of type int"),
        ({"where": 3}, "where must be of type str"),
        ({"split": 0}, "split must be of type str"),
    ],
)
def test_an_option_of_another_type_is_refused_at_the_door(root, options, message):
    with pytest.raises(ConfigError, match=message):
        StampLoader(root, **options)


@pytest.mark.parametrize("epoch", [1.5, True, "1", None])
def test_an_epoch_of_another_type_is_refused(root, epoch):
    with pytest.raises(ConfigError, match="epoch must be of type int"):
        StampLoader(root).set_epoch(epoch)


# The source


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
    assert not copy_rows(np.array([row]), np.array(starts), addresses, out.ctypes.data)


def test_a_source_gathers_across_shards_in_any_order(root, stored):
    dataset = Dataset.open(root)
    source = LocalSource(dataset, dataset.split("train").shards, Reading())
    rows = np.random.default_rng(0).integers(0, ROWS, 300)
    out = np.empty((300, 3, 64, 64), np.float16)
    source.gather(rows, out)
    np.testing.assert_array_equal(out, stored[0][rows])
    path, offset = source.place(40)
    assert path.endswith("train/train-000002.tar")
    assert offset == (40 - 34) * RECORD_STRIDE + PAYLOAD_OFFSET


def test_pinned_memory_without_a_gpu_is_refused(root):
    if torch.cuda.is_available():
        assert next(iter(StampLoader(root, pin_memory=True))).pixels.is_pinned()
    else:
        with pytest.raises(ConfigError, match="pin_memory needs a CUDA device"):
            StampLoader(root, pin_memory=True)

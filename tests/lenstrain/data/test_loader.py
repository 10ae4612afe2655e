"""The loader: exact epochs over ranks, resume, nothing lost in silence.

The faults of other loaders are in `test_complaints`, one test each.
"""

from __future__ import annotations

import io
import os
import resource
import time

import numpy as np
import pytest
import torch

from lensprep.dataset import PAYLOAD_OFFSET, RECORD_STRIDE
from lensprep.errors import CheckpointError, ConfigError, ShardError
from lenstrain.data import Batch, StampLoader
from tests.datasets import tiny_dataset
from tests.lenstrain.data.epochs import ROWS, assert_true_to, real_index, rest_after

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
    first, second = real_index(loader), real_index(loader)
    assert first != second
    assert sorted(first) == sorted(second)
    loader.set_epoch(0)
    assert real_index(loader) == first
    assert loader.epoch == 1


def test_another_seed_gives_another_order(root):
    assert real_index(StampLoader(root, seed=0)) != real_index(StampLoader(root, seed=1))


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


def test_a_loader_may_be_closed_while_it_reads(tmp_path):
    """Unmapping waits for the copy under way; a copy after it is refused, not a crash."""
    big = tiny_dataset(tmp_path, 1024, shard_rows=256)
    for _ in range(20):
        loader = StampLoader(big, batch_size=256)
        next(iter(loader))
        loader.close()
    with pytest.raises(ValueError, match="the loader is closed"):
        loader.source.gather(np.array([0]), np.empty((1, 3, 64, 64), np.float16))


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


def test_pinned_memory_without_a_gpu_is_refused(root):
    if torch.cuda.is_available():
        assert next(iter(StampLoader(root, pin_memory=True))).pixels.is_pinned()
    else:
        with pytest.raises(ConfigError, match="pin_memory needs a CUDA device"):
            StampLoader(root, pin_memory=True)

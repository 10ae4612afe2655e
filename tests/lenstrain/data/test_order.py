"""The order of an epoch: exact, the same for any division into ranks, and well mixed."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenstrain.data.order import (
    BLOCK_ROWS,
    EpochOrder,
    OrderSpec,
    block_bounds,
    order_key,
    permute,
    repeat_counts,
)

GOLDEN_GLOBAL = [4, 2, 8, 5, 3, 1, 9, 7, 0, 6]
GOLDEN_BLOCK = [896, 0, 118, 243, 346, 442, 523, 601, 722, 788]


def spec(**changes):
    values = {"rows": 1000, "global_batch": 48, "seed": 0, "dataset_id": "d", "shuffle": "global"}
    return OrderSpec(**{**values, **changes})


def shards(rows, shard_rows=777):
    whole, rest = divmod(rows, shard_rows)
    return [shard_rows] * whole + ([rest] if rest else [])


def order_of(s, epoch=0):
    return EpochOrder(s, epoch, block_bounds(shards(s.rows)))


def epoch_rows(order, world_size=1):
    """Rows with weight 1 of all ranks, step by step."""
    rows = []
    for step, rank in itertools.product(range(order.spec.steps), range(world_size)):
        index, weight = order.part(step, rank, world_size)
        rows.append(index[weight > 0])
    return np.concatenate(rows)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 255, 256, 257, 1024, 1025, 100_003])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_permute_is_a_bijection(size, key):
    np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_permute_refuses_places_outside():
    with pytest.raises(ValueError, match=r"places must lie in 0 \.\.\. 9"):
        permute(np.array([10]), 10, 1)


def test_every_row_takes_every_place_equally_often():
    size, keys = 12, 6000
    counts = np.zeros((size, size))
    for seed in range(keys):
        key = order_key(spec(seed=seed), 0)
        counts[np.arange(size), permute(np.arange(size), size, key)] += 1
    chi2 = ((counts - keys / size) ** 2 / (keys / size)).sum()
    freedom = (size - 1) ** 2
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_are_torn_apart():
    """Rank correlation of successive rows is that of a random order: 0 within 5 sigma."""
    rows = permute(np.arange(200_000), 200_000, 7).astype(float)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 5 / np.sqrt(len(rows))


def test_the_order_is_fixed_for_good():
    """A changed order would break the resume of older runs: then raise the version in the key."""
    order = EpochOrder(spec(rows=10, global_batch=10), 0)
    assert order.part(0)[0].tolist() == GOLDEN_GLOBAL
    block = spec(rows=1000, global_batch=10, shuffle="block")
    assert EpochOrder(block, 1, block_bounds([600, 400])).part(3)[0].tolist() == GOLDEN_BLOCK


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3000),
    per_rank=st.integers(1, 40),
    world_size=st.sampled_from([1, 2, 3, 4, 7]),
    shuffle=st.sampled_from(["global", "block", None]),
    drop_last=st.booleans(),
    epoch=st.integers(0, 5),
)
def test_every_row_comes_once_and_ranks_take_equal_steps(
    rows, per_rank, world_size, shuffle, drop_last, epoch
):
    s = spec(rows=rows, global_batch=per_rank * world_size, shuffle=shuffle, drop_last=drop_last)
    order = order_of(s, epoch)
    seen = epoch_rows(order, world_size) if s.steps else np.empty(0, int)
    assert len(seen) == s.used_rows
    assert len(np.unique(seen)) == len(seen)
    assert s.used_rows == (rows // s.global_batch * s.global_batch if drop_last else rows)


@pytest.mark.parametrize("shuffle", ["global", "block", None])
def test_ranks_divide_the_same_global_batch(shuffle):
    order = order_of(spec(shuffle=shuffle))
    for step in range(order.spec.steps):
        whole = order.part(step)
        for world_size in (2, 3, 4, 48):
            parts = [order.part(step, rank, world_size) for rank in range(world_size)]
            np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), whole[0])
            np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), whole[1])


def test_only_the_last_batch_is_filled_and_fillers_weigh_nothing():
    order = order_of(spec(rows=100, global_batch=48))
    weights = [order.part(step)[1] for step in range(order.spec.steps)]
    assert [w.sum() for w in weights] == [48, 48, 4]
    assert weights[2].tolist() == [1] * 4 + [0] * 44
    assert order.part(2)[0].max() < 100


def test_a_batch_larger_than_the_split_is_one_filled_batch():
    index, weight = order_of(spec(rows=5, global_batch=12)).part(0)
    assert sorted(index[weight > 0].tolist()) == [0, 1, 2, 3, 4]
    assert np.isin(index, np.arange(5)).all()


@pytest.mark.parametrize("shuffle", ["global", "block"])
@pytest.mark.parametrize(
    ("other", "epoch"),
    [({"seed": 1}, 0), ({"dataset_id": "e"}, 0), ({"global_batch": 24}, 0), ({}, 1)],
)
def test_seed_dataset_batch_and_epoch_change_the_order(shuffle, other, epoch):
    first = epoch_rows(order_of(spec(shuffle=shuffle)))
    second = epoch_rows(order_of(spec(shuffle=shuffle, **other), epoch))
    # Two random orders of n rows share one place on average.
    assert (first == second).sum() < 10
    assert sorted(first) == sorted(second)


def test_no_shuffle_is_the_stored_order():
    np.testing.assert_array_equal(epoch_rows(order_of(spec(shuffle=None))), np.arange(1000))


def test_blocks_never_cross_a_shard():
    bounds = block_bounds([600, 0, 256, 1])
    assert bounds.tolist() == [0, 256, 512, 600, 856, 857]


@pytest.mark.parametrize(
    "bounds", [None, [], [1000], [1, 1000], [0, 999], [0, 600, 400, 1000], [0, -256, 1000]]
)
def test_blocks_that_do_not_cover_the_rows_once_are_refused(bounds):
    blocks = None if bounds is None else np.array(bounds, np.int64)
    with pytest.raises(ValueError, match="bounds of blocks"):
        EpochOrder(spec(shuffle="block"), 0, blocks)


@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_range_has_no_permutation(size):
    with pytest.raises(ValueError, match="cannot be permuted"):
        permute(np.zeros(0, np.int64), size, 1)


def test_places_that_are_no_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="places of type float64"):
        permute(np.array([np.nan]), 10, 1)


def test_a_step_outside_the_epoch_is_refused():
    with pytest.raises(IndexError, match="step 21 is outside the epoch's 21 steps"):
        order_of(spec()).part(21)


def block_order(rows=200_000, batch=256, epoch=0):
    s = spec(rows=rows, global_batch=batch, shuffle="block")
    return EpochOrder(s, epoch, block_bounds(shards(rows, 8192)))


def test_a_block_shuffled_batch_is_drawn_from_many_blocks():
    """A batch of 256 from 32 lanes holds rows of at least 32 blocks, and few neighbours."""
    order = block_order()
    for step in range(0, order.spec.steps - 1, 25):
        rows = np.sort(order.part(step)[0])
        assert len(np.unique(rows // BLOCK_ROWS)) >= 32
        assert (np.diff(rows) == 1).mean() < 0.05


def test_block_shuffle_mixes_nearly_as_well_as_global():
    """The batch means of a quantity that drifts along the split scatter like those of the global.

    The quantity has one value a shard, as bad as an unshuffled conversion could make it. The ratio
    of variances of batch means to that of independent draws is 1 for the global order. For blocks
    of 256 rows, 8 rows of a lane in a batch, it stays near 1 + 7 = 8, where reading straight
    through would give 256.
    """
    rows, batch = 200_000, 256
    value = np.random.default_rng(0).normal(size=rows // 8192 + 1)[np.arange(rows) // 8192]

    def excess(order):
        means = [value[order.part(step)[0]].mean() for step in range(order.spec.steps - 1)]
        return np.var(means) / (value.var() / batch)

    assert excess(EpochOrder(spec(rows=rows, global_batch=batch), 0)) == pytest.approx(1, abs=0.25)
    assert 1 < excess(block_order(rows, batch)) < 16
    assert excess(EpochOrder(spec(rows=rows, global_batch=batch, shuffle=None), 0)) > 200


def test_block_shuffle_of_shuffled_shards_leaves_no_trace():
    """Where the rows lie in random order, as conversion writes them, batches are as if drawn."""
    rows, batch = 200_000, 256
    value = np.random.default_rng(1).normal(size=rows)
    order = block_order(rows, batch)
    means = [value[order.part(step)[0]].mean() for step in range(order.spec.steps - 1)]
    assert np.var(means) * batch == pytest.approx(1, abs=0.25)


def test_ranks_of_a_block_shuffle_read_different_blocks():
    """Eight ranks together read hardly more than the dataset once: what lanes are for."""
    order = block_order(rows=200_000, batch=256)
    blocks = [set() for _ in range(8)]
    for step, rank in itertools.product(range(order.spec.steps - 1), range(8)):
        blocks[rank] |= set((order.part(step, rank, 8)[0] // BLOCK_ROWS).tolist())
    assert sum(map(len, blocks)) < 1.1 * len(set.union(*blocks))


def test_a_block_is_read_in_one_stretch_of_time():
    """From the first row of a block to its last are at most three windows of its lane."""
    order = block_order()
    steps = np.concatenate([np.full(256, s) for s in range(order.spec.steps - 1)])
    rows = np.concatenate([order.part(s)[0] for s in range(order.spec.steps - 1)])
    block = rows // BLOCK_ROWS
    spans = [np.ptp(steps[block == b]) for b in np.unique(block)[::20]]
    assert np.quantile(spans, 0.9) <= 3 * 512 / 8


def test_the_mixing_window_is_reported_in_samples():
    assert spec(rows=10**6, global_batch=256, shuffle="block").mixing_window == 16_384
    assert spec(rows=10**6, global_batch=8, shuffle="block").mixing_window == 4_096
    assert spec(rows=10**6).mixing_window == 10**6
    assert spec(rows=10**6, shuffle=None).mixing_window == 48


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_any_step_of_ten_million_rows_costs_little(shuffle):
    """O(1): no permutation is stored and the last step costs what the first does."""
    s = spec(rows=10_000_000, global_batch=256, shuffle=shuffle)
    order_of(spec(shuffle=shuffle)).part(0)  # compile
    bounds = block_bounds(shards(s.rows, 8192))
    tracemalloc.start()
    start = time.perf_counter()
    order = EpochOrder(s, 3, bounds)
    last = order.part(s.steps - 1)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last[1].sum() == 10_000_000 % 256
    assert seconds < 0.25
    assert peak < 4 << 20


def test_repeat_counts_are_exact_in_sum_and_within_one_of_the_weight():
    rng = np.random.default_rng(2)
    weights = rng.gamma(1.0, 1.0, 5000)
    weights *= 5000 / weights.sum()
    counts = repeat_counts(weights, 99)
    assert counts.sum() == 5000
    assert (counts >= np.floor(weights - 1e-9)).all()
    assert (counts <= np.ceil(weights + 1e-9)).all()


def test_repeat_counts_have_the_weight_as_their_mean_over_epochs():
    weights = np.array([0.25, 1.0, 2.5, 0.05, 0.2])
    mean = np.mean(
        [repeat_counts(weights, order_key(spec(), epoch)) for epoch in range(4000)], axis=0
    )
    np.testing.assert_allclose(mean, weights, atol=0.04)


def test_repeat_counts_of_equal_weights_are_not_locked_together():
    """Half weights draw many subsets of rows, not only the even and the odd ones."""
    weights = np.full(40, 0.5)
    drawn = {tuple(repeat_counts(weights, order_key(spec(), e))) for e in range(50)}
    assert len(drawn) == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"global_batch": 0}, "global_batch must be at least 1"),
        ({"shuffle": "rows"}, "shuffle must be 'global', 'block' or None, got 'rows'"),
    ],
)
def test_an_impossible_order_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        spec(**change)

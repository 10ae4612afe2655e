"""Placement: uniform, seeded, and a function of the row alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from lensprep.decode.placement import row_key, row_place, shard_count, shard_range, sort_order


def test_a_key_is_32_hex_digits_and_tells_rows_apart():
    keys = {row_key("a", "b"), row_key("ab", ""), row_key("a", "c"), row_key("b", "b")}
    assert len(keys) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)


def test_key_and_place_never_change():
    # The bytes of every dataset hang on these: a change is a change of the format.
    key = row_key("0" * 64, "f" * 32)
    assert key == "ee6c11d38f0e6061f5ff143b10bd3af7"
    assert row_place(0, key) == 9400488577570699058


def test_places_are_uniform_and_differ_by_seed():
    keys = [row_key(str(i), "") for i in range(4000)]
    first = np.array([row_place(0, key) for key in keys], float) / 2**64
    second = np.array([row_place(1, key) for key in keys], float) / 2**64
    assert kstest(first, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_every_place_is_in_exactly_one_shard(shards, place):
    index = place * shards >> 64
    low, high = shard_range(index, shards)
    # Edges round down, so a place may belong to the shard before or after the estimate.
    hits = [
        i
        for i in range(max(0, index - 1), min(shards, index + 2))
        if shard_range(i, shards)[0] <= place < shard_range(i, shards)[1]
    ]
    assert len(hits) == 1
    assert high > low


@pytest.mark.parametrize(
    ("rows", "size", "shards"), [(0, 10, 0), (1, 10, 1), (10, 10, 1), (11, 10, 2)]
)
def test_shards_have_at_most_their_rows_on_average(rows, size, shards):
    assert shard_count(rows, size) == shards


def test_rows_are_sorted_by_place_and_then_by_key():
    places = np.array([5, 2, 5, 2**64 - 1], np.uint64)
    keys = np.array([b"b", b"z", b"a", b"c"])
    assert sort_order(places, keys).tolist() == [1, 2, 0, 3]

"""What is read next: first what is needed first, and with it the neighbours needed soon."""

from __future__ import annotations

import numpy as np
import pytest

from lensprep.dataset import RECORD_STRIDE
from lenstrain.data.sources.buffers import ABSENT, COMING, HERE
from lenstrain.data.sources.cells import cut_into_cells
from lenstrain.data.sources.schedule import RUN_CELLS, Schedule


@pytest.fixture
def schedule():
    """Of two shards of twelve cells each."""
    cells = cut_into_cells(np.array([0, 12, 24]) * 256, RECORD_STRIDE)
    return Schedule(cells, np.full(len(cells), ABSENT, np.int8))


def read(schedule, room=100, *, whole=False):
    cells = schedule.next_run(room, whole=whole)
    schedule.state[cells] = COMING
    return cells


def test_neighbours_of_one_shard_are_read_together_up_to_a_limit(schedule):
    schedule.announce(np.arange(24))
    runs = [read(schedule) for _ in range(5)]
    assert runs == [
        list(range(8)),
        list(range(8, 12)),
        list(range(12, 20)),
        list(range(20, 24)),
        [],
    ]
    assert max(map(len, runs)) == RUN_CELLS


def test_what_is_needed_first_is_read_first(schedule):
    for cells in ([20], [3], [13]):
        schedule.announce(np.array(cells))
    assert [read(schedule) for _ in range(3)] == [[20], [3], [13]]


def test_neighbours_that_are_needed_much_later_wait(schedule):
    schedule.announce(np.array([4]))
    schedule.announce(np.array([20]))
    schedule.announce(np.array([5]))
    schedule.reach = 2
    assert [read(schedule) for _ in range(3)] == [[4], [20], [5]]


def test_backwards_only_to_a_multiple(schedule):
    schedule.announce(np.array([9]))
    schedule.announce(np.array([6, 7, 8, 10]))
    assert read(schedule) == [8, 9, 10]
    assert read(schedule) == [6, 7]


@pytest.mark.parametrize(("room", "whole", "cells"), [
    (4, True, [0, 1, 2, 3]), (3, True, []), (3, False, [0, 1, 2]), (1, False, [0]), (0, False, []),
])  # fmt: skip
def test_a_run_waits_for_room_or_takes_what_there_is(schedule, room, whole, cells):
    schedule.announce(np.arange(4))
    assert read(schedule, room, whole=whole) == cells


def test_what_is_no_longer_needed_or_there_already_is_not_read(schedule):
    schedule.announce(np.array([0, 5]))
    schedule.announce(np.array([5, 9]))
    schedule.state[9] = HERE
    assert schedule.forget(np.array([0, 5])) == [0]
    assert read(schedule) == [5]
    assert read(schedule) == []
    assert schedule.forget(np.array([5, 9])) == [5, 9]
    assert schedule.forget(np.array([5])) == [5]  # never below none


def test_what_somebody_waits_for_goes_before_and_what_was_given_up_behind(schedule):
    schedule.announce(np.array([0]))
    schedule.announce(np.array([20, 9]))
    schedule.want_first([9])
    schedule.want_first([9])  # a second look changes nothing
    assert [read(schedule) for _ in range(2)] == [[9], [0]]
    schedule.state[[9, 0]] = ABSENT
    schedule.want_again(9, last=True)
    schedule.want_again(0)
    schedule.want_again(2)  # which nobody needs
    assert [read(schedule) for _ in range(4)] == [[0], [20], [9], []]

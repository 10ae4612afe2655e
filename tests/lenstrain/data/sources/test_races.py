"""A second request is made for a cell that is much slower than others, and seldom."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lenstrain.data.sources.races import RACE_SECONDS, Races


@dataclass
class Run:
    waits_for: int | None
    mark: float = 0.0
    race: bool = False
    stopped: bool = False


def after(*seconds):
    races = Races()
    for each in seconds:
        races.took(each)
    return races


@pytest.mark.parametrize(("seconds", "slow"), [
    ([], 5.0),
    ([9.0] * 3, 5.0),  # nothing to compare with yet
    ([0.01] * 4, RACE_SECONDS),
    ([1.0, 1.0, 2.0, 90.0, 1.0], 5.0),  # the median is not misled
    ([2.0] * 4, 10.0),
    ([2.0] * 64 + [1.0] * 64, 5.0),  # only the last ones count
])  # fmt: skip
def test_slow_is_what_takes_many_times_the_median(seconds, slow):
    assert after(*seconds).slow_after() == slow


def test_the_request_that_a_cell_waits_for_is_the_slow_one():
    races, run = after(*[0.1] * 4), Run(7)
    runs = [Run(3), run, Run(None)]
    assert races.slow(7, runs, 0.49, 100) is None
    assert races.slow(7, runs, 0.51, 100) is run
    assert races.slow(8, runs, 9.0, 100) is None


@pytest.mark.parametrize("other", [
    [Run(7)],  # two bring it already
    [Run(1, race=True), Run(2, race=True)],
])  # fmt: skip
def test_there_are_few_races_at_once(other):
    assert after(*[0.1] * 4).slow(7, [Run(7), *other], 9.0, 100) is None


def test_a_stopped_request_brings_nothing():
    live = Run(7)
    races = after(*[0.1] * 4)
    assert races.slow(7, [Run(7, stopped=True)], 9.0, 100) is None
    assert races.slow(7, [Run(7, stopped=True), live], 9.0, 100) is live


def test_one_request_in_fifty_may_be_a_second_one():
    races = after(*[0.1] * 4)
    races.begun = 2
    assert races.slow(7, [Run(7)], 9.0, 49) is None
    assert races.slow(7, [Run(7)], 9.0, 50) is not None

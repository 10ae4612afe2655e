"""Intervals from one set of draws of regions."""

import numpy as np
import pytest
from scipy import stats

from lenstrain.evaluation.bootstrap import ratio
from lenstrain.evaluation.clustered import FewRegions
from lenstrain.evaluation.intervals import percentile_interval, t_interval
from lenstrain.evaluation.resampling import make_resampling


def test_the_first_row_of_weights_gives_the_value():
    resampling = make_resampling(5, 20, 1, 0.95, "bca")
    assert resampling.weights.shape == (1 + 20 + 5, 5)
    assert resampling.weights[0].tolist() == [1.0] * 5
    assert resampling.weights[-1].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]


def draws_of_means(kind, resamples=4000):
    """Means of nine regions of one row each, whose t interval is the textbook's."""
    values = np.array([1.0, 4, 2, 8, 5, 7, 1, 3, 6])
    resampling = make_resampling(9, resamples, 0, 0.95, kind)
    weights = resampling.weights
    return values, resampling, ratio(weights @ values, weights @ np.ones(9))


def test_a_t_interval_of_regions_is_student_s():
    values, resampling, draws = draws_of_means("t")
    found = resampling.entry(draws, "linear")
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found["value"] == pytest.approx(values.mean())
    assert (found["low"], found["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.1)


def test_percentiles_of_the_same_draws_are_narrower():
    _, by_t, draws = draws_of_means("t")
    _, by_percentile, same = draws_of_means("percentile")
    assert np.array_equal(draws, same)
    plain = by_percentile.entry(same, "linear")
    assert (plain["low"], plain["high"]) == percentile_interval(same[1:], 0.95)
    t = by_t.entry(draws, "linear")
    assert t["low"] < plain["low"]
    assert t["high"] > plain["high"]


def test_a_statistic_of_fewer_regions_has_its_own_degrees():
    _, resampling, draws = draws_of_means("t")
    few = FewRegions(np.float64(2.0), np.float64(1.0))
    found = resampling.entry(draws / 10, "logit", few)
    expected = t_interval(draws[1:] / 10, float(draws[0] / 10), 0.95, 1.0, 2.0)
    assert (found["low"], found["high"]) == expected


@pytest.mark.parametrize("kind", ["t", "percentile", "bca"])
def test_one_region_gives_no_interval(kind):
    resampling = make_resampling(1, 50, 0, 0.95, kind)
    entry = resampling.entry(np.full(resampling.weights.shape[0], 0.7))
    assert entry["value"] == 0.7
    assert np.isnan(entry["low"])
    assert np.isnan(entry["high"])

"""Intervals from one set of draws, where draws can say something and where they cannot."""

import numpy as np
import pytest
from scipy import stats

from lenstrain.evaluation.bootstrap import ratio_of_weights
from lenstrain.evaluation.resampling import make_resampling


def share(hits, rows, level=0.95):
    hits, rows = np.array(hits, float), np.array(rows, float)
    resampling = make_resampling(hits.size, 500, 0, level)
    draws = ratio_of_weights(resampling.weights, hits, rows)
    return resampling.share(draws, int(hits.sum()), int(rows.sum()), int((rows > 0).sum()))


def test_the_first_row_of_weights_gives_the_value():
    resampling = make_resampling(5, 20, 1, 0.95, "bca")
    assert resampling.weights.shape == (1 + 20 + 5, 5)
    assert resampling.weights[0].tolist() == [1.0] * 5
    assert resampling.weights[-1].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_a_share_is_drawn_by_region():
    entry = share([2, 0, 5, 1], [10, 10, 10, 10])
    assert entry["value"] == 0.2
    assert (entry["k"], entry["n"], entry["regions"], entry["method"]) == (8, 40, 4, "regions")
    assert 0 < entry["low"] < 0.2 < entry["high"] <= 0.5


@pytest.mark.parametrize(
    ("hits", "rows"), [([0, 0, 0], [10, 10, 10]), ([9, 9, 9], [9, 9, 9]), ([0, 3, 0], [0, 10, 0])]
)
def test_draws_that_cannot_vary_give_way_to_wilson(hits, rows):
    entry = share(hits, rows)
    theirs = stats.binomtest(sum(hits), sum(rows)).proportion_ci(0.95, "wilson")
    assert entry["method"] == "wilson"
    assert (entry["low"], entry["high"]) == pytest.approx((theirs.low, theirs.high))


def test_one_region_gives_no_interval():
    resampling = make_resampling(1, 50, 0, 0.95)
    entry = resampling.entry(np.full(51, 0.7))
    assert entry["value"] == 0.7
    assert np.isnan(entry["low"])
    assert np.isnan(entry["high"])

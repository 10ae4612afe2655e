"""Intervals against worked vectors and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from lensprep.errors import ScoresError
from lenstrain.evaluation import intervals

TABLE = [
    # k, n, Wilson
    (0, 10, (0.0, 0.277533)),
    (3, 10, (0.107791, 0.603222)),
    (100, 112, (0.822019, 0.937640)),
]


@pytest.mark.parametrize(("k", "n", "by_wilson"), TABLE)
def test_intervals_equal_the_worked_vectors(k, n, by_wilson):
    assert np.array(intervals.wilson(k, n)) == pytest.approx(by_wilson, abs=6e-7)


@pytest.mark.parametrize("level", [0.68, 0.95])
def test_every_small_case_equals_scipy(level):
    for n in (1, 2, 7, 30):
        k = np.arange(n + 1)
        low, high = intervals.wilson(k, n, level)
        for i in k:
            theirs = stats.binomtest(int(i), n).proportion_ci(level, "wilson")
            assert (low[i], high[i]) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_no_trials_say_nothing():
    low, high = intervals.wilson([0, 1], [0, 2])
    assert (low[0], high[0]) == (0.0, 1.0)


def test_more_hits_than_trials_are_an_error():
    with pytest.raises(ValueError, match="0 <= k <= n"):
        intervals.wilson(3, 2)


def test_no_false_positive_in_30000_gives_three_over_n():
    assert intervals.upper_limit(0, 30_000) == pytest.approx(9.985e-5, abs=1e-8)
    assert intervals.upper_limit(5, 5) == 1.0
    exact = stats.binomtest(3, 50, alternative="less").proportion_ci(0.95, "exact")
    assert intervals.upper_limit(3, 50) == pytest.approx(exact.high, abs=1e-9)


def test_delong_equals_the_worked_vector():
    labels = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    scores = [0.9, 0.8, 0.7, 0.4, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1]
    assert intervals.delong_se(labels, scores) == pytest.approx(0.1348010, abs=5e-8)


def test_delong_needs_two_of_each_class():
    with pytest.raises(ScoresError, match="two rows"):
        intervals.delong_se([1, 0, 0], [1.0, 2.0, 3.0])


def test_percentiles_leave_out_undefined_draws():
    draws = np.append(np.arange(101.0), [math.nan] * 5)
    assert intervals.percentile_interval(draws, 0.9) == pytest.approx((5.0, 95.0))
    assert math.isnan(intervals.percentile_interval([math.nan, 1.0], 0.9).low)


def test_bca_equals_scipy():
    data = np.random.default_rng(1).lognormal(size=60)
    ours_draws = []

    def statistic(sample, axis=-1):
        return np.mean(sample, axis=axis)

    theirs = stats.bootstrap(
        (data,), statistic, n_resamples=4000, method="BCa", rng=np.random.default_rng(2)
    )
    ours_draws = theirs.bootstrap_distribution
    jackknife = (data.sum() - data) / (data.size - 1)
    ours = intervals.bca_interval(ours_draws, jackknife, float(data.mean()))
    assert ours == pytest.approx(tuple(theirs.confidence_interval), rel=1e-6)


def test_bca_falls_back_where_it_is_undefined():
    draws = np.linspace(0, 1, 11)
    plain = intervals.percentile_interval(draws, 0.8)
    assert intervals.bca_interval(draws, np.full(5, 0.3), 0.3, 0.8) == plain
    assert intervals.bca_interval(draws, [0.1, 0.2], 2.0, 0.8) == plain


@pytest.mark.parametrize(("k", "n"), [(0.02, 0.03), (0.5, 0.7), (0.9, 1.0), (2.4, 6.7), (0.0, 0.1)])
def test_trials_need_not_be_whole(k, n):
    low, high = intervals.wilson(k, n)
    z, share = stats.norm.ppf(0.975), k / n
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):  # where the share lies z standard errors off
        assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n)


def test_a_t_interval_is_symmetric_on_the_logit_scale():
    draws = np.random.default_rng(3).normal(0.9, 0.02, 2000)
    low, high = intervals.t_interval(draws, 0.9, 0.95, degrees=4, factor=1.25)
    half = stats.t.ppf(0.975, 4) * draws.std(ddof=1) * math.sqrt(1.25)
    for end, sign in ((low, -1), (high, 1)):
        assert math.log(end / (1 - end)) == pytest.approx(math.log(9) + sign * half / 0.09)
    wide = intervals.t_interval(draws * 40 - 35.1, 0.9, 0.95, degrees=1)
    assert 0 <= wide.low < 0.01 < 0.99 < wide.high <= 1  # within 0 and 1, however wide


def test_a_linear_t_interval_may_cross_zero():
    draws = np.random.default_rng(3).normal(0.01, 0.02, 2000)
    low, high = intervals.t_interval(draws, 0.01, 0.95, degrees=9, scale="linear")
    half = stats.t.ppf(0.975, 9) * draws.std(ddof=1)
    assert (low, high) == pytest.approx((0.01 - half, 0.01 + half))
    alike = intervals.t_interval([0.0, 0.0, 0.0], 0.0, 0.95, degrees=9, scale="linear")
    assert alike == (0.0, 0.0)  # two models that agree in every draw


@pytest.mark.parametrize(
    ("draws", "value"),
    [
        ([0.5, 0.5, 0.5], 0.5),
        ([0.3], 0.3),
        ([0.1, 0.2], math.nan),
    ],
)
def test_draws_that_say_nothing_give_no_t_interval(draws, value):
    assert np.isnan(intervals.t_interval(draws, value, 0.95, degrees=3)).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_perfect_area_is_known_as_well_as_so_many_regions_let_it(value):
    found = intervals.t_interval([value] * 3, value, 0.95, degrees=39)
    assert found == pytest.approx([float(end) for end in intervals.wilson(40 * value, 40)])


def test_a_t_interval_leaves_out_undefined_draws():
    draws = np.random.default_rng(3).normal(0.5, 0.02, 100)
    gaps = np.append(draws, [math.nan] * 9)
    found = intervals.t_interval(gaps, 0.5, 0.95, degrees=3)
    assert found == intervals.t_interval(draws, 0.5, 0.95, degrees=3)

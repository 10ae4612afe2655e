"""What rows that share regions and images are worth: against hand-made sums, scipy, simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lenstrain.evaluation.clustered import (
    Shares,
    few_regions,
    latent_correlation,
    tail_correlation,
    upper_limit_of,
    worth_of,
)


def shares(hits, rows, repeats=None, correlation=0.0):
    rows = np.array(rows, float)
    repeats = rows.sum() if repeats is None else repeats
    return Shares(np.array(hits, float), rows, np.asarray(float(repeats)), correlation)


def narrower(degrees, confidence):
    """What Student's t takes off a number of rows."""
    return (stats.norm.isf(1 - confidence) / stats.t.isf(1 - confidence, degrees)) ** 2


# -- Correlation of scores -------------------------------------------------------------------------


def test_correlation_is_that_of_the_analysis_of_variance():
    scores = np.array([0.1, 0.4, 2.0, 3.5, -3.6, 9.0, 8.0])
    region = np.array([0, 0, 1, 1, 0, 2, 2])
    normal = stats.norm.ppf((np.array([2, 3, 4, 5, 1, 7, 6]) - 0.5) / 7)
    groups = [normal[region == r] for r in range(3)]
    between = sum(g.size * (g.mean() - normal.mean()) ** 2 for g in groups) / 2
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / 4
    size = (7 - (9 + 4 + 4) / 7) / 2
    expected = (between - within) / (between + (size - 1) * within)
    assert expected > 0.1
    assert latent_correlation(scores, region) == pytest.approx(expected)


@pytest.mark.parametrize("correlation", [0.05, 0.3, 0.8])
def test_correlation_of_simulated_regions_is_found(correlation):
    rng = np.random.default_rng(0)
    region = np.repeat(np.arange(800), rng.integers(2, 9, 800))
    shared = np.sqrt(correlation) * rng.normal(size=800)[region]
    scores = shared + np.sqrt(1 - correlation) * rng.normal(size=region.size)
    assert latent_correlation(scores, region) == pytest.approx(correlation, abs=0.03)


def test_correlation_depends_on_ranks_alone():
    rng = np.random.default_rng(1)
    region = rng.integers(0, 20, 300)
    scores = rng.normal(size=300) + rng.normal(size=20)[region]
    found = latent_correlation(scores, region)
    assert latent_correlation(np.exp(3 * scores), region) == found
    order = rng.permutation(300)
    assert latent_correlation(scores[order], region[order]) == pytest.approx(found, abs=1e-12)
    gaps = rng.permutation(40)[:20]  # other numbers for the same regions, some without a row
    assert latent_correlation(scores, gaps[region]) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "region"),
    [
        ([1.0, 2.0, 3.0], [0, 1, 2]),
        ([1.0, 2.0, 3.0], [0, 0, 0]),
        ([5.0, 5.0, 5.0, 5.0], [0, 0, 1, 1]),
        ([1.0, 2.0, 1.0, 2.0], [0, 0, 1, 1]),  # less alike than chance
        ([], []),
    ],
)
def test_no_correlation_where_none_can_be_seen(scores, region):
    assert latent_correlation(np.array(scores), np.array(region, int)) == 0.0


def test_correlation_stays_below_one():
    scores = np.repeat(np.arange(5.0), 4)
    assert latent_correlation(scores, np.repeat(np.arange(5), 4)) == 0.95


@pytest.mark.parametrize("correlation", [0.02, 0.3, 0.95])
@pytest.mark.parametrize("rate", [0.5, 0.9, 0.1, 1e-2, 1e-4])
def test_correlation_in_the_tail_is_that_of_the_bivariate_normal(correlation, rate):
    normal = stats.multivariate_normal(cov=[[1, correlation], [correlation, 1]])
    cut = stats.norm.ppf(rate)
    both = normal.cdf([cut, cut])
    expected = (both - rate**2) / (rate * (1 - rate))
    assert tail_correlation(correlation, rate) == pytest.approx(expected, rel=1e-5)


def test_correlation_at_one_half_is_the_arc_sine_and_falls_with_the_rate():
    assert tail_correlation(0.3, 0.5) == pytest.approx(2 / np.pi * np.arcsin(0.3))
    along = tail_correlation(0.3, np.array([0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5]))
    assert np.all(np.diff(along) < 0)
    assert np.all(tail_correlation(0.0, np.array([0.0, 0.01, 1.0])) == 0)


# -- Few and unequal regions -----------------------------------------------------------------------


@pytest.mark.parametrize("regions", [2, 3, 40])
@pytest.mark.parametrize("shared", [0.0, 0.3])
def test_equal_regions_have_g_minus_one_degrees(regions, shared):
    few = few_regions(np.full(regions, 7.0), shared)
    assert few.factor == pytest.approx(regions / (regions - 1))
    assert few.degrees == pytest.approx(regions - 1)


def scatter_of(rows, shared):
    """Variance of all hits, and covariance of what is left of each region's by its share."""
    rows = np.array(rows, float)
    centred = np.eye(rows.size) - np.outer(rows / rows.sum(), np.ones(rows.size))
    variance = rows * (1 + (rows - 1) * shared)
    return variance.sum(), centred @ np.diag(variance) @ centred.T


UNEQUAL = [[100] + [10] * 10, [30] * 3 + [1] * 30, [50, 50, 1], [200, 100, 50, 25, 12, 6, 3]]


@pytest.mark.parametrize("rows", UNEQUAL)
@pytest.mark.parametrize("shared", [0.0, 0.05, 0.5])
def test_unequal_regions_scatter_less_than_they_vary(rows, shared):
    total, covariance = scatter_of(rows, shared)
    few = few_regions(np.array(rows, float), shared)
    assert few.factor == pytest.approx(total / np.trace(covariance))
    # Satterthwaite's degrees, or fewer: a limit may be too careful, never too bold.
    exact = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    assert 1 <= few.degrees <= exact + 1e-9 or few.degrees == 1


def test_the_factor_mends_the_scatter_of_simulated_regions():
    rng = np.random.default_rng(2)
    rows = np.array([40, 40, 20, 5, 5, 5])
    latent = 0.6 * rng.normal(size=(20_000, 6, 1)) + 0.8 * rng.normal(size=(20_000, 6, 40))
    flagged = (latent > 0) & (np.arange(40) < rows[:, None])
    hits = flagged.sum(axis=2)
    share = hits.sum(axis=1) / rows.sum()
    scatter = ((hits - share[:, None] * rows) ** 2).sum(axis=1).mean()
    factor = few_regions(rows.astype(float), tail_correlation(0.36, 0.5)).factor
    assert scatter * factor == pytest.approx(hits.sum(axis=1).var(), rel=0.03)


# -- What rows are worth ---------------------------------------------------------------------------


def worth(share, scatter, rows, repeats=None, shared=0.0, confidence=0.975):
    rows = np.array(rows, float)
    repeats = rows.sum() if repeats is None else repeats
    return worth_of(
        np.float64(share), np.float64(scatter), rows, repeats, np.float64(shared), confidence
    )


def test_rows_that_correlate_are_worth_n_over_the_design_effect():
    found = worth(0.1, 0.0, [20] * 50, shared=0.03)
    assert found == pytest.approx(1000 / (1 + 19 * 0.03) * narrower(49, 0.975))


def test_scatter_between_regions_counts_where_it_is_larger():
    hits, rows = np.array([0.0, 0, 5, 10]), np.full(4, 10.0)
    share = 15 / 40
    scatter = ((hits - share * rows) ** 2).sum()
    assert scatter == pytest.approx(68.75)
    variance = 68.75 * 4 / 3 / 40**2
    expected = share * (1 - share) / variance * narrower(3, 0.975)
    assert shares(hits, rows).worth(0.975) == pytest.approx(expected)
    assert shares([2, 4, 4, 5], rows).worth(0.975) == pytest.approx(40 * narrower(3, 0.975))


def test_repeated_images_are_worth_one_each():
    alone = [24] * 10  # ten regions, each of one image 24 times
    assert worth(0.0, 0.0, alone, repeats=10 * 24**2) == 10
    several = worth(0.0, 0.0, [48] * 10, repeats=20 * 24**2, shared=0.1)
    assert several == pytest.approx(20 / (1 + 0.1) * narrower(9, 0.975))


def test_one_region_is_worth_nothing_that_is_known():
    assert np.isnan(worth(0.5, 0.0, [9]))
    assert np.isnan(worth(0.5, 0.0, [0, 9, 0]))
    assert np.isnan(shares([0, 3, 0], [0, 9, 0]).interval(0.95)).all()
    assert np.isnan(shares([0, 3, 0], [0, 9, 0]).upper_limit(0.95))


def test_a_share_correlates_as_at_the_likely_rate_nearest_to_one_half():
    rows = np.full(30, 10.0)
    none = shares(np.zeros(30), rows, correlation=0.4)
    highest = stats.binomtest(0, 300).proportion_ci(0.95, "wilson").high
    shared = float(tail_correlation(0.4, highest))
    assert none.worth(0.975) == pytest.approx(300 / (1 + 9 * shared) * narrower(29, 0.975))


# -- Intervals and limits --------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 12), (3, 12), (12, 12), (1, 1)])
def test_rows_in_regions_of_their_own_have_the_interval_of_independent_rows(k, n):
    found = shares([1] * k + [0] * (n - k), [1] * n, correlation=0.9)
    entry = found.entry(0.95)
    wilson = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert (entry["low"], entry["high"]) == pytest.approx((wilson.low, wilson.high))
    assert (entry["wilson_low"], entry["wilson_high"]) == (entry["low"], entry["high"])
    assert (entry["method"], entry["effective"], entry["regions"]) == ("wilson", n, n)
    exact = stats.binomtest(k, n, alternative="less").proportion_ci(0.95, "exact").high
    assert found.upper_limit(0.95) == pytest.approx(exact)


def test_an_interval_by_region_is_wilson_s_of_what_the_rows_are_worth():
    entry = shares([0, 0, 5, 10], [10] * 4).entry(0.9)
    n, p, z = entry["effective"], 15 / 40, stats.norm.ppf(0.95)
    assert n == pytest.approx(p * (1 - p) * 1600 / (68.75 * 4 / 3) * narrower(3, 0.95))
    roots = np.roots([1 + z**2 / n, -(2 * p + z**2 / n), p**2])  # (p - x)^2 = z^2 x (1 - x) / n
    assert sorted(roots) == pytest.approx([entry["low"], entry["high"]])
    assert (entry["k"], entry["n"], entry["regions"], entry["method"]) == (15, 40, 4, "regions")
    wilson = stats.binomtest(15, 40).proportion_ci(0.9, "wilson")
    assert entry["wilson_low"] == pytest.approx(wilson.low)


def test_a_thousand_images_24_times_limit_a_rate_as_a_thousand_do():
    once = shares(np.zeros(1000), [1] * 1000)
    often = shares(np.zeros(1000), [24] * 1000, repeats=1000 * 24**2)
    for found in (once, often):
        assert found.upper_limit(0.95) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert often.upper_limit(0.95) == pytest.approx(2.991e-3, abs=5e-7)


def test_no_rows_have_no_share():
    entry = shares([0, 0], [0, 0]).entry(0.95)
    assert (entry["value"], entry["low"], entry["n"]) == (None, None, 0)
    assert entry["reason"] == "no row of this kind"


@st.composite
def any_shares(draw):
    cells = draw(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), min_size=2, max_size=8))
    rows = np.array([n for n, _ in cells])
    hits = np.array([round(n * part) for n, part in cells])
    copies = draw(st.integers(1, 3))
    repeats = float(copies * copies * rows.sum())
    return Shares(
        hits * copies * 1.0, rows * copies * 1.0, np.asarray(repeats), draw(st.floats(0, 0.9))
    )


@given(any_shares(), st.floats(0.6, 0.99))
def test_a_share_lies_within_its_interval_and_below_its_limit(found, level):
    low, high = found.interval(level)
    assert np.isnan(low) == np.isnan(high)
    if not np.isnan(low):
        assert 0 <= low <= found.value + 1e-12
        assert found.value - 1e-12 <= high <= 1
        assert found.value - 1e-12 <= found.upper_limit(level) <= 1
        wider_low, wider_high = found.interval((1 + level) / 2)
        assert wider_low <= low + 1e-12
        assert wider_high >= high - 1e-12
        # Never worth more than the distinct images.
        assert found.worth(level) <= found.n**2 / found.repeats + 1e-9


@given(any_shares(), st.permutations(range(8)))
def test_the_numbers_of_regions_do_not_matter(found, order):
    order = [index for index in order if index < found.rows.size]
    other = Shares(found.hits[order], found.rows[order], found.repeats, found.correlation)
    assert np.array(other.interval(0.95)) == pytest.approx(
        np.array(found.interval(0.95)), nan_ok=True
    )


def test_many_shares_at_once_are_those_one_by_one():
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 20, (6, 9)).astype(float)
    hits = rng.binomial(rows.astype(int), 0.3).astype(float)
    rows[5, 1:] = hits[5, 1:] = 0  # one region
    together = Shares(hits, rows, rows.sum(axis=1), 0.2)
    low, high = together.interval(0.95)
    limits = together.upper_limit(0.95)
    for index in range(6):
        one = Shares(hits[index], rows[index], np.asarray(rows[index].sum()), 0.2)
        ends = np.array(one.interval(0.95))
        assert ends == pytest.approx([low[index], high[index]], nan_ok=True)
        assert limits[index] == pytest.approx(float(one.upper_limit(0.95)), nan_ok=True)
        assert together.at(index).entry(0.95) == pytest.approx(one.entry(0.95), nan_ok=True)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (9, 10), (0, 30_000)])
def test_a_limit_of_whole_rows_is_clopper_and_pearson_s(k, n):
    found = upper_limit_of(np.float64(k / n), np.float64(n), 0.95)
    exact = stats.binomtest(k, n, alternative="less").proportion_ci(0.95, "exact").high
    assert found == pytest.approx(exact, rel=1e-9)


def test_a_limit_of_what_is_all_flagged_is_one():
    assert upper_limit_of(np.float64(1.0), np.float64(7.3), 0.95) == 1.0
    assert np.isnan(upper_limit_of(np.float64(0.2), np.float64(np.nan), 0.95))

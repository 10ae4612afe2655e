"""Calibration measures against worked vectors and scikit-learn; maps against known truth."""

import math

import numpy as np
import pytest
from scipy import special, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from lenstrain.evaluation import calibration as cal
from lenstrain.evaluation import metrics
from lenstrain.evaluation.clustered import few_regions

P = np.array([0.1, 0.3, 0.35, 0.58, 0.65, 0.78, 0.9, 0.95])
Y = np.array([0, 0, 1, 0, 1, 1, 1, 1])
BRIER_SIGNS = (1, -1, 1, 1, -1)


def error(bins, n_bins):
    return float(cal.expected_error(cal.bin_sums(P, Y, bins, n_bins)))


def test_brier_and_likelihood_equal_the_worked_vector_and_scikit_learn():
    brier = metrics.brier_loss(special.logit(P), Y).mean()
    assert brier == pytest.approx(0.1302875, abs=5e-8)
    assert brier == pytest.approx(brier_score_loss(Y, P))
    nll = metrics.logit_nll(special.logit(P), Y).mean()
    assert nll == pytest.approx(0.4019070, abs=5e-8)
    assert nll == pytest.approx(log_loss(Y, P))


def test_likelihood_is_exact_in_the_tails():
    assert metrics.logit_nll([800.0, -800.0], [0, 1]).tolist() == [800.0, 800.0]
    assert metrics.logit_nll([800.0], [1]).tolist() == [0.0]


def test_ece_equals_the_worked_vectors():
    assert error(cal.equal_width_bins(P, 5), 5) == pytest.approx(0.21875)
    assert error(cal.equal_mass_bins(P, 2), 2) == pytest.approx(0.13125)
    assert error(cal.equal_mass_bins(P, 4), 4) == pytest.approx(0.14875)


def by_region(z, y, region, n_bins=10):
    """Sums by region and bin of equal mass, added up row by row."""
    p = special.expit(z)
    bins, regions = cal.equal_mass_bins(p, n_bins), region.max() + 1
    flat = cal.bin_sums(p, y, region * n_bins + bins, regions * n_bins)
    return cal.BinSums(
        *(getattr(flat, name).reshape(regions, n_bins) for name in ("n", "p", "y", "pp", "py"))
    )


def drawn(rng, offset=0.0, rows=3000, regions=40, scatter=0.0):
    """Logits, and labels that are true to them but for an offset; `scatter` of it by region."""
    z = rng.normal(0, 2, rows)
    region = rng.integers(0, regions, rows)
    truth = z + offset + scatter * rng.normal(size=regions)[region]
    return z, (rng.random(rows) < special.expit(truth)).astype(int), region


def error_of(z, y, region, level=0.95):
    sums = by_region(z, y, region)
    return cal.squared_error(sums, few_regions(sums.n.sum(axis=1), 0.0), level)


def test_a_squared_error_by_region_is_less_its_scatter():
    """Three regions, two bins: gaps and their scatter written out."""
    n = np.array([[4.0, 6], [5, 5], [6, 4]])
    p = np.array([[1.0, 4], [1.5, 4], [1.2, 3]])
    y = np.array([[2.0, 5], [1, 3], [1, 4]])
    expected = 0.0
    for b in (0, 1):
        gap = (p[:, b].sum() - y[:, b].sum()) / 15
        scatter = sum((p[g, b] - y[g, b] - gap * n[g, b]) ** 2 for g in range(3))
        expected += 0.5 * (gap**2 - 3 / 2 * scatter / 15**2)
    sums = cal.BinSums(n, p, y, p, y)
    found = cal.squared_error(sums, few_regions(np.full(3, 10.0), 0.0), 0.95)
    assert found.value == pytest.approx(expected)


def test_with_a_row_in_each_region_the_squared_error_is_that_of_kumar_et_al():
    p = np.repeat([0.2, 0.5, 0.7], 400)  # alike within each bin, so only labels scatter
    y = (np.random.default_rng(0).random(1200) < p + 0.1).astype(int)
    z = special.logit(p)
    rate = y.reshape(3, 400).mean(axis=1)
    kumar = np.mean((p[::400] - rate) ** 2 - rate * (1 - rate) / 399)  # arXiv:1909.10155
    assert error_of(z, y, np.arange(1200)).value == pytest.approx(kumar, rel=0.01)


@pytest.mark.parametrize("scatter", [0.0, 0.3])
def test_the_interval_of_a_calibrated_finder_starts_at_zero(scatter):
    rng = np.random.default_rng(1)
    found = [error_of(*drawn(rng, scatter=scatter)) for _ in range(400)]
    assert np.mean([error.low == 0 for error in found]) >= 0.93
    values = np.array([error.value for error in found])
    assert abs(values.mean()) < 3 * values.std() / 20  # without bias
    assert all(error.high >= error.low for error in found)


def test_the_interval_of_a_wrong_finder_holds_the_truth():
    rng = np.random.default_rng(2)
    z, y, region = drawn(rng, 0.5, rows=2_000_000)
    truth = error_of(z, y, region).value
    found = [error_of(*drawn(rng, 0.5)) for _ in range(200)]
    assert np.mean([error.low <= truth <= error.high for error in found]) >= 0.93
    assert np.mean([error.low > 0 for error in found]) > 0.9  # and it is found out


def test_more_rows_narrow_the_interval_of_a_wrong_finder():
    rng = np.random.default_rng(3)
    few, many = (error_of(*drawn(rng, 2.0, rows=rows)) for rows in (3000, 300_000))
    assert (many.high - many.low) < 0.2 * (few.high - few.low)


def test_regions_that_agree_to_rounding_are_no_error():
    n, p, y = np.full((8, 1), 10.0), np.full((8, 1), 5.0), np.full((8, 1), 9.0)
    y[0] += 1e-12
    found = cal.squared_error(cal.BinSums(n, p, y, p, y), few_regions(n[:, 0], 0.0), 0.95)
    assert found.value == pytest.approx(0.16)
    assert (found.low, found.high) == pytest.approx((0.16, 0.16))


def test_one_region_has_no_interval_of_the_squared_error():
    z, y, region = drawn(np.random.default_rng(0), regions=1)
    assert np.isnan(error_of(z, y, region)).all()


def test_brier_parts_equal_the_worked_vector():
    parts = cal.brier_parts(cal.bin_sums(P, Y, cal.equal_mass_bins(P, 2), 2))
    expected = (0.019603125, 0.140625, 0.234375, 0.021309375, 0.004375)
    assert tuple(float(part) for part in parts) == pytest.approx(expected)
    assert np.dot(parts, BRIER_SIGNS) == pytest.approx(brier_score_loss(Y, P))


def test_discrete_forecasts_need_no_within_bin_parts():
    p = np.repeat([0.3, 0.9], 5)
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 1])
    parts = cal.brier_parts(cal.bin_sums(p, y, cal.equal_mass_bins(p, 2), 2))
    assert tuple(float(part) for part in parts) == pytest.approx(
        (0.01, 0.09, 0.25, 0, 0), abs=1e-15
    )
    assert np.dot(parts, BRIER_SIGNS) == pytest.approx(0.17)


@pytest.mark.parametrize("n_bins", [1, 3, 10])
def test_parts_add_up_to_the_brier_score_with_any_bins(n_bins):
    rng = np.random.default_rng(n_bins)
    p, y = rng.random(500), rng.integers(0, 2, 500)
    for bins in (cal.equal_width_bins(p, n_bins), cal.equal_mass_bins(p, n_bins)):
        parts = cal.brier_parts(cal.bin_sums(p, y, bins, n_bins))
        assert np.dot(parts, BRIER_SIGNS) == pytest.approx(np.mean((p - y) ** 2))


def test_equal_mass_bins_are_equal_and_never_split_a_tie():
    rng = np.random.default_rng(2)
    assert np.bincount(cal.equal_mass_bins(rng.random(1000), 8)).tolist() == [125] * 8
    tied = np.repeat([0.1, 0.5, 0.9], [70, 20, 10])
    bins = cal.equal_mass_bins(tied, 4)
    assert all(np.unique(bins[tied == value]).size == 1 for value in (0.1, 0.5, 0.9))
    assert cal.equal_mass_bins(np.full(9, 0.5), 4).tolist() == [0] * 9


def test_equal_width_bins_hold_both_ends():
    assert cal.equal_width_bins([0.0, 0.1999, 0.2, 1.0], 5).tolist() == [0, 0, 1, 4]


def test_reliability_leaves_out_empty_bins_and_covers_the_rate():
    cell = np.arange(8) * 20 + cal.equal_width_bins(P, 20)  # each row in a region of its own
    flat = cal.bin_sums(P, Y, cell, 160)
    table = cal.reliability_table(cal.BinSums(*(column.reshape(8, 20) for column in flat)))
    assert table["n"].tolist() == [1.0] * 8
    assert table["mean_probability"] == pytest.approx(P)
    for row in range(8):
        wilson = stats.binomtest(int(Y[row]), 1).proportion_ci(0.95, "wilson")
        assert (table["low"][row], table["high"][row]) == pytest.approx((wilson.low, wilson.high))


def test_bands_of_reliability_are_by_region():
    z, y, region = drawn(np.random.default_rng(5), regions=10, scatter=2.0)
    table = cal.reliability_table(by_region(z, y, region, 4))
    wilson = [
        stats.binomtest(round(n * rate), int(n)).proportion_ci(0.95, "wilson")
        for n, rate in zip(table["n"], table["observed"], strict=True)
    ]
    assert np.all(table["low"] < [ends.low for ends in wilson])
    assert np.all(table["high"] > [ends.high for ends in wilson])
    alone = cal.reliability_table(by_region(z, y, np.zeros_like(region), 4))
    assert np.isnan(alone["low"]).all()
    assert alone["observed"] == pytest.approx(table["observed"])


def test_temperature_equals_the_worked_vector():
    fit = cal.fit_temperature(
        [2.0, 2.0, -2.0, -2.0, 2.0, -2.0, 2.0, -2.0], [1, 1, 0, 0, 0, 0, 1, 1]
    )
    assert 1 / fit.slope == pytest.approx(2 / math.log(3), abs=1e-9)


def sample(slope, offset, n=40_000, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0.3, 2, n)
    return z, (rng.random(n) < special.expit(slope * z + offset)).astype(int)


def test_temperature_recovers_the_truth():
    z, y = sample(0.5, 0.0)
    assert 1 / cal.fit_temperature(z, y).slope == pytest.approx(2.0, rel=0.03)


def test_platt_equals_an_unpenalised_logistic_regression():
    z, y = sample(0.5, -1.2, n=5000)
    fit = cal.fit_platt(z, y)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(z[:, None], y)
    assert fit.slope == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert fit.offset == pytest.approx(reference.intercept_[0], rel=1e-4)
    assert fit.slope > 0  # ranks do not change


@pytest.mark.parametrize("fit", [cal.fit_temperature, cal.fit_platt])
def test_a_fit_without_an_optimum_says_so(fit):
    apart = fit([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
    assert apart.at_bound
    reversed_ranks = fit([-2.0, -1.0, 1.0, 2.0] * 5 + [0.1], [1, 1, 0, 0] * 5 + [1])
    assert reversed_ranks.at_bound


@pytest.mark.parametrize("shift", [-20.0, -5.0, 0.0, 5.0])
def test_platt_finds_no_optimum_wherever_the_border_of_the_classes_lies(shift):
    z = np.array([-2.0, -1.0, 1.0, 2.0]) + shift
    assert cal.fit_platt(z, [0, 0, 1, 1]).at_bound
    assert cal.fit_platt(np.tile(z, 5), [1, 1, 0, 0] * 5).at_bound
    assert cal.fit_platt([*z, z[1]], [0, 0, 1, 1, 1]).at_bound  # they touch in one logit
    assert not cal.fit_platt(z, [0, 1, 0, 1]).at_bound


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_no_map(label):
    assert cal.fit_platt([-2.0, -1.0, 1.0, 2.0], [label] * 4).at_bound

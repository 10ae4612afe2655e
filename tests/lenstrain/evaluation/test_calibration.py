"""Calibration measures against worked vectors and scikit-learn; maps against known truth."""

import math

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from lenstrain.evaluation import calibration as cal

P = np.array([0.1, 0.3, 0.35, 0.58, 0.65, 0.78, 0.9, 0.95])
Y = np.array([0, 0, 1, 0, 1, 1, 1, 1])


def errors(bins, n_bins):
    return cal.calibration_errors(cal.bin_sums(P, Y, bins, n_bins))


def test_brier_and_likelihood_equal_the_worked_vector_and_scikit_learn():
    assert cal.brier(P, Y) == pytest.approx(0.1302875, abs=5e-8)
    assert cal.brier(P, Y) == pytest.approx(brier_score_loss(Y, P))
    nll = cal.logit_nll(special.logit(P), Y).mean()
    assert nll == pytest.approx(0.4019070, abs=5e-8)
    assert nll == pytest.approx(log_loss(Y, P))


def test_likelihood_is_exact_in_the_tails():
    assert cal.logit_nll([800.0, -800.0], [0, 1]).tolist() == [800.0, 800.0]
    assert cal.logit_nll([800.0], [1]).tolist() == [0.0]


def test_ece_equals_the_worked_vectors():
    assert errors(cal.equal_width_bins(P, 5), 5).ece == pytest.approx(0.21875)
    assert errors(cal.equal_mass_bins(P, 2), 2).ece == pytest.approx(0.13125)
    assert errors(cal.equal_mass_bins(P, 4), 4).ece == pytest.approx(0.14875)


def test_debiased_ece_may_be_negative():
    found = errors(cal.equal_mass_bins(P, 2), 2)
    assert found.squared == pytest.approx(0.019603125)
    assert found.debiased_squared == pytest.approx(-0.011646875)


def test_brier_parts_equal_the_worked_vector():
    parts = cal.brier_parts(cal.bin_sums(P, Y, cal.equal_mass_bins(P, 2), 2))
    expected = (0.019603125, 0.140625, 0.234375, 0.021309375, 0.004375)
    assert tuple(float(part) for part in parts) == pytest.approx(expected)
    assert parts.total == pytest.approx(cal.brier(P, Y))


def test_discrete_forecasts_need_no_within_bin_parts():
    p = np.repeat([0.3, 0.9], 5)
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 1])
    parts = cal.brier_parts(cal.bin_sums(p, y, cal.equal_mass_bins(p, 2), 2))
    assert tuple(float(part) for part in parts) == pytest.approx(
        (0.01, 0.09, 0.25, 0, 0), abs=1e-15
    )
    assert parts.total == pytest.approx(0.17)


@pytest.mark.parametrize("n_bins", [1, 3, 10])
def test_parts_add_up_to_the_brier_score_with_any_bins(n_bins):
    rng = np.random.default_rng(n_bins)
    p, y = rng.random(500), rng.integers(0, 2, 500)
    for bins in (cal.equal_width_bins(p, n_bins), cal.equal_mass_bins(p, n_bins)):
        assert cal.brier_parts(cal.bin_sums(p, y, bins, n_bins)).total == pytest.approx(
            cal.brier(p, y)
        )


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
    table = cal.reliability_table(cal.bin_sums(P, Y, cal.equal_width_bins(P, 20), 20))
    assert table["n"].sum() == P.size
    assert np.all(table["n"] > 0)
    assert np.all((table["low"] <= table["observed"]) & (table["observed"] <= table["high"]))


def test_temperature_equals_the_worked_vector():
    fit = cal.fit_temperature(
        [2.0, 2.0, -2.0, -2.0, 2.0, -2.0, 2.0, -2.0], [1, 1, 0, 0, 0, 0, 1, 1]
    )
    assert fit.temperature == pytest.approx(2 / math.log(3), abs=1e-9)


def sample(slope, offset, n=40_000, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0.3, 2, n)
    return z, (rng.random(n) < special.expit(slope * z + offset)).astype(int)


def test_temperature_recovers_the_truth():
    z, y = sample(0.5, 0.0)
    assert cal.fit_temperature(z, y).temperature == pytest.approx(2.0, rel=0.03)


def test_platt_equals_an_unpenalised_logistic_regression():
    z, y = sample(0.5, -1.2, n=5000)
    fit = cal.fit_platt(z, y)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(z[:, None], y)
    assert fit.slope == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert fit.offset == pytest.approx(reference.intercept_[0], rel=1e-4)
    assert np.all(np.diff(fit.apply(np.sort(z))) >= 0)


@pytest.mark.parametrize("fit", [cal.fit_temperature, cal.fit_platt])
def test_a_fit_without_an_optimum_says_so(fit):
    apart = fit([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
    assert apart.at_bound
    reversed_ranks = fit([-2.0, -1.0, 1.0, 2.0] * 5 + [0.1], [1, 1, 0, 0] * 5 + [1])
    assert reversed_ranks.at_bound


@pytest.mark.parametrize(("p", "shifted"), [(0.99, 0.00980392), (0.999, 0.0908347)])
def test_prior_shift_equals_the_worked_vectors(p, shifted):
    moved = special.expit(cal.shift_prior([special.logit(p)], 0.5, 1e-4))
    assert moved[0] == pytest.approx(shifted, abs=5e-8)

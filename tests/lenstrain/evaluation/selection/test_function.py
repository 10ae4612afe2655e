"""Support: C is known where injections are, and nowhere else. Populations say what they miss."""

import numpy as np
import pytest

from lenstrain.evaluation.selection.population import average_over, injection_weights

from .conftest import fitted, inject, truth


@pytest.fixture(scope="module")
def function():
    return fitted(inject(8000, seed=1))


def test_a_hole_amid_the_injections_has_no_c():
    injections = inject(20_000, seed=2)
    _, seeing, snr, _ = injections.values.T
    hole = (seeing > 1.15) & (seeing < 1.45) & (snr > 5) & (snr < 25)
    function = fitted(type(injections)(*(part[~hole] for part in injections)), resamples=2)
    middle = np.array([[1.0, 1.3, 11.0, 1.0]])
    around = np.array([[1.0, 1.3, 2.5, 1.0], [1.0, 1.3, 45.0, 1.0], [1.0, 1.55, 11.0, 1.0]])
    assert np.isnan(function.evaluate(middle).value).all()
    assert np.isnan(function.evaluate(middle).bounds[0.95]).all()
    assert np.isfinite(function.evaluate(middle, masked=False).value).all()
    assert np.isfinite(function.evaluate(around).value).all()


def test_between_two_nodes_of_a_grid_both_must_hold_lenses():
    injections = inject(12_000, seed=3)
    theta, _, snr, _ = injections.values.T
    gone = (theta == 1.5) & (snr > 5) & (snr < 40)
    function = fitted(type(injections)(*(part[~gone] for part in injections)), resamples=2)
    at = np.array([[theta, 1.3, 12.0, 1.0] for theta in (0.8, 1.0, 1.2, 1.5, 1.7, 2.0, 2.2)])
    known = np.isfinite(function.evaluate(at).value)
    assert known.tolist() == [True, True, False, False, False, True, True]


@pytest.mark.parametrize(
    "point",
    [
        (0.2, 1.3, 12, 1), (3.0, 1.3, 12, 1), (1, 0.5, 12, 1), (1, 2.5, 12, 1),
        (1, 1.3, 1e5, 1), (1, 1.3, 12, 0.5), (np.nan, 1.3, 12, 1), (1, np.inf, 12, 1),
    ],
)  # fmt: skip
def test_beyond_the_injections_c_is_unknown(function, point):
    assert np.isnan(function.evaluate(np.array([point], float)).value).all()


def test_a_value_in_single_precision_is_the_grids_own(function):
    value = np.array([[np.float32(0.3), 1.3, 12.0, 1.0]], dtype=float)
    assert np.isfinite(function.evaluate(value).value).all()


def test_a_population_like_the_injections_has_their_completeness(function):
    injections = inject(8000, seed=1)
    average = average_over(function, injections.values, np.ones(8000))
    assert average.value == pytest.approx(injections.found.mean(), abs=0.01)
    assert average.reweighted == pytest.approx(injections.found.mean(), abs=0.01)
    assert average.ends[0.95][0] < average.ends[0.68][0] < average.value < average.ends[0.95][1]
    assert average.outside_share < 0.05
    # Every injection is in its own cell, so it weighs what it is, but for outliers without one.
    weights = injection_weights(function, average.cell_share)
    assert weights[function.support.occupied] == pytest.approx(1, abs=0.01)


def test_another_population_is_reached_by_weights(function):
    values = inject(20_000, seed=4).values
    weights = np.exp(-values[:, 0])
    average = average_over(function, values, weights)
    inside = function.support.holds(function.coordinates(values))
    expected = np.average(truth(values[inside]), weights=weights[inside])
    low, high = average.ends[0.95]
    assert low < expected < high
    assert average.value == pytest.approx(expected, abs=0.03)
    assert average.reweighted == pytest.approx(average.value, abs=0.02)
    assert average.effective < function.support.n.sum()


def test_what_lies_outside_is_stated_by_weight(function):
    values = np.array([[1.0, 1.3, 12.0, 1.0], [5.0, 1.3, 12.0, 1.0], [np.nan, 1.3, 12.0, 1.0]])
    average = average_over(function, values, np.array([1.0, 2.0, 1.0]))
    assert (average.n, average.inside, average.outside_share) == (3, 1, 0.75)
    assert average.value == pytest.approx(function.evaluate(values[:1]).value[0])
    low, high = function.evaluate(values[:1]).bounds[0.95]
    assert average.ends[0.95] == pytest.approx((low[0], high[0]), abs=0.01)


def test_a_population_without_injections_has_no_completeness(function):
    average = average_over(function, np.array([[9.0, 1.3, 12.0, 1.0]]), np.ones(1))
    assert np.isnan(average.value)
    assert np.isnan(average.reweighted)
    assert average.outside_share == 1


def test_between_two_nodes_a_lens_weighs_on_both(function):
    average = average_over(function, np.array([[0.9, 1.3, 12.0, 1.0]]), np.ones(1))
    shares = average.cell_share.sum(axis=(1, 2, 3))
    assert shares == pytest.approx([0, 0.25, 0.75, 0, 0, 0])

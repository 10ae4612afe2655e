"""A known selection function comes back from injections, with intervals that hold it."""

import numpy as np
import pytest

from .conftest import NAMES, fitted, inject, truth


@pytest.fixture(scope="module")
def points():
    """Where the survey's lenses are: other injections of the same kind."""
    return inject(4000, seed=99).values


def test_a_known_function_comes_back(points):
    curve = fitted(inject(12_000)).evaluate(points)
    inside = np.isfinite(curve.value)
    error = np.abs(curve.value - truth(points))[inside]
    assert inside.mean() > 0.9
    assert error.mean() < 0.02
    assert np.quantile(error, 0.95) < 0.1
    low, high = curve.bounds[0.95]
    assert np.mean((high - low)[inside]) < 0.1


def test_c_is_monotone_everywhere_even_where_nothing_supports_it():
    function = fitted(inject(3000, seed=5), resamples=4)
    rng = np.random.default_rng(1)
    values = inject(400, seed=6).values
    for axis, sign, low, high in (
        (0, 1, 0.2, 3),
        (1, -1, 0.7, 1.8),
        (2, 1, 0.01, 900),
        (3, -1, 0, 3),
    ):
        less, more = values.copy(), values.copy()
        ends = np.sort(rng.uniform(low, high, (len(values), 2)), axis=1)
        less[:, axis], more[:, axis] = ends.T
        rise = (
            function.evaluate(more, masked=False).value
            - function.evaluate(less, masked=False).value
        )
        assert (sign * rise).min() > -1e-9
        assert (sign * rise).max() > 0.01


def test_every_draw_is_monotone_too():
    function = fitted(inject(3000, seed=5), resamples=20)
    assert function.fit.draws.shape[0] == 20
    steps = function.terms.constraints() @ function.fit.draws.T
    assert steps.min() > -1e-7


def test_a_freed_axis_may_run_against_the_physics():
    injections = inject(1500, seed=3)
    # Found in bad seeing above all.
    rate = np.where(injections.values[:, 1] > 1.3, 0.95, 0.05)
    found = np.random.default_rng(0).random(1500) < rate
    against = injections._replace(values=injections.values[:, :2], found=found)
    good, bad = np.array([[1.0, 1.1]]), np.array([[1.0, 1.5]])
    held = fitted(against, NAMES[:2], resamples=2)
    assert held.evaluate(bad).value <= held.evaluate(good).value + 1e-9
    freed = fitted(against, NAMES[:2], resamples=2, free=("psfsize_r",))
    assert freed.evaluate(bad).value - freed.evaluate(good).value > 0.7
    assert held.fit.held_out.deviance > held.fit.free_deviance + 500


@pytest.mark.slow
def test_the_intervals_hold_the_truth_as_often_as_they_say(points):
    expected = truth(points)
    covered = {0.68: [], 0.95: []}
    for seed in range(12):
        curve = fitted(inject(seed=seed), resamples=200).evaluate(points)
        inside = np.isfinite(curve.value)
        for level, (low, high) in curve.bounds.items():
            covered[level].append(np.mean(((low <= expected) & (expected <= high))[inside]))
    assert 0.64 < np.mean(covered[0.68]) < 0.9
    assert np.mean(covered[0.95]) > 0.93

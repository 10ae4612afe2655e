"""The fit: an exact optimum, whatever the table has to offer."""

import numpy as np
import pytest
from scipy import optimize, special

from lenstrain.evaluation.selection import fit as fitting
from lenstrain.evaluation.selection.axes import make_axis, make_terms
from lenstrain.evaluation.selection.fit import Smoothing, count_lenses

from .conftest import Injections, fitted, inject, truth


def test_the_optimum_is_that_of_a_general_solver():
    values, found, region = inject(400, seed=2)
    names, values = ("psfsize_r", "src_dmag"), values[:, [1, 3]]
    axes = tuple(make_axis(name, c) for name, c in zip(names, values.T, strict=True))
    coordinates = np.stack([a.coordinate(c) for a, c in zip(axes, values.T, strict=True)], axis=1)
    lenses = count_lenses(axes, coordinates, found, region)
    terms = make_terms(axes)
    problem = fitting._Problem(
        terms.design(lenses.coordinates), terms.constraints(), *terms.penalties()
    )
    penalty = problem.penalty(Smoothing(0.3, 0.3))
    n, k = lenses.drawn(np.ones(lenses.n_regions))
    ours, _ = fitting._solve(problem, n, k, penalty)
    rate, prior = (k.sum() + 0.5) / (n.sum() + 1), n / n.sum()

    def loss(b):
        logit = problem.design @ b
        value = (n + prior) @ np.logaddexp(0, logit) - (k + rate * prior) @ logit
        slope = problem.design.T @ ((n + prior) * special.expit(logit) - k - rate * prior)
        return value + b @ penalty @ b / 2, slope + penalty @ b

    theirs = optimize.minimize(
        loss, np.zeros(ours.size), jac=True, method="SLSQP",
        constraints={"type": "ineq", "fun": lambda b: problem.constraints @ b,
                     "jac": lambda b: problem.constraints},
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    assert (problem.constraints @ ours).min() > -1e-9
    assert loss(ours)[0] == pytest.approx(theirs.fun, abs=1e-5)
    assert loss(ours)[0] <= theirs.fun + 1e-6
    assert problem.design @ ours == pytest.approx(problem.design @ theirs.x, abs=0.02)


def test_one_axis_is_enough():
    injections = inject(2000, seed=4)
    values = np.stack([injections.values[:, 0]], axis=1)
    function = fitted(Injections(values, *injections[1:]), names=("theta_e_arcsec",))
    grid = np.unique(values)
    observed = [injections.found[values[:, 0] == theta].mean() for theta in grid]
    curve = function.evaluate(grid[:, None])
    assert curve.value == pytest.approx(observed, abs=0.03)
    low, high = curve.bounds[0.95]
    assert ((low < observed) & (observed < high)).all()


@pytest.mark.parametrize(("rate", "low_end", "high_end"), [(0.0, 0.0, 0.02), (1.0, 0.98, 1.0)])
def test_all_or_none_found_gives_an_honest_interval(rate, low_end, high_end):
    injections = inject(1000, seed=7)
    all_alike = injections._replace(found=np.full(1000, bool(rate)))
    curve = fitted(all_alike).evaluate(np.array([[1.0, 1.3, 12.0, 1.0]]))
    low, high = (end[0] for end in curve.bounds[0.95])
    assert low_end <= low < curve.value[0] < high <= high_end
    assert high - low > 1e-4


def test_one_region_has_no_interval():
    injections = inject(1500, seed=8)
    function = fitted(injections._replace(region=np.zeros(1500, int)))
    curve = function.evaluate(injections.values[:50])
    inside = np.isfinite(curve.value)
    assert inside.any()
    assert all(np.isnan(end).all() for ends in curve.bounds.values() for end in ends)
    assert np.abs(curve.value - truth(injections.values[:50]))[inside].max() < 0.4


def test_an_axis_of_one_value_is_supported_there_alone():
    injections = inject(1500, seed=9)
    values = injections.values.copy()
    values[:, 1] = 1.25
    function = fitted(injections._replace(values=values), resamples=4)
    at = np.array([[1.0, 1.25, 12.0, 1.0], [1.0, 1.3, 12.0, 1.0]])
    value = function.evaluate(at).value
    assert np.isfinite(value).tolist() == [True, False]


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_a_handful_of_lenses_is_no_error(n):
    injections = inject(n, regions=min(n, 3), seed=10)
    function = fitted(injections, resamples=5, least=1)
    curve = function.evaluate(injections.values)
    assert np.isfinite(curve.value).all()


def test_weights_of_regions_change_the_fit_as_copies_would():
    values, found, region = inject(800, regions=4, seed=11)
    axes = tuple(make_axis("theta_e_arcsec", values[:, 0]) for _ in range(1))
    lenses = count_lenses(axes, values[:, :1], found, region)
    n, k = lenses.drawn(np.array([2.0, 0.0, 1.0, 1.0]))
    theta = np.unique(values[:, 0])
    weight = np.array([2, 0, 1, 1])[region]
    assert n.tolist() == [weight[values[:, 0] == t].sum() for t in theta]
    assert k.tolist() == [weight[(values[:, 0] == t) & found].sum() for t in theta]


def test_millions_of_lenses_become_few_cells():
    values, found, region = inject(200_000, regions=300, seed=12)
    axes = [make_axis("psfsize_r", values[:, 1]), make_axis("arc_snr", values[:, 2])]
    coordinates = np.stack([axes[0].coordinate(values[:, 1]), axes[1].coordinate(values[:, 2])], 1)
    lenses = count_lenses(axes, coordinates, found, region)
    assert lenses.n.shape[0] <= 8192
    assert lenses.n.sum() == 200_000
    assert lenses.k.sum() == found.sum()
    mean = lenses.n.sum(axis=1) @ lenses.coordinates / 200_000
    assert mean == pytest.approx(coordinates.mean(axis=0))

"""Monotone penalised logistic regression, with its smoothing and its draws chosen by region.

Logit C is a sum of B-splines (Eilers & Marx 1996, Stat. Sci. 11, 89) whose coefficients rise or
fall where physics says so (Pya & Wood 2015, Stat. Comput. 25, 543). Each Newton step is a quadratic
programme with linear constraints; its dual is a non-negative least-squares problem (Lawson & Hanson
1974, ch. 23), so the optimum is exact and global.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, sparse, special
from threadpoolctl import threadpool_limits

from lenstrain.evaluation.bootstrap import draw_weights
from lenstrain.evaluation.selection.axes import Axis, Floats, Ints, Terms

_MOST_CELLS = 8_192
_MOST_BINS = 64
_FOLDS = 10
_LADDER = tuple(10.0 ** (step / 2) for step in range(-6, 7))
"""Weights tried for either penalty."""

_MIDDLE = 4
"""Where on the ladder the search starts, and ends for one region: it has no other to predict."""

_PRIOR_LENSES = 1.0
"""Lenses of the overall completeness, spread like the others, that keep logits finite where all or
none are found."""

_RIDGE = 1e-3
"""Prior precision of a coefficient, which divides an effect between two terms of the same axis."""

_TIGHT, _LOOSE = 1e-8, 1e-3
"""Change of the log likelihood at which the fit may stop, and a draw or a fold of it."""

_NEAR_STEPS, _MOST_STEPS = 8, 100


@dataclass(frozen=True)
class Lenses:
    """Lenses counted in cells that are finer than the splines: the fit costs the same for millions.

    ``n`` and ``k`` have shape (cells, regions).
    """

    coordinates: Floats
    """Mean of each cell's lenses on every axis; shape (cells, axes)."""
    n: sparse.csr_array
    """Lenses."""
    k: sparse.csr_array
    """Lenses found."""

    @property
    def n_regions(self) -> int:
        """Regions that hold a lens."""
        return int(self.n.shape[1])

    def drawn(self, weights: Floats) -> tuple[Floats, Floats]:
        """Lenses and found lenses of each cell, with regions weighted."""
        return self.n @ weights, self.k @ weights


def count_lenses(
    axes: Sequence[Axis], coordinates: Floats, found: NDArray[np.bool_], region: Ints
) -> Lenses:
    """Count lenses in fine cells, which keep the values of grid axes.

    Parameters
    ----------
    axes : sequence of Axis
    coordinates : ndarray, shape (n, axes)
        Finite coordinates of the lenses.
    found : ndarray of bool, shape (n,)
        Whether each lies above the threshold.
    region : ndarray of int, shape (n,)
        Region of each, numbered from 0 without gaps.
    """
    cell = np.zeros(len(coordinates), np.int64)
    grid = int(np.prod([axis.cells for axis in axes if axis.is_grid]))
    continuous = sum(not axis.is_grid for axis in axes)
    bins = int(np.clip((_MOST_CELLS / grid) ** (1 / max(continuous, 1)), 4, _MOST_BINS))
    for axis, column in zip(axes, coordinates.T, strict=True):
        if axis.is_grid:
            edges = (axis.nodes[:-1] + axis.nodes[1:]) / 2
        else:
            edges = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1]))
        cell = cell * (edges.size + 1) + np.searchsorted(edges, column, side="right")
    cell = np.unique(cell, return_inverse=True)[1]
    rows = np.bincount(cell)
    means = np.stack([np.bincount(cell, column) / rows for column in coordinates.T], axis=1)
    shape = (rows.size, int(region.max()) + 1)

    def counted(values: Any) -> sparse.csr_array:
        return sparse.coo_array((values, (cell, region)), shape=shape).tocsr()

    return Lenses(means, counted(np.ones(cell.size)), counted(found.astype(float)))


class Smoothing(NamedTuple):
    """Weights of the penalties."""

    curvature: float
    mixed: float


@dataclass(frozen=True)
class _Problem:
    """What every fit to the same cells shares."""

    design: Floats
    constraints: Floats
    curvature: Floats
    mixed: Floats

    def penalty(self, smoothing: Smoothing) -> Floats:
        total = smoothing.curvature * self.curvature + smoothing.mixed * self.mixed
        return total + _RIDGE * np.diag([0.0] + [1.0] * (len(total) - 1))


def _loss(logit: Floats, n: Floats, k: Floats, coefficients: Floats, penalty: Floats) -> float:
    """Negative log likelihood plus half the penalty."""
    rough = float(coefficients @ penalty @ coefficients)
    return float(n @ np.logaddexp(0, logit) - k @ logit) + rough / 2


class _Quadratic:
    """Quadratic model of the loss with a given Hessian, over the coefficients with ``A b >= 0``."""

    def __init__(self, hessian: Floats, constraints: Floats) -> None:
        self.hessian = hessian
        self._factor = linalg.cholesky(hessian, lower=True, check_finite=False)
        self._turned = linalg.solve_triangular(
            self._factor, constraints.T, lower=True, check_finite=False
        )

    def lowest(self, linear: Floats) -> Floats:
        """Minimise ``b' H b / 2 - r' b``: the dual is non-negative least squares."""
        pull = linalg.solve_triangular(self._factor, linear, lower=True, check_finite=False)
        if self._turned.size:
            pull = pull + self._turned @ optimize.nnls(self._turned, -pull)[0]
        found: Floats = linalg.solve_triangular(self._factor.T, pull, check_finite=False)
        return found


def _solve(
    problem: _Problem,
    n: Floats,
    k: Floats,
    penalty: Floats,
    start: Floats | None = None,
    near: _Quadratic | None = None,
) -> tuple[Floats, _Quadratic]:
    """Newton's method with a line search; the problem is convex.

    Parameters
    ----------
    problem : _Problem
    n, k : ndarray, shape (cells,)
        Lenses, and found ones; not whole numbers where regions are weighted.
    penalty : ndarray, shape (p, p)
    start : ndarray, optional
        Coefficients to start from.
    near : _Quadratic, optional
        Model at a fit to nearly the same lenses, in place of the exact one: more steps, each ten
        times cheaper. If they are many, the exact one takes over.

    Returns
    -------
    coefficients : ndarray, shape (p,)
    model : _Quadratic
        Of the penalised negative log likelihood, there or near.
    """
    rate = (k.sum() + 0.5) / (n.sum() + 1)
    prior = _PRIOR_LENSES * n / n.sum()
    n, k = n + prior, k + rate * prior
    if start is None:
        start = np.zeros(problem.design.shape[1])
        start[0] = special.logit(rate)
    at, logit, model = start, problem.design @ start, near
    loss = _loss(logit, n, k, at, penalty)
    for count in range(_MOST_STEPS):
        share = special.expit(logit)
        gradient = problem.design.T @ (n * share - k) + penalty @ at
        if near is None or count >= _NEAR_STEPS:
            weighted = problem.design * np.sqrt(n * share * (1 - share))[:, None]
            model = _Quadratic(weighted.T @ weighted + penalty, problem.constraints)
        assert model is not None
        step = model.lowest(model.hessian @ at - gradient) - at
        gain = -float(gradient @ step)
        if gain < (_TIGHT if near is None else _LOOSE):
            break
        size, moved = 1.0, problem.design @ step
        while True:
            trial = _loss(logit + size * moved, n, k, at + size * step, penalty)
            if trial <= loss - 1e-4 * size * gain or size < 1e-6:
                break
            size /= 2
        at, logit, loss = at + size * step, logit + size * moved, trial
    assert model is not None
    return at, model


class HeldOut(NamedTuple):
    """How well a fit predicts regions that it has not seen."""

    share: Floats
    """Predicted C of each cell in each fold; shape (folds, cells)."""
    n: Floats
    """Lenses of the cell in the regions of the fold."""
    k: Floats
    """Those found."""

    @property
    def deviance(self) -> float:
        """Twice the negative log likelihood."""
        found = special.xlogy(self.k, self.share)
        missed = special.xlog1py(self.n - self.k, -self.share)
        return float(-2 * (found + missed).sum())


@dataclass(frozen=True)
class Fit:
    """Coefficients, their uncertainty, and how they were found."""

    coefficients: Floats
    draws: Floats
    """Coefficients fitted to draws of the regions; shape (draws, p), no rows for one region."""
    posterior: Floats
    """Covariance if lenses were independent, H^-1 with H the penalised information (Wahba 1983,
    JRSS B 45, 133): the least there is, also where all or none are found and draws do not vary."""
    bias: Floats
    """The contribution of the penalty's bias to it, H^-1 S H^-1, which draws do not show."""
    smoothing: Smoothing
    n_regions: int
    held_out: HeldOut | None
    """None for one region."""
    free_deviance: float | None
    """Held-out deviance of the same fit without constraints."""


# Thousands of systems of some hundred unknowns: a second thread of BLAS makes them slower.
@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_selection(terms: Terms, lenses: Lenses, resamples: int, seed: int) -> Fit:
    """Fit logit C to the lenses.

    Both penalties are chosen by cross-validation over whole regions, in turn; with one region they
    are the middle of the ladder. Then whole regions are drawn `resamples` times, and the fit is
    repeated on each draw. `seed` is that of the folds and of the draws.
    """
    problem = _Problem(terms.design(lenses.coordinates), terms.constraints(), *terms.penalties())
    regions = lenses.n_regions
    smoothing, held_out, free_deviance = _smoothing(_MIDDLE, _MIDDLE), None, None
    if regions > 1:
        members = np.random.default_rng(seed).permutation(regions) % min(_FOLDS, regions)
        # 1 for the regions of each fold; shape (folds, regions).
        folds = (members == np.arange(min(_FOLDS, regions))[:, None]).astype(float)
        smoothing = _choose_smoothing(problem, lenses, folds)
        held_out = _cross_validate(problem, lenses, folds, smoothing)
        if len(problem.constraints):
            free = replace(problem, constraints=problem.constraints[:0])
            free_deviance = _cross_validate(free, lenses, folds, smoothing).deviance
    penalty = problem.penalty(smoothing)
    coefficients, model = _solve(problem, *lenses.drawn(np.ones(regions)), penalty)
    draws = np.empty((0, coefficients.size))
    if regions > 1:
        n, k = lenses.drawn(draw_weights(regions, resamples, seed).T)
        fits = [
            _solve(problem, *drawn, penalty, coefficients, model)[0]
            for drawn in zip(n.T, k.T, strict=True)
        ]
        draws = np.stack(fits)
    posterior = linalg.inv(model.hessian)
    return Fit(
        coefficients,
        draws,
        posterior,
        posterior @ penalty @ posterior,
        smoothing,
        regions,
        held_out,
        free_deviance,
    )


def _smoothing(curvature: int, mixed: int) -> Smoothing:
    return Smoothing(_LADDER[curvature], _LADDER[mixed])


def _choose_smoothing(problem: _Problem, lenses: Lenses, folds: Floats) -> Smoothing:
    """Walk down the ladders of both penalties to the least held-out deviance, and a rung below.

    The rung below makes the bias small against the error, which intervals need (Hall 1992, Ann.
    Stat. 20, 675); it costs little accuracy.
    """
    rungs = range(len(_LADDER))
    known: dict[tuple[int, int], float] = {}

    def deviance(pair: tuple[int, int]) -> float:
        if pair not in known:
            smoothing = _smoothing(*pair)
            known[pair] = _cross_validate(problem, lenses, folds, smoothing).deviance
        return known[pair]

    best, last = (_MIDDLE, _MIDDLE), None
    while best != last:
        last = best
        x, y = best
        steps = [best, (x - 1, y), (x + 1, y)]
        steps += [(x, y - 1), (x, y + 1)] if problem.mixed.any() else []  # there are surfaces
        best = min((step for step in steps if set(step) <= set(rungs)), key=deviance)
    return _smoothing(max(best[0] - 1, 0), max(best[1] - 1, 0))


def _cross_validate(
    problem: _Problem, lenses: Lenses, folds: Floats, smoothing: Smoothing
) -> HeldOut:
    """Predict the regions of each fold from the others."""
    penalty = problem.penalty(smoothing)
    full, model = _solve(problem, *lenses.drawn(np.ones(lenses.n_regions)), penalty)
    fits = [_solve(problem, *lenses.drawn(1 - fold), penalty, full, model)[0] for fold in folds]
    n, k = lenses.drawn(folds.T)
    return HeldOut(special.expit(np.array(fits) @ problem.design.T), n.T, k.T)

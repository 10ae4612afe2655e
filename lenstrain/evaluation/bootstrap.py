"""Cluster bootstrap over regions: exact, in whole numbers, without touching the rows R times.

A resample draws G of the G regions with replacement; it is a row of weights ``w`` (how often each
region was drawn). What a statistic needs of the rows is computed once:

- AUROC of a resample is ``w' A w / (2 n1(w) n0(w))``, where ``A[i, j]`` counts twice the wins, plus
  the ties, of positives of region i over negatives of region j.
- A threshold at a false-positive rate lies among the highest negatives: each resample walks down
  them only as far as its own limit. The true-positive rates of all thresholds then come from one
  walk down the positives.
- Average precision needs every row, in one pass over many resamples at once.
- Sums and shares are ``w' s``.

Rows of one region share sky, seeing, calibration and repeated controls: rows are not independent,
regions nearly are (Field & Welsh 2007, JRSS B 69, 369).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from lensprep.errors import ScoresError
from lenstrain.evaluation import _kernels

MAX_PAIRED_REGIONS = 2048
"""With more regions the table of pairs costs more than passes over the rows; both are exact."""

_LANES = 32
"""Resamples in one pass: their weights of all regions should stay in a core's cache."""

_SLACK = 1e-12

Floats = NDArray[np.float64]


def draw_weights(n_regions: int, resamples: int, seed: int) -> Floats:
    """How often each region is drawn in each resample; shape (resamples, n_regions).

    The draws depend on these three numbers alone, so two models scored on the same regions are
    compared on the same draws. Weights are whole numbers and sum to `n_regions` in each row.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_regions, np.full(n_regions, 1 / n_regions), resamples).astype(float)


@dataclass(frozen=True)
class RankedRows:
    """The rows in descending order of score, as the kernels read them."""

    scores: Floats
    positive: NDArray[np.bool_]
    region: NDArray[np.int32]
    """Region of each row, numbered from 0."""
    starts: NDArray[np.int64]
    """First row of every block of equal scores, and the number of rows at the end."""
    n_regions: int

    def counts(self, positive: bool) -> NDArray[np.int64]:
        """Rows of one class in each region; shape (n_regions,)."""
        return np.bincount(self.region[self.positive == positive], minlength=self.n_regions)


def rank_rows(
    labels: NDArray[np.generic],
    scores: NDArray[np.floating],
    region: NDArray[np.integer],
    n_regions: int,
    order: NDArray[np.intp] | None = None,
) -> RankedRows:
    """Sort the rows by descending score and find the blocks of ties.

    Parameters
    ----------
    labels, scores, region : ndarray, shape (n,)
        Label 0 or 1, score, and region numbered 0 to `n_regions` - 1.
    n_regions : int
        Number of regions.
    order : ndarray of int, optional
        Rows by descending score, if that is known; rows that are not in it are left out.

    Raises
    ------
    ScoresError
        If a score is NaN.
    ValueError
        If a region is not numbered as stated: a kernel would look it up outside its tables.
    """
    if region.size and not (region.min() >= 0 and region.max() < n_regions):
        raise ValueError(f"a region must lie in 0 ... {n_regions - 1}")
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise ScoresError(f"{int(np.isnan(values).sum())} scores are NaN; remove or rescore them")
    order = np.argsort(values)[::-1] if order is None else order
    values = values[order]
    starts = np.concatenate(([0], np.flatnonzero(np.diff(values)) + 1, [values.size]))
    positive = np.asarray(labels)[order].astype(bool)
    return RankedRows(
        values,
        positive,
        region[order].astype(np.int32),
        starts.astype(np.int64),
        n_regions,
    )


def _check_weights(rows: RankedRows, weights: Floats) -> None:
    """Refuse weights of other regions: a kernel would look them up outside its tables."""
    if weights.ndim != 2 or weights.shape[1] != rows.n_regions:
        raise ValueError(f"weights of shape {weights.shape} for {rows.n_regions} regions")


def pair_counts(rows: RankedRows, threads: int = 0) -> NDArray[np.int64]:
    """Twice the wins plus the ties between regions; shape (n_regions, n_regions).

    ``[i, j]`` compares the positives of region i with the negatives of region j. Whole numbers,
    below 2^53 for fewer than 60 million rows of each class, so products with weights in float64 are
    exact too.
    """
    regions = rows.n_regions
    table = np.zeros((regions, regions), np.int64)

    def fill(first: int, last: int) -> None:
        _kernels.pair_counts(rows.starts, rows.positive, rows.region, first, last, table)

    _in_threads(fill, regions, threads)
    return table


def auroc_draws(rows: RankedRows, weights: Floats, threads: int = 0) -> Floats:
    """AUROC of each resample by the cheaper of two exact ways; NaN where a class is empty.

    `weights` are draws of shape (resamples, n_regions).
    """
    if rows.n_regions > MAX_PAIRED_REGIONS:
        return curve_draws(rows, weights, 0.01, threads=threads).auroc
    pairs = pair_counts(rows, threads).astype(np.float64)
    twice_u = np.einsum("ri,ri->r", weights @ pairs, weights)
    return ratio(twice_u, 2 * (weights @ rows.counts(True)) * (weights @ rows.counts(False)))


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Ratio of two sums in each resample; NaN for 0 / 0."""
    empty = denominator == 0
    return np.where(empty, np.nan, numerator / np.where(empty, 1.0, denominator))


@dataclass(frozen=True)
class CurveDraws:
    """Areas under the curves of each resample."""

    auroc: Floats
    """Shape (resamples,)."""
    partial_area: Floats
    """Plain area up to the given false-positive rate; shape (resamples,)."""
    average_precision: Floats
    """Shape (n_prevalences, resamples)."""


def curve_draws(
    rows: RankedRows,
    weights: Floats,
    max_fpr: float,
    prevalences: tuple[float | None, ...] = (None,),
    threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> CurveDraws:
    """Areas under the ROC and precision-recall curves of every resample, from all rows.

    Parameters
    ----------
    rows : RankedRows
        The sorted rows.
    weights : ndarray, shape (resamples, n_regions)
        Draws.
    max_fpr : float
        Upper end of the partial area.
    prevalences : tuple of float or None
        Shares of lenses for the average precision; None is that of the resample itself.
    threads : int
        0 takes the processors there are.
    progress : callable, optional
        Called with the fraction done.
    """
    _check_weights(rows, weights)
    n1, n0 = weights @ rows.counts(True), weights @ rows.counts(False)
    odds = np.stack([_odds(prevalence, n1, n0) for prevalence in prevalences])
    total = weights.shape[0]
    sums = np.zeros((2 + len(prevalences), total))
    code = rows.region * 2 + rows.positive
    chunks = -(-total // _LANES)
    finished = 0
    lock = Lock()

    def run(first: int, last: int) -> None:
        nonlocal finished
        for chunk in range(first, last):
            lanes = slice(chunk * _LANES, min(total, (chunk + 1) * _LANES))
            table = _lane_table(weights[lanes])
            sums[:, lanes] = _kernels.curve_pass(
                rows.starts,
                code,
                table,
                np.ascontiguousarray(odds[:, lanes]),
                max_fpr * n0[lanes],
            )
            with lock:
                finished += 1
                if progress is not None:
                    progress(finished / chunks)

    _in_threads(run, chunks, threads)
    return CurveDraws(ratio(sums[0], n1 * n0), ratio(sums[1], n1 * n0), ratio(sums[2:], n1))


def _odds(prevalence: float | None, n1: Floats, n0: Floats) -> Floats:
    if prevalence is None:
        return np.ones_like(n1)
    return (1 - prevalence) / prevalence * n1 / np.where(n0 == 0, 1.0, n0)


def _lane_table(weights: Floats) -> Floats:
    """Increments of (negatives, positives) for code = 2 region + class; (2 regions, 2, lanes)."""
    table = np.zeros((2 * weights.shape[1], 2, weights.shape[0]))
    table[0::2, 0] = weights.T
    table[1::2, 1] = weights.T
    return table


def tpr_at_fprs(
    rows: RankedRows, weights: Floats, fprs: tuple[float, ...], threads: int = 0
) -> tuple[Floats, Floats]:
    """Most positives that each resample can flag at each false-positive rate.

    Parameters
    ----------
    rows : RankedRows
        The sorted rows.
    weights : ndarray, shape (resamples, n_regions)
        Draws.
    fprs : tuple of float
        The rates, in any order.
    threads : int
        0 takes the processors there are.

    Returns
    -------
    tpr : ndarray, shape (n_fprs, resamples)
        NaN where the resample lacks a class.
    threshold : ndarray, shape (n_fprs, resamples)
        Score of the first negative left out; minus infinity if none is.
    """
    _check_weights(rows, weights)
    n1, n0 = weights @ rows.counts(True), weights @ rows.counts(False)
    negative = ~rows.positive
    scores, region = rows.scores[negative], rows.region[negative]
    starts = np.concatenate(([0], np.flatnonzero(np.diff(scores)) + 1, [scores.size]))
    order = np.argsort(fprs)
    ascending = np.outer(np.asarray(fprs)[order], n0) * (1 + _SLACK)
    first_out = np.empty(ascending.shape, np.int64)

    def walk(first: int, last: int) -> None:
        _kernels.walk_negatives(starts, region, weights, ascending, first, last, first_out)

    _in_threads(walk, weights.shape[0], threads)
    threshold = np.empty(ascending.shape)
    threshold[order] = np.append(scores, -np.inf)[first_out]
    flagged = _positives_above(rows, weights, threshold)
    return ratio(flagged, np.broadcast_to(np.where(n0 == 0, 0.0, n1), flagged.shape)), threshold


def _positives_above(rows: RankedRows, weights: Floats, threshold: Floats) -> Floats:
    """Weighted positives with a score strictly above each threshold; shape (n, resamples)."""
    scores, region = rows.scores[rows.positive], rows.region[rows.positive]
    flat = threshold.ravel()
    upto = np.searchsorted(-scores, -flat, side="left").astype(np.int64)
    order = np.argsort(upto, kind="stable")
    resample = np.tile(np.arange(weights.shape[0]), threshold.shape[0])
    flagged = _kernels.weigh_prefixes(region, upto[order], resample[order], weights)
    result = np.empty(flat.size)
    result[order] = flagged
    return result.reshape(threshold.shape)


def _in_threads(work: Callable[[int, int], None], size: int, threads: int) -> None:
    """Call ``work(first, last)`` on equal slices of range(size), one a thread; errors surface."""
    count = max(1, min(threads or cpu_count() or 1, size))
    edges = [size * k // count for k in range(count + 1)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))

"""How well scores rank: areas, rates and curves with intervals by region, as plain entries."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation import metrics
from lenstrain.evaluation.completeness import AxisBins
from lenstrain.evaluation.intervals import delong_se, upper_limit
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.resampling import Resampling
from lenstrain.evaluation.scores import Scores
from lenstrain.evaluation.threshold import negatives_needed

Floats = NDArray[np.float64]
_GRID_POINTS = 121


@dataclass(frozen=True)
class RocBand:
    """True-positive rate on a grid of false-positive rates, with its interval at each."""

    fpr: Floats
    tpr: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Ranking:
    """What ranking gives: entries of metrics.json, and the band of the curve."""

    entries: dict[str, Any]
    band: RocBand


def measure_ranking(
    scores: Scores,
    curve: metrics.RocCurve,
    resampling: Resampling,
    options: EvaluationOptions,
    progress: Callable[[float], None] | None = None,
) -> Ranking:
    """Compute every ranking metric of a table of scores.

    Parameters
    ----------
    scores : Scores
        The table.
    curve : RocCurve
        Its counts.
    resampling : Resampling
        The draws.
    options : EvaluationOptions
        Rates, prevalences and threads.
    progress : callable, optional
        Told the share done.

    Returns
    -------
    Ranking
        Entries ``auroc``, ``auroc_delong``, ``partial_auroc``, ``average_precision`` (plain and by
        prevalence), ``tpr_at_fpr``, ``tpr0`` and ``tpr10``.
    """
    rows = boot.rank_rows(
        scores.labels, scores.logits, scores.region, scores.n_clusters, order=scores.order
    )
    areas = boot.curve_draws(
        rows,
        resampling.weights,
        options.partial_max_fpr,
        (None, *options.prevalence),
        options.threads,
        progress,
    )
    entries = _area_entries(areas, resampling, options)
    entries["auroc"] = resampling.entry(_auroc(rows, resampling, areas.auroc, options.threads))
    entries["auroc_delong"] = _delong(scores, entries["auroc"]["value"], options.level)
    rates, band = _rates(scores, curve, rows, resampling, options)
    return Ranking(entries | rates, band)


def _auroc(rows: boot.RankedRows, resampling: Resampling, by_pass: Floats, threads: int) -> Floats:
    """AUROC under all weights in whole numbers, or from the pass where regions are too many."""
    if rows.n_regions > boot.MAX_PAIRED_REGIONS:
        return by_pass
    pairs = boot.pair_counts(rows, threads)[0]
    n1, n0 = (rows.counts(positive).astype(np.float64) for positive in (True, False))
    return boot.auroc_of_weights(pairs, resampling.weights, n1, n0)


def _area_entries(
    areas: boot.CurveDraws, resampling: Resampling, options: EvaluationOptions
) -> dict[str, Any]:
    max_fpr = options.partial_max_fpr
    standardized = np.asarray(metrics.standardized_partial_area(areas.partial_area, max_fpr))
    precision = areas.average_precision
    return {
        "partial_auroc": resampling.entry(standardized)
        | {
            "max_fpr": max_fpr,
            "standardization": "McClish: chance 0.5, perfection 1",
            "area_over_max_fpr": float(areas.partial_area[0] / max_fpr),
        },
        "average_precision": resampling.entry(precision[0]),
        "average_precision_at_prevalence": {
            f"{prevalence:g}": resampling.entry(draws)
            for prevalence, draws in zip(options.prevalence, precision[1:], strict=True)
        },
    }


def _delong(scores: Scores, value: float, level: float) -> dict[str, Any] | None:
    if min(int(scores.labels.sum()), int((scores.labels == 0).sum())) < 2:
        return None
    se = delong_se(scores.labels, scores.logits)
    spread = NormalDist().inv_cdf((1 + level) / 2) * se
    low, high = max(0.0, value - spread), min(1.0, value + spread)
    return {"value": value, "low": low, "high": high, "level": level, "se": se}


def _rates(
    scores: Scores,
    curve: metrics.RocCurve,
    rows: boot.RankedRows,
    resampling: Resampling,
    options: EvaluationOptions,
) -> tuple[dict[str, Any], RocBand]:
    grid = np.geomspace(min(1e-5, *options.fprs), 1, _GRID_POINTS)
    n0 = resampling.weights @ rows.counts(False)
    counts = [np.full_like(n0, max_fp) for max_fp in (0.0, 10.0)]
    limits = np.concatenate((np.outer((*options.fprs, *grid), n0), counts))
    draws, _ = boot.tpr_at_limits(rows, resampling.weights, limits, options.threads)
    n = len(options.fprs)
    unique = scores.unique_negatives.size
    at_fpr = {
        f"{fpr:g}": _rate_entry(rows, curve, resampling, fpr, draws[k], unique, options)
        for k, fpr in enumerate(options.fprs)
    }
    entries: dict[str, Any] = {"tpr_at_fpr": at_fpr}
    for name, max_fp, values in (("tpr0", 0, draws[-2]), ("tpr10", 10, draws[-1])):
        threshold = metrics.tpr_at_fp(curve, max_fp).threshold
        entries[name] = resampling.entry(values) | {"max_fp": max_fp, "threshold": threshold}
    band = draws[n:-2]
    return entries, RocBand(grid, band[:, 0], *resampling.bands(band))


def _rate_entry(
    rows: boot.RankedRows,
    curve: metrics.RocCurve,
    resampling: Resampling,
    fpr: float,
    draws: Floats,
    unique: int,
    options: EvaluationOptions,
) -> dict[str, Any]:
    point = metrics.tpr_at_fpr(curve, fpr)
    needed = negatives_needed(fpr, options.delta)
    lens_regions = np.unique(rows.region[rows.positive]).size
    return resampling.share(draws, point.tp, curve.n_positive, lens_regions) | {
        "threshold": point.threshold,
        "supported": unique >= needed,
        "negatives_needed": needed,
        "negatives_unique": unique,
        "fp": point.fp,
        "fpr": point.fpr,
        "tied_at_threshold": metrics.tied_rows(curve, point.threshold),
        "purity": {
            f"{prevalence:g}": resampling.entry(_purity(draws, fpr, prevalence))
            for prevalence in options.prevalence
        },
    }


def _purity(tpr: Floats, fpr: float, prevalence: float) -> Floats:
    """Purity at the nominal rate: what a threshold that keeps its promise delivers at least."""
    return prevalence * tpr / (prevalence * tpr + (1 - prevalence) * fpr)


def auroc_by(
    scores: Scores,
    groups: NDArray[np.integer],
    names: list[str],
    resampling: Resampling,
    threads: int = 0,
) -> dict[str, Any]:
    """AUROC of each group of positives against all negatives.

    Parameters
    ----------
    scores : Scores
        The table.
    groups : ndarray of int, shape (n,)
        Group of each positive, -1 for none; negatives are ignored.
    names : list of str
        Name of each group.
    resampling : Resampling
        The draws.
    threads : int
        0 takes the processors there are.

    Returns
    -------
    dict
        ``{name: {value, low, high, level, n}}``; value None, with a reason, for an empty group.
    """
    rows = boot.rank_rows(
        scores.labels,
        scores.logits,
        scores.region,
        scores.n_clusters,
        groups,
        len(names),
        scores.order,
    )
    n0 = rows.counts(False).astype(np.float64)
    pairs = boot.pair_counts(rows, threads) if _paired(rows) else None
    entries = {}
    for group, name in enumerate(names):
        n1 = rows.counts(True, group).astype(np.float64)
        if n1.sum() == 0:
            entries[name] = _empty(resampling, "no lens in this group") | {"n": 0}
            continue
        if pairs is not None:
            draws = boot.auroc_of_weights(pairs[group], resampling.weights, n1, n0)
        else:
            draws = _auroc_of_rows(
                scores, (scores.labels == 0) | (groups == group), resampling, threads
            )
        entries[name] = resampling.entry(draws) | {"n": int(n1.sum())}
    return entries


def _paired(rows: boot.RankedRows) -> bool:
    """Whether the table of pairs of all groups stays small (512 MiB)."""
    return rows.n_groups * rows.n_regions**2 <= 16 * boot.MAX_PAIRED_REGIONS**2


def _auroc_of_rows(
    scores: Scores, kept: NDArray[np.bool_], resampling: Resampling, threads: int
) -> Floats:
    order = scores.order[kept[scores.order]]
    rows = boot.rank_rows(
        scores.labels, scores.logits, scores.region, scores.n_clusters, order=order
    )
    if rows.n_regions <= boot.MAX_PAIRED_REGIONS:
        return _auroc(rows, resampling, np.empty(0), threads)
    return boot.curve_draws(rows, resampling.weights, 0.01, threads=threads).auroc


def _empty(resampling: Resampling, reason: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "level": resampling.level, "reason": reason}


def rates_at(scores: Scores, threshold: float, resampling: Resampling) -> dict[str, Any]:
    """True- and false-positive rates at a frozen threshold, with intervals by region.

    The false-positive rate also has the one-sided exact limit of independent rows, which says
    something even if no negative is flagged.
    """
    flagged = scores.logits > threshold
    entries = {}
    for name, label in (("tpr", 1), ("fpr", 0)):
        entries[name] = share_by_region(scores, scores.labels == label, flagged, resampling)
    entries["fpr"]["upper_limit"] = upper_limit(
        entries["fpr"]["k"], entries["fpr"]["n"], resampling.level
    )
    return entries


def share_by_region(
    scores: Scores,
    among: NDArray[np.bool_],
    flagged: NDArray[np.bool_],
    resampling: Resampling,
) -> dict[str, Any]:
    """Flagged share of some rows: interval by region, Wilson beside it, and the counts."""
    counts = [
        np.bincount(scores.region[chosen], minlength=scores.n_clusters).astype(np.float64)
        for chosen in (among & flagged, among)
    ]
    k, n = (int(count.sum()) for count in counts)
    if n == 0:
        return _empty(resampling, "no row in this stratum") | {"k": 0, "n": 0, "regions": 0}
    draws = boot.ratio_of_weights(resampling.weights, *counts)
    return resampling.share(draws, k, n, int((counts[1] > 0).sum()))


def stratum_entries(
    scores: Scores, bins: AxisBins, threshold: float, resampling: Resampling, threads: int = 0
) -> list[dict[str, Any]]:
    """Rates and AUROC within each bin of a quantity that both classes have.

    Returns
    -------
    list of dict
        One for each bin: column, lo, hi, label, tpr, fpr, auroc; an entry without rows of a class
        has value None and a reason.
    """
    which = bins.assign(scores.numbers(bins.name))
    flagged = scores.logits > threshold
    entries = []
    for index in range(bins.size):
        inside = which == index
        positive = inside & (scores.labels == 1)
        negative = inside & (scores.labels == 0)
        entry: dict[str, Any] = {
            "column": bins.name,
            "lo": float(bins.edges[index]),
            "hi": float(bins.edges[index + 1]),
            "label": bins.label(index),
            "tpr": share_by_region(scores, positive, flagged, resampling),
            "fpr": share_by_region(scores, negative, flagged, resampling),
        }
        if positive.any() and negative.any():
            draws = _auroc_of_rows(scores, inside, resampling, threads)
            entry["auroc"] = resampling.entry(draws)
            if np.unique(scores.region[inside]).size < 2:
                entry["auroc"] |= {"low": None, "high": None}
        else:
            entry["auroc"] = _empty(resampling, "one class only in this stratum")
        entries.append(entry)
    return entries

"""How well scores rank: areas, rates and curves with intervals by region, as plain entries."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation.clustered import FewRegions, few_of_classes, no_value
from lenstrain.evaluation.completeness import AxisBins
from lenstrain.evaluation.draws import SampleDraws
from lenstrain.evaluation.intervals import delong_se
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.rate_table import (
    RocBand,
    measure_rates,
    partial_bounds,
    precision_entry,
)
from lenstrain.evaluation.resampling import Resampling, make_resampling
from lenstrain.evaluation.scores import Scores

Floats = NDArray[np.float64]


def measure_ranking(
    scores: Scores,
    resampling: Resampling,
    options: EvaluationOptions,
    progress: Callable[[float], None] | None = None,
) -> tuple[dict[str, Any], RocBand]:
    """Compute every ranking metric of a table of scores.

    Parameters
    ----------
    scores : Scores
        The table.
    resampling : Resampling
        The draws.
    options : EvaluationOptions
        Rates, prevalences and threads.
    progress : callable, optional
        Told the share done.

    Returns
    -------
    entries : dict
        Of metrics.json: all metrics of kind ``ranking``, and ``tpr_at_fpr``, ``tpr0``, ``tpr10``,
        ``auroc_delong`` and ``average_precision_at_prevalence``.
    band : RocBand
        Of the ROC curve.
    """
    draws = SampleDraws(
        scores.labels,
        scores.logits,
        scores.region,
        resampling,
        options,
        options.prevalence,
        scores.order,
        progress,
    )
    rates, band = measure_rates(scores, options)
    entries = draws.entries("ranking") | rates
    entries["partial_auroc"] |= _partial_area(draws, scores, options)
    entries["auroc_delong"] = _delong(scores, entries["auroc"]["value"], options.level)
    entries["average_precision_at_prevalence"] = {
        f"{prevalence:g}": precision_entry(
            resampling.entry(precision), scores, prevalence, options.delta
        )
        for prevalence, precision in zip(
            options.prevalence, draws.areas.average_precision[1:], strict=True
        )
    }
    return entries, band


def _partial_area(draws: SampleDraws, scores: Scores, options: EvaluationOptions) -> dict[str, Any]:
    """What is special of a partial area: its interval, and how it is standardised."""
    max_fpr = options.partial_max_fpr
    low, high = partial_bounds(scores, options)
    return {
        "low": low,
        "high": high,
        "max_fpr": max_fpr,
        "standardization": "McClish: chance 0.5, perfection 1",
        "area_over_max_fpr": float(draws.areas.partial_area[0] / max_fpr),
    }


def _delong(scores: Scores, value: float, level: float) -> dict[str, Any] | None:
    if min(int(scores.labels.sum()), int((scores.labels == 0).sum())) < 2:
        return None
    se = delong_se(scores.labels, scores.logits)
    spread = NormalDist().inv_cdf((1 + level) / 2) * se
    low, high = max(0.0, value - spread), min(1.0, value + spread)
    return {"value": value, "low": low, "high": high, "level": level, "se": se}


def region_draws(scores: Scores, options: EvaluationOptions) -> Resampling:
    """Draws of the regions of a table, as its options ask for."""
    return make_resampling(
        scores.n_clusters,
        options.resamples,
        options.seed,
        options.level,
        options.interval,
        few_of(scores, np.ones(scores.n, bool)),
    )


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
    entries = {}
    for group, name in enumerate(names):
        positive = (scores.labels == 1) & (groups == group)
        entry = no_value(resampling.level, "no lens in this group")
        if positive.any():
            entry = _auroc_entry(scores, (scores.labels == 0) | positive, resampling, threads)
        entries[name] = entry | {"n": int(positive.sum())}
    return entries


def _auroc_entry(
    scores: Scores, kept: NDArray[np.bool_], resampling: Resampling, threads: int
) -> dict[str, Any]:
    """AUROC of some rows."""
    order = scores.order[kept[scores.order]]
    rows = boot.rank_rows(
        scores.labels, scores.logits, scores.region, scores.n_clusters, order=order
    )
    draws = boot.auroc_draws(rows, resampling.weights, threads)
    return resampling.entry(draws, few=few_of(scores, kept))


def few_of(scores: Scores, among: NDArray[np.bool_]) -> FewRegions:
    """What few or unequal regions do to an area under a curve of some rows."""
    labels, region = scores.labels[among], scores.region[among]
    return few_of_classes(labels, region, scores.n_clusters, scores.correlations)


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
            "tpr": scores.shares(1, inside, flagged).entry(resampling.level),
            "fpr": scores.shares(0, inside, flagged).entry(resampling.level),
        }
        if positive.any() and negative.any():
            entry["auroc"] = _auroc_entry(scores, inside, resampling, threads)
            if np.unique(scores.region[inside]).size < 2:
                entry["auroc"] |= {"low": None, "high": None}
        else:
            entry["auroc"] = no_value(resampling.level, "one class only in this stratum")
        entries.append(entry)
    return entries

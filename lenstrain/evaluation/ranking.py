"""How well scores rank: areas, rates and curves with intervals by region, as plain entries."""

from collections.abc import Callable, Mapping
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
    progress: Callable[[float], None],
) -> tuple[dict[str, Any], RocBand]:
    """Compute every ranking metric of a table of scores, and the band of its ROC curve.

    The entries are all metrics of kind ``ranking``, and ``tpr_at_fpr``, ``tpr0``, ``tpr10``,
    ``auroc_delong`` and ``average_precision_at_prevalence``. `progress` is called with the fraction
    done.
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
    max_fpr = options.partial_max_fpr
    low, high = partial_bounds(scores, options)
    entries["partial_auroc"] |= {
        "low": low,
        "high": high,
        "max_fpr": max_fpr,
        "standardization": "McClish: chance 0.5, perfection 1",
        "area_over_max_fpr": float(draws.areas.partial_area[0] / max_fpr),
    }
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


def _delong(scores: Scores, value: float, level: float) -> dict[str, Any] | None:
    if min(int(scores.labels.sum()), int((scores.labels == 0).sum())) < 2:
        return None
    se = delong_se(scores.labels, scores.logits)
    spread = NormalDist().inv_cdf((1 + level) / 2) * se
    low, high = max(0.0, value - spread), min(1.0, value + spread)
    return {"value": value, "low": low, "high": high, "level": level, "se": se}


def region_draws(scores: Scores, options: EvaluationOptions) -> Resampling:
    """Draws of the regions of a table, as the options ask."""
    return make_resampling(
        scores.n_clusters,
        options.resamples,
        options.seed,
        options.level,
        options.interval,
        _few_of(scores, np.ones(scores.n, bool)),
    )


def auroc_by(
    scores: Scores,
    groups: Mapping[str, NDArray[np.bool_]],
    resampling: Resampling,
    threads: int,
) -> dict[str, Any]:
    """AUROC of each named group of lenses, a mask of shape (n,), against all non-lenses.

    An empty group has the value None, and a reason.
    """
    entries = {}
    for name, positive in groups.items():
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
    return resampling.entry(draws, few=_few_of(scores, kept))


def _few_of(scores: Scores, among: NDArray[np.bool_]) -> FewRegions:
    """Correction for few or unequal regions of an area under a curve of some rows."""
    labels, region = scores.labels[among], scores.region[among]
    return few_of_classes(labels, region, scores.n_clusters, scores.correlations)


def stratum_entries(
    scores: Scores, bins: AxisBins, threshold: float, resampling: Resampling, threads: int
) -> list[dict[str, Any]]:
    """Rates and AUROC within each bin of a quantity that both classes have.

    Each has the keys column, lo, hi, label, tpr, fpr and auroc; an entry without rows of a class
    has the value None and a reason.
    """
    which = bins.assign(scores.numbers(bins.name))
    flagged = scores.logits > threshold
    entries = []
    for index in range(bins.size):
        inside = which == index
        entry: dict[str, Any] = {
            "column": bins.name,
            "lo": float(bins.edges[index]),
            "hi": float(bins.edges[index + 1]),
            "label": bins.label(index),
            "tpr": scores.shares(1, inside, flagged).entry(resampling.level),
            "fpr": scores.shares(0, inside, flagged).entry(resampling.level),
        }
        if np.unique(scores.labels[inside]).size == 2:
            entry["auroc"] = _auroc_entry(scores, inside, resampling, threads)
            if np.unique(scores.region[inside]).size < 2:
                entry["auroc"] |= {"low": None, "high": None}
        else:
            entry["auroc"] = no_value(resampling.level, "one class only in this stratum")
        entries.append(entry)
    return entries

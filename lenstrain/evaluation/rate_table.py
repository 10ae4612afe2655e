"""Rates at false-positive rates, and purity, as entries, with whether the data support them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation import metrics
from lenstrain.evaluation.clustered import Shares, no_value
from lenstrain.evaluation.names import rate_text
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.rates import (
    Purity,
    RateIntervals,
    partial_area_interval,
    purities,
    tpr_intervals,
)
from lenstrain.evaluation.scores import Scores
from lenstrain.evaluation.threshold import negatives_needed

Floats = NDArray[np.float64]
_GRID_POINTS = 121
_PRECISION_RATE = 0.1


@dataclass(frozen=True)
class RocBand:
    """True-positive rate and purity at the supported points of a grid of rates."""

    fpr: Floats
    tpr: Floats
    low: Floats
    high: Floats
    purity: dict[str, Purity]
    """By prevalence, at the threshold of each rate."""


@dataclass(frozen=True)
class _Cuts:
    """Thresholds of this sample at given rates, and what lies above them."""

    fprs: Floats
    points: list[metrics.OperatingPoint]
    negative: Shares
    positive: Shares
    bounds: RateIntervals
    purity: dict[str, Purity]


def measure_rates(scores: Scores, options: EvaluationOptions) -> tuple[dict[str, Any], RocBand]:
    """Entries ``tpr_at_fpr``, ``tpr0`` and ``tpr10``, and the band of the ROC curve."""
    cuts = _cuts(scores, np.asarray(options.fprs), options)
    supports = supports_of(scores, options.fprs, options.delta)
    at_fpr = {
        f"{fpr:g}": _rate_entry(cuts, k, supports, scores.curve, options.level)
        for k, fpr in enumerate(options.fprs)
    }
    entries = {
        "tpr_at_fpr": at_fpr,
        "tpr0": _count_entry(scores, 0, options),
        "tpr10": _count_entry(scores, 10, options),
    }
    return entries, _band(scores, options)


def _cuts(scores: Scores, fprs: Floats, options: EvaluationOptions) -> _Cuts:
    points = [metrics.tpr_at_fpr(scores.curve, fpr) for fpr in fprs]
    thresholds = np.array([point.threshold for point in points])
    negative, positive = (scores.shares_above(label, thresholds) for label in (0, 1))
    bounds = tpr_intervals(negative, positive, scores.curve, fprs, options.level)
    purity = {
        f"{p:g}": purities(negative, positive, p, options.level, options.prevalence_dex)
        for p in options.prevalence
    }
    return _Cuts(fprs, points, negative, positive, bounds, purity)


def supports_of(
    scores: Scores, fprs: Sequence[float] | Floats, delta: float
) -> list[dict[str, Any]]:
    """Whether the non-lenses of a table are enough for each rate, and what they are worth there.

    A rate is supported if as many independent non-lenses could certify it as the distinct images
    are worth at that rate, given how they correlate within regions.
    """
    thresholds = [metrics.tpr_at_fpr(scores.curve, fpr).threshold for fpr in fprs]
    share = scores.shares_above(0, np.array(thresholds))
    worth = share.worth(1 - delta, np.asarray(fprs, dtype=np.float64))
    unique = scores.n_negative_unique
    return [_support(rate, unique, float(n), delta) for rate, n in zip(fprs, worth, strict=True)]


def support_entry(share: Shares, fpr: float, delta: float) -> dict[str, Any]:
    """As `supports_of`, of some non-lenses of which none is flagged."""
    distinct = round(float(share.n**2 / np.maximum(share.repeats, 1)))
    return _support(fpr, distinct, float(share.worth(1 - delta, fpr)), delta)


def _support(fpr: float, unique: int, effective: float, delta: float) -> dict[str, Any]:
    return {
        "supported": bool((1 - fpr) ** effective <= delta),
        "negatives_needed": negatives_needed(fpr, delta),
        "negatives_unique": unique,
        "negatives_effective": effective,
    }


def support_reason(support: Mapping[str, Any]) -> str:
    """Why a rate has no support, in words."""
    unique, effective = support["negatives_unique"], support["negatives_effective"]
    if not math.isfinite(effective):
        return "all non-lenses lie in one region"
    worth = "" if effective > unique - 1 else f", worth {effective:,.0f} independent ones"
    needed = support["negatives_needed"]
    return f"needs {needed:,} independent non-lenses, there are {unique:,} distinct{worth}"


def _rate_entry(
    cuts: _Cuts, k: int, supports: list[dict[str, Any]], curve: metrics.RocCurve, level: float
) -> dict[str, Any]:
    point, support = cuts.points[k], supports[k]
    if support["supported"]:
        entry = cuts.positive.at(k).entry(level)
        entry |= {"low": float(cuts.bounds.low[k]), "high": float(cuts.bounds.high[k])}
    else:
        entry = no_value(level, support_reason(support)) | {"at_most": _at_most(cuts, k, supports)}
    return {
        **entry,
        **support,
        "threshold": point.threshold,
        "fp": point.fp,
        "fpr": point.fpr,
        "tied_at_threshold": metrics.tied_rows(curve, point.threshold),
        "purity": {
            name: _purity_entry(found, k, level)
            if support["supported"]
            else no_value(level, support_reason(support)) | {"at_least": None}
            for name, found in cuts.purity.items()
        },
    }


def _at_most(cuts: _Cuts, k: int, supports: list[dict[str, Any]]) -> float | None:
    """Upper end of the true-positive rate at the least larger rate that has support."""
    larger = [
        (fpr, high)
        for fpr, high, support in zip(cuts.fprs, cuts.bounds.high, supports, strict=True)
        if support["supported"] and fpr > cuts.fprs[k]
    ]
    return float(min(larger)[1]) if larger else None


def _purity_entry(found: Purity, k: int, level: float) -> dict[str, Any]:
    value, low, high, least = (
        float(ends[k]) if np.isfinite(ends[k]) else None
        for ends in (found.value, found.low, found.high, found.at_least)
    )
    return {"value": value, "low": low, "high": high, "level": level, "at_least": least}


def purity_entries(
    negative: Shares, positive: Shares, options: EvaluationOptions
) -> dict[str, Any]:
    """Purity at one frozen threshold, by prevalence; shares with a leading axis of one."""
    return {
        f"{p:g}": _purity_entry(
            purities(negative, positive, p, options.level, options.prevalence_dex), 0, options.level
        )
        for p in options.prevalence
    }


def _count_entry(scores: Scores, max_fp: int, options: EvaluationOptions) -> dict[str, Any]:
    """TPR0 or TPR10: a count of this sample, with an interval where its rate has one."""
    point = metrics.tpr_at_fp(scores.curve, max_fp)
    entry = {"value": point.tpr, "low": None, "high": None, "level": options.level}
    rate = max_fp / scores.curve.n_negative
    if 0 < rate < 1 and supports_of(scores, [rate], options.delta)[0]["supported"]:
        bounds = _cuts(scores, np.array([rate]), options).bounds
        entry |= {"low": float(bounds.low[0]), "high": float(bounds.high[0])}
    return entry | {"max_fp": max_fp, "threshold": point.threshold}


def _band(scores: Scores, options: EvaluationOptions) -> RocBand:
    """Band from the least rate on from which all are supported."""
    grid = np.geomspace(min(1e-5, *options.fprs), 1, _GRID_POINTS)
    without = [not s["supported"] for s in supports_of(scores, grid[:-1], options.delta)]
    first = int(np.flatnonzero(without)[-1]) + 1 if any(without) else 0
    cuts = _cuts(scores, grid[first:], options)
    return RocBand(cuts.fprs, cuts.positive.value, cuts.bounds.low, cuts.bounds.high, cuts.purity)


def partial_bounds(scores: Scores, options: EvaluationOptions) -> tuple[float, float]:
    """Interval of the standardised partial AUROC."""
    max_fpr = options.partial_max_fpr
    threshold = np.array([metrics.tpr_at_fpr(scores.curve, max_fpr / 2).threshold])
    negative, positive = (scores.shares_above(label, threshold) for label in (0, 1))
    ends = partial_area_interval(negative, positive, scores.curve, max_fpr, options.level)
    low, high = (float(metrics.standardized_partial_area(end * max_fpr, max_fpr)) for end in ends)
    return low, high


def precision_support(scores: Scores, prevalence: float, delta: float) -> dict[str, Any]:
    """Whether the non-lenses of a table are enough for the precision at a prevalence.

    Half of what is flagged at full completeness is false at a false-positive rate equal to the
    prevalence; the best candidates lie at a tenth of it. Where this tenth has no support, intervals
    of the average precision hold in 80 to 95 %, not in 95 (by simulation).
    """
    return supports_of(scores, [_PRECISION_RATE * prevalence], delta)[0]


def precision_entry(
    entry: dict[str, Any], scores: Scores, prevalence: float, delta: float
) -> dict[str, Any]:
    """Average precision at a prevalence: a lower limit alone where the negatives are too few."""
    support = precision_support(scores, prevalence, delta)
    if not support["supported"]:
        rate = rate_text(_PRECISION_RATE * prevalence)
        reason = f"rests on a false-positive rate of {rate}, which {support_reason(support)}"
        entry = no_value(entry["level"], reason)
    return entry | support | {"at_least": _least_precision(scores, prevalence, entry["level"])}


def _least_precision(scores: Scores, prevalence: float, level: float) -> float | None:
    """Lower limit of the average precision, from the threshold of the highest negative.

    Above it the false-positive rate is at most its upper limit u, so precision at a recall r is at
    least r / (r + c), c = (1 - prevalence) u / prevalence, up to the recall R of that threshold:
    the integral is R - c ln(1 + R / c). Both limits hold together (Bonferroni).
    """
    flagged = scores.logits > metrics.tpr_at_fp(scores.curve, 0).threshold
    everything = np.ones(scores.n, bool)
    confidence = (1 + level) / 2
    fpr = float(scores.shares(0, everything, flagged).upper_limit(confidence))
    recall = float(scores.shares(1, everything, flagged).lower_limit(confidence))
    if not (math.isfinite(fpr) and math.isfinite(recall)):
        return None
    c = (1 - prevalence) / prevalence * fpr
    return recall - c * math.log1p(recall / c)

"""Logistic regression cross-validated over regions, and AUROC with its interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation.metrics import auroc, roc_curve
from lenstrain.evaluation.resampling import Resampling, Scale, draw_regions

Floats = NDArray[np.float64]

FOLDS = 5


def cross_validated(
    features: Floats,
    labels: NDArray[Any],
    regions: NDArray[Any],
    *,
    stratified: bool = False,
) -> Floats:
    """Out-of-fold scores of a logistic regression that never saw the row's region.

    Parameters
    ----------
    features : ndarray of float, shape (n, k)
        Finite.
    labels : ndarray, shape (n,)
        0 or 1.
    regions : ndarray, shape (n,)
        Rows of one region are in one of `FOLDS` folds; there are fewer folds than that if there
        are fewer regions.
    stratified : bool
        Spread the classes over the folds, where a region may hold one class only. Folds of equal
        size alone may then put all of a rare class into one.

    Returns
    -------
    ndarray of float64, shape (n,)
        Projections on each fold's direction, in units of their scatter in the fold's training
        rows. The intercept is left out: it mirrors the class balance of the other folds, which
        would bias an AUROC over all folds below 0.5.

    Raises
    ------
    ValueError
        If there are fewer than two regions, or a fold's training rows have one class only.
    """
    scores = np.zeros(len(labels))
    kind = StratifiedGroupKFold if stratified else GroupKFold
    splitter = kind(min(FOLDS, len(np.unique(regions))))
    for train, held_out in splitter.split(features, labels, regions):
        scaler = StandardScaler().fit(features[train])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(max_iter=500).fit(
                scaler.transform(features[train]), labels[train]
            )
        along = scaler.transform(features) @ model.coef_[0]
        spread = along[train].std()
        scores[held_out] = along[held_out] / (spread if spread > 0 else 1.0)
    return scores


def auroc_by_region(
    labels: NDArray[Any],
    scores: NDArray[Any],
    regions: NDArray[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """AUROC with its interval from draws of whole regions.

    Returns
    -------
    dict
        ``value``, ``low``, ``high``, ``level``, ``n``, ``regions``; the ends are None with fewer
        than two regions.
    """
    positive, values = np.asarray(labels) == 1, np.asarray(scores, np.float64)
    resampling, region = draw_regions(positive, values, regions, resamples, seed, level)
    ranked = boot.rank_rows(positive, values, region, resampling.n_clusters)
    found = interval_entry(resampling, boot.auroc_draws(ranked, resampling.weights))
    return found | {"n": len(scores), "regions": resampling.n_clusters}


def interval_entry(resampling: Resampling, draws: Floats, scale: Scale = "logit") -> dict[str, Any]:
    """`Resampling.entry` for JSON: what is not finite is None."""
    found = resampling.entry(draws, scale)
    return {name: x if math.isfinite(x) else None for name, x in found.items()}


def linear_probe(
    features: Floats,
    labels: NDArray[Any],
    regions: NDArray[Any],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    stratified: bool = False,
) -> dict[str, Any] | None:
    """AUROC by region of a cross-validated logistic regression; None if it cannot be run.

    For `stratified` see `cross_validated`.
    """
    usable = len(np.unique(regions)) >= 2 and len(np.unique(labels)) == 2
    if not usable or features.shape[1] == 0:
        return None
    try:
        scores = cross_validated(features, labels, regions, stratified=stratified)
    except ValueError:  # a fold whose training rows have one class
        return None
    return auroc_by_region(labels, scores, regions, resamples=resamples, level=level)


def shuffled_areas(
    features: Floats, labels: NDArray[Any], regions: NDArray[Any], times: int, seed: int
) -> Iterator[float]:
    """AUROC of the cross-validated line for labels shuffled `times` times.

    A shuffle that leaves the training rows of a fold with one class is skipped.
    """
    rng = np.random.default_rng(seed)
    for _ in range(times):
        shuffled = rng.permutation(labels)
        with suppress(ValueError):
            yield auroc(roc_curve(shuffled, cross_validated(features, shuffled, regions)))

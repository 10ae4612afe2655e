"""What a straight line can tell: logistic regression over regions, and AUROC with its interval."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation.clustered import class_correlations, few_of_classes
from lenstrain.evaluation.resampling import make_resampling

Floats = NDArray[np.float64]

FOLDS = 5


def cross_validated(
    features: Floats,
    labels: NDArray[Any],
    regions: NDArray[Any],
    folds: int = FOLDS,
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
        Rows of one region are in one fold.
    folds : int
        Fewer if there are fewer regions.
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
    splitter = kind(min(folds, len(np.unique(regions))))
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
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC with its interval from draws of whole regions.

    Returns
    -------
    dict
        ``value``, ``low``, ``high``, ``level``, ``n``, ``regions``; the ends are None with fewer
        than two regions.
    """
    names, region = np.unique(np.asarray(regions), return_inverse=True)
    positive, values = np.asarray(labels) == 1, np.asarray(scores, np.float64)
    ranked = boot.rank_rows(positive, values, region.astype(np.int32), len(names))
    correlations = class_correlations(positive, values, region)
    few = few_of_classes(positive, region, len(names), correlations)
    resampling = make_resampling(len(names), resamples, seed, level, few=few)
    entry = resampling.entry(boot.auroc_draws(ranked, resampling.weights))
    for end in ("low", "high"):
        if not np.isfinite(entry[end]):
            entry[end] = None
    return entry | {"n": len(scores), "regions": len(names)}


def linear_probe(
    features: Floats,
    labels: NDArray[Any],
    regions: NDArray[Any],
    *,
    resamples: int = 1000,
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
    return auroc_by_region(labels, scores, regions, resamples=resamples)

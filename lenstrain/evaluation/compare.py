"""Two models on the same rows: differences on the same draws, so that shared luck cancels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.errors import ScoresError
from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.resampling import Resampling, make_resampling
from lenstrain.evaluation.scores import Scores


def compare(one: Scores, other: Scores, options: EvaluationOptions) -> dict[str, Any]:
    """Differences, first less second, in AUROC, average precision and TPR at each FPR.

    Parameters
    ----------
    one, other : Scores
        Scores of the same keys, in any order.
    options : EvaluationOptions
        Draws, level and rates.

    Returns
    -------
    dict
        ``auroc``, ``average_precision`` and ``tpr_at_fpr`` (by rate), each
        ``{value, low, high, level}``. An interval that holds 0 tells no model from the other.

    Raises
    ------
    ScoresError
        If keys, labels or regions differ.
    """
    _check_same_rows(one, other)
    resampling = make_resampling(
        one.n_clusters, options.resamples, options.seed, options.level, options.interval
    )
    first, second = (_statistics(scores, resampling, options) for scores in (one, other))
    difference = [resampling.entry(a - b) for a, b in zip(first, second, strict=True)]
    return {
        "auroc": difference[0],
        "average_precision": difference[1],
        "tpr_at_fpr": {
            f"{fpr:g}": entry for fpr, entry in zip(options.fprs, difference[2:], strict=True)
        },
    }


def _statistics(
    scores: Scores, resampling: Resampling, options: EvaluationOptions
) -> list[NDArray[np.float64]]:
    rows = boot.rank_rows(scores.labels, scores.logits, scores.region, scores.n_clusters)
    areas = boot.curve_draws(
        rows, resampling.weights, options.partial_max_fpr, threads=options.threads
    )
    rates, _ = boot.tpr_at_fprs(rows, resampling.weights, options.fprs, options.threads)
    return [areas.auroc, areas.average_precision[0], *rates]


def _check_same_rows(one: Scores, other: Scores) -> None:
    orders = [np.argsort(np.asarray(s.table["key"].to_pylist(), dtype=str)) for s in (one, other)]
    keys, labels, regions = (
        [
            np.asarray(s.table[name].to_pylist())[o]
            for s, o in zip((one, other), orders, strict=True)
        ]
        for name in ("key", "label", "region_id")
    )
    for name, (a, b) in (("keys", keys), ("labels", labels), ("regions", regions)):
        if not np.array_equal(a, b):
            raise ScoresError(
                f"{one.path} and {other.path} differ in their {name}: score the same split of the "
                "same dataset with both models."
            )

"""Two models on the same rows: differences on the same draws, so that shared luck cancels."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.errors import ScoresError
from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation.clustered import no_value
from lenstrain.evaluation.metrics import standardized_partial_area
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.ranking import region_draws
from lenstrain.evaluation.rate_table import support_reason, supports_of
from lenstrain.evaluation.resampling import Resampling
from lenstrain.evaluation.scores import Scores

Floats = NDArray[np.float64]


def compare(one: Scores, other: Scores, options: EvaluationOptions) -> dict[str, Any]:
    """Differences, first less second, on the same draws of regions.

    Parameters
    ----------
    one, other : Scores
        Scores of the same keys, in any order.
    options : EvaluationOptions
        Draws, level and rates.

    Returns
    -------
    dict
        ``auroc``, ``partial_auroc``, ``average_precision`` and ``tpr_at_fpr`` (by rate), each
        ``{value, low, high, level, this, other}``: the difference with its interval, and the two
        models' own values. An interval that holds 0 tells no model from the other.

    Raises
    ------
    ScoresError
        If keys, labels or regions differ.
    """
    matched = _matched_rows(one, other)
    resampling = region_draws(one, options)
    first = _statistics(one, one.logits, resampling, options)
    second = _statistics(one, other.logits[matched], resampling, options)
    entries = [
        resampling.entry(a - b, "linear") | {"this": float(a[0]), "other": float(b[0])}
        for a, b in zip(first, second, strict=True)
    ]
    supports = supports_of(one, options.fprs, options.delta)
    rates = {
        f"{fpr:g}": entry
        if support["supported"]
        else no_value(options.level, support_reason(support)) | {"this": None, "other": None}
        for fpr, entry, support in zip(options.fprs, entries[3:], supports, strict=True)
    }
    return {
        "auroc": entries[0],
        "partial_auroc": entries[1],
        "average_precision": entries[2],
        "tpr_at_fpr": rates,
    }


def _statistics(
    scores: Scores, logits: Floats, resampling: Resampling, options: EvaluationOptions
) -> list[Floats]:
    rows = boot.rank_rows(scores.labels, logits, scores.region, scores.n_clusters)
    areas = boot.curve_draws(
        rows, resampling.weights, options.partial_max_fpr, threads=options.threads
    )
    rates, _ = boot.tpr_at_fprs(rows, resampling.weights, options.fprs, options.threads)
    partial = standardized_partial_area(areas.partial_area, options.partial_max_fpr)
    return [areas.auroc, np.asarray(partial), areas.average_precision[0], *rates]


def _matched_rows(one: Scores, other: Scores) -> NDArray[np.int64]:
    """Row of `other` for each row of `one`; labels and regions must be the same."""
    where = pc.index_in(one.table["key"], value_set=other.table["key"])
    rows = where.fill_null(-1).to_numpy().astype(np.int64)
    same = {"keys": one.n == other.n and bool((rows >= 0).all())}
    if same["keys"]:
        same["labels"] = np.array_equal(one.labels, other.labels[rows])
        theirs = other.table["region_id"].take(pa.array(rows)).cast(pa.string())
        same["regions"] = one.table["region_id"].cast(pa.string()).equals(theirs)
    for name, agrees in same.items():
        if not agrees:
            raise ScoresError(
                f"{one.path} and {other.path} differ in their {name}: score the same split of the "
                "same dataset with both models."
            )
    return rows

"""Two models on the same rows: differences on the same draws, so that shared luck cancels."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.errors import ScoresError
from lenstrain.evaluation import metrics
from lenstrain.evaluation.clustered import no_value
from lenstrain.evaluation.draws import SampleDraws
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.origins import Judged, lone_class
from lenstrain.evaluation.ranking import region_draws
from lenstrain.evaluation.rate_table import support_reason, supports_of
from lenstrain.evaluation.resampling import Resampling
from lenstrain.evaluation.scores import Scores

Floats = NDArray[np.float64]


def compare_apart(
    one: Scores, other: Scores, judged: Judged, options: EvaluationOptions
) -> dict[str, Any]:
    """`compare` of the rows of a headline, and under ``origins`` of each origin by itself.

    Parameters
    ----------
    one, other : Scores
        All rows of both tables, as for `compare`. Rows of `other` are found by their keys, so that
        it need not say where they come from.
    judged : Judged
        The rows of `one` that the headline is of, and each origin.
    options : EvaluationOptions

    Returns
    -------
    dict
        ``origins`` is absent if all rows are simulated; an origin of one class has a ``reason``.
    """
    matched = _matched_rows(one, other)

    def among(kept: NDArray[np.bool_]) -> Scores:
        chosen = np.zeros(other.n, bool)
        chosen[matched[kept]] = True
        return other.where(chosen)

    if not judged.apart:
        return compare(one, other, options)
    origins: dict[str, Any] = {}
    for name, rows in judged.apart.items():
        alone = lone_class(rows)
        if alone is None:
            origins[name] = compare(rows, among(one.is_of(name)), options)
        else:
            origins[name] = {"reason": f"{alone} alone: a comparison needs both classes"}
    pooled = judged.origin is None
    headline = compare(one, other, options) if pooled else origins[str(judged.origin)]
    return headline | {"origins": origins}


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
        By name, all metrics but those of probabilities; ``tpr_at_fpr`` by rate. Each is ``{value,
        low, high, level, this, other}``: the difference with its interval, and the two models' own
        values. Where an interval holds 0, neither model is shown to be better.

    Raises
    ------
    ScoresError
        If keys, labels or regions differ.
    """
    matched = _matched_rows(one, other)
    resampling = region_draws(one, options)
    pair = [
        SampleDraws(one.labels, logits, one.region, resampling, options)
        for logits in (one.logits, other.logits[matched])
    ]
    supports = supports_of(one, options.fprs, options.delta)
    entries: dict[str, Any] = {}
    for metric in metrics.METRICS:
        if metric.kind == "probability":
            continue
        first, second = (draws.values(metric) for draws in pair)
        if metric.kind == "ranking":
            entries[metric.name] = _difference(first, second, resampling)
            continue
        entries[metric.name] = {
            f"{fpr:g}": _difference(first[k], second[k], resampling)
            if support["supported"]
            else no_value(options.level, support_reason(support)) | {"this": None, "other": None}
            for k, (fpr, support) in enumerate(zip(options.fprs, supports, strict=True))
        }
    return entries


def _difference(first: Floats, second: Floats, resampling: Resampling) -> dict[str, Any]:
    """The difference of one figure under the same draws, and both models' own values."""
    entry = resampling.entry(first - second, "linear")
    return entry | {"this": float(first[0]), "other": float(second[0])}


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

"""Real and simulated rows apart: whose the headline figures are, and what is said of each origin.

Recall of simulated lenses says how well arcs like the simulated ones are found. Mixed with real
ones it is neither that nor the recall of real lenses, so rows of two origins are never one sample
unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.layout import GRADE, KIND, SIMULATED
from lensprep.errors import ScoresError
from lenstrain.evaluation import metrics
from lenstrain.evaluation.clustered import Shares, no_value
from lenstrain.evaluation.headline import headline_origin
from lenstrain.evaluation.intervals import ONE_SIGMA, upper_limit, wilson
from lenstrain.evaluation.operating import FrozenThreshold
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import Scores

UNSTATED: Final = "unstated"
"""The kind or grade of rows that state none where others do."""

_AREAS: Final = tuple(m.name for m in metrics.METRICS if m.kind in ("ranking", "probability"))
APART: Final = (
    "n", "n_positive", "n_negative", "n_negative_unique", "unique_by", "n_regions", "correlation",
    "largest_tie", *_AREAS, "auroc_delong", "average_precision_at_prevalence", "tpr_at_fpr",
    "tpr0", "tpr10", "ece", "reliability", "calibrated", "thresholds", "completeness_thresholds",
    "strata",
)  # fmt: skip
"""Entries of metrics.json that every origin with both classes has too."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Which rows the headline figures are of, and which are judged apart."""

    origin: str | None
    """Of the headline; None if all rows are pooled."""
    scores: Scores
    """The rows of the headline."""
    reference: Scores | None
    """The rows that its thresholds and calibration are chosen on."""
    chosen_on: tuple[str, ...]
    """Origins of those rows, or of the headline's if they are chosen there."""
    apart: dict[str, Scores]
    """Every origin by itself; empty if all rows are simulated."""

    def doubts(self, origin: str | None) -> list[str]:
        """Why a threshold guarantees nothing for rows of an origin; None for the headline."""
        theirs = self.chosen_on
        ours = self.scores.origins if origin is None else (origin,)
        if ours == theirs:
            return []
        return [f"chosen on {_listed(theirs)} rows, judged on {_listed(ours)} ones"]


def judge_origins(scores: Scores, reference: Scores | None, pool: bool) -> Judged:
    """Choose the rows of the headline figures.

    They are those of the first origin with both classes: simulated, on which thresholds have
    always been chosen, then real, then others by name. Thresholds and calibration are fitted on the
    rows of the same origin in `reference`, or on all of it if it has one origin only.

    Raises
    ------
    ScoresError
        If no origin has both classes, or `reference` holds several, and that of the headline not
        with both classes.
    """
    names = scores.origins
    apart = {} if names == (SIMULATED,) else {name: scores.of_origin(name) for name in names}
    origin = None
    if not pool or len(names) == 1:
        origin = _headline(scores, apart)
        scores = apart.get(origin, scores)
        reference = None if reference is None else part_of(reference, origin)
    return Judged(
        origin=origin,
        scores=scores,
        reference=reference,
        chosen_on=(scores if reference is None else reference).origins,
        apart=apart,
    )


def _headline(scores: Scores, apart: Mapping[str, Scores]) -> str:
    if len(scores.origins) == 1:
        return scores.origins[0]
    found = headline_origin({name: rows.labels for name, rows in apart.items()})
    if found is not None:
        return found
    listed = ", ".join(f"{name} {lone_class(rows)} alone" for name, rows in apart.items())
    raise ScoresError(
        f"{scores.path} has no origin with both classes ({listed}): ranking one origin against "
        "another may rank the origins. Score both classes of one origin, or say --pool."
    )


def part_of(reference: Scores, origin: str) -> Scores:
    """The rows of a second table that belong to a headline of some origin.

    Raises
    ------
    ScoresError
        If it holds several origins, and this one not with both classes.
    """
    if len(reference.origins) == 1:
        return reference
    if origin in reference.origins:
        part = reference.of_origin(origin)
        if lone_class(part) is None:
            return part
    raise ScoresError(
        f"{reference.path} holds {_listed(reference.origins)} rows, but not {origin} ones of both "
        "classes, which thresholds are chosen on. Add them, or say --pool."
    )


def lone_class(scores: Scores) -> str | None:
    """The class that all rows are of; None if there are both."""
    positives = int(scores.labels.sum())
    if 0 < positives < scores.n:
        return None
    return "lenses" if positives else "non-lenses"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)


def class_rates(
    scores: Scores, frozen: Sequence[FrozenThreshold], options: EvaluationOptions
) -> dict[str, Any]:
    """What one class alone can say: counts, and its share above each threshold.

    Returns
    -------
    dict
        Keys of `APART`: areas and rates without a value, for the reason that is also under
        ``unavailable``; ``tpr`` and ``fpr`` of each of the `frozen` thresholds, one of them without
        a value, under ``completeness_thresholds``.
    """
    reason = f"{lone_class(scores)} alone: ranking and calibration need both classes"
    nothing = no_value(options.level, reason)
    positives = int(scores.labels.sum())
    return {
        "unavailable": reason,
        "n": scores.n,
        "n_positive": positives,
        "n_negative": scores.n - positives,
        "n_negative_unique": scores.n_negative_unique,
        "unique_by": scores.identity_column,
        "n_regions": scores.n_regions,
        **dict.fromkeys(_AREAS, nothing),
        "tpr_at_fpr": {f"{fpr:g}": nothing for fpr in options.fprs},
        "average_precision_at_prevalence": {f"{p:g}": nothing for p in options.prevalence},
        "completeness_thresholds": [
            {"name": choice.name, "threshold": choice.threshold, "target_fpr": choice.target_fpr}
            | {
                name: _rate(scores, label, choice.threshold, options.level)
                for name, label in (("tpr", 1), ("fpr", 0))
            }
            for choice in frozen
            if choice.threshold is not None
        ],
    }


def by_source(
    scores: Scores, frozen: Sequence[FrozenThreshold], options: EvaluationOptions
) -> dict[str, Any]:
    """Recall of lenses by grade, and false-positive rate by kind, at frozen thresholds.

    Returns
    -------
    dict
        ``recall`` and ``false_positives``: for each threshold ``name``, ``threshold``, ``all``, and
        ``by_grade`` or ``by_kind``, which are empty where no row states any. Each is a share by
        region with Wilson's interval of independent rows, ``lo68`` to ``hi95``; of non-lenses also
        ``upper_limit`` by region, and of independent rows, ``independent_upper_limit``.
    """
    cuts = [(choice.name, choice.threshold) for choice in frozen if choice.threshold is not None]
    found: dict[str, Any] = {}
    for key, label, column, by in (
        ("recall", 1, GRADE, "by_grade"), ("false_positives", 0, KIND, "by_kind")
    ):  # fmt: skip
        groups = dict(_groups(scores, label, column))
        found[key] = [
            {
                "name": name,
                "threshold": cut,
                "all": _rate(scores, label, cut, options.level),
                by: {
                    group: _rate(scores, label, cut, options.level, rows)
                    for group, rows in groups.items()
                },
            }
            for name, cut in cuts
        ]
    return found


def _groups(scores: Scores, label: int, column: str) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Rows of a class by what a column says, in order; nothing if it says nothing."""
    among = np.flatnonzero(scores.labels == label)
    if not scores.has(column):
        return
    codes, values = scores.codes(column)
    order = among[np.argsort(codes[among], kind="stable")]
    found, starts = np.unique(codes[order], return_index=True)
    parts = list(zip(found, np.split(order, starts[1:]), strict=True)) if order.size else []
    if all(code < 0 for code, _ in parts):
        return
    yield from ((str(values[code]), rows) for code, rows in parts if code >= 0)
    yield from ((UNSTATED, rows) for code, rows in parts if code < 0)


def _rate(
    scores: Scores,
    label: int,
    threshold: float,
    level: float,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Share of some rows of a class above a threshold, with every interval and limit."""
    among = np.flatnonzero(scores.labels == label) if rows is None else rows
    share = _share(scores, label, among, threshold)
    k, n = int(share.k), int(share.n)
    entry = share.entry(level)
    if n == 0:
        return entry
    for percent, coverage in ((68, ONE_SIGMA), (95, 0.95)):
        low, high = wilson(k, n, coverage)
        entry |= {f"lo{percent}": float(low), f"hi{percent}": float(high)}
    if label == 0:
        entry |= {
            "upper_limit": float(share.upper_limit(level)),
            "independent_upper_limit": upper_limit(k, n, level),
        }
    return entry


def _share(scores: Scores, label: int, rows: NDArray[np.int64], threshold: float) -> Shares:
    """As `Scores.shares`, at the cost of the rows alone: there may be many kinds."""
    region = scores.region[rows]
    flagged = (scores.logits[rows] > threshold).astype(np.float64)
    hits, total = (
        np.bincount(region, weights, minlength=scores.n_clusters).astype(np.float64)
        for weights in (flagged, None)
    )
    copies = np.unique(scores.identity[rows], return_counts=True)[1].astype(np.float64)
    return Shares(hits, total, np.asarray((copies**2).sum()), scores.correlations[label])

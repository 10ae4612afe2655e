"""Figures of merit: another one is an entry of `METRICS`, and nothing else.

Those of `COUNTERFACTUAL_METRICS` are of training alone, where a validation split has such rows.

Evaluation, comparison, report, training, monitor and sweep read that list. Ranking metrics come
from one sorted pass over the scores; ties count half, whatever the row order. Their functions take
a `RocCurve`: the numbers of positives and negatives at or above every distinct score. Scores should
be logits: a float32 sigmoid is exactly 1 from 16.64 on, and ties the best candidates. A row is
*flagged* by a threshold when its score lies strictly above it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.errors import ConfigError, ScoresError

Floats = NDArray[np.float64]

_COUNT_SLACK = 1e-12
"""Relative slack when a rate times a count is compared with a count: 0.07 * 100 > 7 in floats."""


@dataclass(frozen=True)
class RocCurve:
    """Counts of both classes at or above each distinct score, from the highest score down."""

    scores: NDArray[np.float64]
    """Distinct scores, descending."""
    tp: NDArray[np.int64]
    """Positives with at least that score."""
    fp: NDArray[np.int64]
    """Negatives with at least that score."""

    @property
    def n_positive(self) -> int:
        """Number of positives."""
        return int(self.tp[-1])

    @property
    def n_negative(self) -> int:
        """Number of negatives."""
        return int(self.fp[-1])


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold flags: rows with a score strictly above it."""

    threshold: float
    """Minus infinity if every row is flagged."""
    tp: int
    fp: int
    tpr: float
    fpr: float


def roc_curve(
    labels: ArrayLike, scores: ArrayLike, order: NDArray[np.intp] | None = None
) -> RocCurve:
    """Count both classes at or above each distinct score.

    Parameters
    ----------
    labels : array_like, shape (n,)
        1 (or True) for a lens, 0 for a non-lens.
    scores : array_like, shape (n,)
        Higher means more like a lens. NaN is an error.
    order : ndarray of int, shape (n,), optional
        Rows by descending score, if that is known.

    Returns
    -------
    RocCurve
        Its arrays have one entry for every distinct score.

    Raises
    ------
    ScoresError
        If a score is NaN, the shapes differ, or a class is empty.
    """
    positive = np.asarray(labels).astype(bool)
    values = np.asarray(scores, dtype=np.float64)
    if positive.shape != values.shape or values.ndim != 1:
        raise ScoresError(f"labels {positive.shape} and scores {values.shape} must be one column")
    if np.isnan(values).any():
        raise ScoresError(f"{int(np.isnan(values).sum())} scores are NaN; remove or rescore them")
    n_positive = int(positive.sum())
    if n_positive == 0 or n_positive == positive.size:
        raise ScoresError("there is one class only: a ranking needs lenses and non-lenses")
    order = np.argsort(values)[::-1] if order is None else order
    values, positive = values[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(values)), values.size - 1)
    tp = np.cumsum(positive, dtype=np.int64)[last]
    return RocCurve(scores=values[last], tp=tp, fp=last + 1 - tp)


def auroc(curve: RocCurve) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties half.

    Equal to ``(R1 - n1 (n1 + 1) / 2) / (n1 n0)`` with mid-ranks (Mann & Whitney 1947), computed
    in whole numbers.
    """
    fp_before = np.concatenate(([0], curve.fp[:-1]))
    tp_before = np.concatenate(([0], curve.tp[:-1]))
    twice_u = int(np.sum((curve.fp - fp_before) * (curve.tp + tp_before)))
    return twice_u / (2 * curve.n_positive * curve.n_negative)


def partial_auroc(curve: RocCurve, max_fpr: float, *, standardize: bool = True) -> float:
    """Area under the ROC curve for false-positive rates from 0 to `max_fpr`.

    Parameters
    ----------
    curve : RocCurve
        Counts at every distinct score.
    max_fpr : float
        Upper end of the integral; the curve is interpolated linearly there.
    standardize : bool
        If true, rescaled after McClish (1989) so that chance is 0.5 and perfection 1, as
        scikit-learn does; otherwise the plain area, at most `max_fpr`.
    """
    fpr = np.concatenate(([0.0], curve.fp / curve.n_negative))
    tpr = np.concatenate(([0.0], curve.tp / curve.n_positive))
    stop = int(np.searchsorted(fpr, max_fpr, side="right"))
    at_end = float(np.interp(max_fpr, fpr[stop - 1 : stop + 1], tpr[stop - 1 : stop + 1]))
    area = float(np.trapezoid(np.append(tpr[:stop], at_end), np.append(fpr[:stop], max_fpr)))
    return float(standardized_partial_area(area, max_fpr)) if standardize else area


def standardized_partial_area(
    area: NDArray[np.float64] | float, max_fpr: float
) -> NDArray[np.float64] | float:
    """Rescale a partial area after McClish (1989, Med. Decis. Making 9, 190)."""
    least = 0.5 * max_fpr**2
    return 0.5 * (1 + (area - least) / (max_fpr - least))


def average_precision(curve: RocCurve, prevalence: float | None = None) -> float:
    """Sum of precision over the steps of recall at distinct scores, not interpolated.

    Parameters
    ----------
    curve : RocCurve
        Counts at every distinct score.
    prevalence : float, optional
        Share of lenses to state the precision at; the share in the sample if None. That is the
        figure of merit of a search in which lenses are rarer than in the sample but look alike.
    """
    steps = np.diff(curve.tp, prepend=0)
    rising = steps > 0
    odds = 1.0 if prevalence is None else prevalence_odds(curve, prevalence)
    precision = curve.tp[rising] / (curve.tp[rising] + odds * curve.fp[rising])
    return float(np.sum(steps[rising] * precision) / curve.n_positive)


def prevalence_odds(curve: RocCurve, prevalence: float) -> float:
    """Weight of a negative of the sample, relative to a positive, at a stated prevalence."""
    return (1 - prevalence) / prevalence * curve.n_positive / curve.n_negative


def purity(tpr: float, fpr: float, prevalence: float) -> float:
    """Share of lenses among the flagged objects at a prevalence; NaN if none is flagged."""
    flagged = prevalence * tpr + (1 - prevalence) * fpr
    return prevalence * tpr / flagged if flagged > 0 else math.nan


def tpr_at_fpr(curve: RocCurve, max_fpr: float) -> OperatingPoint:
    """Most positives that a threshold can flag with a false-positive rate of at most `max_fpr`.

    The threshold is the score of the first negative left out, so a block of ties is flagged
    whole or not at all.
    """
    return _last_allowed(curve, max_fpr * curve.n_negative * (1 + _COUNT_SLACK))


def tpr_at_fp(curve: RocCurve, max_fp: int) -> OperatingPoint:
    """Most positives that a threshold can flag with at most `max_fp` negatives.

    TPR0 and TPR10 of Metcalf et al. (2019, A&A 625, A119) are `max_fp` 0 and 10 here; others
    use fewer than ten, so `max_fp` belongs next to the figure.
    """
    return _last_allowed(curve, max_fp)


def _last_allowed(curve: RocCurve, limit: float) -> OperatingPoint:
    allowed = int(np.searchsorted(curve.fp, limit, side="right"))
    threshold = float(curve.scores[allowed]) if allowed < curve.scores.size else -math.inf
    tp = int(curve.tp[allowed - 1]) if allowed else 0
    fp = int(curve.fp[allowed - 1]) if allowed else 0
    return OperatingPoint(threshold, tp, fp, tp / curve.n_positive, fp / curve.n_negative)


def tied_rows(curve: RocCurve, score: float) -> int:
    """Rows whose score equals `score` exactly."""
    where = int(np.searchsorted(-curve.scores, -score))
    if where == curve.scores.size or curve.scores[where] != score:
        return 0
    rows = curve.tp + curve.fp
    return int(rows[where] - (rows[where - 1] if where else 0))


def largest_tie(curve: RocCurve) -> tuple[float, int]:
    """Score of the largest block of equal scores, and its number of rows."""
    rows = np.diff(curve.tp + curve.fp, prepend=0)
    largest = int(np.argmax(rows))
    return float(curve.scores[largest]), int(rows[largest])


def step_bounds(fpr: ArrayLike, tpr: ArrayLike) -> tuple[float, float]:
    """Bounds of the AUROC from some points of a monotone ROC curve.

    ``sum(dFPR_i TPR_i) <= AUROC <= sum(dFPR_i TPR_{i+1})``, with (0, 0) and (1, 1) added.

    Raises
    ------
    ScoresError
        If the points do not rise together.
    """
    order = np.argsort(np.asarray(fpr, dtype=np.float64), kind="stable")
    x = np.concatenate(([0.0], np.asarray(fpr, dtype=np.float64)[order], [1.0]))
    y = np.concatenate(([0.0], np.asarray(tpr, dtype=np.float64)[order], [1.0]))
    if np.any(np.diff(y) < 0) or np.any(np.diff(x) < 0):
        raise ScoresError("the points do not rise together: they are not one ROC curve")
    return float(np.sum(np.diff(x) * y[:-1])), float(np.sum(np.diff(x) * y[1:]))


def logit_nll(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Negative log likelihood of each row in nats, exact in the tails; shape (n,)."""
    z = np.asarray(logits, dtype=np.float64)
    return np.logaddexp(0.0, np.where(np.asarray(labels).astype(bool), -z, z))


def brier_loss(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Squared error of the probability of each row (Brier 1950); shape (n,)."""
    from scipy.special import expit  # monitors and command lines, which read METRICS, need none

    return np.asarray((expit(np.asarray(logits, dtype=np.float64)) - np.asarray(labels)) ** 2)


@dataclass(frozen=True)
class Sample:
    """Labels and logits of some rows, of which a metric has one value."""

    labels: NDArray[np.generic]
    logits: NDArray[np.floating]
    fpr: float = 1e-2
    """False-positive rate of what is measured at one: ``eval.fpr`` in training, the first of
    ``fprs`` in an evaluation."""
    max_fpr: float = 1e-2
    """Upper end of the partial AUROC."""
    wins: Floats = field(default_factory=lambda: np.empty(0))
    """Of each pair of counterfactuals: `lenstrain.evaluation.pairs.wins`. None is among the rows
    above."""
    lookalikes: NDArray[np.floating] = field(default_factory=lambda: np.empty(0))
    """Logits of the counterfactuals that are no lenses."""

    @cached_property
    def curve(self) -> RocCurve:
        """Counts of both classes at or above every distinct logit."""
        return roc_curve(self.labels, self.logits)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of merit."""

    name: str
    """Key in metrics.json and metrics.jsonl; of ``train.monitor`` and ``search.objective``, if it
    may steer."""
    title: str
    """In the report and in figures."""
    value: Callable[[Sample], float]
    draws: Callable[[Any], Floats] | None = None
    """Its values under all draws of regions, of a `lenstrain.evaluation.draws.SampleDraws`, where
    there is a faster way than `value` of each."""
    kind: Literal["ranking", "rate", "probability"] = "ranking"
    """``ranking``: of the order of the scores alone. ``probability``: measured again after
    calibration, and not compared between models. ``rate``: of ``tpr_at_fpr`` alone, which has a
    value at each of the false-positive rates of the options, with their own intervals."""
    higher_is_better: bool = True
    bounded: bool = True
    """Whether it lies between 0 and 1, and its interval with it."""
    training: Literal["steers", "recorded", "none"] = "steers"
    """Whether training records it in every validation, and may be steered by it."""

    @property
    def sign(self) -> float:
        """1 if more is better, -1 if less is."""
        return 1.0 if self.higher_is_better else -1.0


METRICS: tuple[Metric, ...] = (
    Metric(
        name="auroc",
        title="AUROC",
        value=lambda sample: auroc(sample.curve),
        draws=lambda draws: draws.areas.auroc,
    ),
    Metric(
        name="partial_auroc",
        title="Partial AUROC",
        value=lambda sample: partial_auroc(sample.curve, sample.max_fpr),
        draws=lambda draws: np.asarray(
            standardized_partial_area(draws.areas.partial_area, draws.options.partial_max_fpr)
        ),
        training="none",
    ),
    Metric(
        name="average_precision",
        title="Average precision, this sample",
        value=lambda sample: average_precision(sample.curve),
        draws=lambda draws: draws.areas.average_precision[0],
        training="recorded",
    ),
    Metric(
        name="nll",
        title="Negative log likelihood [nat]",
        value=lambda sample: float(np.mean(logit_nll(sample.logits, sample.labels))),
        draws=lambda draws: draws.mean(logit_nll(draws.logits, draws.labels)),
        kind="probability",
        higher_is_better=False,
        bounded=False,
    ),
    Metric(
        name="brier",
        title="Brier score",
        value=lambda sample: float(np.mean(brier_loss(sample.logits, sample.labels))),
        draws=lambda draws: draws.mean(brier_loss(draws.logits, draws.labels)),
        kind="probability",
        higher_is_better=False,
        training="none",
    ),
    Metric(
        name="tpr_at_fpr",
        title="Completeness at FPR",
        value=lambda sample: tpr_at_fpr(sample.curve, sample.fpr).tpr,
        draws=lambda draws: draws.tpr_at_fprs,
        kind="rate",
    ),
)
"""All figures of merit, in the order in which they are listed."""

PAIR_AUROC: Final = "pair_auroc"

COUNTERFACTUAL_METRICS: tuple[Metric, ...] = (
    Metric(
        name=PAIR_AUROC,
        title="AUROC within pairs",
        value=lambda sample: _mean(sample.wins),
    ),
    Metric(
        name="counterfactual_pass",
        title="Counterfactuals that pass",
        value=lambda sample: _mean(
            sample.lookalikes > tpr_at_fpr(sample.curve, sample.fpr).threshold
        ),
        kind="rate",
        higher_is_better=False,
        training="recorded",
    ),
)
"""What training records besides, of a validation split with counterfactuals."""


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values)) if values.size else math.nan


def recorded(*, counterfactuals: bool) -> list[Metric]:
    """Metrics of a validation, with or without `COUNTERFACTUAL_METRICS`."""
    every = (*METRICS, *COUNTERFACTUAL_METRICS) if counterfactuals else METRICS
    return [metric for metric in every if metric.training != "none"]


def steering(*, counterfactuals: bool = True) -> dict[str, Metric]:
    """Metrics that a run or a sweep can be steered by, by name; as `recorded`."""
    every = recorded(counterfactuals=counterfactuals)
    return {metric.name: metric for metric in every if metric.training == "steers"}


def watched() -> list[str]:
    """Names of the metrics that a watcher of a run is shown, as far as they are recorded."""
    return [*dict.fromkeys((*steering(), *(metric.name for metric in COUNTERFACTUAL_METRICS)))]


def steering_metric(name: str, key: str) -> Metric:
    """The metric that a key of the configuration names.

    Raises
    ------
    ConfigError
        If none of this name may steer.
    """
    known = steering()
    if name not in known:
        raise ConfigError(f"{key} must be one of {', '.join(map(repr, known))}, got {name!r}.")
    return known[name]


def higher_is_better(name: str) -> bool:
    """Whether more of a recorded metric is better; True for one of another version."""
    every = (*METRICS, *COUNTERFACTUAL_METRICS)
    return next((metric.higher_is_better for metric in every if metric.name == name), True)

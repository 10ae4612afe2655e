"""A sample under draws of whole regions, from which metrics compute their value of each draw."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation import metrics
from lenstrain.evaluation.metrics import Metric, Sample
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.resampling import Resampling

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SampleDraws:
    """Rows and weights of regions; what several metrics share is computed once, and on demand."""

    labels: NDArray[np.generic]
    logits: NDArray[np.floating]
    region: NDArray[np.integer]
    """Region of each row, numbered from 0."""
    resampling: Resampling
    """The draws."""
    options: EvaluationOptions
    prevalences: tuple[float, ...] = ()
    """Shares of lenses at which the average precision is wanted too."""
    order: NDArray[np.intp] | None = None
    """Rows by descending logit, if that is known."""
    progress: Callable[[float], None] | None = None

    def values(self, metric: Metric) -> Floats:
        """A metric's value of each draw; of kind ``rate``, shape (rates, draws)."""
        return self._one_by_one(metric) if metric.draws is None else metric.draws(self)

    def entries(self, kind: Literal["ranking", "probability"]) -> dict[str, Any]:
        """Entries of metrics.json, with intervals, of all metrics of a kind."""
        return {
            metric.name: self.resampling.entry(
                self.values(metric), "logit" if metric.bounded else "linear"
            )
            for metric in metrics.METRICS
            if metric.kind == kind
        }

    @cached_property
    def rows(self) -> boot.RankedRows:
        """The rows in descending order of their logits."""
        n_regions = self.resampling.n_clusters
        return boot.rank_rows(self.labels, self.logits, self.region, n_regions, order=self.order)

    @cached_property
    def areas(self) -> boot.CurveDraws:
        """Areas under both curves."""
        return boot.curve_draws(
            self.rows,
            self.resampling.weights,
            self.options.partial_max_fpr,
            (None, *self.prevalences),
            self.options.threads,
            self.progress,
        )

    @cached_property
    def tpr_at_fprs(self) -> Floats:
        """True-positive rate at each rate of the options; shape (rates, draws)."""
        fprs, threads = self.options.fprs, self.options.threads
        return boot.tpr_at_fprs(self.rows, self.resampling.weights, fprs, threads)[0]

    def mean(self, values: Floats) -> Floats:
        """Mean over the rows of each draw; NaN for a draw without rows."""
        total, n = (
            np.bincount(self.region, each, minlength=self.resampling.n_clusters).astype(np.float64)
            for each in (values, None)
        )
        weights = self.resampling.weights
        return boot.ratio(weights @ total, weights @ n)

    def _one_by_one(self, metric: Metric) -> Floats:
        """`Metric.value` of the rows of each draw; NaN where one lacks a class."""
        rows, found = self.rows, np.full(len(self.resampling.weights), np.nan)
        for draw, weight in enumerate(self.resampling.weights):
            times = weight[rows.region].astype(np.int64)
            labels = rows.positive.repeat(times)
            if labels.any() and not labels.all():
                logits = rows.scores.repeat(times)
                sample = Sample(labels, logits, self.options.fprs[0], self.options.partial_max_fpr)
                found[draw] = metric.value(sample)
        return found

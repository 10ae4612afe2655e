"""A table of scores with its curve and shares of its rows, from which all figures follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lensprep.store import Uri
from lenstrain.evaluation.clustered import Shares, class_correlations
from lenstrain.evaluation.metrics import RocCurve, roc_curve
from lenstrain.scoretable import ScoresAre, ScoreTable, read_score_table

Floats = NDArray[np.float64]


def read_scores(
    path: Uri,
    columns: Mapping[str, str] | None = None,
    scores_are: ScoresAre | None = None,
    *,
    if_there: bool = False,
) -> Scores:
    """Read and check a table of scores, as `lenstrain.scoretable.read_score_table` does."""
    table = read_score_table(path, columns, scores_are, if_there=if_there)
    return Scores(**vars(table))


@dataclass(frozen=True, kw_only=True)
class Scores(ScoreTable):
    """A table of scores that can be judged."""

    @cached_property
    def curve(self) -> RocCurve:
        """Counts of both classes at or above every distinct logit."""
        return roc_curve(self.labels, self.logits, self.order)

    @cached_property
    def correlations(self) -> tuple[float, float]:
        """Correlation of logits within regions, of non-lenses and of lenses, on distinct images."""
        rows = np.concatenate([self._distinct(label) for label in (0, 1)])
        return class_correlations(self.labels[rows], self.logits[rows], self.region[rows])

    def _distinct(self, label: int) -> NDArray[np.int64]:
        """One row of every distinct image of a class in every region: that of the lowest logit."""
        rows = np.flatnonzero(self.labels == label)
        if self.class_repeats[label] == rows.size:
            return rows
        cell = self.identity[rows] * self.n_clusters + self.region[rows]
        order = np.lexsort((self.logits[rows], cell))
        return rows[order[np.append(True, np.diff(cell[order]) != 0)]]

    def multiplicity(self, among: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of some rows show the same image as each of them; shape (among.sum(),)."""
        if self.identity_column == "key":
            return np.ones(np.count_nonzero(among), np.int64)
        images = self.identity[among]
        return np.bincount(images, minlength=1)[images]

    def repeats(self, among: NDArray[np.bool_]) -> float:
        """Sum, over the distinct images among some rows, of the square of their rows."""
        return float(self.multiplicity(among).sum())

    @cached_property
    def class_repeats(self) -> tuple[float, float]:
        """`repeats` of all non-lenses and of all lenses."""
        return self.repeats(self.labels == 0), self.repeats(self.labels == 1)

    def shares(self, label: int, within: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> Shares:
        """Flagged share of a class among some rows of the table; masks of shape (n,)."""
        among = within & (self.labels == label)
        counts = [
            np.bincount(self.region[chosen], minlength=self.n_clusters).astype(np.float64)
            for chosen in (among & flagged, among)
        ]
        repeats = np.asarray(self.repeats(among))
        return Shares(counts[0], counts[1], repeats, self.correlations[label])

    def shares_above(self, label: int, thresholds: Floats) -> Shares:
        """Shares of a class strictly above each of m thresholds; hits of shape (m, clusters)."""
        rows = self.order[self.labels[self.order] == label]
        order = np.argsort(-thresholds, kind="stable")
        upto = np.searchsorted(-self.logits[rows], -thresholds[order], side="left")
        step = np.searchsorted(upto, np.arange(rows.size), side="right")
        cell = step * self.n_clusters + self.region[rows]
        counts = np.bincount(cell, minlength=(thresholds.size + 1) * self.n_clusters)
        counts = counts.reshape(-1, self.n_clusters).astype(np.float64)
        hits = np.empty((thresholds.size, self.n_clusters))
        hits[order] = np.cumsum(counts[:-1], axis=0)
        total = np.broadcast_to(counts.sum(axis=0), hits.shape)
        repeats = np.full(thresholds.size, self.class_repeats[label])
        return Shares(hits, total, repeats, self.correlations[label])

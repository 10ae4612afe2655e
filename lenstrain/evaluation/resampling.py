"""One set of draws over regions, and the interval that each statistic gets from it."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation.bootstrap import draw_weights
from lenstrain.evaluation.clustered import (
    FewRegions,
    class_correlations,
    few_of_classes,
    few_regions,
)
from lenstrain.evaluation.intervals import bca_interval, percentile_interval, t_interval

Floats = NDArray[np.float64]
Kind = Literal["t", "percentile", "bca"]
Scale = Literal["logit", "linear"]


@dataclass(frozen=True)
class Resampling:
    """Weights under which every statistic is computed by the same code.

    Row 0 counts every region once and gives the value itself. Then come the resamples, and then,
    for BCa intervals, the regions left out in turn.
    """

    weights: Floats
    resamples: int
    level: float
    kind: Kind
    few: FewRegions
    """Correction of the scatter of the draws for few or unequal regions."""

    @property
    def n_clusters(self) -> int:
        """Regions (or clusters of them) that are drawn."""
        return int(self.weights.shape[1])

    def entry(
        self, values: Floats, scale: Scale = "logit", few: FewRegions | None = None
    ) -> dict[str, Any]:
        """``{value, low, high, level}`` of a statistic; the ends are NaN for a single region.

        Parameters
        ----------
        values : ndarray
            The statistic under `weights`.
        scale : str
            On which a t interval is symmetric; ``linear`` for what is no share.
        few : FewRegions, optional
            Of the regions that this statistic rests on, if they are not all.
        """
        value, few = float(values[0]), few or self.few
        draws, left_out = values[1 : 1 + self.resamples], values[1 + self.resamples :]
        if self.n_clusters < 2:
            low, high = math.nan, math.nan
        elif self.kind == "bca":
            low, high = bca_interval(draws, left_out, value, self.level)
        elif self.kind == "percentile":
            low, high = percentile_interval(draws, self.level)
        else:
            degrees, factor = float(few.degrees), float(few.factor)
            low, high = t_interval(draws, value, self.level, degrees, factor, scale)
        return {"value": value, "low": low, "high": high, "level": self.level}


def make_resampling(
    n_clusters: int,
    resamples: int,
    seed: int,
    level: float,
    kind: Kind = "t",
    few: FewRegions | None = None,
) -> Resampling:
    """Draw the weights; they depend on the number of regions, of resamples, and the seed alone.

    `few` corrects their scatter for few or unequal regions; equal ones if None.
    """
    parts = [np.ones((1, n_clusters)), draw_weights(n_clusters, resamples, seed)]
    if kind == "bca":
        parts.append(1.0 - np.eye(n_clusters))  # each region left out in turn
    few = few or few_regions(np.ones(n_clusters), 0.0)
    return Resampling(np.concatenate(parts), resamples, level, kind, few)


def draw_regions(
    positive: NDArray[np.bool_],
    scores: Floats,
    regions: NDArray[Any],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[Resampling, NDArray[np.int32]]:
    """Draws of the regions of some rows for an area, and each row's region, numbered from 0."""
    names, region = np.unique(regions, return_inverse=True)
    correlations = class_correlations(positive, scores, region)
    few = few_of_classes(positive, region, len(names), correlations)
    return make_resampling(len(names), resamples, seed, level, few=few), region.astype(np.int32)

"""One set of draws over regions, and the interval that each statistic gets from it."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation.bootstrap import draw_weights, jackknife_weights
from lenstrain.evaluation.clustered import FewRegions, few_regions
from lenstrain.evaluation.intervals import Interval, bca_interval, percentile_interval, t_interval

Floats = NDArray[np.float64]
Kind = Literal["t", "percentile", "bca"]
Scale = Literal["logit", "linear"]


@dataclass(frozen=True)
class Resampling:
    """Weights under which every statistic is computed by the same code.

    Row 0 counts every region once: it gives the value itself. Then come the resamples, then, for
    BCa intervals, the regions left out in turn.
    """

    weights: Floats
    resamples: int
    level: float
    kind: Kind
    few: FewRegions
    """What few or unequal regions do to the scatter of the draws."""

    @property
    def n_clusters(self) -> int:
        """Regions (or clusters of them) that are drawn."""
        return int(self.weights.shape[1])

    def interval(
        self, values: Floats, scale: Scale = "logit", few: FewRegions | None = None
    ) -> Interval:
        """Interval of a statistic from its values under `weights`; NaN for a single region.

        Parameters
        ----------
        values : ndarray
            The statistic under `weights`.
        scale : str
            On which a t interval is symmetric; ``linear`` for what is no share.
        few : FewRegions, optional
            Of the regions that this statistic rests on, if they are not all.
        """
        if self.n_clusters < 2:
            return Interval(math.nan, math.nan)
        value = float(values[0])
        draws, left_out = values[1 : 1 + self.resamples], values[1 + self.resamples :]
        if self.kind == "bca":
            return bca_interval(draws, left_out, value, self.level)
        if self.kind == "percentile":
            return percentile_interval(draws, self.level)
        few = few or self.few
        return t_interval(draws, value, self.level, float(few.degrees), float(few.factor), scale)

    def entry(
        self, values: Floats, scale: Scale = "logit", few: FewRegions | None = None
    ) -> dict[str, Any]:
        """``{value, low, high, level}`` of a statistic from its values under `weights`."""
        low, high = self.interval(values, scale, few)
        return {"value": float(values[0]), "low": low, "high": high, "level": self.level}


def make_resampling(
    n_clusters: int,
    resamples: int,
    seed: int,
    level: float,
    kind: Kind = "t",
    few: FewRegions | None = None,
) -> Resampling:
    """Draw the weights; they depend on the number of regions, of resamples, and the seed alone.

    `few` says what unequal regions do to their scatter; equal ones if None.
    """
    parts = [np.ones((1, n_clusters)), draw_weights(n_clusters, resamples, seed)]
    if kind == "bca":
        parts.append(jackknife_weights(n_clusters))
    few = few or few_regions(np.ones(n_clusters), 0.0)
    return Resampling(np.concatenate(parts), resamples, level, kind, few)

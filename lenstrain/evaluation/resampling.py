"""One set of draws over regions, and the interval that each statistic gets from it."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation.bootstrap import draw_weights, jackknife_weights
from lenstrain.evaluation.intervals import Interval, bootstrap_interval, wilson

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resampling:
    """Weights under which every statistic is computed by the same code.

    Row 0 counts every region once: it gives the value itself. Then come the resamples, then, for
    BCa intervals, the regions left out in turn.
    """

    weights: Floats
    resamples: int
    level: float
    kind: Literal["percentile", "bca"]

    @property
    def n_clusters(self) -> int:
        """Regions (or clusters of them) that are drawn."""
        return int(self.weights.shape[1])

    def interval(self, values: Floats) -> Interval:
        """Interval of a statistic from its values under `weights`; NaN for a single region."""
        if self.n_clusters < 2:
            return Interval(math.nan, math.nan)
        draws, left_out = values[1 : 1 + self.resamples], values[1 + self.resamples :]
        return bootstrap_interval(draws, float(values[0]), self.level, left_out, self.kind)

    def entry(self, values: Floats) -> dict[str, Any]:
        """``{value, low, high, level}`` of a statistic from its values under `weights`."""
        low, high = self.interval(values)
        return {"value": float(values[0]), "low": low, "high": high, "level": self.level}

    def share(self, values: Floats, k: int, n: int, clusters: int) -> dict[str, Any]:
        """Entry of a share k / n; Wilson where draws of regions have nothing to vary.

        With no hit (or no miss), or all rows in one region, every draw is alike, and an interval
        of no width would claim certainty.

        Parameters
        ----------
        values : ndarray
            The share under `weights`.
        k, n : int
            Hits and rows.
        clusters : int
            Regions that hold any of the rows.
        """
        entry = self.entry(values) | {"k": k, "n": n, "regions": clusters, "method": "regions"}
        low, high = (float(end) for end in wilson(k, n, self.level))
        if k in (0, n) or clusters < 2:
            entry |= {"low": low, "high": high, "method": "wilson"}
        return entry | {"wilson_low": low, "wilson_high": high}

    def bands(self, values: Floats) -> tuple[Floats, Floats]:
        """Ends of the intervals of several statistics; `values` has shape (n, weights)."""
        ends = np.array([self.interval(row) for row in values]).reshape(-1, 2)
        return ends[:, 0], ends[:, 1]


def make_resampling(
    n_clusters: int,
    resamples: int,
    seed: int,
    level: float,
    kind: Literal["percentile", "bca"] = "percentile",
) -> Resampling:
    """Draw the weights; they depend on the number of regions, of resamples, and the seed alone."""
    parts = [np.ones((1, n_clusters)), draw_weights(n_clusters, resamples, seed)]
    if kind == "bca":
        parts.append(jackknife_weights(n_clusters))
    return Resampling(np.concatenate(parts), resamples, level, kind)

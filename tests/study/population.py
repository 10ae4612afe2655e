"""Simulated surveys: scores that share regions and images, and the truth about them.

A latent score is normal with variance 1 about 0 for non-lenses and about a mean of its own for each
kind of lens; part of it, the intraclass correlation, is common to a region, and half of that to
both classes. The logit is the log posterior odds of the latent score, so it is calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import special, stats

from lenstrain.evaluation import metrics
from lenstrain.evaluation.scores import Scores

KINDS = (0.5, 1.0, 1.5)
"""Einstein radii of the kinds of lens, in arcsec."""
MEANS = np.array([1.2, 2.4, 3.4])
_COMMON = 0.5
_COUNTS = 10_000_000
_GRID = np.linspace(-9, 13, 22_001)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """One kind of survey."""

    regions: int
    icc: float
    unequal: bool = False
    copies: int = 1
    """Rows of each non-lens."""
    ties: bool = False
    """Whether logits are rounded to quarters."""
    negatives: int = 3000
    positives: int = 1500

    @property
    def name(self) -> str:
        """For tables."""
        extras = [f"ICC {self.icc:g}"]
        extras += ["unequal"] * self.unequal + ["ties"] * self.ties
        extras += [f"{self.copies} copies"] * (self.copies > 1)
        return f"{self.regions} regions, {', '.join(extras)}"


class Population:
    """The survey that scores are drawn from, and every figure's true value in it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.share = setting.positives / (setting.positives + setting.negatives)

    def logit(self, latent: Floats) -> Floats:
        """Log posterior odds of a latent score; shape (n,)."""
        ratio = special.logsumexp(
            np.multiply.outer(latent, MEANS) - MEANS**2 / 2, axis=-1
        ) - np.log(len(MEANS))
        logit: Floats = ratio + special.logit(self.share)
        return np.round(4 * logit) / 4 if self.setting.ties else logit

    def survival(self, threshold: float, mean: float) -> float:
        """Share of a kind whose logit lies strictly above a threshold."""
        above = self._grid_logit > threshold
        if not above.any():
            return 0.0
        edge = _GRID[int(np.argmax(above))]
        return float(stats.norm.sf(edge - mean))

    @cached_property
    def _grid_logit(self) -> Floats:
        return self.logit(_GRID)

    def fpr(self, threshold: float) -> float:
        """True false-positive rate."""
        return self.survival(threshold, 0.0)

    def tpr(self, threshold: float) -> float:
        """True true-positive rate."""
        return float(np.mean([self.survival(threshold, mean) for mean in MEANS]))

    @cached_property
    def cells(self) -> tuple[Floats, Floats, Floats]:
        """Logit, and probability of non-lenses and lenses, in small steps, downwards."""
        logit = self.logit((_GRID[1:] + _GRID[:-1]) / 2)[::-1]
        zero = np.diff(stats.norm.cdf(_GRID))[::-1]
        one = np.mean([np.diff(stats.norm.cdf(_GRID - mean)) for mean in MEANS], axis=0)[::-1]
        return logit, zero, one

    @cached_property
    def curve(self) -> metrics.RocCurve:
        """The ROC curve of ten million rows of each class."""
        logit, zero, one = self.cells
        last = np.append(np.flatnonzero(np.diff(logit)), logit.size - 1)
        counts = [
            np.round(np.cumsum(mass)[last] / mass.sum() * _COUNTS).astype(np.int64)
            for mass in (one, zero)
        ]
        return metrics.RocCurve(logit[last], counts[0], counts[1])

    def same_region(self, areas: float, shares: float) -> float:
        """Mean of an area over pairs of which some lie in one region, where less scatters."""
        return areas * (1 - shares) + shares * self._area(1 - self.setting.icc * _COMMON)

    def _area(self, variance: float) -> float:
        return float(np.mean(stats.norm.cdf(MEANS / np.sqrt(2 * variance))))

    @cached_property
    def nll(self) -> float:
        """Expected negative log likelihood."""
        logit, zero, one = self.cells
        return float(
            (1 - self.share) * (zero * np.logaddexp(0, logit)).sum()
            + self.share * (one * np.logaddexp(0, -logit)).sum()
        )

    @cached_property
    def brier(self) -> float:
        """Expected squared error of the probability."""
        logit, zero, one = self.cells
        p = special.expit(logit)
        return float(
            (1 - self.share) * (zero * p**2).sum() + self.share * (one * (1 - p) ** 2).sum()
        )


def draw(population: Population, rng: np.random.Generator, first_region: int = 0) -> Scores:
    """Draw a table of scores."""
    setting = population.setting
    common = rng.standard_normal(setting.regions)
    parts = []
    for label, images in ((0, setting.negatives // setting.copies), (1, setting.positives)):
        region = np.repeat(np.arange(setting.regions), _sizes(setting, images, rng))
        own = rng.standard_normal(setting.regions)
        effect = np.sqrt(_COMMON) * common + np.sqrt(1 - _COMMON) * own
        latent = np.sqrt(setting.icc) * effect[region]
        latent += np.sqrt(1 - setting.icc) * rng.standard_normal(region.size)
        kind = rng.integers(0, len(KINDS), region.size)
        if label:
            latent += MEANS[kind]
        theta = np.where(label, np.array(KINDS)[kind], np.nan)
        image = np.arange(region.size) + label * 10_000_000
        columns = [np.full(region.size, label), latent, region, theta, image]
        parts.append([np.repeat(column, 1 if label else setting.copies) for column in columns])
    label, latent, region, theta, image = (
        np.concatenate(pair) for pair in zip(*parts, strict=True)
    )
    return _scores(population.logit(latent), label, region, theta, image, setting, first_region)


def _sizes(setting: Setting, images: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Images of each region: equal, or spread like a lognormal of width 0.8."""
    if not setting.unequal:
        return np.full(setting.regions, images // setting.regions)
    share = rng.lognormal(0, 0.8, setting.regions)
    return np.maximum(1, np.round(share / share.sum() * images)).astype(np.int64)


def _scores(
    logit: Floats,
    label: NDArray[np.integer],
    region: NDArray[np.integer],
    theta: Floats,
    image: NDArray[np.integer],
    setting: Setting,
    first_region: int,
) -> Scores:
    names, codes = np.unique(region, return_inverse=True)
    columns = {
        "key": np.arange(label.size) + 100_000_000 * first_region,
        "label": label.astype(np.int8),
        "logit": logit,
        "region_id": names[codes] + first_region,
        "theta_e_arcsec": theta,
    }
    if setting.copies > 1:
        columns["pixel_hash"] = image + 100_000_000 * first_region
    return Scores(
        path=f"simulated-{first_region}",
        table=pa.table(columns),
        labels=label.astype(np.int8),
        logits=logit,
        region=codes.astype(np.int32),
        n_regions=names.size,
        n_clusters=names.size,
        metadata={},
        sha256="",
    )


def worse(scores: Scores, scatter: float, rng: np.random.Generator) -> Scores:
    """The same rows in the eyes of a worse finder: noise on every logit."""
    noise = scatter * rng.standard_normal(scores.n)
    return replace(scores, path="worse", logits=scores.logits + noise)

"""What `lenstrain evaluate` can be asked for: one frozen dataclass, checked, touching nothing."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from lensprep.configfile import typed
from lensprep.errors import ConfigError

AXES = (
    "theta_e_arcsec",
    "psfsize_r",
    "psfdepth_r",
    "arc_snr",
    "src_dmag",
    "theta_e_over_psf",
)
"""The axes along which completeness can be measured; the last is theta_E over ``psfsize_r``."""


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """Settings of one evaluation; every figure of the report follows from these and the scores."""

    resamples: int = 1000
    """Draws of the bootstrap over regions. Fewer than 1,000 make the interval's ends noisy."""

    seed: int = 0
    """Seed of those draws; the same seed and regions give the same draws for every model."""

    level: float = 0.95
    """Coverage of the intervals and confidence of the limits, between 0.5 and 1."""

    interval: Literal["t", "percentile", "bca"] = "t"
    """Interval of areas and losses: Student's t on the logit scale, which holds with few regions
    too, or the percentiles of the draws, plain or bias-corrected (``bca``, with a jackknife)."""

    fprs: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    """False-positive rates at which the true-positive rate is reported."""

    partial_max_fpr: float = 1e-2
    """The partial AUROC integrates the ROC curve from 0 to this false-positive rate."""

    delta: float = 0.05
    """Probability with which a Neyman-Pearson threshold may miss its target rate, below 0.5."""

    prevalence: tuple[float, ...] = (1e-3, 1e-4)
    """Shares of lenses at which purity and average precision are stated."""

    prevalence_dex: float = 0.0
    """Standard deviation of the prevalence in decades: widens the intervals of purity."""

    betas: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Weights of recall against precision in the F-beta thresholds."""

    inspection_budget: float = 1000.0
    """False positives that people are willing to look at."""

    population: float = 1e7
    """Objects that a search would score, to turn that budget into a false-positive rate."""

    calibration: Literal["platt", "temperature", "none"] = "platt"
    """Map fitted on the ``--calibrate-on`` scores, and applied to these."""

    calibration_bins: int = 15
    """Bins of the reliability curve and of the calibration errors."""

    completeness_fprs: tuple[float, ...] = (1e-2, 1e-3)
    """Target false-positive rates whose frozen thresholds completeness is measured at."""

    thresholds: tuple[float, ...] = ()
    """Frozen logit thresholds to use for completeness instead of ``completeness_fprs``."""

    completeness_axes: tuple[tuple[str, ...], ...] = (
        ("theta_e_arcsec",),
        ("psfsize_r",),
        ("psfdepth_r",),
        ("arc_snr",),
        ("src_dmag",),
        ("theta_e_over_psf",),
        ("theta_e_arcsec", "psfsize_r"),
        ("theta_e_arcsec", "arc_snr"),
        ("theta_e_arcsec", "psfsize_r", "src_dmag"),
    )
    """Combinations of one to three axes; those whose columns are missing are left out and named."""

    axis_bins: int = 4
    """Quantile bins of a continuous axis; an axis of few distinct values has a bin for each."""

    axis_edges: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Edges of an axis's bins instead, ascending: ``axis_edges.psfsize_r=[0.8, 1.2, 1.6]``. Lenses
    beyond them are left out, and counted."""

    unresolved_below: float = 0.5
    """A lens whose theta_E over PSF FWHM is below this is marked as unresolved."""

    selection_axes: tuple[str, ...] = ("theta_e_arcsec", "psfsize_r", "arc_snr", "src_dmag")
    """Axes of the selection function; those whose columns are missing are left out and named."""

    selection_free: tuple[str, ...] = ()
    """Axes along which the selection function may both rise and fall. Else it never falls with
    theta_E, arc S/N and depth, and never rises with seeing and source magnitude."""

    selection_resamples: int = 200
    """Draws of regions that the selection function is fitted to again, for its intervals."""

    selection_min_lenses: int = 5
    """Lenses in a cell of the injections that support the selection function there."""

    pool: bool = False
    """Whether rows of all origins, real and simulated, are one sample in the headline figures;
    else these are of one origin, and all origins are judged apart in any case."""

    match_radius_arcsec: float = 2.0
    """Farthest that a stamp's position may lie from a known lens, in arcsec."""

    examples: int = 12
    """Stamps in each gallery of the report."""

    threads: int = 0
    """Threads of the bootstrap; 0 takes the processors there are."""

    def __post_init__(self) -> None:
        for name in ("fprs", "prevalence", "completeness_fprs"):
            for value in getattr(self, name):
                _require(0 < value < 1, f"{name} must lie between 0 and 1, got {value}")
        _require(bool(self.fprs), "fprs must not be empty")
        frozen = bool(self.completeness_fprs or self.thresholds)
        _require(frozen, "completeness needs completeness_fprs or thresholds")
        _require(0 < self.partial_max_fpr < 1, "partial_max_fpr must lie between 0 and 1")
        _require(0.5 < self.level < 1, f"level must lie between 0.5 and 1, got {self.level}")
        _require(0 < self.delta < 0.5, f"delta must lie between 0 and 0.5, got {self.delta}")
        for name in ("resamples", "calibration_bins", "axis_bins", "selection_min_lenses"):
            value = getattr(self, name)
            _require(value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("examples", "threads", "seed"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} must not be negative, got {value}")
        _require(self.inspection_budget > 0, "inspection_budget must be above 0")
        _require(self.population > 0, "population must be above 0")
        _require(all(beta > 0 for beta in self.betas), "betas must be above 0")
        _require(self.prevalence_dex >= 0, "prevalence_dex must not be negative")
        _require(self.match_radius_arcsec > 0, "match_radius_arcsec must be above 0")
        _require(self.selection_resamples >= 2, "selection_resamples must be at least 2")
        _check_selection_axes(self.selection_axes, self.selection_free)
        _check_edges(self.axis_edges)
        for axes in self.completeness_axes:
            _require(1 <= len(axes) <= 3, f"completeness takes one to three axes, got {len(axes)}")
            unknown = [axis for axis in axes if axis not in AXES]
            _require(not unknown, f"unknown completeness axis {unknown}; known: {', '.join(AXES)}")


def _check_selection_axes(axes: tuple[str, ...], free: tuple[str, ...]) -> None:
    known = AXES[:-1]
    for axis in (*axes, *free):
        _require(axis in known, f"unknown selection axis {axis!r}; known: {', '.join(known)}")
    _require(bool(axes) and len(set(axes)) == len(axes), "selection_axes needs distinct axes")


def _check_edges(axis_edges: dict[str, tuple[float, ...]]) -> None:
    for axis, edges in axis_edges.items():
        _require(axis in AXES, f"unknown axis {axis!r} in axis_edges; known: {', '.join(AXES)}")
        rising = len(edges) > 1 and all(a < b for a, b in pairwise(edges))
        _require(rising, f"axis_edges.{axis} must be two or more ascending numbers, got {edges}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"evaluation options: {message}")

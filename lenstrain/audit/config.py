"""Thresholds of the audit, each with its reason: frozen sections that a TOML file can change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lensprep.configfile import typed
from lenstrain.probes.judge import STANDARD_ERRORS, ProbeThresholds


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class DataThresholds:
    """What the dataset must be like."""

    max_reject_rate: float = 0.001
    """Rejected share that raises a warning: upstream's NaN stamps are 0.08 %."""

    blocking_reject_rate: float = 0.01
    """Rejected share that blocks: above 1 % the source is not what it is believed to be."""

    max_class_gap: float = 0.001
    """Largest difference of the rejected share between the classes: a larger one selects by label.
    """

    min_separation_arcsec: float | None = None
    """Least distance between stamps of different splits. The diagonal of a stamp if not given, so
    that no pixel of sky is shared: 23.7 for 64 pixels of 0.262 arcsec."""

    train_fraction: float | None = None
    """Share of rows that you believe to be in train; not judged if not declared."""

    val_fraction: float | None = None
    """Share of rows that you believe to be in val."""

    test_fraction: float | None = None
    """Share of rows that you believe to be in test."""

    fraction_tolerance: float = 0.02
    """Tolerance of a declared share. Upstream believed 80/10/10 and had 26/39/35."""

    pairing: Literal["undeclared", "paired", "unpaired"] = "undeclared"
    """Whether every lens has its own galaxy as a non-lens. Pairs test causally and reward extra
    flux; without them hosts may differ. Which one it is must be known."""

    pairing_tolerance: float = 0.05
    """Share of lens galaxies that may deviate from the declared mode."""

    probe_rows: int = 50_000
    """Rows, drawn over all splits, that the leak probes are fitted on."""

    metadata_upper: float = 0.55
    """AUROC of metadata that fails, if it is surely above 0.5 too."""

    metadata_lower: float = 0.60
    """Lower end of the AUROC of metadata that blocks (upstream: yellow 0.60, red 0.70)."""

    norm_stat_lower: float = 0.65
    """Lower end of the AUROC of normalisation statistics, against non-lenses with arcs, that warns.
    Rings stand for arcs there, which leaves 0.57 on a clean set."""

    host_rows: int = 1000
    """Stamps of each class whose brightness and statistics are compared."""

    sky_rows: int = 6000
    """Rows, of whole bricks, whose sky is measured."""

    sky_upper: float = 0.55
    """AUROC of the sky that fails, if it is surely above 0.5 too. Wings of arcs give 0.53."""

    sky_lower: float = 0.60
    """Lower end of the AUROC of the sky that blocks."""

    normalized_rows: int = 2000
    """Rows whose stored pixels are compared with the statistics of the normalisation."""

    normalization_tolerance: float = 0.01
    """Largest deviation of a stamp's median or scale, in units of its scale, beyond what rounding
    to float16 causes."""

    copy_train_rows: int = 12_000
    """Rows of train that are searched for near-duplicates of rows of the other splits."""

    copy_rows: int = 3000
    """Rows of each other split."""

    copy_correlation: float = 0.25
    """Correlation of the noise from which two stamps are duplicates; unrelated ones reach 0.1."""


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class RunThresholds:
    """What the run and the loader must do."""

    read_rows: int = 50_000
    """Most rows of train for which an epoch is really read; for more, its plan is checked."""

    world_sizes: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes with which every row must come exactly once."""

    overfit_loss: float = 0.05
    """Loss on 64 stamps that a working network and optimiser must reach."""

    overfit_steps: int = 400
    """Most steps of that training."""

    permuted_rows: int = 1024
    """Training stamps of the run with permuted labels."""

    permuted_steps: int = 150
    """Steps of that run."""

    standard_errors: float = STANDARD_ERRORS
    """Allowed distance of the AUROC of permuted labels from 0.5."""

    check_rows: int = 301
    """Rows of the small datasets for resuming and for two processes; odd, so that a batch is left
    incomplete."""

    min_seeds: int = 3
    """Fewest runs with different seeds: two runs of one configuration differ by more than their
    intervals say."""

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where the short trainings run. Resuming is exact on a CPU."""


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreThresholds:
    """What the scores must support."""

    max_tie_share: float = 0.001
    """Largest block of equal scores: a saturated sigmoid tied 80 % of upstream's positives."""

    claimed_fprs: tuple[float, ...] = (1e-2, 1e-3)
    """False-positive rates at which you claim a completeness; each must be supported."""

    delta: float = 0.05
    """Chance that a guaranteed rate is exceeded."""

    min_regions: int = 30
    """Regions below which intervals by region undercover."""

    min_resamples: int = 1000
    """Draws below which the ends of intervals are noisy."""

    max_ece: float = 0.02
    """Root mean square calibration error after scaling, debiased; fails if surely above this."""

    rescored_rows: int = 256
    """Rows that are scored again: a change of 1.2 % of all rows is found in 95 % of cases."""

    max_top_ratio: float = 0.02
    """Rate of non-lenses over that of lenses above the score that 10 % of the lenses reach: about
    the share of swapped labels. Twice what a finder of this AUROC would give is always allowed."""

    max_bright_missed: float = 0.02
    """Share of the lenses with bright arcs that may score below the median non-lens. What a finder
    of this AUROC misses of all lenses is always allowed."""

    seed_fpr: float = 1e-3
    """False-positive rate at which seeds and left-out values are compared."""


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class ScienceThresholds(ProbeThresholds):
    """What the finder must have learnt."""

    min_cell: int = 100
    """Lenses of a completeness cell of one axis: a Wilson half-width of at most 0.096. Cells of
    three axes hold fewer on any set; their intervals say so."""

    min_cell_share: float = 0.8
    """Share of those cells that must have so many."""

    max_unresolved: float = 0.3
    """Share of lenses with theta_E below half the PSF FWHM; upstream 59.6 %."""

    unresolved_below: float = 0.5
    """theta_E over PSF FWHM below which a lens is unresolved."""

    counterfactual_factor: float = 2.0
    """Counterfactuals of each kind may pass at this multiple of that limit."""

    resolved_arcsec: float = 1.0
    """Einstein radius from which a lens is well resolved: its arc can be told from a source."""

    resolved_ratio: float = 0.75
    """theta_E over PSF FWHM from which a lens is well resolved too."""

    pairs_won: float = 0.9
    """Share of the well resolved lenses, of each kind of pairs, that must score higher than the
    same light without lensing; 0.5 is chance."""

    brightness_upper: float = 0.60
    """AUROC of total brightness, against non-lenses with an arc's light, that fails, if it is
    surely above 0.5 too."""

    left_out_drop: float = 0.05
    """Completeness that may be lost on values that were left out of training."""

    confuser_factor: float = 10.0
    """False-positive rate of a kind of confuser over that of all non-lenses."""

    min_real: int = 30
    """Fewest real lenses from which a recall means anything."""

    real_lower: float = 0.5
    """Wilson lower end of the recall of real lenses (published finders recover 70 to 85 %)."""

    realism_upper: float = 0.8
    """Upper end of the AUROC between real and injected lenses in the network's features. A
    convention: at 0.8 two normal distributions of equal width overlap by 55 %, at upstream's 0.991
    to 0.997 by 5 to 9 %. Some difference remains where hosts were selected differently."""


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """The whole audit."""

    purpose: Literal["publish", "internal"] = "publish"
    """``internal`` turns the blockers that concern only a publication (real lenses, confusers,
    unlensed sources) into warnings."""

    seed: int = 0
    """Seed of samples and of the short trainings."""

    resamples: int = 1000
    """Draws of regions behind the intervals of the leak probes."""

    data: DataThresholds = field(default_factory=DataThresholds)
    """What the dataset must be like."""

    run: RunThresholds = field(default_factory=RunThresholds)
    """What the run and the loader must do."""

    scores: ScoreThresholds = field(default_factory=ScoreThresholds)
    """What the scores must support."""

    science: ScienceThresholds = field(default_factory=ScienceThresholds)
    """What the finder must have learnt."""

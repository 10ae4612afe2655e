"""Probes that take content away, and what the finder can still tell without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from lensprep.dataset import DECALS
from lensprep.dataset.normalization import radius_px
from lenstrain.evaluation.intervals import upper_limit
from lenstrain.evaluation.linear import auroc_by_region, linear_probe, shuffled_areas
from lenstrain.evaluation.metrics import roc_curve, tpr_at_fpr
from lenstrain.networks.d4 import D4_ORDER, transform
from lenstrain.probes import views
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.possible import impossible
from lenstrain.probes.radii import annulus_px, core_px
from lenstrain.probes.sample import Sample
from lenstrain.probes.scoring import Scorer

Floats = NDArray[np.float64]
PERMUTATIONS = 10
ARC_REMOVED_SHARE = 0.5
"""Least share of its injected flux that must be removed for a lens to count."""


@dataclass(frozen=True)
class Baseline:
    """The sample as it is."""

    sample: Sample
    logits: Floats
    threshold: float
    """Logit above which a stamp counts as flagged."""
    flagged_controls: int
    upper_fpr: float
    """One-sided 95 % upper limit of the false-positive rate at the threshold."""
    bright: NDArray[np.bool_]
    """Lenses with a bright arc."""

    def flagged(self, logits: Floats) -> float:
        """Share of some logits above the threshold."""
        return float(np.mean(logits > self.threshold))


def measure_baseline(sample: Sample, scorer: Scorer, options: ProbeOptions) -> Baseline:
    """Score the sample and set the threshold on its non-lenses."""
    logits = scorer(sample.pixels)
    point = tpr_at_fpr(roc_curve(sample.labels, logits), options.fpr)
    bright = (sample.labels == 1) & (sample.numbers("arc_snr") >= options.bright_arc_snr)
    upper = upper_limit(point.fp, int((sample.labels == 0).sum()))
    return Baseline(sample, logits, point.threshold, point.fp, upper, bright)


def lost_share(before: Floats, after: Floats) -> float:
    """Share of the mean score (the sigmoid of the logit) that some stamps have lost.

    A share, since a finder that is shown counterfactuals gives few lenses a score near 1.
    """
    return float(1 - special.expit(after).mean() / special.expit(before).mean())


def view_entry(base: Baseline, logits: Floats, options: ProbeOptions) -> dict[str, Any]:
    """AUROC by region and mean scores of a view, and what lenses with bright arcs lose in it."""
    sample = base.sample
    score = special.expit(logits)
    lens = sample.labels == 1
    bright = base.bright
    return {
        "auroc": auroc_by_region(
            sample.labels, logits, sample.regions, resamples=options.resamples
        ),
        "mean_score_lenses": float(score[lens].mean()),
        "mean_score_non_lenses": float(score[~lens].mean()),
        "flagged_lenses": base.flagged(logits[lens]),
        "flagged_non_lenses": base.flagged(logits[~lens]),
        "bright_drop": lost_share(base.logits[bright], logits[bright]) if bright.any() else None,
        "n_bright": int(bright.sum()),
    }


def measure_views(base: Baseline, scorer: Scorer, options: ProbeOptions) -> dict[str, Any]:
    """All views of the sample that there can be, by name; ``original`` first."""
    pixels, geometry = base.sample.pixels, base.sample.geometry
    core, annulus = core_px(geometry, options), annulus_px(geometry, options)
    made: dict[str, Callable[[np.random.Generator], views.Pixels]] = {
        "core_mask": lambda rng: views.mask_core(pixels, core, rng, geometry),
        "annulus_only": lambda rng: views.keep_annulus(pixels, *annulus, rng, geometry),
        "core_view": lambda rng: views.keep_core(pixels, core, rng, geometry),
        "brightness_view": lambda rng: views.shuffle_rings(pixels, rng),
        "colour_scrambled": lambda rng: views.scramble_colour(pixels, rng),
    }
    found = {"original": view_entry(base, base.logits, options)}
    left_out = impossible(base.sample, options)
    for number, (name, make) in enumerate(made.items()):
        if name in left_out:
            continue
        rng = np.random.default_rng([options.seed, number])
        found[name] = view_entry(base, scorer(make(rng)), options)
    return found


def measure_arc_removal(
    base: Baseline,
    scorer: Scorer,
    options: ProbeOptions,
    partners: tuple[NDArray[np.int64], Sample],
) -> dict[str, Any]:
    """Scores of bright-arc lenses without their arcs.

    The best removal is the same galaxy as a non-lens, where the dataset has it (`partners`).
    Otherwise light without a counterpart on the other side of the host is taken away.

    Returns
    -------
    dict
        ``method`` ("paired" or "asymmetry"), ``n`` lenses with a bright arc, ``n_removed`` of them
        whose arcs could be removed, and ``drop``: the share of their score that they lose, or None.
        By asymmetry also ``removed_share`` (median share of the injected flux removed), and
        ``control_drop``: the mean score that non-lenses lose by the same.
    """
    rows, others = partners
    bright = base.bright[rows]
    if bright.any():
        drop = lost_share(base.logits[rows[bright]], scorer(others.pixels)[bright])
        return {"method": "paired", "n": int(base.bright.sum()), "n_removed": int(bright.sum()),
                "drop": drop}  # fmt: skip
    return _remove_asymmetry(base, scorer, options)


def _remove_asymmetry(base: Baseline, scorer: Scorer, options: ProbeOptions) -> dict[str, Any]:
    sample = base.sample
    found = {"method": "asymmetry", "n": int(base.bright.sum()), "n_removed": 0, "drop": None}
    needed = ("theta_e_arcsec", "psfsize_r", "total_injected_flux_r")
    # Nothing can be taken away within a radius that is not known.
    known = base.bright & np.isfinite([sample.numbers(name) for name in needed]).all(0)
    if not known.any():
        return found
    lenses, geometry = sample.take(known), sample.geometry
    reach = lenses.numbers("theta_e_arcsec") + lenses.numbers("psfsize_r")
    reach = reach / geometry.pixel_scale_arcsec
    flux = lenses.flux()
    removed = replace(
        lenses, pixels=views.remove_asymmetry(lenses.pixels, flux, reach, geometry=geometry)
    )
    before, after = base.logits[known], scorer(removed.pixels)
    taken = (flux - removed.flux())[:, geometry.reference].sum((1, 2))
    lost = np.asarray(taken, np.float64) / lenses.numbers("total_injected_flux_r")
    enough = lost >= ARC_REMOVED_SHARE
    rest = np.flatnonzero(sample.labels == 0)[: options.injections]
    controls = sample.take(rest)
    same = views.remove_asymmetry(
        controls.pixels,
        controls.flux(),
        np.full(len(rest), np.median(reach)),
        geometry=geometry,
    )
    control_drop = special.expit(base.logits[rest]) - special.expit(scorer(same))
    return found | {
        "n_removed": int(enough.sum()),
        "removed_share": float(np.median(lost)),
        "drop": lost_share(before[enough], after[enough]) if enough.any() else None,
        "drop_all": lost_share(before, after),
        "control_drop": float(control_drop.mean()),
    }


def measure_d4(base: Baseline, scorer: Scorer) -> dict[str, Any]:
    """Spread of the logit over the 8 rotations and flips of each stamp."""
    x_BCHW = torch.from_numpy(base.sample.pixels)
    turned = (transform(x_BCHW, torch.full((len(x_BCHW),), k)).numpy() for k in range(D4_ORDER))
    logits = np.stack([scorer(pixels) for pixels in turned])
    change = np.abs(logits - logits[:1])[1:].mean(0)
    crossing = (logits > base.threshold).any(0) & (logits <= base.threshold).any(0)
    return {
        "mean_abs_change": float(change.mean()),
        "p95_abs_change": float(np.quantile(change, 0.95)),
        "logit_sd": float(base.logits.std()),
        "crossing_share": float(crossing.mean()),
        "changes": change.tolist(),
    }


def core_profile(sample: Sample, radius: float) -> Floats:
    """Mean stored value in each ring of one pixel within a radius, per band; (n, bands x rings)."""
    distance = radius_px(sample.pixels.shape[-1])
    rings = [distance.astype(int) == number for number in range(int(radius))]
    values = sample.pixels.astype(np.float32)
    return np.concatenate([values[..., ring].mean(-1) for ring in rings], axis=1).astype(float)


def brightness(sample: Sample, radius: float) -> Floats:
    """Inverse hyperbolic sine of the flux within a radius in units of 0.01 nmgy; (n, bands)."""
    flux = sample.flux()
    unit = 0.01 * 10 ** (0.4 * (sample.geometry.zero_point - DECALS.zero_point))
    inside = radius_px(flux.shape[-1]) < radius
    sky = sample.statistics()[0][..., None] if sample.spec.mode != "asinh_survey" else 0.0
    return np.asarray(np.arcsinh((flux[..., inside] - sky).sum(-1) / unit), np.float64)


def measure_linear(sample: Sample, options: ProbeOptions) -> dict[str, Any]:
    """Logistic regressions on what is not shape: brightness, seeing and depth, the core's profile.

    ``permuted_labels`` is the last of these with the labels shuffled, see `_permuted`.
    """

    def line(features: Floats) -> dict[str, Any] | None:
        return linear_probe(features, sample.labels, sample.regions, resamples=options.resamples)

    names = ("brightness_only", "core_only", "permuted_labels", "psf_depth_only")
    found: dict[str, dict[str, Any] | None] = dict.fromkeys(names)
    left_out, radius = impossible(sample, options), core_px(sample.geometry, options)
    if "brightness_only" not in left_out:
        found["brightness_only"] = line(brightness(sample, radius))
    if "core_only" not in left_out:
        core = core_profile(sample, radius)
        found["core_only"] = line(core)
        found["permuted_labels"] = _permuted(core, sample, options.seed)
    conditions = [name for name in ("psfsize_r", "psfdepth_r") if sample.has(name)]
    if conditions:
        values = np.stack([sample.numbers(name) for name in conditions], 1)
        values = np.where(np.isfinite(values), values, np.nanmedian(values, axis=0))
        found["psf_depth_only"] = line(values)
    return found


def _permuted(features: Floats, sample: Sample, seed: int) -> dict[str, Any] | None:
    """Cross-validate shuffled labels, `PERMUTATIONS` times: the same code must then find nothing.

    Returns
    -------
    dict or None
        ``value`` (mean AUROC), ``low`` and ``high`` (its 95 % interval from the scatter of the
        shuffles), ``sd`` and ``permutations``; None if it cannot be run.
    """
    areas = [*shuffled_areas(features, sample.labels, sample.regions, PERMUTATIONS, seed)]
    if len(areas) < PERMUTATIONS:
        return None
    mean, sd = float(np.mean(areas)), float(np.std(areas, ddof=1))
    half = 1.96 * sd / np.sqrt(PERMUTATIONS)
    return {"value": mean, "low": mean - half, "high": mean + half, "sd": sd,
            "permutations": PERMUTATIONS}  # fmt: skip

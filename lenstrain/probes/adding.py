"""Probes that add light: none at all, as much as an arc but unlensed, and rings without a lens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lensprep.dataset import PIXEL_SCALE_ARCSEC, STAMP_SIZE
from lensprep.dataset.normalization import add_flux, band_statistics, normalize
from lenstrain.evaluation.intervals import upper_limit, wilson
from lenstrain.probes.looking import Baseline
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.sample import Sample
from lenstrain.probes.scoring import Scorer
from lenstrain.probes.sources import point, ring, sigma_px

Floats = NDArray[np.float64]

_DONOR = ("total_injected_flux_r", "src_gr", "src_rz", "psfsize_r", "psf_fwhm_used_r")


def can_add(sample: Sample) -> bool:
    """Whether the sidecar has what it takes to add the light of this sample's lenses."""
    there = sample.has(*_DONOR, "median_r", "scale_r", "src_x_arcsec", "src_y_arcsec")
    return there and bool(_hosts(sample).size and _donors(sample).size)


def _hosts(sample: Sample) -> NDArray[np.int64]:
    """Non-lenses of known seeing: light behind an unknown PSF would be NaN, and never pass."""
    return np.flatnonzero((sample.labels == 0) & np.isfinite(sample.numbers("psfsize_r")))


def _donors(sample: Sample) -> NDArray[np.int64]:
    return np.flatnonzero((sample.labels == 1) & np.isfinite(sample.numbers(_DONOR[0])))


def measure_null_injection(base: Baseline, scorer: Scorer, options: ProbeOptions) -> dict[str, Any]:
    """Add a source of zero flux to non-lenses, through every step that adds one.

    Returns
    -------
    dict
        ``n``, ``pixels_changed`` and ``max_abs_delta_logit``.
    """
    rows = np.flatnonzero(base.sample.labels == 0)[: options.injections]
    controls = base.sample.take(rows)
    median, scale = controls.statistics()
    source = point(np.zeros(len(rows)), np.zeros(len(rows)), np.full(len(rows), 2.0))
    added = np.repeat(0.0 * source[:, None], 3, axis=1).astype(np.float32)
    again = add_flux(controls.pixels, added, controls.spec, median, scale)[0]
    changed = int(np.count_nonzero(again.view(np.uint16) != controls.pixels.view(np.uint16)))
    # Scored side by side, in batches of one size: only the pixels may differ.
    delta = scorer(again) - scorer(controls.pixels)
    return {
        "n": len(rows),
        "pixels_changed": changed,
        "max_abs_delta_logit": float(np.abs(delta).max()),
    }


def draw_donors(sample: Sample, n: int, seed: int) -> Sample:
    """Lenses, with repetition, whose source each of `n` non-lenses gets."""
    return sample.take(np.random.default_rng(seed).choice(_donors(sample), n))


def source_fluxes(donors: Sample) -> Floats:
    """Lensed flux of each donor's source in g, r, z, nanomaggies; shape (n, 3)."""
    red = donors.numbers("total_injected_flux_r")
    green = red * 10 ** (-0.4 * np.nan_to_num(donors.numbers("src_gr")))
    far = red * 10 ** (0.4 * np.nan_to_num(donors.numbers("src_rz")))
    return np.stack([green, red, far], 1)


def seeing(controls: Sample, donors: Sample) -> Floats:
    """PSF FWHM of non-lenses in g, r, z, arcsec; shape (n, 3).

    Non-lenses have no ``psf_fwhm_used_*``: their ``psfsize_r``, with the donor's ratios of bands.
    """
    own = controls.numbers("psfsize_r")
    red = donors.numbers("psf_fwhm_used_r")
    columns = []
    for band in "grz":
        name = f"psf_fwhm_used_{band}"
        ratio = donors.numbers(name) / red if donors.has(name) else np.ones(len(red))
        columns.append(own * np.where(np.isfinite(ratio) & (ratio > 0), ratio, 1.0))
    return np.stack(columns, 1)


def measure_flux_matched(base: Baseline, scorer: Scorer, options: ProbeOptions) -> dict[str, Any]:
    """Give non-lenses the flux and colours of arcs, unlensed: a blurred source beside the core.

    Returns
    -------
    dict
        ``n``, ``flagged`` (count), ``pass_rate`` with its Wilson interval, ``base_rate`` and
        ``base_upper`` (the same stamps before), ``mean_score_before`` and ``_after``, and the
        ``auroc`` of the injected against the untouched.
    """
    sample = base.sample
    rows = _hosts(sample)[: options.injections]
    controls = sample.take(rows)
    donors = draw_donors(sample, len(rows), options.seed)
    reff = (
        np.nan_to_num(donors.numbers("src_reff_arcsec"))
        if donors.has("src_reff_arcsec")
        else np.zeros(1)
    )
    width = sigma_px(seeing(controls, donors), np.broadcast_to(reff[:, None], (len(rows), 3)))
    place = [
        np.nan_to_num(donors.numbers(f"src_{axis}_arcsec")) / PIXEL_SCALE_ARCSEC for axis in "xy"
    ]
    light = point(place[0][:, None], place[1][:, None], width)
    added = (source_fluxes(donors)[..., None, None] * light).astype(np.float32)
    median, scale = controls.statistics()
    after = scorer(add_flux(controls.pixels, added, controls.spec, median, scale)[0])
    passed, before = _share(base, after), _share(base, base.logits[rows])
    return {
        "n": passed["n"],
        "flagged": passed["flagged"],
        "pass_rate": passed["share"],
        "low": passed["low"],
        "high": passed["high"],
        "base_rate": before["share"],
        "base_upper": before["upper"],
        "lens_rate": base.flagged(base.logits[sample.labels == 1]),
        "mean_score_before": before["mean_score"],
        "mean_score_after": passed["mean_score"],
    }


def measure_rings(base: Baseline, scorer: Scorer, options: ProbeOptions) -> dict[str, Any]:
    """Draw rings with the flux and colours of arcs on blank sky and on non-lenses.

    Returns
    -------
    dict
        ``blank`` (bare sky), and ``sky`` and ``non_lens``: for each radius n, mean score and the
        flagged share.
    """
    sample = base.sample
    rows = _hosts(sample)[: options.injections]
    controls = sample.take(rows)
    donors = draw_donors(sample, len(rows), options.seed + 1)
    fluxes, width = source_fluxes(donors), sigma_px(seeing(controls, donors))
    median, scale = controls.statistics()
    sky = blank_sky(scale, options.seed)
    found: dict[str, Any] = {"blank": _share(base, scorer(_stored(sky, controls))), "sky": {},
                             "non_lens": {}}  # fmt: skip
    for radius in options.ring_radii_arcsec:
        light = ring(radius / PIXEL_SCALE_ARCSEC, width)
        added = (fluxes[..., None, None] * light).astype(np.float32)
        on_sky = scorer(_stored(sky + added, controls))
        on_host = scorer(add_flux(controls.pixels, added, controls.spec, median, scale)[0])
        found["sky"][f"{radius:g}"] = _share(base, on_sky)
        found["non_lens"][f"{radius:g}"] = _share(base, on_host)
    return found


def blank_sky(scale: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """White noise of each stamp's own scatter, nanomaggies; shape (n, 3, 64, 64)."""
    rng = np.random.default_rng([seed, 7])
    noise = rng.standard_normal((len(scale), 3, STAMP_SIZE, STAMP_SIZE), np.float32)
    return noise * scale[..., None, None]


def _stored(flux: NDArray[np.float32], like: Sample) -> NDArray[np.float16]:
    median, scale = band_statistics(flux, like.spec)
    return normalize(flux, like.spec, median, scale)


def _share(base: Baseline, logits: Floats) -> dict[str, Any]:
    hits, n = int((logits > base.threshold).sum()), len(logits)
    low, high = (float(end) for end in wilson(hits, n))
    return {
        "n": n,
        "flagged": hits,
        "share": hits / n,
        "low": low,
        "high": high,
        "upper": upper_limit(hits, n),
        "mean_score": float(special.expit(logits).mean()),
    }

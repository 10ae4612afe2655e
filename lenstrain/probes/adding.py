"""Probes that add light: zero flux, the flux of an arc but unlensed, and rings without a lens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lensprep.dataset.normalization import add_flux, band_statistics, normalize
from lenstrain.evaluation.intervals import upper_limit, wilson
from lenstrain.probes.looking import Baseline
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.possible import donors_of, fitting_rings, hosts_of
from lenstrain.probes.sample import Sample, colour_columns, psf_column
from lenstrain.probes.scoring import Scorer
from lenstrain.probes.sky import sky_statistics
from lenstrain.probes.sources import point, ring, sigma_px

Floats = NDArray[np.float64]


def measure_null_injection(base: Baseline, scorer: Scorer, options: ProbeOptions) -> dict[str, Any]:
    """Add a source of zero flux to non-lenses, through every step that adds one.

    Returns
    -------
    dict
        ``n``, ``pixels_changed`` and ``max_abs_delta_logit``.
    """
    rows = np.flatnonzero(base.sample.labels == 0)[: options.injections]
    controls = base.sample.take(rows)
    geometry = base.sample.geometry
    centre = np.zeros((len(rows), len(geometry.bands)))
    source = point(centre, centre, centre + 2.0, geometry.side)
    again = inject(controls, (0.0 * source).astype(np.float32))[0]
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
    return sample.take(np.random.default_rng(seed).choice(donors_of(sample), n))


def source_fluxes(donors: Sample) -> Floats:
    """Lensed flux of each donor's source in each band, units of flux; shape (n, bands)."""
    names = colour_columns(donors.geometry)
    colours = np.array([np.nan_to_num(donors.numbers(name)) for name in names])
    # Bands are in order, so that colours between adjacent ones add up.
    magnitudes = np.zeros((len(donors.labels), 1 + len(names)))
    magnitudes[:, 1:] = np.cumsum(-colours, axis=0).T if names else 0.0
    relative = magnitudes - magnitudes[:, [donors.geometry.reference]]
    return donors.numbers("total_injected_flux_r")[:, None] * 10 ** (-0.4 * relative)


def seeing(controls: Sample, donors: Sample) -> Floats:
    """PSF FWHM of non-lenses in each band, arcsec; shape (n, bands).

    Non-lenses have no ``psf_fwhm_used_*``: their ``psfsize_r``, with the donor's ratios of bands.
    """
    own = controls.numbers("psfsize_r")
    reference = donors.numbers(psf_column(donors.geometry))
    names = donors.geometry.band_columns("psf_fwhm_used")
    ratios = np.stack([donors.numbers(name) / reference for name in names], 1)
    return own[:, None] * np.where(np.isfinite(ratios) & (ratios > 0), ratios, 1.0)


def source_width(controls: Sample, donors: Sample) -> Floats:
    """Gaussian sigma of each donor's source behind a non-lens's seeing, pixels; (n, bands)."""
    reff = np.nan_to_num(donors.numbers("src_reff_arcsec"))
    scale = controls.geometry.pixel_scale_arcsec
    return sigma_px(seeing(controls, donors), reff[:, None], scale)


def coloured(light: Floats, donors: Sample) -> NDArray[np.float32]:
    """Light of unit flux with the flux and colours of each donor's source; (n, bands, S, S)."""
    return (source_fluxes(donors)[..., None, None] * light).astype(np.float32)


def inject(
    controls: Sample, light: NDArray[np.float32]
) -> tuple[NDArray[np.float16], NDArray[np.float32], NDArray[np.float32]]:
    """Stored pixels, medians and scales of stamps once light, in units of flux, was added."""
    return add_flux(controls.pixels, light, controls.spec, *controls.statistics())


def measure_flux_matched(base: Baseline, scorer: Scorer, options: ProbeOptions) -> dict[str, Any]:
    """Give non-lenses the flux and colours of arcs, unlensed: a blurred source next to the core.

    Returns
    -------
    dict
        ``n``, ``flagged`` (count), ``pass_rate`` with its Wilson interval, ``base_rate`` and
        ``base_upper`` (the same stamps before), ``mean_score_before`` and ``_after``, and the
        ``auroc`` of the injected against the untouched.
    """
    sample = base.sample
    rows = hosts_of(sample)[: options.injections]
    controls = sample.take(rows)
    donors = draw_donors(sample, len(rows), options.seed)
    scale, side = sample.geometry.pixel_scale_arcsec, sample.geometry.side
    x_px, y_px = (np.nan_to_num(donors.numbers(f"src_{axis}_arcsec"))[:, None] / scale
                  for axis in "xy")  # fmt: skip
    light = point(x_px, y_px, source_width(controls, donors), side)
    after = scorer(inject(controls, coloured(light, donors))[0])
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
        ``blank`` (bare sky), and ``sky`` and ``non_lens``: for each radius that fits a stamp n,
        mean score and the flagged share; ``left_out``: the radii that do not fit.
    """
    sample = base.sample
    rows = hosts_of(sample)[: options.injections]
    controls = sample.take(rows)
    donors = draw_donors(sample, len(rows), options.seed + 1)
    geometry, fitting = sample.geometry, fitting_rings(sample.geometry, options)
    width = sigma_px(seeing(controls, donors), scale=geometry.pixel_scale_arcsec)
    sky = blank_sky(controls, options.seed)
    found: dict[str, Any] = {
        "blank": _share(base, scorer(_stored(sky, controls))),
        "sky": {},
        "non_lens": {},
        "left_out": [r for r in options.ring_radii_arcsec if r not in fitting],
    }
    for radius in fitting:
        light = coloured(ring(radius / geometry.pixel_scale_arcsec, width, geometry.side), donors)
        found["sky"][f"{radius:g}"] = _share(base, scorer(_stored(sky + light, controls)))
        found["non_lens"][f"{radius:g}"] = _share(base, scorer(inject(controls, light)[0]))
    return found


def blank_sky(controls: Sample, seed: int) -> NDArray[np.float32]:
    """White noise with level and scatter of each stamp's own sky, in flux; (n, bands, S, S).

    The scale of the whole stamp would be too wide, for it holds the host.
    """
    level, scatter = sky_statistics(
        controls.pixels, controls.spec, *controls.statistics(), controls.geometry
    )
    rng = np.random.default_rng([seed, 7])
    noise = rng.standard_normal(controls.pixels.shape, np.float32)
    return (noise * scatter[..., None, None] + level[..., None, None]).astype(np.float32)


def _stored(flux: NDArray[np.float32], like: Sample) -> NDArray[np.float16]:
    return normalize(flux, like.spec, *band_statistics(flux, like.spec))


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

"""Which probes a sample allows: what its stamps are too small for, and what its sidecar lacks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import Geometry
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.radii import to_px, why_no_core
from lenstrain.probes.sample import Sample, colour_columns, psf_column

_CORE = ("core_mask", "core_view", "core_only", "permuted_labels", "brightness_only")
_FLUX = ("brightness_only", "arc_removal", "null_injection")


def impossible(sample: Sample, options: ProbeOptions) -> dict[str, str]:
    """Probes that cannot be run on a sample, and why, in a sentence each."""
    found: dict[str, str] = {}
    if reason := why_no_core(sample.geometry, options):
        found |= dict.fromkeys(_CORE, reason)
    if len(sample.geometry.bands) == 1:
        found["colour_scrambled"] = "the stamps have one band."
    if not (sample.has("psfsize_r") or sample.has("psfdepth_r")):
        found["psf_depth_only"] = _lacks(["psfsize_r", "psfdepth_r"])
    if missing := missing_columns(sample, *sample.geometry.band_columns("median", "scale")):
        found |= dict.fromkeys(_FLUX, _lacks(missing))
    if reason := cannot_add(sample):
        found |= dict.fromkeys(("flux_matched_null", "ring_probe"), reason)
    elif not fitting_rings(sample.geometry, options):
        side = f"{sample.geometry.side_arcsec:.3g} arcsec"
        found["ring_probe"] = f"no ring of ring_radii_arcsec fits a stamp of {side}."
    return found


def cannot_add(sample: Sample) -> str:
    """Why the light of this sample's lenses cannot be added to its non-lenses; empty if it can."""
    geometry = sample.geometry
    missing = missing_columns(
        sample, "total_injected_flux_r", *colour_columns(geometry), "psfsize_r",
        psf_column(geometry), "src_x_arcsec", "src_y_arcsec",
        *geometry.band_columns("median", "scale"),
    )  # fmt: skip
    if missing:
        return _lacks(missing)
    if not hosts_of(sample).size:
        return "no non-lens has a known seeing (psfsize_r)."
    if not donors_of(sample).size:
        return "no lens has a known injected flux (total_injected_flux_r)."
    return ""


def missing_columns(sample: Sample, *names: str) -> list[str]:
    """Those of some columns that the sidecar lacks."""
    return [name for name in names if not sample.has(name)]


def hosts_of(sample: Sample) -> NDArray[np.int64]:
    """Non-lenses of known seeing: behind none (null or 0) light would be NaN and never flagged."""
    return np.flatnonzero((sample.labels == 0) & (sample.numbers("psfsize_r") > 0))


def donors_of(sample: Sample) -> NDArray[np.int64]:
    """Lenses whose injected flux is known."""
    known = np.isfinite(sample.numbers("total_injected_flux_r"))
    return np.flatnonzero((sample.labels == 1) & known)


def fitting_rings(geometry: Geometry, options: ProbeOptions) -> list[float]:
    """Those of `ring_radii_arcsec` that lie in a stamp."""
    return [r for r in options.ring_radii_arcsec if to_px(r, geometry) < geometry.side / 2]


def _lacks(names: list[str]) -> str:
    return f"the sidecar lacks {', '.join(names)}."

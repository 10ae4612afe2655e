"""Checks of what is brighter in lenses: is it the injected light, or were other hosts chosen.

Arcs make a lens brighter, widen its scale and clip by right, on every set of injections. So lenses
are not compared with bare non-lenses but with non-lenses that got the light of a lens's arcs: what
is still told apart was not injected.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset import BANDS, PIXEL_SCALE_ARCSEC
from lensprep.dataset.normalization import add_flux
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.audit.leaks import run_probe, surely_above
from lenstrain.probes.adding import can_add, draw_donors, seeing, source_fluxes
from lenstrain.probes.linear import linear_probe
from lenstrain.probes.looking import brightness
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.sample import Sample, draw_sample
from lenstrain.probes.sources import ring, sigma_px

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """Lenses beside non-lenses before and after they got the light of arcs."""

    lenses: Sample
    controls: Sample
    injected: Sample
    """The controls with arcs: pixels, and ``median_*`` and ``scale_*``, as conversion would store.
    """


def check_brightness_only(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Flux in three bands against that of non-lenses with an arc's light added."""
    made = compared(evidence, config)
    radius = ProbeOptions().core_px
    lenses, controls, injected = (
        brightness(sample, radius) for sample in (made.lenses, made.controls, made.injected)
    )
    limit = config.science.brightness_upper
    bare = _area(lenses, controls, made)
    found = _probe(lenses, injected, made, config, limit)
    passed = not surely_above(found, limit)
    return Outcome(
        passed=passed,
        measured=found | {"without_injection": bare},
        threshold={"upper": limit},
        detail=f"AUROC {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] against "
        f"non-lenses that got an arc's light ({bare:.3f} against bare ones: that much the "
        "injections explain)."
        + ("" if passed else " Lenses have other hosts than non-lenses."),
    )  # fmt: skip


def check_norm_stat_probe(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Medians, scales and clipped fractions against those of non-lenses with arcs added."""
    made = compared(evidence, config)
    lenses, controls, injected = (
        statistics(sample) for sample in (made.lenses, made.controls, made.injected)
    )
    bare = _area(lenses, controls, made)
    found = _probe(lenses, injected, made, config, 1.0)
    gaps = clip_gaps(lenses, injected)
    text = ", ".join(
        f"{band} {gap['non_lenses']:.2%} and {gap['lenses']:.2%} (d = {gap['cohen_d']:.2f})"
        for band, gap in gaps.items()
    )
    passed = found["low"] <= config.data.norm_stat_lower
    return Outcome(
        passed=passed,
        measured=found | {"without_injection": bare, "clip_gap": gaps},
        threshold={"lower": config.data.norm_stat_lower},
        detail=f"AUROC {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] from medians,"
        f" scales and clipped fractions against non-lenses that got an arc's light "
        f"({bare:.3f} against bare ones). Clipped in these and in lenses: {text}."
        + ("" if passed else " The classes were normalised differently, or have other hosts."),
    )  # fmt: skip


def compared(evidence: Evidence, config: AuditConfig) -> Compared:
    """Stamps of the training split: lenses, non-lenses, and these with arcs; made once.

    Raises
    ------
    NotRunError
        If the sidecar does not say what was injected.
    """
    if "hosts" in evidence.made:
        return cast(Compared, evidence.made["hosts"])
    sample = draw_sample(evidence.dataset, "train", config.data.host_rows, config.seed)
    if not _says_what_was_added(sample):
        raise NotRunError(
            "The sidecars do not say what was injected (total_injected_flux_r, src_gr, src_rz, "
            "theta_e_arcsec, psf_fwhm_used_r): what arcs explain cannot be told. Convert again "
            "with these columns."
        )
    seen = sample.numbers("psfsize_r") > 0
    lenses, controls = (sample.take(seen & (sample.labels == k)) for k in (1, 0))
    evidence.made["hosts"] = Compared(lenses, controls, with_arcs(controls, sample, config.seed))
    return cast(Compared, evidence.made["hosts"])


def _says_what_was_added(sample: Sample) -> bool:
    """Whether the columns are there, and hold the injected flux of a lens."""
    if not can_add(sample) or not sample.has("theta_e_arcsec"):
        return False
    flux = sample.numbers("total_injected_flux_r")
    return bool(np.isfinite(flux[sample.labels == 1]).any())


def with_arcs(controls: Sample, sample: Sample, seed: int) -> Sample:
    """Non-lenses with the light of the arcs of lenses drawn at random.

    The light is a ring of the donor's Einstein radius, flux and colours behind the control's
    seeing; it is added in flux, and the statistics move by what it changes (`add_flux`).
    """
    donors = draw_donors(sample, len(controls.labels), seed)
    shape = (len(controls.labels), len(BANDS))
    reff = np.zeros(shape[0])
    if donors.has("src_reff_arcsec"):
        reff = np.nan_to_num(donors.numbers("src_reff_arcsec"))
    radius = np.nan_to_num(donors.numbers("theta_e_arcsec")) / PIXEL_SCALE_ARCSEC
    width = sigma_px(seeing(controls, donors), np.broadcast_to(reff[:, None], shape))
    light = ring(np.broadcast_to(radius[:, None], shape), width)
    added = (source_fluxes(donors)[..., None, None] * light).astype(np.float32)
    median, scale = controls.statistics()
    pixels, median, scale = add_flux(controls.pixels, added, controls.spec, median, scale)
    table = controls.table
    for number, band in enumerate(BANDS):
        for name, values in ((f"median_{band}", median), (f"scale_{band}", scale)):
            column = pa.array(values[:, number].astype(np.float32))
            table = table.set_column(table.column_names.index(name), name, column)
    return Sample(pixels, controls.labels, table, controls.spec, controls.split)


def statistics(sample: Sample) -> Floats:
    """Median, scale and clipped fraction of each band; shape (n, 9)."""
    clipped = np.abs(sample.pixels) >= sample.spec.clip
    return np.concatenate([*sample.statistics(), clipped.mean(axis=(2, 3))], axis=1).astype(float)


def _probe(
    lenses: Floats, others: Floats, made: Compared, config: AuditConfig, limit: float
) -> dict[str, Any]:
    labels, regions = _labels_and_regions(made)
    table = pa.table({"label": labels, "region_id": regions})
    return run_probe(np.concatenate([lenses, others]), table, config, limit)


def _area(lenses: Floats, others: Floats, made: Compared) -> float:
    """AUROC alone, without an interval."""
    found = linear_probe(np.concatenate([lenses, others]), *_labels_and_regions(made), resamples=2)
    return float("nan") if found is None else float(found["value"])


def _labels_and_regions(made: Compared) -> tuple[NDArray[Any], NDArray[Any]]:
    regions = [made.lenses.regions, made.controls.regions]
    return np.repeat([1, 0], [len(part) for part in regions]), np.concatenate(regions)


def clip_gaps(lenses: Floats, others: Floats) -> dict[str, dict[str, float]]:
    """Mean clipped fraction of both in each band, and Cohen's d, from `statistics`."""
    found = {}
    for band, one, zero in zip(BANDS, lenses[:, -3:].T, others[:, -3:].T, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            pooled = np.sqrt((one.var(ddof=1) + zero.var(ddof=1)) / 2)
        d = (one.mean() - zero.mean()) / pooled if pooled > 0 else 0.0
        found[band] = {"non_lenses": float(zero.mean()), "lenses": float(one.mean()),
                       "cohen_d": float(d)}  # fmt: skip
    return found

"""Checks whether lenses are brighter only by the injected light, or have other hosts.

In every set of injections arcs make a lens brighter and raise its median and scale, which the
sidecar holds whatever the normalisation; where pixels are clipped, more of them are. So lenses are
not compared with bare non-lenses but with non-lenses to which a lens's arc light was added: a
difference that remains was not injected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset import DECALS, Geometry
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.audit.leaks import run_probe, surely_above
from lenstrain.probes.adding import coloured, draw_donors, inject, source_width
from lenstrain.probes.looking import brightness
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.possible import cannot_add
from lenstrain.probes.radii import core_px, why_no_core
from lenstrain.probes.sample import Sample, draw_sample
from lenstrain.probes.sources import ring
from lenstrain.probes.words import area

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """Lenses, and non-lenses without and with the light of arcs."""

    lenses: Sample
    controls: Sample
    injected: Sample
    """The controls with arcs: pixels, and ``median_*`` and ``scale_*``, as conversion would store.
    """


def check_brightness_only(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Flux in each band against that of non-lenses with an arc's light added."""
    if reason := why_no_core(evidence.geometry, ProbeOptions()):
        raise NotRunError(f"{reason[0].upper()}{reason[1:]}")
    made, limit = compared(evidence, config), config.science.brightness_upper
    radius = core_px(evidence.geometry, ProbeOptions())
    found = _probe(lambda sample: brightness(sample, radius), made, config, limit)
    passed = not surely_above(found, limit)
    return Outcome(
        passed=passed,
        measured=found,
        threshold={"upper": limit},
        detail=f"{area(found)}, against non-lenses with an arc's light added; against bare "
        f"non-lenses it is {found['without_injection']:.3f}, as the injections explain."
        + ("" if passed else " Lenses have other hosts than non-lenses."),
    )


def check_norm_stat_probe(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Medians, scales and clipped fractions against those of non-lenses with arcs added."""
    made = compared(evidence, config)
    found = _probe(statistics, made, config, 1.0)
    gaps = clip_gaps(statistics(made.lenses), statistics(made.injected), evidence.geometry)
    shares = (f"{band} {gap['non_lenses']:.2%} and {gap['lenses']:.2%}"
              for band, gap in gaps.items())  # fmt: skip
    clipped = any(gap[name] for gap in gaps.values() for name in ("non_lenses", "lenses"))
    passed = found["low"] <= config.data.norm_stat_lower
    return Outcome(
        passed=passed,
        measured=found | {"clip_gap": gaps},
        threshold={"lower": config.data.norm_stat_lower},
        detail=f"{area(found)}, against non-lenses with an arc's light added; against bare "
        f"non-lenses it is {found['without_injection']:.3f}."
        + (
            f" Clipped pixels in these non-lenses and in lenses: {', '.join(shares)}."
            if clipped
            else " No pixel of either is clipped."
        ),
    )


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
    lacking = "" if sample.has("theta_e_arcsec") else "the sidecar lacks theta_e_arcsec."
    if reason := cannot_add(sample) or lacking:
        raise NotRunError(
            f"What was injected is not known, and so not what arcs explain: {reason} Convert the "
            "source again with it, if it has it."
        )
    seen = sample.numbers("psfsize_r") > 0
    injected = sample.numbers("theta_e_arcsec") > 0  # real lenses have arcs of another kind
    lenses = sample.take(seen & injected & (sample.labels == 1))
    controls = sample.take(seen & (sample.labels == 0))
    made = Compared(lenses, controls, with_arcs(controls, sample, config.seed))
    evidence.made["hosts"] = made
    return made


def with_arcs(controls: Sample, sample: Sample, seed: int) -> Sample:
    """Non-lenses with the light of the arcs of lenses drawn at random.

    The light is a ring of the donor's Einstein radius, flux and colours behind the control's
    seeing; it is added in flux, and the statistics move by what it changes (`add_flux`).
    """
    donors = draw_donors(sample, len(controls.labels), seed)
    geometry = controls.geometry
    radius = np.nan_to_num(donors.numbers("theta_e_arcsec"))[:, None] / geometry.pixel_scale_arcsec
    light = coloured(ring(radius, source_width(controls, donors), geometry.side), donors)
    pixels, *statistics = inject(controls, light)
    table = controls.table
    names = geometry.band_columns("median", "scale")
    for name, values in zip(names, np.concatenate(statistics, axis=1).T, strict=True):
        column = pa.array(values.astype(np.float32))
        table = table.set_column(table.column_names.index(name), name, column)
    return replace(controls, pixels=pixels, table=table)


def statistics(sample: Sample) -> Floats:
    """Median, scale and clipped fraction of each band; shape (n, 3 x bands)."""
    clipped = np.abs(sample.pixels) >= sample.spec.clip
    return np.concatenate([*sample.statistics(), clipped.mean(axis=(2, 3))], axis=1).astype(float)


def _probe(
    measure: Callable[[Sample], Floats], made: Compared, config: AuditConfig, limit: float
) -> dict[str, Any]:
    """`run_probe` against non-lenses with arcs, and its AUROC against the bare ones."""
    labels = np.repeat([1, 0], [len(made.lenses.labels), len(made.controls.labels)])
    regions = np.concatenate([made.lenses.regions, made.controls.regions])
    table = pa.table({"label": labels, "region_id": regions})
    lenses, bare, injected = map(measure, (made.lenses, made.controls, made.injected))
    found = run_probe(np.concatenate([lenses, injected]), table, config, limit)
    without = run_probe(np.concatenate([lenses, bare]), table, config, 1.0)
    return found | {"without_injection": without["value"]}


def clip_gaps(
    lenses: Floats, others: Floats, geometry: Geometry = DECALS
) -> dict[str, dict[str, float]]:
    """Mean clipped fraction of both in each band, and Cohen's d, from `statistics`."""
    found = {}
    clipped = (values[:, -len(geometry.bands) :].T for values in (lenses, others))
    for band, one, zero in zip(geometry.bands, *clipped, strict=True):
        pooled = np.sqrt((one.var(ddof=1) + zero.var(ddof=1)) / 2)
        d = (one.mean() - zero.mean()) / pooled if pooled > 0 else 0.0
        found[band] = {"non_lenses": float(zero.mean()), "lenses": float(one.mean()),
                       "cohen_d": float(d)}  # fmt: skip
    return found

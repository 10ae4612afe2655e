"""Checks of the stored pixels: is the sky alike in both classes, and normalised as promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset import DECALS, Geometry
from lensprep.dataset.normalization import (
    MAD_TO_SIGMA,
    band_statistics,
    denormalize,
    normalize,
)
from lensprep.dataset.sidecar import read_statistics
from lensprep.errors import ConfigError
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.audit.leaks import run_probe, surely_above
from lenstrain.probes.radii import sky_inner_px
from lenstrain.probes.sky import sky_statistics, stamp_blocks
from lenstrain.probes.words import area

Floats = NDArray[np.float64]


def check_sky_probe(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Level and scatter of the sky, in flux and relative to those of the same brick, by label."""
    limits, geometry = config.data, evidence.geometry
    group = "brickname" if "brickname" in evidence.columns else "region_id"
    names = list(dict.fromkeys(["label", "region_id", group, *_statistics(geometry)]))
    table, pixels = evidence.grouped_pixels(group, names, limits.sky_rows, config.seed)
    spec = evidence.dataset.manifest.normalization
    level, scatter = sky_statistics(pixels, spec, *read_statistics(table, geometry), geometry)
    features = sky_features(level, scatter, places(table, group))
    found = run_probe(features, table, config, limits.sky_upper)
    passed = not surely_above(found, limits.sky_upper)
    gaps = class_gaps(features, table["label"].to_numpy(), geometry)
    return Outcome(
        passed=passed,
        measured=found | {"rows": table.num_rows} | gaps,
        threshold={"upper": limits.sky_upper, "blocks_above_lower": limits.sky_lower},
        severity="blocker" if passed or found["low"] > limits.sky_lower else "warn",
        detail=f"{area(found)}, from level and scatter of the sky beyond "
        f"{sky_inner_px(geometry) * geometry.pixel_scale_arcsec:.3g}″ of {table.num_rows:,} stamps "
        f"in {found['regions']:,} regions.",
    )  # fmt: skip


def places(table: pa.Table, group: str) -> NDArray[Any]:
    """The brick of each row; the region of those without one, as rows of catalogues are."""
    regions = pc.binary_join_element_wise("region", table["region_id"].cast(pa.string()), " ")
    return np.array(pc.coalesce(table[group].cast(pa.string()), regions).to_pylist())


def sky_features(level: Floats, scatter: Floats, group: NDArray[Any]) -> Floats:
    """How a stamp's sky differs from that of its group, the brick or region; (n, 2 x bands).

    The logarithm of the scatter and the level in units of the scatter, each less its mean over the
    group: stamps of a brick share seeing, depth and errors of sky subtraction, so what remains is
    the stamp's noise, 2 % in the scatter, and a change of 5 % in one class shows.
    """
    safe = np.where(scatter > 0, scatter, np.nan)
    values = np.concatenate([np.log(safe), level / safe], axis=1)
    values = np.where(np.isfinite(values), values, np.nanmedian(values, axis=0))
    _, index = np.unique(group, return_inverse=True)
    count = np.bincount(index)
    means = np.stack([np.bincount(index, column) / count for column in values.T], 1)
    return np.asarray(values - means[index], np.float64)


def _statistics(geometry: Geometry) -> tuple[str, ...]:
    return geometry.band_columns("median", "scale")


def class_gaps(
    features: Floats, labels: NDArray[Any], geometry: Geometry = DECALS
) -> dict[str, Any]:
    """Median of each feature of the lenses minus that of the non-lenses, by band."""
    gap = np.median(features[labels == 1], axis=0) - np.median(features[labels == 0], axis=0)
    scatter, level = np.split(gap, 2)
    return {
        "log_scatter_gap": dict(zip(geometry.bands, scatter.tolist(), strict=True)),
        "level_gap": dict(zip(geometry.bands, level.tolist(), strict=True)),
    }


def check_normalization(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Statistics of the stored pixels, back in flux, against those that conversion measured."""
    limits = config.data
    spec = evidence.dataset.manifest.normalization
    if spec.by_stamp is None:
        raise NotRunError(f"Normalisation {spec.mode} is unknown to this version.")
    table, pixels = evidence.sampled_pixels(
        ["label", "key", *_statistics(evidence.geometry)], limits.normalized_rows
    )
    median, scale = read_statistics(table, evidence.geometry)
    flat = np.flatnonzero(~(scale > 0).all(axis=1))
    if len(flat):
        raise ConfigError(
            f"{evidence.dataset.uri}: {len(flat):,} stamps have a scale in the sidecar that is not "
            f"positive, such as {table['key'][int(flat[0])].as_py()}. Convert again."
        )
    off = np.concatenate([
        _off(pixels[part], spec, median[part], scale[part]) for part in stamp_blocks(pixels)
    ])  # fmt: skip
    allowed = limits.normalization_tolerance
    wrong = np.flatnonzero(~(off <= allowed))
    labels = table["label"].to_numpy()
    by_class = {str(k): int(np.count_nonzero(labels[wrong] == k)) for k in (0, 1)}
    return Outcome(
        passed=not len(wrong),
        measured={"rows": len(off), "wrong": by_class, "largest": float(np.max(off))},
        threshold={"wrong": 0, "tolerance": allowed},
        detail=f"{len(wrong):,} of {len(off):,} stamps ({by_class['1']:,} lenses) do not have "
        f"the median and the scatter that conversion measured, with {spec.mode} undone, such as "
        f"{table['key'][int(wrong[0])].as_py()}: the pixels, the statistics in the sidecar or the "
        "stated normalisation are wrong."
        if len(wrong) else
        f"The stored pixels of {len(off):,} stamps have the median and scatter that conversion "
        f"measured, with {spec.mode} undone.",
    )  # fmt: skip


def _off(
    pixels: NDArray[np.float16], spec: Any, median: NDArray[np.float32], scale: NDArray[np.float32]
) -> Floats:
    """Largest deviation of a stamp's statistics from the sidecar's, in units of its scale.

    What rounding to float16 may have caused is taken off first. On asinh the step grows with the
    flux, to 0.4 of the noise at 100 times the softening, and a star's halo lifts whole stamps.
    """
    own_median, own_scale = band_statistics(denormalize(pixels, spec, median, scale), spec)
    off_median = np.abs(own_median - median) - _step(median, spec, median, scale) / 2
    # A pixel and the median move by half a step each, so their distance by up to one.
    outer = _step(median + np.copysign(scale, median), spec, median, scale)
    off_scale = np.abs(own_scale - scale) - MAD_TO_SIGMA * outer
    off = np.maximum(np.maximum(off_median, off_scale), 0) / scale
    return np.asarray(off.max(axis=1), np.float64)


def _step(
    flux: NDArray[np.float32], spec: Any, median: NDArray[np.float32], scale: NDArray[np.float32]
) -> Floats:
    """Flux from the float16 that stands for `flux` to the next away from zero; shape (n, bands)."""
    stored = normalize(flux[..., None, None], spec, median, scale)
    following = np.nextafter(stored, np.copysign(np.float16(np.inf), stored))
    here, there = (denormalize(value, spec, median, scale) for value in (stored, following))
    return np.asarray(np.abs(there - here)[..., 0, 0], np.float64)

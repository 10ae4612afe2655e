"""Leak probes: does anything that should be independent of the label predict it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.checks.finding import MAX_CATEGORIES, leaking
from lensprep.dataset import Geometry
from lensprep.dataset.layout import COUNTERFACTUAL, DONOR_TASK, HOST_TASK
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.evaluation.linear import linear_probe, shuffled_areas
from lenstrain.probes.words import area

IDENTITY = ("key", "label", "task_id", "task_seed64", "pixel_hash", "payload_crc32", "source_file",
            "source_row_group", "source_row", "region_split", "split", "region_id", "brickname",
            "ra", "dec", COUNTERFACTUAL, HOST_TASK, DONOR_TASK)  # fmt: skip
"""Names, positions and checksums: no properties from which a probe could learn."""

SHUFFLES = 39
"""One of 40 is 2.5 %."""

Floats = NDArray[np.float64]


def norm_stats(geometry: Geometry) -> tuple[str, ...]:
    """Columns with what normalisation measured of a stamp."""
    return geometry.band_columns("median", "scale", "clip_frac")


def surely_above(found: Mapping[str, Any], limit: float) -> bool:
    """Whether an AUROC of `run_probe` is above a limit, and surely no luck.

    Its interval, from draws of regions, must lie above 0.5: chance may give regions with more
    lenses another level. And no shuffle of the labels may reach it: with few rows the AUROC of a
    cross-validated probe scatters more than its interval says, and of `SHUFFLES` shuffles and the
    labels themselves, each is the highest in one case of `SHUFFLES` + 1 if there is no difference.
    """
    above = found["value"] > limit and found["low"] > 0.5
    return bool(above and found["value"] > found["shuffled_highest"])


def check_metadata_probe(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Logistic regression on every column that is known of an unlabelled stamp, regions apart."""
    left_out = {*leaking(evidence.columns), *IDENTITY, *norm_stats(evidence.geometry)}
    allowed = [name for name in evidence.columns if name not in left_out]
    table = evidence.sampled([*allowed, "label", "region_id"], config.data.probe_rows)
    features, used = metadata_features(table.select(allowed))
    limits = config.data
    found = run_probe(features, table, config, limits.metadata_upper)
    passed = not surely_above(found, limits.metadata_upper)
    alone = _telling(table, used) if not passed else {}
    named = ", ".join(f"{name} {value:.3f}" for name, value in alone.items())
    return Outcome(
        passed=passed,
        measured=found | {"columns": used, "alone": alone},
        threshold={"upper": limits.metadata_upper, "blocks_above_lower": limits.metadata_lower},
        # A leak that is not certain warns.
        severity="blocker" if passed or found["low"] > limits.metadata_lower else "warn",
        detail=f"{area(found)}, from {len(used)} columns of {table.num_rows:,} rows in "
        f"{found['regions']:,} regions." + (f" Alone: {named}." if named else ""),
    )


def check_psf_depth(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Seeing and depth must not separate the classes."""
    names = [name for name in ("psfsize_r", "psfdepth_r") if name in evidence.columns]
    if not names:
        raise NotRunError("The sidecars have no psfsize_r and psfdepth_r. Convert again with them.")
    table = evidence.sampled([*names, "label", "region_id"], config.data.probe_rows)
    limit = config.science.psf_depth_upper
    found = run_probe(metadata_features(table.select(names))[0], table, config, limit)
    passed = not surely_above(found, limit)
    return Outcome(
        passed=passed,
        measured=found | {"columns": names},
        threshold={"upper": limit},
        detail=f"{area(found)}, from {' and '.join(names)} of {table.num_rows:,} rows in "
        f"{found['regions']:,} regions.",
    )


def run_probe(
    features: Floats, table: pa.Table, config: AuditConfig, limit: float
) -> dict[str, Any]:
    """AUROC by region of a cross-validated logistic regression on features of a table's rows.

    Parameters
    ----------
    features : ndarray of float, shape (n, k)
    table : pyarrow.Table
        With ``label`` and ``region_id``.
    config : AuditConfig
    limit : float
        Above it labels are shuffled, to see what luck gives.

    Returns
    -------
    dict
        As `lenstrain.evaluation.linear.auroc_by_region`, and ``shuffled_highest``, the highest
        AUROC of the shuffles, None if there was no need.

    Raises
    ------
    NotRunError
        If it cannot be run, or has no interval.
    """
    labels, regions = table["label"].to_numpy(), table["region_id"].to_numpy()
    found = linear_probe(features, labels, regions, resamples=config.resamples)
    if found is None or found["low"] is None:
        both = len(set(regions[labels == 1].tolist()) & set(regions[labels == 0].tolist()))
        raise NotRunError(
            "A probe needs usable columns, both classes, and two regions that hold both: here are "
            f"{features.shape[1]} columns, {(labels == 1).sum()} lenses, {(labels == 0).sum()} "
            f"non-lenses, and {both} such regions."
        )
    shuffled = None
    if found["value"] > limit and found["low"] > 0.5:
        areas = shuffled_areas(features, labels, regions, SHUFFLES, config.seed)
        shuffled = max(areas, default=0.5)
    return found | {"shuffled_highest": shuffled}


def metadata_features(table: pa.Table) -> tuple[Floats, list[str]]:
    """Numbers, flags of nulls, and indicators of text with few values.

    Returns
    -------
    features : ndarray of float64, shape (n, k)
        Nulls and NaN take the median of the column; constant features are left out.
    used : list of str
        Columns that gave at least one feature.
    """
    parts: list[Floats] = []
    used = []
    for name in table.column_names:
        made = [part for part in _features(table[name]) if np.ptp(part) > 0]
        parts += made
        used += [name] if made else []
    shape = (table.num_rows, 0)
    return (np.stack(parts, 1) if parts else np.empty(shape)), used


def _features(column: pa.ChunkedArray) -> list[Floats]:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).to_numpy()
        missing = ~np.isfinite(values)
        if missing.all():
            return []
        return [np.where(missing, np.median(values[~missing]), values), missing.astype(np.float64)]
    if pa.types.is_string(column.type):
        texts = np.array([str(value) for value in column.to_pylist()])
        names = np.unique(texts)
        if len(names) <= MAX_CATEGORIES:
            return [(texts == name).astype(np.float64) for name in names]
    return []


def _telling(table: pa.Table, names: list[str]) -> dict[str, float]:
    """The three most telling columns, with the AUROC of a logistic regression on each."""
    labels, regions = table["label"].to_numpy(), table["region_id"].to_numpy()
    areas = {}
    for name in names:
        features, _ = metadata_features(table.select([name]))
        found = linear_probe(features, labels, regions, resamples=2)
        if found is not None:
            areas[name] = found["value"]
    return dict(sorted(areas.items(), key=lambda item: -item[1])[:3])

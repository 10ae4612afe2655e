"""Checks of the science: where the finder is complete, and what it has learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome


def check_completeness_cells(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Lenses of each completeness cell of one axis, and whether completeness rises with arc_snr."""
    table = evidence.completeness
    frozen = evidence.frozen_threshold()
    table = table.filter(pa.array(np.isclose(table["threshold"].to_numpy(), frozen["threshold"])))
    axes = np.array(table["axes"].to_pylist())
    if not len(axes):
        raise NotRunError("completeness.parquet has no cells at the frozen threshold.")
    n = table["n"].to_numpy()
    single = n[np.char.find(axes, " x ") < 0]
    if not len(single):
        raise NotRunError(
            "completeness.parquet has no cells of one axis. Evaluate with the default "
            "completeness_axes."
        )
    finest = max(axes.tolist(), key=lambda name: name.count(" x "))
    share, fine = (float(np.mean(cells >= config.science.min_cell))
                   for cells in (single, n[axes == finest]))  # fmt: skip
    rises = _rises(table.filter(pa.array(axes == "arc_snr")))
    passed = share >= config.science.min_cell_share and rises is not False
    trend = {True: "rises", False: "does not rise", None: "was not measured"}[rises]
    return Outcome(
        passed=passed,
        measured={"cells": len(single), "share": share, "smallest": int(single.min()),
                  "finest": {"axes": finest, "share": fine}, "rises_with_arc_snr": rises},
        threshold={"n": config.science.min_cell, "share": config.science.min_cell_share,
                   "rises_with_arc_snr": True},
        detail=f"{share:.0%} of {len(single)} cells of one axis hold {config.science.min_cell} "
        f"lenses or more ({fine:.0%} of those by {finest}); completeness {trend} with arc_snr.",
    )  # fmt: skip


def _rises(table: pa.Table) -> bool | None:
    """Whether completeness rises over the bins: no bin lies surely below an earlier one."""
    table = table.filter(pc.greater(table["n"], 0))  # an empty bin has no completeness
    if table.num_rows < 2:
        return None
    columns = {name: table[name].to_numpy() for name in
               ("arc_snr_lo", "completeness", "lo95", "hi95")}  # fmt: skip
    order = np.argsort(columns["arc_snr_lo"])
    value, low, high = (columns[name][order] for name in ("completeness", "lo95", "hi95"))
    falls = (high < np.maximum.accumulate(low)).any()
    return bool(value[-1] > value[0] and not falls)


def check_unresolved_share(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Lenses whose Einstein radius is far below the seeing."""
    limits = config.science
    table = evidence.all_sidecars(["label", "theta_e_arcsec", "psfsize_r"])
    table = table.filter(pc.equal(table["label"], 1))
    theta, psf = (table[name].cast(pa.float64()).to_numpy()
                  for name in ("theta_e_arcsec", "psfsize_r"))  # fmt: skip
    known = (psf > 0) & np.isfinite(theta)
    ratio, unknown = theta[known] / psf[known], int(np.count_nonzero(~known))
    if not len(ratio):
        raise NotRunError("No lens has a known theta_E and seeing.")
    share = float(np.mean(ratio < limits.unresolved_below))
    return Outcome(
        passed=share <= limits.max_unresolved,
        measured={"share": share, "lenses": len(ratio), "unknown": unknown,
                  "median_ratio": float(np.median(ratio))},
        threshold=limits.max_unresolved,
        detail=f"{share:.1%} of {len(ratio):,} lenses have theta_E below "
        f"{limits.unresolved_below:g} PSF FWHM"
        + (
            ": those are found by extra flux, not by shape. Report the completeness of both groups."
            if share > limits.max_unresolved
            else "."
        )
        + (f" It is not known for {unknown:,} lenses." if unknown else ""),
    )  # fmt: skip


def check_null_injection(evidence: Evidence, config: AuditConfig) -> Outcome:
    """A source of zero flux changes neither pixels nor logits."""
    found = evidence.probed("null_injection")
    delta = float(found["max_abs_delta_logit"])
    allowed = config.science.null_delta_logit
    return Outcome(
        passed=found["pixels_changed"] == 0 and delta <= allowed,
        measured=found,
        threshold={"pixels_changed": 0, "max_abs_delta_logit": allowed},
        detail=_reading(evidence, "null_injection"),
    )


def check_flux_matched(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Non-lenses with an unlensed source of an arc's flux must not pass as lenses."""
    found = evidence.probed("flux_matched_null")
    allowed = config.science.flux_matched_factor * float(found["base_upper"])
    passed = found["pass_rate"] <= allowed
    return Outcome(
        passed=passed,
        measured={name: found[name] for name in
                  ("pass_rate", "low", "high", "base_rate", "base_upper", "n")},
        threshold=allowed,
        detail=_reading(evidence, "flux_matched_null")
        + ("" if passed else " Extra flux is taken for a lens: train with such non-lenses."),
    )  # fmt: skip


def _drop(evidence: Evidence, config: AuditConfig, name: str, key: str, n_key: str) -> Outcome:
    found = evidence.probed(name)
    least = config.science.min_bright
    if found[key] is None:
        raise NotRunError(_reading(evidence, name))
    if found[n_key] < least:
        raise NotRunError(f"{_reading(evidence, name)} Fewer than {least} lenses say nothing.")
    allowed = config.science.bright_drop
    return Outcome(
        passed=found[key] >= allowed,
        measured={"drop": found[key], "n": found[n_key]},
        threshold=allowed,
        detail=_reading(evidence, name),
    )


def check_arc_removal(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Lenses with bright arcs lose their score without the arcs.

    What an asymmetry leaves is alike on both sides, as two images of a source are: a finder of
    lenses may keep its score or gain, so that only a loss says something.
    """
    found = _drop(evidence, config, "arc_removal", "drop", "n_removed")
    if not found.passed and evidence.probed("arc_removal").get("method") == "asymmetry":
        raise NotRunError(
            f"{found.detail} What is left is alike on both sides, as two images are, so this does "
            "not tell: include the lenses' own galaxies without arcs as non-lenses."
        )
    return found


def check_core_mask(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Lenses with bright arcs lose their score without host and arcs."""
    return _drop(evidence, config, "core_mask", "bright_drop", "n_bright")


def check_annulus_only(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Lenses lose their score when only sky is left, and it no longer separates the classes."""
    area = evidence.probed("annulus_only")["auroc"]
    allowed = config.science.annulus_distance
    leaks = area["low"] is not None and (
        area["low"] > 0.5 + allowed or area["high"] < 0.5 - allowed
    )
    try:
        drop = _drop(evidence, config, "annulus_only", "bright_drop", "n_bright")
    except NotRunError as error:  # too few lenses have a bright arc
        if not leaks:
            raise
        drop = Outcome(measured={}, detail=str(error))
    return Outcome(
        passed=bool(drop.passed) and not leaks,
        measured=drop.measured | {"auroc": area},
        threshold={"drop": drop.threshold, "auroc_distance": allowed},
        detail=drop.detail
        + (" Sky alone separates the classes: its level or its noise leaks." if leaks else ""),
    )


def check_core_only(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Report how well logistic regression on the core's profile separates the classes."""
    found = evidence.probed("core_only")
    return Outcome(
        passed=True,
        measured=found,
        threshold="reported",
        detail=_reading(evidence, "core_only") + " 10 to 40 % of an arc's light lies in the core, "
        "so this is not necessarily a leak; it is what the network must beat to claim shape.",
    )


def check_ring_probe(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Rings must not all score near 1 wherever they are."""
    found = evidence.probed("ring_probe")
    scores = {f"{where} {radius}": cell["mean_score"] for where in ("sky", "non_lens")
              for radius, cell in found[where].items()}  # fmt: skip
    least = min(scores.values())
    return Outcome(
        passed=least < config.science.ring_score,
        measured=scores | {"blank": found["blank"]["mean_score"]},
        threshold={"least": config.science.ring_score},
        detail=_reading(evidence, "ring_probe"),
    )


def check_attribution(evidence: Evidence, config: AuditConfig) -> Outcome:
    """More of the maps' mass lies on the arcs than their area explains."""
    found = evidence.probed("attribution")
    ratios = [found.get(f"{kind}_mass_over_area") for kind in ("occlusion", "gradcam")]
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        raise NotRunError("The sidecar has no theta_e_arcsec and psfsize_r: no arcs to look for.")
    return Outcome(
        passed=min(known) > 1,
        measured=found,
        threshold={"mass_over_area": 1},
        detail=_reading(evidence, "attribution"),
    )


def _reading(evidence: Evidence, name: str) -> str:
    readings: dict[str, Any] = evidence.probe.get("readings", {})
    return str(readings.get(name, ""))

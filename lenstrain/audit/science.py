"""Checks of the science: where the finder is complete, and what it has learnt."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.pages.page import listed
from lenstrain.probes.judge import judge


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
    trend = {True: "Completeness rises with `arc_snr`.",
             False: "Completeness does not rise with `arc_snr`.",
             None: "Completeness along `arc_snr` was not measured."}[rises]  # fmt: skip
    parts = [
        (share >= config.science.min_cell_share,
         f"{share:.0%} of {len(single)} cells of one axis hold {config.science.min_cell} lenses or "
         "more.", "Test on more lenses, or take wider bins."),
        (rises is not False, trend,
         "Look at completeness against `arc_snr` in the report: the finder may not see arcs."),
    ]  # fmt: skip
    parts.sort(key=itemgetter(0))  # what failed is said first
    passed, said, remedies = zip(*parts, strict=True)
    named = listed(f"`{name}`" for name in finest.split(" x "))
    more = (
        f" Of the cells by {named}, which are not judged, {fine:.0%} do." if " x " in finest else ""
    )
    return Outcome(
        passed=all(passed),
        measured={"cells": len(single), "share": share, "smallest": int(single.min()),
                  "finest": {"axes": finest, "share": fine}, "rises_with_arc_snr": rises},
        threshold={"n": config.science.min_cell, "share": config.science.min_cell_share,
                   "rises_with_arc_snr": True},
        detail=" ".join(said) + more,
        remedy=" ".join(text for text, right in zip(remedies, passed, strict=True) if not right),
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
        detail=f"{share:.1%} of the {len(ratio):,} lenses of all splits have theta_E below "
        f"{limits.unresolved_below:g} of the PSF FWHM."
        + (f" It is not known for {unknown:,} lenses." if unknown else ""),
    )  # fmt: skip


def probe_check(name: str) -> Callable[[Evidence, AuditConfig], Outcome]:
    """The check of a probe by its rule, with the thresholds of the audit."""

    def check(evidence: Evidence, config: AuditConfig) -> Outcome:
        found = judge(name, evidence.probed(name), config.science)
        text = f"{_reading(evidence, name)} {found.note}".strip()
        if found.passed is None and found.measured is None:
            raise NotRunError(text)
        return Outcome(
            passed=found.passed, measured=found.measured, threshold=found.threshold, detail=text
        )

    return check


check_null_injection = probe_check("null_injection")
check_flux_matched = probe_check("flux_matched_null")
check_arc_removal = probe_check("arc_removal")
check_core_mask = probe_check("core_mask")
check_annulus_only = probe_check("annulus_only")
check_ring_probe = probe_check("ring_probe")
check_baseline = probe_check("baseline")
check_attribution = probe_check("attribution")


def check_core_only(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Report how well logistic regression on the core's profile separates the classes."""
    found = evidence.probed("core_only")
    return Outcome(
        passed=True,
        measured=found,
        threshold="reported",
        detail=_reading(evidence, "core_only"),
    )


def _reading(evidence: Evidence, name: str) -> str:
    readings: dict[str, Any] = evidence.probe.get("readings", {})
    return str(readings.get(name, ""))

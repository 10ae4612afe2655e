"""The checklist: every item, its group, its weight, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lensprep.checks.finding import Finding, Severity
from lensprep.dataset.strictjson import plain
from lensprep.errors import ProjectError
from lenstrain.audit import (
    copies,
    data,
    figures,
    hosts,
    labels,
    leaks,
    lensing,
    loader,
    outside,
    realism,
    rescore,
    run,
    science,
    scores,
    sky,
    trainings,
)
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import Outcome

Check = Callable[[Evidence, AuditConfig], Outcome]


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the checklist."""

    name: str
    group: str
    severity: Severity
    check: Check
    publish: bool = False
    """Whether it blocks only a publication; for internal use it warns."""


CHECKLIST: Final = (
    Item("schema", "data", "blocker", data.check_schema),
    Item("reject_rate", "data", "blocker", data.check_reject_rate),
    Item("label_consistency", "data", "blocker", data.check_label_consistency),
    Item("both_classes", "data", "blocker", data.check_both_classes),
    Item("split_disjoint", "data", "blocker", data.check_split_disjoint),
    Item("duplicates", "data", "blocker", data.check_duplicates),
    Item("near_duplicates", "data", "blocker", copies.check_near_duplicates),
    Item("split_fractions", "data", "warn", data.check_split_fractions),
    Item("pairing", "data", "warn", data.check_pairing),
    Item("forbidden_inputs", "data", "blocker", data.check_forbidden_inputs),
    Item("metadata_probe", "data", "blocker", leaks.check_metadata_probe),
    Item("normalization", "data", "blocker", sky.check_normalization),
    Item("norm_stat_probe", "data", "warn", hosts.check_norm_stat_probe),
    Item("sky_probe", "data", "blocker", sky.check_sky_probe),
    Item("loader_coverage", "loader", "blocker", loader.check_loader_coverage),
    Item("permuted_labels", "run", "blocker", trainings.check_permuted_labels),
    Item("overfit_64", "run", "blocker", trainings.check_overfit_64),
    Item("resume", "run", "blocker", trainings.check_resume),
    Item("ddp_eval", "run", "blocker", trainings.check_ddp_eval),
    Item("seeds", "run", "warn", run.check_seeds),
    Item("provenance", "run", "blocker", run.check_provenance),
    Item("test_once", "run", "blocker", run.check_test_once),
    Item("full_eval", "scores", "blocker", scores.check_full_eval),
    Item("rescored", "scores", "blocker", rescore.check_rescored),
    Item("score_resolution", "scores", "blocker", scores.check_score_resolution),
    Item("roc_sanity", "scores", "blocker", scores.check_roc_sanity),
    Item("report_figures", "scores", "blocker", figures.check_report_figures),
    Item("label_noise", "scores", "warn", labels.check_label_noise),
    Item("fpr_support", "scores", "blocker", scores.check_fpr_support),
    Item("region_bootstrap", "scores", "warn", scores.check_region_bootstrap),
    Item("calibration", "scores", "warn", scores.check_calibration),
    Item("completeness_cells", "science", "warn", science.check_completeness_cells),
    Item("unresolved_share", "science", "info", science.check_unresolved_share),
    Item("null_injection", "science", "blocker", science.check_null_injection),
    Item("flux_matched_null", "science", "blocker", science.check_flux_matched, publish=True),
    Item("counterfactuals", "science", "warn", lensing.check_counterfactuals),
    Item("pairs", "science", "warn", lensing.check_pairs),
    Item("arc_removal", "science", "warn", science.check_arc_removal),
    Item("core_mask", "science", "warn", science.check_core_mask),
    Item("annulus_only", "science", "warn", science.check_annulus_only),
    Item("core_only", "science", "warn", science.check_core_only),
    Item("ring_probe", "science", "warn", science.check_ring_probe),
    Item("psf_depth", "science", "warn", leaks.check_psf_depth),
    Item("brightness_only", "science", "warn", hosts.check_brightness_only),
    Item("leave_one_out", "science", "warn", outside.check_leave_one_out),
    Item("confusers", "science", "blocker", outside.check_confusers, publish=True),
    Item("blank", "science", "blocker", outside.check_blank, publish=True),
    Item("artefacts", "science", "blocker", outside.check_artefacts, publish=True),
    Item("real_lenses", "science", "blocker", outside.check_real_lenses, publish=True),
    Item("realism", "science", "warn", realism.check_realism),
    Item("attribution", "science", "info", science.check_attribution),
)
"""In the order of docs/how-to/audit.md, which says what each item needs."""


def run_item(item: Item, evidence: Evidence, config: AuditConfig) -> Finding:
    """Measure one item; what cannot be measured is a finding too."""
    try:
        found = item.check(evidence, config)
    except ProjectError as error:
        found = Outcome(detail=str(error))
    return judged(item, found, config)


def judged(item: Item, found: Outcome, config: AuditConfig) -> Finding:
    """The finding of an item that follows from what was measured."""
    lenient = item.publish and config.purpose == "internal"
    severity = "warn" if lenient else item.severity
    return Finding(
        item=item.name,
        group=item.group,
        severity=found.severity or severity,
        passed=found.passed,
        measured=plain(found.measured),
        threshold=plain(found.threshold),
        detail=found.detail,
    )

"""Checks of the scores: are they whole, can they be ranked, do they support what is claimed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import rankdata

from lensprep.errors import ScoresError
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.evaluation.metrics import auroc, largest_tie, roc_curve, step_bounds, tied_rows
from lenstrain.evaluation.scores import Scores
from lenstrain.evaluation.threshold import negatives_needed, unique_rows


def check_full_eval(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Rows that were scored against rows of the split, key by key."""
    scores = evidence.scores
    split = str(scores.metadata.get("split", "test"))
    eligible = set(evidence.sidecar(split, ["key"])["key"].to_pylist())
    scored = set(scores.table["key"].to_pylist())
    missing, foreign = len(eligible - scored), len(scored - eligible)
    return Outcome(
        passed=not missing and not foreign,
        measured={"scored": len(scored & eligible), "eligible": len(eligible), "foreign": foreign,
                  "split": split},
        threshold={"scored": len(eligible), "foreign": 0},
        detail=f"{len(scored & eligible):,} of {len(eligible):,} rows of {split} were scored"
        + (f", and {foreign:,} rows that are not in it" if foreign else "")
        + ("." if not missing else ": the rest may be the hard ones."),
    )  # fmt: skip


def check_score_resolution(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Blocks of equal scores among distinct images, and rows exactly at a frozen threshold."""
    scores = evidence.scores
    first = unique_rows(scores.identity)
    curve = roc_curve(scores.labels[first], scores.logits[first])
    score, rows = largest_tie(curve)
    share = rows / len(first) if rows > 1 else 0.0
    at = {}
    for entry in evidence.evaluation["completeness_thresholds"]:
        if entry.get("threshold") is not None:
            at[entry["name"]] = tied_rows(curve, entry["threshold"])
    # A threshold that is a row's own score ties with that row alone.
    blocked = {name: n for name, n in at.items() if n > 1}
    return Outcome(
        passed=share <= config.scores.max_tie_share and not blocked,
        measured={"largest_tie": rows, "share": share, "score": score, "tied_at_threshold": at},
        threshold={"share": config.scores.max_tie_share, "tied_at_threshold": 1},
        detail=f"The largest block of equal scores holds {rows} of {len(first):,} distinct images "
        f"({share:.3%})."
        + (" No threshold can part them: rank on float32 logits." if share or blocked else ""),
    )


def check_roc_sanity(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Reported rates rise together, and the reported AUROC is possible beside them and right."""
    scores, report = evidence.scores, evidence.evaluation
    points = [
        (entry["fp"] / scores_negatives(scores), entry["value"])
        for entry in report["tpr_at_fpr"].values()
    ]
    reported = float(report["auroc"]["value"])
    again = auroc(roc_curve(scores.labels, scores.logits))
    ranks = mid_rank_auroc(scores)
    faults = roc_faults(points, reported)
    for name, value in (("from the scores", again), ("by mid-ranks", ranks)):
        if not math.isclose(value, reported, abs_tol=1e-9):
            faults.append(f"AUROC {name} is {value:.6f}, reported {reported:.6f}")
    return Outcome(
        passed=not faults,
        measured={"auroc": reported, "recomputed": again, "points": points, "faults": faults},
        threshold="exact",
        detail="; ".join(faults) + ". The report does not belong to these scores, or is wrong."
        if faults
        else f"Rates are monotone, and the AUROC of {reported:.4f} follows from the scores.",
    )


def scores_negatives(scores: Scores) -> int:
    """Non-lenses of a table."""
    return int((scores.labels == 0).sum())


def mid_rank_auroc(scores: Scores) -> float:
    """AUROC by Mann and Whitney's mid-ranks, as a second opinion."""
    lens = scores.labels == 1
    n1, n0 = int(lens.sum()), int((~lens).sum())
    ranks = rankdata(scores.logits)[lens].sum()
    return float((ranks - n1 * (n1 + 1) / 2) / (n1 * n0))


def roc_faults(points: list[tuple[float, float]], value: float) -> list[str]:
    """What is impossible in points of a ROC curve and an area beside them."""
    try:
        low, high = step_bounds(*zip(*points, strict=True))
    except ScoresError:
        return ["true-positive rates fall where false-positive rates rise"]
    if not low - 1e-9 <= value <= high + 1e-9:
        return [f"AUROC {value:.4f} is impossible: the points bound it to [{low:.4f}, {high:.4f}]"]
    return []


def check_fpr_support(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Distinct non-lenses against what a guarantee of each claimed rate needs."""
    scores = evidence.scores
    unique = len(np.unique(scores.identity[scores.labels == 0]))
    needed = {
        f"{fpr:g}": negatives_needed(fpr, config.scores.delta) for fpr in config.scores.claimed_fprs
    }
    wanting = [fpr for fpr, n in needed.items() if unique < n]
    limit = -math.log(config.scores.delta) / unique
    return Outcome(
        passed=not wanting,
        measured={
            "unique_negatives": unique,
            "unique_by": scores.identity_column,
            "zero_fp_upper_limit": limit,
        },
        threshold={"needed": needed, "delta": config.scores.delta},
        detail=f"{unique:,} distinct non-lenses"
        + (
            f" cannot support a false-positive rate of {', '.join(wanting)} (needs "
            f"{', '.join(f'{needed[f]:,}' for f in wanting)}): claim no more than the upper limit "
            f"{limit:.2e} that zero false positives would give, or set scores.claimed_fprs to what "
            "you claim."
            if wanting
            else " support every claimed rate."
        ),
    )


def check_region_bootstrap(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Regions and draws behind the intervals."""
    report, limits = evidence.evaluation, config.scores
    regions, draws = int(report["n_regions"]), int(report["resamples"])
    passed = regions >= limits.min_regions and draws >= limits.min_resamples
    return Outcome(
        passed=passed,
        measured={"regions": regions, "resamples": draws},
        threshold={"regions": limits.min_regions, "resamples": limits.min_resamples},
        detail=f"{regions} regions, {draws:,} draws."
        + ("" if passed else " The intervals are narrower or noisier than they look."),
    )


def check_calibration(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Debiased calibration error, and bins whose band holds the diagonal, after scaling."""
    report = evidence.evaluation
    repaired, fitted = report.get("calibrated"), report.get("calibration")
    if repaired is None or fitted is None:
        why = "" if fitted is None else " (its scaling has no optimum)"
        raise NotRunError(
            f"The evaluation has no calibrated probabilities{why}. Evaluate with --calibrate-on."
        )
    error = float(repaired["ece"]["debiased"])
    covered = float(repaired["reliability"]["bins_covered"])
    keeps_ranks = bool(fitted["slope"] > 0)
    limits = config.scores
    passed = error <= limits.max_ece and covered >= limits.min_bins_covered and keeps_ranks
    measured: dict[str, Any] = {"ece": error, "bins_covered": covered, "ranks_kept": keeps_ranks}
    return Outcome(
        passed=passed,
        measured=measured,
        threshold={"ece": limits.max_ece, "bins_covered": limits.min_bins_covered},
        detail=f"After {fitted['kind']} scaling on another split: debiased ECE {error:.4f}, "
        f"{covered:.0%} of the bins hold the diagonal."
        + ("" if keeps_ranks else " The scaling reverses the ranks."),
    )

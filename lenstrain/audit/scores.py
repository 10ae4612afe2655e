"""Checks of the scores: whether they are complete, can be ranked, and support the claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lensprep.checks.finding import mid_rank_auroc
from lensprep.dataset.layout import COUNTERFACTUAL, DONOR_TASK, HOST_TASK
from lensprep.errors import ProjectError, ScoresError
from lensprep.store import Uri
from lensprep.tables.columns import to_floats
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.evaluation.metrics import auroc, largest_tie, roc_curve, step_bounds, tied_rows
from lenstrain.evaluation.rate_table import support_reason, supports_of
from lenstrain.evaluation.threshold import unique_rows
from lenstrain.pages import percent
from lenstrain.scoretable import AXIS_COLUMNS, SOURCE_COLUMNS

COMPARED: Final = ("label", "region_id", "pixel_hash", "lens_model", *AXIS_COLUMNS,
                   COUNTERFACTUAL, HOST_TASK, DONOR_TASK, *SOURCE_COLUMNS)  # fmt: skip
"""Columns of a scores table that figures depend on; they must equal the sidecar's, row by row."""


def check_full_eval(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Rows that were scored against rows of the split, key by key and column by column."""
    scores = evidence.scores
    split = str(scores.metadata.get("split", "test"))
    names = [name for name in COMPARED if name in evidence.columns and scores.has(name)]
    table = evidence.sidecar(split, ["key", *names], everything=True)
    rows = scores.everything.table
    eligible, scored = (t["key"].cast(pa.string()) for t in (table, rows))
    position = pc.index_in(scored, value_set=eligible)
    foreign = position.null_count
    known = len(scored) - foreign
    missing = table.num_rows - known
    altered = _altered(rows, table, position, names, scores.path)
    faults = [f"{n:,} rows have another {name} than in the dataset" for name, n in altered.items()]
    faults += _origin_faults(evidence)
    share = f"{known:,} of" if missing else "All"
    text = f"{share} {table.num_rows:,} rows of {split} were scored"
    text += f", and {foreign:,} rows that are not in it" if foreign else ""
    text += ": the rest may be the hard ones." if missing else "."
    return Outcome(
        passed=not missing and not foreign and not faults,
        measured={"scored": known, "eligible": table.num_rows, "foreign": foreign, "split": split,
                  "altered": altered, "compared": names},
        threshold={"scored": table.num_rows, "foreign": 0, "altered": 0},
        detail=text + "".join(f" {fault[0].upper()}{fault[1:]}." for fault in faults),
    )  # fmt: skip


def _altered(
    rows: pa.Table, table: pa.Table, position: pa.ChunkedArray, names: Sequence[str], path: Uri
) -> dict[str, int]:
    """Rows of a scores table whose columns are not those of the sidecar, by column."""
    known = position.is_valid()
    ours = rows.filter(known)
    theirs = table.take(position.drop_null())
    found = {}
    for name in names:
        if pa.types.is_floating(theirs[name].type):
            one, two = (to_floats(t[name], name, path) for t in (ours, theirs))
            same = np.isclose(one, two, rtol=1e-6, atol=0.0, equal_nan=True)
        else:
            one, two = (t[name].cast(pa.string()) for t in (ours, theirs))
            both_null = pc.and_(one.is_null(), two.is_null())
            same = pc.or_kleene(pc.equal(one, two), both_null).fill_null(False).to_numpy()
        if not same.all():
            found[name] = int(np.count_nonzero(~same))
    return found


def _origin_faults(evidence: Evidence) -> list[str]:
    """What the table states wrongly about its dataset and normalisation."""
    metadata, dataset = evidence.scores.metadata, evidence.dataset
    faults = []
    stated = metadata.get("dataset_id")
    if stated is not None and stated != dataset.dataset_id:
        faults.append(f"the table was scored on dataset {str(stated)[:12]}, not on "
                      f"{dataset.dataset_id[:12]}")  # fmt: skip
    geometry = metadata.get("geometry")
    if geometry is not None and geometry != dataset.geometry.to_dict():
        faults.append("its stamps are not such as the dataset's")
    normalization = metadata.get("normalization")
    if normalization is None:
        return faults
    if normalization != dataset.manifest.normalization.to_dict():
        faults.append("its normalisation is not the dataset's")
    with suppress(ProjectError):
        if normalization != evidence.checkpoint.get("normalization", normalization):
            faults.append("its normalisation is not the checkpoint's")
    return faults


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
    passed = share <= config.scores.max_tie_share and not blocked
    return Outcome(
        passed=passed,
        measured={"largest_tie": rows, "share": share, "score": score, "tied_at_threshold": at},
        threshold={"share": config.scores.max_tie_share, "tied_at_threshold": 1},
        detail=(
            f"The largest block of equal scores holds {rows:,} of {len(first):,} distinct "
            f"images ({share:.3%})."
            if rows > 1
            else f"No two of {len(first):,} distinct images have the same score."
        )
        + "".join(
            f" {n:,} lie exactly at the threshold for {name}." for name, n in blocked.items()
        ),
    )


def check_roc_sanity(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Reported rates rise together, and the reported AUROC is possible given them and right."""
    scores, report = evidence.judged, evidence.evaluation
    points = [
        (entry["fp"] / int((scores.labels == 0).sum()), entry["value"])
        for entry in report["tpr_at_fpr"].values()
        if entry["value"] is not None  # a rate without support has none
    ]
    reported = float(report["auroc"]["value"])
    again = auroc(roc_curve(scores.labels, scores.logits))
    ranks = mid_rank_auroc(scores.logits, scores.labels == 1)
    faults = roc_faults(points, reported)
    for name, value in (("from the scores", again), ("by mid-ranks", ranks)):
        if not math.isclose(value, reported, abs_tol=1e-9):
            faults.append(f"AUROC {name} is {value:.6f}, reported {reported:.6f}")
    return Outcome(
        passed=not faults,
        measured={"auroc": reported, "recomputed": again, "points": points, "faults": faults},
        threshold="exact",
        detail="; ".join(faults) + "."
        if faults
        else f"Rates are monotone, and the AUROC of {reported:.4f} follows from the scores.",
    )


def roc_faults(points: list[tuple[float, float]], value: float) -> list[str]:
    """What is impossible in points of a ROC curve and an area given with them."""
    if not points:
        return []
    try:
        low, high = step_bounds(*zip(*points, strict=True))
    except ScoresError:
        return ["true-positive rates fall where false-positive rates rise"]
    if not low - 1e-9 <= value <= high + 1e-9:
        return [f"AUROC {value:.4f} is impossible: the points bound it to [{low:.4f}, {high:.4f}]"]
    return []


def check_fpr_support(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Non-lenses of the split the threshold came from against what each claimed rate needs."""
    scores, delta = evidence.judged_calibration, config.scores.delta
    found = supports_of(scores, config.scores.claimed_fprs, delta)
    supports = {
        f"{fpr:g}": support for fpr, support in zip(config.scores.claimed_fprs, found, strict=True)
    }
    reasons = [f"{fpr} {support_reason(support)}" for fpr, support in supports.items()
               if not support["supported"]]  # fmt: skip
    everything = np.ones(scores.n, bool)
    limit = float(scores.shares(0, everything, ~everything).upper_limit(1 - delta))
    where = scores.metadata.get("split") or scores.path
    return Outcome(
        passed=not reasons,
        measured={
            "split": str(where),
            "unique_negatives": scores.n_negative_unique,
            "effective_negatives": {
                fpr: support["negatives_effective"] for fpr, support in supports.items()
            },
            "unique_by": scores.identity_column,
            "zero_fp_upper_limit": limit,
        },
        threshold={
            "needed": {fpr: support["negatives_needed"] for fpr, support in supports.items()},
            "delta": delta,
        },
        detail=f"Of {where}, where the threshold was chosen: "
        + (
            f"a false-positive rate of {'; '.join(reasons)}. Without one false positive they would "
            f"still allow a rate of {limit:.2g}."
            if reasons
            else f"{scores.n_negative_unique:,} distinct non-lenses support every claimed rate."
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
        detail=f"The intervals rest on {regions:,} regions and {draws:,} draws.",
    )


def check_calibration(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Whether the calibration error after scaling is surely above what is allowed."""
    report = evidence.evaluation
    repaired, fitted = report.get("calibrated"), report.get("calibration")
    if repaired is None or fitted is None:
        why = "" if fitted is None else " (its scaling has no optimum)"
        raise NotRunError(
            f"The evaluation has no calibrated probabilities{why}. Evaluate with `--calibrate-on`."
        )
    squared = repaired["ece"]["debiased_squared"]
    if squared["low"] is None:
        raise NotRunError("The calibration error has no interval: there is one region only.")
    error, low = (math.sqrt(max(0.0, squared[name])) for name in ("value", "low"))
    keeps_ranks = bool(fitted["slope"] > 0)
    allowed = config.scores.max_ece
    passed = low <= allowed and keeps_ranks
    return Outcome(
        passed=passed,
        measured={"ece": error, "low": low, "ranks_kept": keeps_ranks},
        threshold={"low": allowed},
        detail=f"After {fitted['kind'].capitalize()} scaling on another split the root mean square "
        f"calibration error, debiased, is {percent(error)}, "
        + (f"surely above {percent(low)}." if low else "no more than chance gives.")
        + ("" if keeps_ranks else " The scaling reverses the ranks."),
    )

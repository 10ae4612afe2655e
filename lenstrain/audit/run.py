"""Checks of the run: what it recorded, how often test was scored, other seeds."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np

from lensprep.configfile import to_mapping
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.evaluation.independence import judge_calibration_split
from lenstrain.evaluation.metrics import roc_curve, tpr_at_fpr
from lenstrain.scoring.ledger import LEDGER, openings, read_ledger
from lenstrain.training.resume import differing

STATES = (
    "model",
    "optimizer",
    "scheduler",
    "scaler",
    "stopper",
    "loader",
    "rng",
    "step",
    "epoch",
    "config",
    "normalization",
    "label_map",
    "dataset_id",
    "versions",
)
"""What a checkpoint must hold so that the run can be resumed and identified."""


def check_provenance(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Everything needed to repeat the run and its threshold is recorded, and belongs together."""
    faults = [*checkpoint_faults(evidence), *evaluation_faults(evidence)]
    content = evidence.checkpoint
    return Outcome(
        passed=not faults,
        measured={
            "dataset_id": content.get("dataset_id"),
            "git_commit": content.get("git_commit"),
            "versions": content.get("versions"),
            "faults": faults,
        },
        threshold="complete",
        detail=_sentence(faults) if faults
        else "States, configuration, data digest, commit, versions and the frozen threshold with "
        "its calibration set are recorded and belong together.",
    )  # fmt: skip


def _sentence(faults: list[str]) -> str:
    text = "; ".join(faults)
    return text[0].upper() + text[1:] + "."


def checkpoint_faults(evidence: Evidence) -> list[str]:
    """What the best checkpoint lacks, and where config.toml differs from its configuration."""
    content = evidence.checkpoint
    faults = [f"the checkpoint lacks {name}" for name in STATES if content.get(name) is None]
    if content.get("dataset_id") != evidence.dataset.dataset_id:
        faults.append("the run was trained on another dataset than this one")
    configuration = content.get("config") or {}
    if "seed" not in configuration.get("train", {}):
        faults.append("the seed is not recorded")
    else:
        keys = differing(configuration, to_mapping(evidence.config))
        if other := [f"{key} is {now!r}, was {before!r}" for key, before, now in keys]:
            faults.append(f"config.toml is not the checkpoint's configuration: {', '.join(other)}")
    commit = content.get("git_commit")
    if commit is not None and commit.endswith("+"):
        faults.append("the code was changed after its commit: commit it and train again")
    if commit is None and "lenstrain" not in (content.get("versions") or {}):
        faults.append("neither commit nor version of the code is recorded")
    return faults


def evaluation_faults(evidence: Evidence) -> list[str]:
    """Why the evaluation has no frozen threshold that belongs to the scores at hand."""
    try:
        evaluation = evidence.evaluation
        evidence.frozen_threshold()
    except NotRunError as error:
        return [str(error).rstrip(".")]
    provenance = evaluation["provenance"]
    faults = []
    with suppress(NotRunError):
        if evidence.scores.sha256 != provenance["scores_sha256"]:
            faults.append("the evaluation is of other scores than those at hand")
    if provenance["calibrate_on"] is None:
        return [*faults, "the threshold was chosen on the scores it is judged on (--calibrate-on)"]
    return [*faults, *_threshold_faults(evidence)]


def _threshold_faults(evidence: Evidence) -> list[str]:
    """Why the split that the threshold came from is not independent of training and of test."""
    try:
        reasons = judge_calibration_split(evidence.judged, evidence.judged_calibration).reasons
    except NotRunError as error:
        split = evidence.evaluation.get("calibration_split")
        if split is None or evidence.supplied.calibration_scores is not None:
            return [str(error).rstrip(".")]
        reasons = split["reasons"]
    return [f"the threshold was not chosen on an independent split: {', '.join(reasons)}"
            ] if reasons else []  # fmt: skip


def check_test_once(evidence: Evidence, config: AuditConfig) -> Outcome:
    """How often the test split was scored by checkpoints of this run."""
    trained_on = evidence.config.eval.split
    if trained_on == "test":
        return Outcome(
            passed=False,
            measured={"eval.split": "test"},
            threshold=1,
            detail="The run was steered by the test split (eval.split). Train again with val; this "
            "test split is used up.",
        )
    mine = evidence.dataset.dataset_id
    lines = [line for line in read_ledger(evidence.run) or [] if line["dataset_id"] == mine]
    if not lines:
        raise NotRunError(
            f"{evidence.run / LEDGER} names no scoring of this dataset's test split: `lenstrain "
            "infer --split test` writes it when it scores a checkpoint in the run folder."
        )
    different = openings(lines, mine)
    return Outcome(
        passed=len(different) <= 1,
        measured={"openings": len(lines), "different": len(different)},
        threshold={"different": 1},
        detail=f"Test was scored {'once' if len(lines) == 1 else f'{len(lines)} times'}"
        + (
            "."
            if len(lines) == 1
            else ", always in the same way."
            if len(different) == 1
            else f", in {len(different)} different ways (weights, averaging)."
        ),
    )


def check_seeds(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Spread of the completeness at one rate over runs with other seeds."""
    named = evidence.supplied.seed_scores
    if not named:
        raise NotRunError(
            f"One seed only. Train {config.run.min_seeds - 1} more with `--set train.seed=1`, ..., "
            "score the same split, and name the scores with `--seed-scores` (repeatable)."
        )
    fpr = config.scores.seed_fpr
    others = [evidence.judged_of(evidence.other_scores(path)) for path in named]
    tables = [evidence.judged, *others]
    different = len({str(t.metadata.get("checkpoint_sha256", t.path)) for t in tables})
    values = [tpr_at_fpr(roc_curve(t.labels, t.logits), fpr).tpr for t in tables]
    spread = float(np.ptp(values)) / 2
    half = _half_width(evidence.evaluation, fpr)
    enough = different >= config.run.min_seeds
    return Outcome(
        passed=enough and spread <= half,
        measured={"tpr": values, "half_range": spread, "checkpoints": different},
        threshold={"checkpoints": config.run.min_seeds, "half_range": half},
        detail=f"Completeness at FPR {fpr:g}: {', '.join(f'{v:.3f}' for v in values)}; half range "
        f"{spread:.3f} against a bootstrap half-width of {half:.3f}."
        + ("" if enough else f" Only {different} different checkpoints."),
    )


def _half_width(evaluation: dict[str, Any], fpr: float) -> float:
    for name, entry in evaluation["tpr_at_fpr"].items():
        if math.isclose(float(name), fpr) and entry["low"] is not None:
            return float(entry["high"] - entry["low"]) / 2
    raise NotRunError(f"The evaluation has no interval at FPR {fpr:g}.")

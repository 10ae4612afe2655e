"""Realism gate: whether a linear probe of the network's features separates real from injected.

The probe, and why it matters: `lenstrain.evaluation.gap`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset.layout import SIMULATED
from lensprep.store import Uri
from lensprep.tables.reader import read_table
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.evaluation.gap import (
    EMBEDDING,
    Side,
    embeddings,
    read_embeddings,
    spread,
    told_apart,
)
from lenstrain.evaluation.scores import Scores
from lenstrain.pages import interval
from lenstrain.scoretable import precisions_differ


def check_realism(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Logistic regression between real and injected lenses in feature space, regions apart.

    Fitted on few lenses, a line finds less than there is (see `told_apart`). So it can fail with
    few real lenses, but pass only with as many as there are features.
    """
    one, real_facts, whose = _real(evidence)
    other, facts = _injected(evidence)
    _same_features(real_facts, facts, evidence)
    real, injected = one[0], other[0]
    if real.shape[1] != injected.shape[1]:
        raise NotRunError(
            f"Real lenses have {real.shape[1]} features, injected ones {injected.shape[1]}: score "
            "both with this run's best.pt."
        )
    found = told_apart(one, other, config.resamples)
    if found is None or found["low"] is None:
        raise NotRunError(f"{len(real)} real and {len(injected)} injected lenses are too few.")
    found |= {"real": len(real), "injected": len(injected)}
    return _judge(found, whose, config)


def _judge(found: dict[str, Any], whose: str, config: AuditConfig) -> Outcome:
    limit, real, features = config.science.realism_upper, found["real"], found["features"]
    text = (
        f"AUROC {interval(found)} between {real:,} real and {found['injected']:,} injected "
        f"lenses in {features} features. {whose}"
    )
    if real < features and found["low"] <= limit:
        raise NotRunError(
            f"{text} That shows nothing: a fit to fewer lenses than features misses real "
            f"differences. Give at least {features} real lenses with `--real`."
        )
    passed = found["high"] <= limit
    return Outcome(
        passed=passed,
        measured=found,
        threshold={"upper": limit},
        detail=text + ("" if passed else " The network distinguishes them."),
    )


def _real(evidence: Evidence) -> tuple[Side, dict[str, Any], str]:
    """Features and groups of the real lenses, their facts, and whose they are in words."""
    path = evidence.supplied.real
    if path is not None:
        side, facts = _given(path)
        return side, facts, evidence.given("--real", 1)
    rows = evidence.own_real(1)
    if not rows.size:
        raise NotRunError(
            "No real lenses were supplied, and the scores have none of their own. Score real ones "
            "and the test split with `lenstrain infer --embeddings`, and name the table of the "
            "real ones with `--real`."
        )
    return _own(evidence.scores, rows), evidence.scores.metadata, evidence.own_words(rows)


def _given(path: Uri) -> tuple[Side, dict[str, Any]]:
    """Of a table of real lenses; a lens without a region is its own group."""
    table, facts, *_ = read_table(path, ("logit", "region_id"))
    if not table.num_rows:
        raise NotRunError(f"{path} has no rows. Score at least 30 real lenses.")
    rows = spread(np.arange(table.num_rows))
    groups = np.array([f"real-{row}" for row in rows])
    if "region_id" in table.column_names:
        named = table["region_id"].take(pa.array(rows)).cast(pa.string()).to_pylist()
        groups = np.array([name or own for name, own in zip(named, groups, strict=True)])
    vectors = read_embeddings(path, rows)
    if vectors is None:
        raise _without_features(path)
    return (vectors, groups), facts


def _own(scores: Scores, rows: NDArray[np.int64]) -> Side:
    """Of rows of the test split."""
    found = embeddings(scores, spread(rows))
    if found is None:
        raise _without_features(scores.path)
    return found


def _without_features(path: Uri) -> NotRunError:
    return NotRunError(
        f"{path} has no column {EMBEDDING}. Score it again with `lenstrain infer --embeddings`."
    )


def _injected(evidence: Evidence) -> tuple[Side, dict[str, Any]]:
    """The same of the injected lenses of the test split."""
    scores = evidence.scores
    chosen = (scores.labels == 1) & scores.is_of(SIMULATED)
    if scores.has("theta_e_arcsec"):
        chosen &= scores.numbers("theta_e_arcsec") > 0
    if not chosen.any():
        raise NotRunError(f"{scores.path} has no injected lens (label 1, theta_e_arcsec above 0).")
    return _own(scores, np.flatnonzero(chosen)), scores.metadata


def _same_features(real: dict[str, Any], ours: dict[str, Any], evidence: Evidence) -> None:
    """Refuse features of two networks, which have no axis in common, or of two roundings."""
    names = ("checkpoint_sha256", "tta", "normalization")
    differing = [
        name for name in names if name in real and name in ours and real[name] != ours[name]
    ]
    if precisions_differ(real, ours):
        differing.append("precision")
    if differing:
        raise NotRunError(
            f"{evidence.supplied.real} and {evidence.scores.path} differ in {differing[0]}: score "
            "both alike with this run's best.pt."
        )

"""Realism gate: whether logistic regression on the network's features separates real from injected.

Completeness is measured on injected lenses. If the network itself sees them as another kind of
object than real ones, that completeness says nothing about real lenses, however high it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.errors import ScoresError
from lensprep.store import Uri
from lensprep.tables.reader import read_table, read_vectors
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.pages import interval
from lenstrain.probes.linear import linear_probe
from lenstrain.scoretable import precisions_differ

EMBEDDING = "embedding"
MOST_ROWS = 5_000
"""Lenses of each kind that the line is fitted on, evenly spaced in their tables."""


def check_realism(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Logistic regression between real and injected lenses in feature space, regions apart.

    Fitted on few lenses, a line finds less than there is (measured: 500 real lenses and 512
    features turn an AUROC of 0.92 into 0.82, 30 into 0.65). So it can fail with few real lenses,
    but pass only with as many as there are features.
    """
    real, real_groups, real_facts = _real(evidence)
    injected, regions, facts = _injected(evidence)
    _same_features(real_facts, facts, evidence)
    if real.shape[1] != injected.shape[1]:
        raise NotRunError(
            f"Real lenses have {real.shape[1]} features, injected ones {injected.shape[1]}: score "
            "both with this run's best.pt."
        )
    found = linear_probe(
        np.concatenate([real, injected]),
        np.repeat([0, 1], [len(real), len(injected)]),
        np.concatenate([real_groups, regions]),
        resamples=config.resamples,
        stratified=True,
    )
    if found is None or found["low"] is None:
        raise NotRunError(f"{len(real)} real and {len(injected)} injected lenses are too few.")
    return _judge(found, real, injected, config)


def _judge(
    found: dict[str, Any],
    real: NDArray[np.float64],
    injected: NDArray[np.float64],
    config: AuditConfig,
) -> Outcome:
    limit, features = config.science.realism_upper, real.shape[1]
    text = (
        f"AUROC {interval(found)} between {len(real):,} real and {len(injected):,} injected "
        f"lenses in {features} features."
    )
    if len(real) < features and found["low"] <= limit:
        raise NotRunError(
            f"{text} That shows nothing: a fit to fewer lenses than features misses real "
            f"differences. Give at least {features} real lenses with --real."
        )
    passed = found["high"] <= limit
    return Outcome(
        passed=passed,
        measured=found | {"real": len(real), "injected": len(injected), "features": features},
        threshold={"upper": limit},
        detail=text
        + (
            ""
            if passed
            else " The network distinguishes them, so its completeness for injected lenses is not "
            "that for real ones. Compare hosts, seeing and arcs of both, and inject lenses like "
            "the real ones."
        ),
    )


def _real(evidence: Evidence) -> tuple[NDArray[np.float64], NDArray[np.str_], dict[str, Any]]:
    """Features, groups and facts of the real lenses; one without a region is its own group."""
    path = evidence.supplied.real
    if path is None:
        raise NotRunError(
            "No real lenses were supplied. Score real ones and the test split with `lenstrain "
            "infer --embeddings`, and name the table of the real ones with --real."
        )
    table, facts, *_ = read_table(path, ("logit", "region_id"))
    if not table.num_rows:
        raise NotRunError(f"{path} has no rows. Score at least 30 real lenses.")
    rows = _spread(np.arange(table.num_rows))
    groups = np.array([f"real-{row}" for row in rows])
    if "region_id" in table.column_names:
        named = table["region_id"].take(pa.array(rows)).cast(pa.string()).to_pylist()
        groups = np.array([name or own for name, own in zip(named, groups, strict=True)])
    return _features(path, rows), groups, facts


def _injected(evidence: Evidence) -> tuple[NDArray[np.float64], NDArray[np.str_], dict[str, Any]]:
    """The same of the injected lenses of the test split."""
    scores = evidence.scores
    chosen = scores.labels == 1
    if scores.has("theta_e_arcsec"):
        chosen &= scores.numbers("theta_e_arcsec") > 0
    if not chosen.any():
        raise NotRunError(f"{scores.path} has no injected lens (label 1, theta_e_arcsec above 0).")
    rows = _spread(np.flatnonzero(chosen))
    regions = scores.table["region_id"].take(pa.array(rows)).cast(pa.string()).to_pylist()
    features = _features(scores.path, scores.in_file(rows))
    return features, np.array(regions), scores.metadata


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Up to `MOST_ROWS` of some rows, evenly spaced."""
    if len(rows) <= MOST_ROWS:
        return rows
    return rows[np.arange(MOST_ROWS) * len(rows) // MOST_ROWS]


def _features(path: Uri, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    vectors = read_vectors(path, EMBEDDING, rows)
    if vectors is None:
        raise NotRunError(
            f"{path} has no column {EMBEDDING}. Score it again with `lenstrain infer --embeddings`."
        )
    if not np.isfinite(vectors).all():
        raise ScoresError(f"{path}: a value of {EMBEDDING} is not finite. Score it again.")
    return vectors


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

"""Checks that need further tables: left-out values, confusers, blank sky, real lenses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset.layout import KIND, REAL
from lensprep.errors import ScoresError
from lensprep.tables.reader import read_table, require_columns
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence, parse_left_out
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.evaluation.intervals import upper_limit, wilson
from lenstrain.evaluation.metrics import roc_curve, tpr_at_fpr
from lenstrain.evaluation.scores import Scores
from lenstrain.scoretable import logits_of, read_logits

BLANK_KINDS = ("blank", "blank_sky", "sky")
ARTEFACT_KINDS = ("artefact", "artifact")


def check_leave_one_out(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Completeness of lenses of a value that another run never saw, against this run's."""
    if not evidence.supplied.left_out:
        raise NotRunError(
            'No scores were supplied. Train runs without one value (`--set data.where="'
            'theta_e_arcsec != 0.6"`), score the same split, and give each as `--left-out '
            "theta_e_arcsec=0.6:SCORES`. A value that the data does not have cannot be tested."
        )
    cells = {}
    for text in evidence.supplied.left_out:
        column, value, path = parse_left_out(text)
        other = evidence.judged_of(evidence.other_scores(path))
        cells[f"{column}={value}"] = _left_out(evidence.judged, other, column, value, config)
    allowed = config.science.left_out_drop
    failed = [name for name, cell in cells.items()
              if cell["drop"] > allowed and cell["left_out"] < cell["low"]]  # fmt: skip
    listed = ", ".join(f"{name} {100 * cell['drop']:+.1f} points" for name, cell in cells.items())
    return Outcome(
        passed=not failed,
        measured=cells,
        threshold={"drop": allowed, "or": "inside the interval"},
        detail=f"Completeness lost on values left out of training: {listed}."
        + (f" The finder does not generalise to {', '.join(failed)}." if failed else ""),
    )


def _left_out(
    mine: Scores, other: Scores, column: str, value: str, config: AuditConfig
) -> dict[str, Any]:
    fpr = config.scores.seed_fpr
    rates = []
    for table in (mine, other):
        chosen = _lenses_with(table, column, value)
        cut = tpr_at_fpr(roc_curve(table.labels, table.logits), fpr).threshold
        rates.append((int((table.logits[chosen] > cut).sum()), int(chosen.sum())))
    (k, n), (k_other, n_other) = rates
    low = float(wilson(k, n)[0])
    return {"seen": k / n, "left_out": k_other / n_other, "drop": k / n - k_other / n_other,
            "low": low, "n": n}  # fmt: skip


def _lenses_with(table: Scores, column: str, value: str) -> NDArray[np.bool_]:
    found = read_table(table.path, [column])
    require_columns(found, (column,), table.path, "Name one of them in --left-out.")
    values = found.table[column].take(pa.array(table.in_file(np.arange(table.n))))
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        try:
            number = float(value)
        except ValueError:
            raise ScoresError(
                f"--left-out {column}={value}: {column} of {table.path} holds numbers."
            ) from None
        same = np.isclose(values.cast(pa.float64()).to_numpy(), number)
    else:
        same = np.array([str(item) == value for item in values.to_pylist()])
    chosen = same & (table.labels == 1)
    if not chosen.any():
        raise NotRunError(f"{table.path} has no lens with {column} = {value}.")
    return np.asarray(chosen)


def check_confusers(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Spirals, rings, edge-ons, mergers: the share of each that passes as a lens."""
    special = (*BLANK_KINDS, *ARTEFACT_KINDS)
    chosen, whose = _kinds(evidence, lambda kind: kind not in special)
    if not chosen:
        raise _none_of(evidence, "spirals, rings, edge-ons or mergers", "spiral")
    return _judge(chosen, whose, evidence, config)


def check_blank(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Blank fields that pass as a lens; synthetic ones from the probes if there are no real."""
    chosen, whose = _kinds(evidence, lambda kind: kind in BLANK_KINDS)
    if chosen:
        return _judge(chosen, whose, evidence, config)
    cell = evidence.probed("ring_probe")["blank"]
    base = evidence.probe["threshold"]
    allowed = config.science.confuser_factor * base["fpr"]
    return Outcome(
        passed=cell["share"] <= allowed,
        measured={"kinds": {"synthetic sky": cell}},
        threshold={"share": allowed},
        detail=f"{cell['flagged']} of {cell['n']} synthetic blank fields pass (at most "
        f"{cell['upper']:.2%}). They are white noise: give real ones with `--confusers`, kind "
        "blank.",
    )


def check_artefacts(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Bleed trails, spikes, ghosts and satellites that pass as a lens."""
    chosen, whose = _kinds(evidence, lambda kind: kind in ARTEFACT_KINDS)
    if not chosen:
        raise _none_of(evidence, "artefacts", "artefact")
    return _judge(chosen, whose, evidence, config)


Kinds = dict[str, NDArray[np.float64]]
"""Logits of non-lenses by kind."""


def _none_of(evidence: Evidence, what: str, kind: str) -> NotRunError:
    if evidence.supplied.confusers is not None:
        return NotRunError(f"The table of confusers has no {what}: add them, kind {kind}.")
    return NotRunError(
        f"No {what} were supplied, and the scores have none of their own (origin {REAL}, kind "
        f"{kind}). Convert labelled real ones into the test split, or score them with `lenstrain "
        "infer`, add a column `kind`, and name the table with `--confusers`."
    )


def _kinds(evidence: Evidence, wanted: Callable[[str], bool]) -> tuple[Kinds, str]:
    """Given non-lenses of the wanted kinds, else the dataset's own; and whose they are in words."""
    path = evidence.supplied.confusers
    if path is not None:
        table = read_logits(path, ["kind"])
        kinds = np.array([str(kind) for kind in table["kind"].to_pylist()])
        if found := _by_kind(kinds, logits_of(table), wanted):
            return found, evidence.given("--confusers", 0)
    rows = evidence.own_real(0)
    if not rows.size or not evidence.scores.has(KIND):
        return {}, ""
    codes, names = evidence.scores.codes(KIND)
    rows = rows[codes[rows] >= 0]
    kinds = np.array(names)[codes[rows]]
    found = _by_kind(kinds, evidence.scores.logits[rows], wanted)
    return found, evidence.own_words(rows[np.isin(kinds, list(found))])


def _by_kind(
    kinds: NDArray[np.str_], logits: NDArray[np.float64], wanted: Callable[[str], bool]
) -> Kinds:
    return {str(kind): logits[kinds == kind] for kind in np.unique(kinds) if wanted(str(kind))}


def _judge(kinds: Kinds, whose: str, evidence: Evidence, config: AuditConfig) -> Outcome:
    frozen = evidence.frozen_threshold()
    # The rate that was aimed at, where none of these non-lenses was flagged.
    overall = float(frozen["fpr"]["value"]) or float(frozen["target_fpr"] or 0.0)
    allowed = config.science.confuser_factor * overall
    cells = {}
    for kind, logits in kinds.items():
        hits = int((logits > frozen["threshold"]).sum())
        cells[kind] = {"flagged": hits, "n": len(logits), "share": hits / len(logits),
                       "upper": upper_limit(hits, len(logits))}  # fmt: skip
    failed = [kind for kind, cell in cells.items() if cell["share"] > allowed]
    listed = ", ".join(f"{kind} {c['share']:.2%} (at most {c['upper']:.2%}, n = {c['n']})"
                       for kind, c in cells.items())  # fmt: skip
    return Outcome(
        passed=not failed,
        measured={"kinds": cells, "overall": overall},
        threshold={"share": allowed},
        detail=f"Flagged: {listed}; all non-lenses {overall:.2%}. {whose}"
        + (f" Too many: {', '.join(failed)}." if failed else ""),
    )


def check_real_lenses(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Recall of real lenses, found in imaging, at the frozen threshold."""
    path, limits = evidence.supplied.real, config.science
    rows = evidence.own_real(1)
    if path is not None:
        logits, whose = logits_of(read_logits(path)), evidence.given("--real", 1)
    elif rows.size:
        logits, whose = evidence.scores.logits[rows], evidence.own_words(rows)
    else:
        raise NotRunError(
            f"No real lenses were supplied, and the scores have none of their own (origin {REAL}). "
            f"Convert at least {limits.min_real} that were found in comparable imaging into the "
            "test split, or score them with `lenstrain infer` and name the table with `--real`."
        )
    cut = evidence.frozen_threshold()["threshold"]
    hits, n = int((logits > cut).sum()), len(logits)
    low, high = (float(end) for end in wilson(hits, n))
    return Outcome(
        passed=n >= limits.min_real and low > limits.real_lower,
        measured={"recovered": hits, "n": n, "recall": hits / n, "low": low, "high": high},
        threshold={"n": limits.min_real, "low": limits.real_lower},
        detail=f"{hits} of {n} real lenses pass: {hits / n:.1%} [{low:.1%}, {high:.1%}]. {whose}"
        + ("" if n >= limits.min_real else f" Fewer than {limits.min_real} say little."),
    )

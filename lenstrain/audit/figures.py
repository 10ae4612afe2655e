"""Check of the report: every figure is computed again from the scores and compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from lensprep.configfile import from_mapping
from lensprep.dataset.strictjson import plain
from lensprep.errors import ConfigError
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.evaluation.measure import Measurement, measure
from lenstrain.evaluation.operating import long_table
from lenstrain.evaluation.options import EvaluationOptions

NOT_RECOMPUTED: Final = ("comparison", "known_lenses", "selection_function", "sim_to_real")
"""Figures that depend on more than the columns of the scores; they are named, not judged."""
_WORDS: Final = ("provenance", "notes", "format_version", *NOT_RECOMPUTED)
RELATIVE: Final = 1e-7
"""Fits stop near 1e-9, and processors differ in the order of sums; this changes no claim."""
_SHOWN: Final = 3
_MISSING: Final = "missing"


def check_report_figures(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Evaluate again and compare every number of metrics.json and of completeness.parquet."""
    report = evidence.evaluation
    theirs, sha256 = report["provenance"]["scores_sha256"], evidence.scores.sha256
    if theirs != sha256:
        return Outcome(
            passed=False,
            measured={"scores_sha256": sha256},
            threshold={"scores_sha256": theirs},
            detail=f"The report was made from another table than {evidence.scores.path}, or the "
            "table was changed since.",
        )
    found = _measure_again(evidence)
    again = plain({name: item for name, item in found.entries.items() if name not in _WORDS})
    stated = {name: item for name, item in report.items() if name not in _WORDS}
    differing = [*differing_leaves(stated, again), *_differing_cells(evidence.completeness, found)]
    left = [name for name in NOT_RECOMPUTED if report.get(name)]
    compared = sum(1 for _ in leaves(again))
    made_by = report["provenance"].get("versions")
    version = made_by.get("lenstrain", "?") if isinstance(made_by, Mapping) else "?"
    note = f" Not recomputed: {', '.join(left)}." if left else ""
    return Outcome(
        passed=not differing,
        measured={"compared": compared, "differing": len(differing),
                  "first": differing[:_SHOWN], "not_recomputed": left},
        threshold={"differing": 0, "relative": RELATIVE},
        detail=(
            f"{evidence.evaluation_folder}, made by lenstrain {version}, has numbers that do not "
            f"follow from the scores ({len(differing):,}): {'; '.join(differing[:_SHOWN])}."
            if differing
            else f"All {compared:,} numbers of the report follow from the scores."
        )
        + note,
    )  # fmt: skip


def _measure_again(evidence: Evidence) -> Measurement:
    provenance = evidence.evaluation["provenance"]
    given = {name: item for name, item in provenance["options"].items() if item is not None}
    try:
        options = from_mapping(EvaluationOptions, given)
    except ConfigError as error:
        raise NotRunError(
            f"The options of the evaluation are not known here: {error} Evaluate again."
        ) from error
    reference = None if provenance["calibrate_on"] is None else evidence.calibration
    return measure(evidence.scores, reference, options, lambda stage, done: None)


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers, truth values and nulls of nested content, by their dotted names."""
    if isinstance(content, Mapping):
        for key, item in content.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for number, item in enumerate(content):
            yield from leaves(item, f"{name}[{number}]")
    elif not isinstance(content, str):
        yield name, content


def differing_leaves(stated: Any, again: Any) -> list[str]:
    """The leaves that are not the same, each with both values."""
    ours, theirs = dict(leaves(again)), dict(leaves(stated))
    found = []
    for name in dict.fromkeys([*ours, *theirs]):
        one, two = theirs.get(name, _MISSING), ours.get(name, _MISSING)
        if not _same(one, two):
            found.append(f"{name} is {_word(one)}, not {_word(two)}")
    return found


def _same(one: Any, two: Any) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, two))
    return math.isclose(one, two, rel_tol=RELATIVE, abs_tol=RELATIVE**2) if numbers else one == two


def _word(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _differing_cells(table: pa.Table, found: Measurement) -> list[str]:
    """Columns of completeness.parquet that differ from what is measured again."""
    differing = []
    for name, column in long_table(found.completeness).items():
        if name not in table.column_names or table.num_rows != len(column):
            return ["completeness.parquet has other cells"]
        stored = table[name].to_pylist()
        wrong = np.flatnonzero([not _same(_null(a), _null(b))
                                for a, b in zip(stored, column.tolist(), strict=True)])  # fmt: skip
        if len(wrong):
            row = int(wrong[0])
            differing.append(
                f"{name} of {len(wrong)} cells of completeness.parquet, the first "
                f"{_word(stored[row])}, not {_word(column[row])}"
            )
    return differing


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value

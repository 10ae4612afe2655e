"""Findings about columns that reveal the label: those known to, and others that do (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.checks.finding import (
    MAX_CATEGORIES,
    Finding,
    auroc_error,
    both_classes,
    leaking,
    listing,
    mid_rank_auroc,
)
from lensprep.checks.tally import Circumstances, Finder, Tally, sampled_columns
from lensprep.source.contract import numbers

AUROC_MARGIN: Final = 0.1
NULL_MARGIN: Final = 0.01
SIGNIFICANCE: Final = 4.0
"""A column reveals the label if its AUROC differs from 0.5, or its share of nulls between the
classes, by more than the margin and this many standard errors."""


def _leaking_columns(tally: Tally, about: Circumstances) -> Finding:
    present = leaking(about.source.schema.names)
    return Finding(
        item="leaking_columns",
        measured=present,
        detail=f"{len(present)} columns reveal the label, by value or by being null. They stay "
        "in the sidecar for strata and never reach a model.",
    )


def _unlisted_leaks(tally: Tally, about: Circumstances) -> Finding:
    """Columns that separate the classes although the contract does not say so."""
    told: dict[str, str] = {}
    if tally.samples:
        columns = sampled_columns(about.source.schema)
        told = _telling_values(pa.concat_tables(tally.samples), columns)
        told |= _telling_nulls(tally, columns)
    names = [f"{name} ({value})" for name, value in told.items()]
    return Finding(
        item="unlisted_leaks",
        severity="warn",
        passed=not told,
        measured=told,
        threshold={"auroc": [0.5 - AUROC_MARGIN, 0.5 + AUROC_MARGIN], "null_gap": NULL_MARGIN},
        detail=f"Columns that should not reveal the label do: {listing(names)}. Do not select by "
        "them, and do not use them as inputs."
        if told
        else "No other column separates the classes by itself.",
    )


def _telling_values(sample: pa.Table, columns: Sequence[str]) -> dict[str, str]:
    """Columns whose values separate the classes in a sample, each with its AUROC."""
    label = sample["label"].to_numpy() == 1
    told = {}
    for name in columns:
        text = pa.types.is_string(sample[name].type)
        score = _shares(sample[name], label) if text else numbers(sample[name])
        if score is None:
            continue
        known = np.isfinite(score)
        area = mid_rank_auroc(score[known], label[known])
        error = auroc_error(int(label[known].sum()), int((~label[known]).sum()))
        # Shares of lenses can only rank them higher.
        gap = area - 0.5 if text else abs(area - 0.5)
        if gap - SIGNIFICANCE * error > AUROC_MARGIN:
            told[name] = f"AUROC {area:.3f}"
    return told


def _shares(column: pa.ChunkedArray, label: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """For text with few values, the share of lenses with the same text in the other half of rows.

    A share that counted the row itself would tell its label, of a text of one row in any case.
    """
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    count = len(encoded.dictionary)
    if count > MAX_CATEGORIES:
        return None
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    half = np.random.default_rng(0).random(len(label)) < 0.5
    scores, usual = np.empty(len(label)), label.sum() / max(len(label), 1)
    for mine in (half, ~half):
        others = codes[~mine]
        lenses, rows = (np.bincount(others, of, count) for of in (label[~mine], None))
        shares = np.where(rows > 0, lenses / np.maximum(rows, 1), usual)
        scores[mine] = shares[codes[mine]]
    return scores


def _telling_nulls(tally: Tally, columns: Sequence[str]) -> dict[str, str]:
    """Columns whose share of nulls differs between the classes."""
    rows = both_classes(tally.classes())
    told: dict[str, str] = {}
    if not all(rows.values()):
        return told
    for name in columns:
        share = {c: tally.nulls[name, c] / rows[c] for c in ("0", "1")}
        error = sum(p * (1 - p) / rows[c] for c, p in share.items()) ** 0.5
        gap = abs(share["0"] - share["1"])
        if gap - SIGNIFICANCE * error > NULL_MARGIN:
            told[name] = f"null in {share['0']:.1%} of controls, {share['1']:.1%} of lenses"
    return told


FINDERS: Final[tuple[Finder, ...]] = (_leaking_columns, _unlisted_leaks)

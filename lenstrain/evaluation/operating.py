"""Frozen thresholds, and what they recover: the tables that follow from where one cuts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation import metrics, threshold
from lenstrain.evaluation.completeness import CELL_COLUMNS, AxisBins, Cells, axis_bins, count_cells
from lenstrain.evaluation.options import AXES, EvaluationOptions
from lenstrain.evaluation.ranking import rates_at
from lenstrain.evaluation.resampling import Resampling
from lenstrain.evaluation.scores import Scores

BOTH_CLASSES = ("psfsize_r", "psfdepth_r")
"""Quantities that non-lenses have too: their bins are those of all rows."""


@dataclass(frozen=True, kw_only=True)
class FrozenThreshold:
    """A threshold chosen on some scores, to be judged on others."""

    name: str
    """For people: ``FPR 0.01``, ``F1 at prevalence 0.001``, ..."""
    kind: str
    """neyman_pearson, empirical, fbeta, budget or given."""
    threshold: float | None
    """On the logit; None if the scores cannot support it."""
    target_fpr: float | None = None
    guaranteed: bool = False
    """Whether FPR <= target holds with probability 1 - delta."""
    reason: str = ""
    """Why there is no threshold, or what it lacks."""


def frozen_thresholds(
    reference: Scores, in_sample: bool, options: EvaluationOptions
) -> list[FrozenThreshold]:
    """Thresholds by guaranteed rate, by F-beta at a prevalence, and by inspection budget.

    Parameters
    ----------
    reference : Scores
        Where they are chosen: the calibration split if there is one.
    in_sample : bool
        Whether these are the scores that are judged too: then nothing is guaranteed.
    options : EvaluationOptions
        Rates, delta, betas, prevalences and budget.
    """
    negatives, curve = reference.unique_negatives, reference.curve
    found = [
        _by_rate(f"FPR {fpr:g}", "neyman_pearson", fpr, negatives, in_sample, options.delta)
        for fpr in options.fprs
    ]
    budget = threshold.fpr_for_budget(options.inspection_budget, options.population)
    if budget < 1:
        name = f"{options.inspection_budget:g} false in {options.population:g}"
        found.append(_by_rate(name, "budget", budget, negatives, in_sample, options.delta))
    for prevalence in options.prevalence:
        for beta in options.betas:
            best = threshold.best_fbeta(curve, beta, prevalence)
            name = f"F{beta:g} at prevalence {prevalence:g}"
            found.append(FrozenThreshold(name=name, kind="fbeta", threshold=best.threshold))
    return found


def _by_rate(
    name: str,
    kind: str,
    fpr: float,
    negatives: NDArray[np.float64],
    in_sample: bool,
    delta: float,
) -> FrozenThreshold:
    found = threshold.neyman_pearson(negatives, fpr, delta)
    if found is None:
        needed = threshold.negatives_needed(fpr, delta)
        reason = f"needs {needed:,} unique negatives, there are {negatives.size:,}"
        return FrozenThreshold(name=name, kind=kind, threshold=None, target_fpr=fpr, reason=reason)
    return FrozenThreshold(
        name=name,
        kind=kind,
        threshold=found.threshold,
        target_fpr=fpr,
        guaranteed=not in_sample,
        reason="chosen on the scores that are judged" if in_sample else "",
    )


def completeness_thresholds(
    reference: Scores, in_sample: bool, options: EvaluationOptions
) -> list[FrozenThreshold]:
    """Thresholds at which completeness is measured: given ones, or by false-positive rate.

    By rate, the Neyman-Pearson threshold of the calibration split is used where it exists, else
    the plain quantile of the reference negatives.
    """
    if options.thresholds:
        return [
            FrozenThreshold(name=f"logit {value:g}", kind="given", threshold=value)
            for value in options.thresholds
        ]
    negatives, curve = reference.unique_negatives, reference.curve
    found = []
    for fpr in options.completeness_fprs:
        name = f"FPR {fpr:g}"
        choice = _by_rate(name, "neyman_pearson", fpr, negatives, in_sample, options.delta)
        if in_sample or choice.threshold is None:
            choice = FrozenThreshold(
                name=name,
                kind="empirical",
                threshold=metrics.tpr_at_fpr(curve, fpr).threshold,
                target_fpr=fpr,
                reason="chosen on the scores that are judged" if in_sample else choice.reason,
            )
        found.append(choice)
    return found


def judge_thresholds(
    scores: Scores,
    curve: metrics.RocCurve,
    frozen: Sequence[FrozenThreshold],
    resampling: Resampling,
    prevalences: Sequence[float],
) -> list[dict[str, Any]]:
    """What each frozen threshold does on these scores: rates, purity, and rows tied with it."""
    return [_judge(scores, curve, choice, resampling, prevalences) for choice in frozen]


def _judge(
    scores: Scores,
    curve: metrics.RocCurve,
    choice: FrozenThreshold,
    resampling: Resampling,
    prevalences: Sequence[float],
) -> dict[str, Any]:
    entry = asdict(choice)
    if choice.threshold is None:
        return entry
    rates = rates_at(scores, choice.threshold, resampling)
    tpr, fpr = rates["tpr"]["value"], rates["fpr"]["value"]
    purity = {
        # With no false positive seen the measured purity is 1, which says nothing.
        f"{p:g}": {
            "value": metrics.purity(tpr, fpr, p) if rates["fpr"]["k"] else None,
            "at_least": metrics.purity(tpr, rates["fpr"]["upper_limit"], p),
        }
        for p in prevalences
    }
    tied = metrics.tied_rows(curve, choice.threshold)
    return entry | rates | {"purity": purity, "tied_at_threshold": tied}


@dataclass(frozen=True)
class CompletenessTable:
    """Completeness of one combination of axes at one threshold."""

    threshold: FrozenThreshold
    cells: Cells

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.name for axis in self.cells.axes)


def bins_of_axes(
    scores: Scores,
    names: Sequence[str],
    n_bins: int,
    edges: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, AxisBins]:
    """Bins of every axis that the table has values for; given edges come before the data's."""
    lens = scores.labels == 1
    found = {}
    for name in names:
        if not scores.has(name):
            continue
        values = scores.numbers(name)
        if edges and name in edges:
            found[name] = AxisBins(name, np.asarray(edges[name], dtype=np.float64))
            continue
        bins = axis_bins(name, values if name in BOTH_CLASSES else values[lens], n_bins)
        if bins is not None:
            found[name] = bins
    return found


def measure_completeness(
    scores: Scores,
    frozen: Sequence[FrozenThreshold],
    bins: dict[str, AxisBins],
    options: EvaluationOptions,
) -> tuple[list[CompletenessTable], list[str]]:
    """Completeness for every combination of axes and threshold, and the combinations left out."""
    lens = scores.labels == 1
    values = {name: scores.numbers(name)[lens] for name in bins}
    logits = scores.logits[lens]
    unresolved = known = None
    if scores.has("theta_e_over_psf"):
        ratio = scores.numbers("theta_e_over_psf")[lens]
        unresolved, known = ratio < options.unresolved_below, np.isfinite(ratio)
    tables, left_out = [], []
    for axes in options.completeness_axes:
        missing = [axis for axis in axes if axis not in bins]
        if missing:
            left_out.append(f"{' x '.join(axes)}: no {', '.join(missing)}")
            continue
        grid = [bins[axis] for axis in axes]
        for choice in frozen:
            if choice.threshold is not None:
                recovered = logits > choice.threshold
                on_axes = [values[axis] for axis in axes]
                cells = count_cells(grid, on_axes, recovered, unresolved, known)
                tables.append(CompletenessTable(choice, cells))
    return tables, left_out


def long_table(tables: Sequence[CompletenessTable]) -> dict[str, NDArray[Any]]:
    """All tables in one, in long form; the edges of axes that a row does not use are NaN."""
    edges = [f"{axis}_{end}" for axis in AXES for end in ("lo", "hi")]
    if not tables:
        names = ("axes", *edges, "threshold", "target_fpr", *CELL_COLUMNS)
        return {name: np.empty(0) for name in names}
    parts: dict[str, list[NDArray[Any]]] = {}
    for table in tables:
        columns = table.cells.columns()
        rows = columns["n"].size
        target = table.threshold.target_fpr
        head: dict[str, NDArray[Any]] = {
            "axes": np.full(rows, " x ".join(table.axes), dtype=object)
        }
        head |= {name: columns.pop(name, np.full(rows, np.nan)) for name in edges}
        head["threshold"] = np.full(rows, table.threshold.threshold)
        head["target_fpr"] = np.full(rows, np.nan if target is None else target)
        for name, column in (head | columns).items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}

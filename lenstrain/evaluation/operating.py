"""Frozen thresholds, and what they recover."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenstrain.evaluation import metrics, threshold
from lenstrain.evaluation.completeness import (
    CELL_COLUMNS,
    AxisBins,
    Cells,
    Lenses,
    axis_bins,
    count_cells,
)
from lenstrain.evaluation.options import AXES, EvaluationOptions
from lenstrain.evaluation.rate_table import (
    precision_support,
    purity_entries,
    support_entry,
    support_reason,
    supports_of,
)
from lenstrain.evaluation.scores import Scores

FEW_REGIONS = 30
"""Fewer regions of non-lenses do not show how rows correlate, so they give no guarantee. In
simulations with ten, and a correlation of 0.2, one in seven of the thresholds that could be stated
for a rate at the edge of support failed."""

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
    """Why there is no threshold, or no guarantee."""

    def doubted(self, doubts: Sequence[str]) -> "FrozenThreshold":
        """The same for rows for which it guarantees nothing, for these reasons if any."""
        if not doubts or self.threshold is None:
            return self
        reasons = dict.fromkeys([*filter(None, [self.reason]), *doubts])
        return replace(self, guaranteed=False, reason="; ".join(reasons))


def frozen_thresholds(
    reference: Scores, doubts: Sequence[str], options: EvaluationOptions
) -> list[FrozenThreshold]:
    """Thresholds by guaranteed rate, by F-beta at a prevalence, and by inspection budget.

    They are chosen on `reference`, the calibration split if there is one; `doubts` are the reasons
    why nothing chosen there is guaranteed.
    """
    found = [
        _by_rate(f"FPR {fpr:g}", "neyman_pearson", fpr, reference, doubts, options.delta)
        for fpr in options.fprs
    ]
    budget = options.inspection_budget / options.population
    if budget < 1:
        name = f"{options.inspection_budget:g} false in {options.population:g}"
        found.append(_by_rate(name, "budget", budget, reference, doubts, options.delta))
    for prevalence in options.prevalence:
        support = precision_support(reference, prevalence, options.delta)
        reason = "" if support["supported"] else support_reason(support)
        for beta in options.betas:
            name = f"F{beta:g} at prevalence {prevalence:g}"
            best = None if reason else threshold.best_fbeta(reference.curve, beta, prevalence)[1]
            found.append(FrozenThreshold(name=name, kind="fbeta", threshold=best, reason=reason))
    return found


def _by_rate(
    name: str,
    kind: str,
    fpr: float,
    reference: Scores,
    doubts: Sequence[str],
    delta: float,
    within: NDArray[np.bool_] | None = None,
) -> FrozenThreshold:
    """Threshold that guarantees a rate; `within` are the rows of `reference` to choose it on."""
    among = reference.labels == 0 if within is None else within & (reference.labels == 0)
    value = threshold.neyman_pearson(
        reference.logits[among],
        fpr,
        delta,
        region=reference.region[among],
        repeats=reference.repeats(among),
        correlation=reference.correlations[0],
    )
    regions = np.unique(reference.region[among]).size
    if regions < FEW_REGIONS:
        few = f"{regions} regions are too few to guarantee a rate, which needs {FEW_REGIONS}"
        doubts = [*doubts, few]
    reason = "; ".join(doubts)
    if value is None:
        share = reference.shares(0, among, np.zeros(reference.n, bool))
        reason = support_reason(support_entry(share, fpr, delta))
    return FrozenThreshold(
        name=name,
        kind=kind,
        threshold=value,
        target_fpr=fpr,
        guaranteed=value is not None and not doubts,
        reason=reason,
    )


def completeness_thresholds(
    reference: Scores, in_sample: bool, doubts: Sequence[str], options: EvaluationOptions
) -> list[FrozenThreshold]:
    """Thresholds at which completeness is measured: given ones, or by false-positive rate.

    By rate, the threshold that guarantees it is used where there is one, else the plain quantile
    of the reference negatives, if these support the rate at all.
    """
    if options.thresholds:
        return [
            FrozenThreshold(name=f"logit {value:g}", kind="given", threshold=value)
            for value in options.thresholds
        ]
    found = [
        _by_rate(f"FPR {fpr:g}", "neyman_pearson", fpr, reference, doubts, options.delta)
        for fpr in options.completeness_fprs
    ]
    supports = supports_of(reference, options.completeness_fprs, options.delta)
    usable = [support["supported"] for support in supports]
    usable[0] |= not any(usable)  # an operating point is needed, if only of this sample
    return [
        choice
        if choice.threshold is not None and not in_sample
        else _by_quantile(choice, reference if keep else None)
        for choice, keep in zip(found, usable, strict=True)
    ]


def _by_quantile(choice: FrozenThreshold, reference: Scores | None) -> FrozenThreshold:
    """The plain quantile of the reference negatives instead, which guarantees nothing."""
    value = None
    if reference is not None and choice.target_fpr is not None:
        value = metrics.tpr_at_fpr(reference.curve, choice.target_fpr).threshold
    return replace(choice, kind="empirical", threshold=value, guaranteed=False)


def thresholds_by_seeing(
    scores: Scores, reference: Scores, doubts: Sequence[str], options: EvaluationOptions
) -> list[dict[str, Any]]:
    """A threshold for each bin of seeing that keeps the first rate of completeness there.

    A single threshold has more false positives where the seeing is worse, or better; with these
    the rate is the same everywhere. The guarantee holds in each bin by itself.

    Returns
    -------
    list of dict
        ``lo``, ``hi`` of ``psfsize_r``, the fields of `FrozenThreshold` (``name`` is that of the
        bin), and ``tpr`` and ``fpr`` of the bin's rows. Empty if a table has no seeing, or no rate
        is asked for.
    """
    seeing = "psfsize_r"
    if not (options.completeness_fprs and scores.has(seeing) and reference.has(seeing)):
        return []
    values = [table.numbers(seeing) for table in (scores, reference)]
    bins = axis_bins(seeing, values[1], options.axis_bins)
    if bins is None:
        return []
    judged, chosen = (bins.assign(column) for column in values)
    found = []
    for index in range(bins.size):
        fpr = options.completeness_fprs[0]
        choice = _by_rate(
            bins.label(index), "seeing", fpr, reference, doubts, options.delta, chosen == index
        )
        entry: dict[str, Any] = {"lo": float(bins.edges[index]), "hi": float(bins.edges[index + 1])}
        entry |= asdict(choice)
        if choice.threshold is not None:
            flagged = scores.logits > choice.threshold
            entry |= {
                name: scores.shares(label, judged == index, flagged).entry(options.level)
                for name, label in (("tpr", 1), ("fpr", 0))
            }
        found.append(entry)
    return found


def primary_threshold(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The operating point of a report: its first frozen threshold that the data support."""
    return next(
        entry for entry in entries["completeness_thresholds"] if entry["threshold"] is not None
    )


def judge_thresholds(
    scores: Scores, frozen: Sequence[FrozenThreshold], options: EvaluationOptions
) -> list[dict[str, Any]]:
    """What each frozen threshold does on these scores: rates, purity, and rows tied with it."""
    entries = []
    for choice in frozen:
        entry = asdict(choice)
        entries.append(entry)
        if choice.threshold is None:
            continue
        cut = np.array([choice.threshold])
        negative, positive = (scores.shares_above(label, cut) for label in (0, 1))
        limit = float(negative.upper_limit(options.level)[0])
        entry |= {
            "tpr": positive.at(0).entry(options.level),
            "fpr": negative.at(0).entry(options.level) | {"upper_limit": limit},
            "purity": purity_entries(negative, positive, options),
            "tied_at_threshold": metrics.tied_rows(scores.curve, choice.threshold),
        }
    return entries


@dataclass(frozen=True)
class CompletenessTable:
    """Completeness of one combination of axes at one threshold."""

    threshold: FrozenThreshold
    cells: Cells

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.name for axis in self.cells.axes)


def bins_of_axes(scores: Scores, options: EvaluationOptions) -> dict[str, AxisBins]:
    """Bins of every axis that the table has values for: those of the options, or of the data."""
    found: dict[str, AxisBins | None] = {}
    for name in filter(scores.has, AXES):
        values = scores.numbers(name)
        if name in options.axis_edges:
            edges = np.asarray(options.axis_edges[name], dtype=np.float64)
            found[name] = AxisBins(name, edges)
        else:
            chosen = values if name in BOTH_CLASSES else values[scores.labels == 1]
            found[name] = axis_bins(name, chosen, options.axis_bins)
    return {name: bins for name, bins in found.items() if bins is not None}


def measure_completeness(
    scores: Scores,
    frozen: Sequence[FrozenThreshold],
    bins: dict[str, AxisBins],
    options: EvaluationOptions,
) -> tuple[list[CompletenessTable], list[str]]:
    """Completeness for every combination of axes and threshold, and the combinations left out."""
    lens = scores.labels == 1
    values = {name: scores.numbers(name)[lens] for name in bins}
    ratio = np.full(int(lens.sum()), np.nan)
    if scores.has("theta_e_over_psf"):
        ratio = scores.numbers("theta_e_over_psf")[lens]
    everything = Lenses(
        scores.logits[lens] > 0,
        scores.region[lens],
        scores.multiplicity(lens),
        scores.correlations[1],
        ratio < options.unresolved_below,
        np.isfinite(ratio),
    )
    tables, left_out = [], []
    for axes in options.completeness_axes:
        missing = [axis for axis in axes if axis not in bins]
        if missing:
            left_out.append(f"{' x '.join(axes)}: no {', '.join(missing)}")
            continue
        grid = [bins[axis] for axis in axes]
        for choice in frozen:
            if choice.threshold is not None:
                at_cut = replace(everything, recovered=scores.logits[lens] > choice.threshold)
                cells = count_cells(grid, [values[axis] for axis in axes], at_cut)
                tables.append(CompletenessTable(choice, cells))
    return tables, left_out


def long_table(tables: Sequence[CompletenessTable]) -> dict[str, NDArray[Any]]:
    """All tables in one, in long form; the edges of axes that a row does not use are NaN."""
    edges = [f"{axis}_{end}" for axis in AXES for end in ("lo", "hi")]
    names = ("axes", *edges, "threshold", "target_fpr", *CELL_COLUMNS)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for table in tables:
        columns = table.cells.columns()
        rows, cut = columns["n"].size, table.threshold
        columns |= {
            "axes": np.full(rows, " x ".join(table.axes), dtype=object),
            "threshold": np.full(rows, cut.threshold),
            "target_fpr": np.full(rows, np.nan if cut.target_fpr is None else cut.target_fpr),
        }
        for name in names:
            parts[name].append(columns.get(name, np.full(rows, np.nan)))
    return {
        name: np.concatenate(column) if column else np.empty(0) for name, column in parts.items()
    }

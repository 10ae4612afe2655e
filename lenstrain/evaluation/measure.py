"""All that an evaluation computes from a table of scores, before anything is written."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.errors import ScoresError
from lenstrain.evaluation import calibration, metrics
from lenstrain.evaluation.completeness import AxisBins
from lenstrain.evaluation.counterfactuals import measure_counterfactuals
from lenstrain.evaluation.independence import judge_calibration_split
from lenstrain.evaluation.notes import evaluation_notes
from lenstrain.evaluation.operating import (
    BOTH_CLASSES,
    CompletenessTable,
    FrozenThreshold,
    bins_of_axes,
    completeness_thresholds,
    frozen_thresholds,
    judge_thresholds,
    measure_completeness,
    primary_threshold,
    thresholds_by_seeing,
)
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.origins import (
    APART,
    Judged,
    by_source,
    class_rates,
    judge_origins,
    lone_class,
)
from lenstrain.evaluation.probability import measure_probabilities
from lenstrain.evaluation.ranking import auroc_by, measure_ranking, region_draws, stratum_entries
from lenstrain.evaluation.rate_table import RocBand
from lenstrain.evaluation.resampling import Resampling
from lenstrain.evaluation.scores import Scores
from lenstrain.scoretable import SkyScores, precisions_differ

Progress = Callable[[str, float], None]
"""Called with the name of the stage that begins and the share of the work done before it."""

_IN_SAMPLE = "chosen on the scores that are judged"


@dataclass(frozen=True)
class Measurement:
    """The results of an evaluation, before they are written."""

    judged: Judged
    """The rows that the figures are of."""
    entries: dict[str, Any]
    """Content of metrics.json."""
    band: RocBand
    completeness: list[CompletenessTable]
    cuts: list[FrozenThreshold]
    """Thresholds at which completeness was measured."""


def measure(
    scores: Scores,
    reference: Scores | None,
    options: EvaluationOptions,
    progress: Progress,
) -> Measurement:
    """Measure a table of scores.

    Calibration and thresholds are fitted on `reference`, the scores of another split by the same
    model, if it is given. Of rows of several origins the figures are those of one, and the others
    are measured apart at the same thresholds: see `origins.judge_origins`.

    Raises
    ------
    ScoresError
        If `reference` comes from another model or normalisation, or was scored in another
        precision; if no origin has both classes, here or there.
    """
    if reference is not None:
        check_same_model(scores, reference)
    judged = judge_origins(scores, reference, options.pool)
    scores, reference = judged.scores, judged.reference
    resampling = region_draws(scores, options)
    progress("Drawing regions", 0.1)
    ranking, band = measure_ranking(
        scores,
        resampling,
        options,
        lambda done: progress("Drawing regions", done * 0.4 + 0.1),
    )
    entries = _counts(scores, options) | ranking
    progress("Calibration", 0.55)
    entries |= _probabilities(scores, reference, resampling, options)
    progress("Completeness", 0.65)
    bins = bins_of_axes(scores, options)
    entries |= _groups(scores, bins, resampling, options)
    split = None if reference is None else judge_calibration_split(scores, reference)
    entries["calibration_split"] = None if split is None else split.to_entry()
    sample = [_IN_SAMPLE] if split is None else split.reasons
    doubts = [*sample, *judged.doubts(None)]
    cuts = completeness_thresholds(reference or scores, reference is None, doubts, options)
    frozen = frozen_thresholds(reference or scores, doubts, options)
    tables, found = _thresholds(scores, reference or scores, doubts, bins, frozen, cuts, options)
    entries |= found
    progress("Strata", 0.75)
    cut = primary_threshold(found)["threshold"]
    entries["strata"] = _strata(scores, bins, cut, resampling, options)
    if scores.counterfactuals is not None:  # else the key is absent
        chosen = [one for one in found["completeness_thresholds"] if one["threshold"] is not None]
        entries["counterfactuals"] = measure_counterfactuals(scores, chosen, resampling, options)
    if judged.apart:  # else the keys are absent
        progress("Origins", 0.77)
        entries["origin"] = judged.origin
        entries["origins"] = {
            name: _apart(name, judged, entries, frozen, cuts, bins, options)
            for name in judged.apart
        }
    entries |= {"comparison": None, "known_lenses": None}
    entries["notes"] = evaluation_notes(scores, reference, entries, options)
    return Measurement(judged, entries, band, tables, cuts)


def _apart(
    origin: str,
    judged: Judged,
    headline: dict[str, Any],
    frozen: list[FrozenThreshold],
    cuts: list[FrozenThreshold],
    bins: dict[str, AxisBins],
    options: EvaluationOptions,
) -> dict[str, Any]:
    """Entry of one origin, at the thresholds, with the calibration and in the bins of all."""
    scores = judged.apart[origin]
    if origin == judged.origin:
        entries = {name: headline[name] for name in APART}
        return entries | by_source(scores, cuts, options)
    if lone_class(scores) is not None:
        return class_rates(scores, cuts, options) | by_source(scores, cuts, options)
    resampling = region_draws(scores, options)
    entries = _counts(scores, options)
    entries |= measure_ranking(scores, resampling, options, lambda done: None)[0]
    entries |= _probabilities(scores, judged.reference, resampling, options)
    doubts = judged.doubts(origin)
    for name, choices in (("thresholds", frozen), ("completeness_thresholds", cuts)):
        entries[name] = judge_thresholds(scores, [c.doubted(doubts) for c in choices], options)
    cut = primary_threshold(entries)["threshold"]
    entries["strata"] = _strata(scores, bins, cut, resampling, options)
    return {name: entries[name] for name in APART} | by_source(scores, cuts, options)


def _strata(
    scores: Scores,
    bins: dict[str, AxisBins],
    cut: float,
    resampling: Resampling,
    options: EvaluationOptions,
) -> dict[str, Any]:
    """Rates and AUROC in the bins of what both classes have."""
    return {
        name: stratum_entries(scores, bins[name], cut, resampling, options.threads)
        for name in BOTH_CLASSES
        if name in bins
    }


def check_same_model(scores: Scores, reference: SkyScores) -> None:
    """Refuse a second table of scores of another model, normalisation or precision."""
    for name in ("checkpoint_sha256", "normalization"):
        ours, theirs = scores.metadata.get(name), reference.metadata.get(name)
        if ours is not None and theirs is not None and ours != theirs:
            raise ScoresError(
                f"{reference.path} has another {name} than {scores.path}: both must be scores of "
                "the same checkpoint."
            )
    if precisions_differ(scores.metadata, reference.metadata):
        raise ScoresError(
            f"{reference.path} was scored in {reference.precision} and {scores.path} in "
            f"{scores.precision}: a threshold holds for scores of its own precision. Score both "
            "with the same `lenstrain infer --precision`."
        )


def _counts(scores: Scores, options: EvaluationOptions) -> dict[str, Any]:
    """Rows by class, unique negatives, regions, ties, and how intervals were drawn."""
    tied_score, tied_rows = metrics.largest_tie(scores.curve)
    entries: dict[str, Any] = {
        "n": scores.n,
        "n_positive": scores.curve.n_positive,
        "n_negative": scores.curve.n_negative,
        "n_negative_unique": scores.n_negative_unique,
        "unique_by": scores.identity_column,
        "n_regions": scores.n_regions,
        "correlation": dict(zip(("non_lenses", "lenses"), scores.correlations, strict=True)),
        "level": options.level,
        "resamples": options.resamples,
        "seed": options.seed,
        "interval": options.interval,
        "largest_tie": {
            "score": tied_score,
            "rows": tied_rows,
            "share": tied_rows / scores.n if tied_rows > 1 else 0.0,
        },
    }
    if scores.has("theta_e_over_psf"):
        ratio = scores.numbers("theta_e_over_psf")[scores.labels == 1]
        known = ratio[np.isfinite(ratio)]
        share = float(np.mean(known < options.unresolved_below)) if known.size else None
        entries["unresolved_share"] = share
        entries["unresolved_unknown"] = ratio.size - known.size
    return entries


def _probabilities(
    scores: Scores,
    reference: Scores | None,
    resampling: Resampling,
    options: EvaluationOptions,
) -> dict[str, Any]:
    entries = measure_probabilities(scores, scores.logits, resampling, options)
    entries |= {"calibration": None, "calibrated": None}
    if reference is None or options.calibration == "none":
        return entries
    platt = options.calibration == "platt"
    fit = calibration.fit_platt if platt else calibration.fit_temperature
    fitted = fit(reference.logits, reference.labels)
    entries["calibration"] = asdict(fitted) | {
        "temperature": 1 / fitted.slope,
        "fitted_on": str(reference.path),
        "n": reference.n,
    }
    if not fitted.at_bound:
        calibrated = fitted.slope * scores.logits + fitted.offset
        entries["calibrated"] = measure_probabilities(scores, calibrated, resampling, options)
    return entries


def _groups(
    scores: Scores,
    bins: dict[str, AxisBins],
    resampling: Resampling,
    options: EvaluationOptions,
) -> dict[str, Any]:
    """AUROC by theta_E, source magnitude and lens model, each against all negatives."""
    groups: dict[str, dict[str, NDArray[np.bool_]]] = {}
    lens = scores.labels == 1
    for axis, name in (("theta_e_arcsec", "theta_e"), ("src_dmag", "src_dmag")):
        if axis in bins:
            grid, which = bins[axis], bins[axis].assign(scores.numbers(axis))
            groups[name] = {grid.label(i): lens & (which == i) for i in range(grid.size)}
    if scores.has("lens_model"):
        codes, models = scores.codes("lens_model")
        used = np.unique(codes[lens & (codes >= 0)])
        groups["lens_model"] = {str(models[i]): lens & (codes == i) for i in used}
    return {
        f"auroc_by_{name}": auroc_by(scores, kinds, resampling, options.threads)
        for name, kinds in groups.items()
    }


def _thresholds(
    scores: Scores,
    chosen_on: Scores,
    doubts: list[str],
    bins: dict[str, AxisBins],
    frozen: list[FrozenThreshold],
    cuts: list[FrozenThreshold],
    options: EvaluationOptions,
) -> tuple[list[CompletenessTable], dict[str, Any]]:
    tables, left_out = measure_completeness(scores, cuts, bins, options)
    return tables, {
        "thresholds_chosen_on": str(chosen_on.path),
        "thresholds": judge_thresholds(scores, frozen, options),
        "thresholds_by_seeing": thresholds_by_seeing(scores, chosen_on, doubts, options),
        "completeness_thresholds": judge_thresholds(scores, cuts, options),
        "completeness_left_out": left_out,
        "completeness_beyond_bins": {
            " x ".join(table.axes): table.cells.left_out for table in tables if table.cells.left_out
        },
    }

"""How true the probabilities are: likelihood, Brier score, ECE, with intervals by region."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lenstrain.evaluation import calibration as cal
from lenstrain.evaluation.clustered import no_value
from lenstrain.evaluation.draws import SampleDraws
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.resampling import Resampling
from lenstrain.evaluation.scores import Scores

Floats = NDArray[np.float64]


def fit_map(kind: str, scores: Scores) -> cal.LogitMap:
    """Fit the calibration map of the chosen kind on a calibration split."""
    fit = cal.fit_temperature if kind == "temperature" else cal.fit_platt
    return fit(scores.logits, scores.labels)


def measure_probabilities(
    scores: Scores, logits: Floats, resampling: Resampling, options: EvaluationOptions
) -> dict[str, Any]:
    """Entries of the metrics of probabilities, ``ece``, and reliability tables.

    Parameters
    ----------
    scores : Scores
        Labels and regions.
    logits : ndarray, shape (n,)
        The scores' own logits, or calibrated ones.
    resampling : Resampling
        The draws. Bins of equal mass keep the edges of the full table in every draw.
    options : EvaluationOptions
        Number of bins.

    Returns
    -------
    dict
        ``nll``, ``brier`` (with its parts), ``ece`` {equal_width, equal_mass, debiased_squared},
        ``reliability`` (columns of the equal-mass bins, bands by region).
    """
    p = special.expit(logits)
    n_bins = options.calibration_bins
    width = _region_sums(scores, p, cal.equal_width_bins(p, n_bins), n_bins)
    mass = _region_sums(scores, p, cal.equal_mass_bins(p, n_bins), n_bins)
    by_width, by_mass = (cal.calibration_errors(_total(sums)) for sums in (width, mass))
    debiased = cal.squared_error(mass, resampling.few, options.level)
    table = cal.reliability_table(mass, options.level)
    inside = (table["low"] <= table["mean_probability"]) & (
        table["mean_probability"] <= table["high"]
    )
    draws = SampleDraws(scores.labels, logits, scores.region, resampling, options)
    entries = draws.entries("probability")
    parts = cal.brier_parts(_total(mass))
    entries["brier"] |= {name: float(part) for name, part in parts._asdict().items()}
    return {
        **entries,
        "ece": {
            "bins": n_bins,
            "equal_width": _plug_in(by_width.ece, options.level),
            "equal_mass": _plug_in(by_mass.ece, options.level),
            "debiased_squared": debiased._asdict() | {"level": options.level},
            "debiased": _root(debiased, options.level),
        },
        "reliability": {name: column.tolist() for name, column in table.items()}
        | {"bins_covered": float(inside.mean())},
    }


def _plug_in(error: Floats, level: float) -> dict[str, Any]:
    """A plug-in error: sampling alone makes it positive, so it has no interval."""
    why = "sampling alone makes it positive: see debiased"
    return no_value(level, why) | {"value": float(error)}


def _root(error: cal.SquaredError, level: float) -> dict[str, Any]:
    """Root mean square calibration error."""
    ends = {name: float(np.sqrt(np.maximum(0.0, end))) for name, end in error._asdict().items()}
    return ends | {"level": level}


def _region_sums(scores: Scores, p: Floats, bins: NDArray[np.int64], n_bins: int) -> cal.BinSums:
    """Sums per region and bin; arrays of shape (n_clusters, n_bins)."""
    cell = scores.region.astype(np.int64) * n_bins + bins
    flat = cal.bin_sums(p, scores.labels, cell, scores.n_clusters * n_bins)
    return cal.BinSums(*(array.reshape(scores.n_clusters, n_bins) for array in flat))


def _total(sums: cal.BinSums) -> cal.BinSums:
    return cal.BinSums(*(array.sum(axis=0) for array in sums))

"""How well probabilities are calibrated: likelihood, Brier score, ECE, with intervals by region."""

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


def measure_probabilities(
    scores: Scores, logits: Floats, resampling: Resampling, options: EvaluationOptions
) -> dict[str, Any]:
    """Entries ``nll``, ``brier`` (with its parts), ``ece`` and ``reliability`` of metrics.json.

    `logits` of shape (n,) are the scores' own, or calibrated ones. Bins of equal mass keep the
    edges of the full table in every draw.
    """
    p = special.expit(logits)
    n_bins = options.calibration_bins
    width, mass = (
        cal.region_sums(p, scores.labels, bins(p, n_bins), n_bins, scores.region)
        for bins in (cal.equal_width_bins, cal.equal_mass_bins)
    )
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
            "equal_width": _plug_in(width, options.level),
            "equal_mass": _plug_in(mass, options.level),
            "debiased_squared": debiased._asdict() | {"level": options.level},
            # Root mean square calibration error.
            "debiased": {
                name: float(np.sqrt(np.maximum(0.0, end)))
                for name, end in debiased._asdict().items()
            }
            | {"level": options.level},
        },
        "reliability": {name: column.tolist() for name, column in table.items()}
        | {"bins_covered": float(inside.mean())},
    }


def _plug_in(sums: cal.BinSums, level: float) -> dict[str, Any]:
    """ECE: sampling alone makes it positive, so it has no interval."""
    why = "sampling alone makes it positive: see debiased"
    return no_value(level, why) | {"value": float(cal.expected_error(_total(sums)))}


def _total(sums: cal.BinSums) -> cal.BinSums:
    return cal.BinSums(*(array.sum(axis=0) for array in sums))

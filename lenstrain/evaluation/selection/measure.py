"""From a table of scores to its selection function: axes, fit, checks, and a given population."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lensprep.errors import NotFoundError, ScoresError
from lensprep.store import Uri
from lensprep.tables.columns import to_floats
from lensprep.tables.reader import read_table, require_columns
from lenstrain.evaluation.notes import Notes
from lenstrain.evaluation.operating import FrozenThreshold
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import Scores
from lenstrain.evaluation.selection.axes import Axis, Floats, make_axis, make_terms, with_bins
from lenstrain.evaluation.selection.fit import HeldOut, count_lenses, fit_selection
from lenstrain.evaluation.selection.function import SelectionFunction, count_support
from lenstrain.evaluation.selection.population import Population, average_over

_LENSES_PER_CELL = 20
"""Lenses that a cell of the support holds on average; the axes are divided so."""

_CALIBRATION_BINS = 10
_GAIN, _GAIN_SHARE = 10.0, 0.01
"""Held-out deviance that constraints may cost before a note says so: whichever is larger."""

_DIRECTIONS = {1: "rising", -1: "falling", 0: "none"}


class PopulationTable(NamedTuple):
    """Lenses of a population on the axes that the scores have, and their weights."""

    path: Uri
    sha256: str
    values: Floats
    weights: Floats


@dataclass(frozen=True)
class Selection:
    """A selection function with what a report says about it."""

    function: SelectionFunction
    population: Population | None
    median: Floats
    """Median of the lenses on every axis, in its own unit."""
    seeing: Floats
    """Seeings to draw C at; empty if seeing is no axis."""
    entries: dict[str, Any]
    """``selection_function`` of metrics.json."""
    notes: Notes


def read_population(
    uri: Uri,
    scores: Scores,
    options: EvaluationOptions,
    columns: Mapping[str, str] | None = None,
) -> PopulationTable:
    """Read a population: every axis of the selection function, and ``weight`` if it is there.

    `columns` gives other names for some of these, which the table need not use.

    Raises
    ------
    ScoresError
        If the table cannot be read, has no rows, lacks an axis, or has unusable weights.
    """
    names = list(_lens_columns(scores, options))
    try:
        found = read_table(uri, [*names, "weight"], rename=columns, if_there=True)
    except NotFoundError:
        raise ScoresError(
            f"{uri}: no such file. --population takes a table of lenses (parquet, CSV, FITS, "
            "VOTable, ...)."
        ) from None
    table = found.table
    quoted = ", ".join(f'"{name}"' for name in names if name in table.column_names)
    remedy = (
        "Add this axis of the selection function, or fit without it by --set "
        f"'selection_axes=[{quoted}]'."
    )
    require_columns(found, names, uri, remedy)
    if table.num_rows == 0:
        raise ScoresError(f"{uri} has no lenses: a population has a row for each.")
    values = np.stack([to_floats(table[name], name, uri) for name in names], axis=1)
    weights = np.ones(len(values))
    if "weight" in table.column_names:
        weights = to_floats(table["weight"], "weight", uri)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        raise ScoresError(
            f"{uri}: {int(bad.sum())} weights are negative, null or not finite (first: row "
            f"{int(np.argmax(bad))}); a weight is how many such lenses there are."
        )
    if not weights.sum() > 0:
        raise ScoresError(f"{uri}: all weights are 0; a population needs some lenses.")
    return PopulationTable(uri, found.sha256, values, weights)


def measure_selection(
    scores: Scores,
    cuts: Sequence[FrozenThreshold],
    population: PopulationTable | None,
    options: EvaluationOptions,
) -> Selection:
    """Fit the selection function at the first frozen threshold that exists, as one always does.

    The lenses of the scores are the injections; C is averaged over the population, if there is one.

    Raises
    ------
    ScoresError
        If the scores have none of the axes, or no lens with all of them.
    """
    cut = next(cut for cut in cuts if cut.threshold is not None)
    names, values, kept = _lens_values(scores, options)
    found = (scores.logits[scores.labels == 1] > (cut.threshold or 0.0))[kept]
    region = np.unique(scores.region[scores.labels == 1][kept], return_inverse=True)[1]
    bare = [
        make_axis(name, column, name in options.selection_free)
        for name, column in zip(names, values.T, strict=True)
    ]
    coordinates = np.stack(
        [axis.coordinate(column) for axis, column in zip(bare, values.T, strict=True)], axis=1
    )
    axes = with_bins(bare, coordinates, _LENSES_PER_CELL)
    terms = make_terms(axes)
    lenses = count_lenses(axes, coordinates, found, region.astype(np.int64))
    fit = fit_selection(terms, lenses, options.selection_resamples, options.seed)
    support = count_support(axes, coordinates, found, options.selection_min_lenses)
    function = SelectionFunction(terms, fit, support)
    entries = {
        "threshold": {
            "name": cut.name,
            "kind": cut.kind,
            "value": cut.threshold,
            "target_fpr": cut.target_fpr,
        },
        "axes": [_axis_entry(axis) for axis in axes],
        "axes_left_out": [name for name in options.selection_axes if name not in names],
        "n": len(values),
        "recovered": int(found.sum()),
        "lenses_left_out": int((~kept).sum()),
        "n_regions": fit.n_regions,
        "resamples": len(fit.draws),
        "surfaces": [[axes[i].name for i in term] for term in terms.terms if len(term) > 1],
        "smoothing": fit.smoothing._asdict(),
        "held_out": fit.held_out and _held_out_entry(fit.held_out, fit.free_deviance),
        "support": {
            "min_lenses": support.least,
            "cells": support.n.size,
            "occupied": int(support.occupied.sum()),
            "lenses_inside": float(support.n[support.occupied].sum() / len(values)),
        },
        "population": None,
    }
    averaged = None
    if population is not None:
        averaged = average_over(function, population.values, population.weights)
        source = {"table": str(population.path), "sha256": population.sha256}
        entries["population"] = averaged.entries() | source
    seeing = np.empty(0)
    if "psfsize_r" in names:
        seeing = np.unique(np.quantile(values[:, names.index("psfsize_r")], [0.1, 0.5, 0.9]))
    # A median that is one of the values, or a grid would be left.
    median = np.quantile(values, 0.5, axis=0, method="lower")
    return Selection(function, averaged, median, seeing, entries, _notes(entries))


def _lens_columns(scores: Scores, options: EvaluationOptions) -> dict[str, Floats]:
    """Values of the lenses on each axis that has any."""
    lens = scores.labels == 1
    columns = {
        name: scores.numbers(name)[lens] for name in options.selection_axes if scores.has(name)
    }
    columns = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    if not columns:
        raise ScoresError(
            f"{scores.path} has no values in {', '.join(options.selection_axes)}: a selection "
            "function needs one of these columns. Score with `lenstrain infer`, or leave out "
            "--selection-function."
        )
    return columns


def _lens_values(
    scores: Scores, options: EvaluationOptions
) -> tuple[list[str], Floats, NDArray[np.bool_]]:
    """Axes, the lenses' values on them, and which lenses have all."""
    columns = _lens_columns(scores, options)
    values = np.stack(list(columns.values()), axis=1)
    kept = np.asarray(np.isfinite(values).all(axis=1), dtype=np.bool_)
    if not kept.any():
        raise ScoresError(
            f"{scores.path}: no lens has values in all of {', '.join(columns)}; choose axes by "
            "--set selection_axes=[...]."
        )
    return list(columns), values[kept], kept


def _axis_entry(axis: Axis) -> dict[str, Any]:
    ends = axis.values(axis.nodes[[0, -1]])
    return {
        "name": axis.name,
        "unit": axis.unit,
        "scale": "log" if axis.log else "linear",
        "constraint": _DIRECTIONS[axis.sign],
        "low": float(ends[0]),
        "high": float(ends[1]),
        "grid": axis.values(axis.nodes).tolist() if axis.is_grid else None,
        "varies": axis.size > 1,
    }


def _held_out_entry(held_out: HeldOut, free_deviance: float | None) -> dict[str, Any]:
    """How well the fit predicts whole regions that it has not seen."""
    n, k = held_out.n.sum(), held_out.k.sum()
    null = -2 * float(special.xlogy(k, k / n) + special.xlogy(n - k, 1 - k / n))
    table = _calibration(held_out)
    off = np.abs(table["predicted"] - table["observed"])
    return {
        "folds": len(held_out.n),
        "deviance": held_out.deviance,
        "null_deviance": null,
        "deviance_unconstrained": free_deviance,
        "calibration": {name: column.tolist() for name, column in table.items()},
        "calibration_error": float(off @ table["n"] / n),
    }


def _calibration(held_out: HeldOut) -> dict[str, NDArray[Any]]:
    """Predicted and observed share in bins of about equally many lenses."""
    share, n, k = (array.reshape(-1) for array in held_out)
    order = np.argsort(share)
    share, n, k = share[order], n[order], k[order]
    rank = (np.cumsum(n) - n / 2) / n.sum()
    bins = np.minimum((rank * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    size = np.bincount(bins, n)
    used = size > 0
    return {
        "predicted": np.bincount(bins, n * share)[used] / size[used],
        "observed": np.bincount(bins, k)[used] / size[used],
        "n": size[used],
    }


def _notes(entries: dict[str, Any]) -> Notes:
    """What a reader of the selection function must know."""
    found = Notes()
    if entries["lenses_left_out"]:
        found.info(
            f"{entries['lenses_left_out']:,} lenses lack a value on an axis of the selection "
            "function and are left out of it."
        )
    if entries["axes_left_out"]:
        names = ", ".join(entries["axes_left_out"])
        found.info(f"Selection function without {names}: the scores have no values.")
    if entries["recovered"] in (0, entries["n"]):
        found.warn(
            f"At {entries['threshold']['name']} {'all' if entries['recovered'] else 'none'} of the "
            "lenses are found: the selection function shows no dependence."
        )
    if not entries["support"]["occupied"]:
        found.warn(
            "No cell holds enough lenses to support a selection function: score more, or choose "
            "fewer axes by selection_axes."
        )
    held_out = entries["held_out"]
    if held_out and held_out["deviance_unconstrained"] is not None:
        cost = held_out["deviance"] - held_out["deviance_unconstrained"]
        if cost > max(_GAIN, _GAIN_SHARE * held_out["deviance"]):
            found.warn(
                "Without its constraints the selection function predicts unseen regions better (by "
                f"{cost:.0f} of deviance): the lenses contradict one. Free an axis by "
                "selection_free."
            )
    population = entries["population"]
    if population and population["outside_share"] > 0:
        found.warn(
            f"{population['outside_share']:.1%} of the population's weight lies where no "
            "injections are; its completeness is not known and not in the average."
        )
    return found

"""The selection function as files: parquet and FITS tables, and an evaluator that needs NumPy."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset.strictjson import plain
from lenstrain.evaluation.selection.axes import LOG_FLOOR
from lenstrain.evaluation.selection.function import SelectionFunction
from lenstrain.evaluation.selection.measure import Selection
from lenstrain.evaluation.selection.population import injection_weights

NAME = "selection_function"
"""Of every file, before its suffix."""

FORMAT_VERSION = 1
"""Version of the JSON and of the FITS file."""

_ARRAYS = ("coefficients", "covariances", "draws", "supported")
"""Entries of the JSON that FITS has as images instead."""


def write_selection(folder: Path, selection: Selection) -> None:
    """Write ``selection_function`` as .parquet, .fits, .json and .py."""
    table, units = cell_table(selection)
    schema = pa.schema(
        [
            pa.field(name, pa.from_numpy_dtype(column.dtype), metadata={"unit": units[name]})
            for name, column in table.items()
        ]
    )
    arrays = [pa.array(column, from_pandas=True) for column in table.values()]
    pq.write_table(pa.table(arrays, schema=schema), folder / f"{NAME}.parquet")
    model = plain(model_entries(selection))
    text = json.dumps(model, allow_nan=False) + "\n"
    (folder / f"{NAME}.json").write_text(text, encoding="utf-8")
    program = files("lenstrain.evaluation.selection").joinpath("evaluator.py")
    (folder / f"{NAME}.py").write_text(program.read_text(encoding="utf-8"), encoding="utf-8")
    _write_fits(folder / f"{NAME}.fits", selection, table, units, model)


def cell_table(selection: Selection) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """C at the middle of every cell of the support, and the unit of each column.

    On a grid axis the middle is the node. C and its ends are NaN outside the support.
    """
    function = selection.function
    support, axes = function.support, function.axes
    middles = np.meshgrid(*(axis.values(axis.centres) for axis in axes), indexing="ij")
    values = np.stack([middle.reshape(-1) for middle in middles], axis=1)
    curve = function.evaluate(values)
    table: dict[str, NDArray[Any]] = {
        axis.name: column for axis, column in zip(axes, values.T, strict=True)
    }
    table["completeness"] = curve.value
    for level, ends in curve.bounds.items():
        name = f"{100 * level:.0f}"
        table[f"lo{name}"], table[f"hi{name}"] = ends
    table |= {
        "n": support.n.reshape(-1),
        "recovered": support.k.reshape(-1),
        "supported": support.occupied.reshape(-1),
    }
    if selection.population is not None:
        share = selection.population.cell_share
        table["population_share"] = share.reshape(-1)
        table["injection_weight"] = injection_weights(function, share).reshape(-1)
    units = dict.fromkeys(table, "") | {axis.name: axis.unit for axis in axes}
    return table, units


def model_entries(selection: Selection) -> dict[str, Any]:
    """All that the evaluator reads, in plain types, with what the threshold and the data were."""
    function = selection.function
    said = ("threshold", "n", "recovered", "n_regions", "resamples", "smoothing")
    return {
        "format_version": FORMAT_VERSION,
        **{name: selection.entries[name] for name in said},
        "axes": [
            {
                "name": axis.name,
                "unit": axis.unit,
                "log": axis.log,
                "floor": LOG_FLOOR if axis.log else None,
                "grid": axis.is_grid,
                "nodes": axis.nodes.tolist(),
                "cells": axis.cells,
                "knots": axis.knots.tolist(),
                "degree": axis.degree,
                "constraint": entry["constraint"],
            }
            for axis, entry in zip(function.axes, selection.entries["axes"], strict=True)
        ],
        "terms": [list(term) for term in function.terms.terms],
        "coefficients": function.fit.coefficients.tolist(),
        "covariances": [function.by_region.tolist(), function.fit.posterior.tolist()],
        "draws": function.fit.draws.tolist(),
        "t": {str(level): factor for level, factor in function.t_factors.items()},
        # One more cell at the end of each axis, never supported, for points beyond the ends.
        "supported": np.pad(function.support.occupied, [(0, 1)] * len(function.axes))
        .astype(int)
        .tolist(),
    }


def _write_fits(
    path: Path,
    selection: Selection,
    table: dict[str, NDArray[Any]],
    units: dict[str, str],
    model: dict[str, Any],
) -> None:
    """Write the table as an extension with units, and the fit as arrays next to it."""
    from astropy.io import fits

    function = selection.function
    codes = {"f": "D", "i": "K", "b": "L"}
    columns = [
        fits.Column(name, codes[column.dtype.kind], unit=units[name] or None, array=column)
        for name, column in table.items()
    ]
    cells = fits.BinTableHDU.from_columns(columns, name="SELECTION")
    threshold = selection.entries["threshold"]
    cells.header["THRESH"] = (threshold["value"], "logit above which a lens is found")
    cells.header["NREGION"] = (function.fit.n_regions, "regions behind the intervals")
    rest = json.dumps({name: model[name] for name in model if name not in _ARRAYS})
    said = fits.Column("json", f"{len(rest)}A", array=np.array([rest.encode("ascii")]))
    knots = _fits_knots(function)
    images = {
        "COEF": function.fit.coefficients,
        "COVREG": function.by_region,
        "COVMODEL": function.fit.posterior,
        "COUNTS": function.support.n,
    }
    if len(function.fit.draws):
        images["DRAWS"] = function.fit.draws
    fits.HDUList([
        fits.PrimaryHDU(),
        cells,
        knots,
        *(fits.ImageHDU(array, name=name) for name, array in images.items()),
        fits.BinTableHDU.from_columns([said], name="MODEL"),
    ]).writeto(path)  # fmt: skip


def _fits_knots(function: SelectionFunction) -> Any:
    """One row for each knot, and for each node of the support, of every axis."""
    from astropy.io import fits

    rows = [
        (axis.name, kind, axis.degree, axis.log, value)
        for axis in function.axes
        for kind, values in (("knot", axis.knots), ("node", axis.nodes))
        for value in values
    ]
    names, kinds, degrees, logs, values = zip(*rows, strict=True)
    return fits.BinTableHDU.from_columns(
        [
            fits.Column("axis", "16A", array=np.array(names, "S16")),
            fits.Column("kind", "4A", array=np.array(kinds, "S4")),
            fits.Column("degree", "I", array=np.array(degrees)),
            fits.Column("log", "L", array=np.array(logs)),
            fits.Column("value", "D", array=np.array(values)),
        ],
        name="KNOTS",
    )

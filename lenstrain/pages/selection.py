"""The selection function as a figure: C along Einstein radius at some seeings."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import DECALS, Geometry
from lenstrain.evaluation.names import threshold_text
from lenstrain.evaluation.selection.axes import Floats
from lenstrain.evaluation.selection.measure import Selection
from lenstrain.figures import SERIES, Plot, axis_label, new_figure

_POINTS = 201


def draw_selection(selection: Selection, geometry: Geometry = DECALS) -> Plot:
    """C with its 95 % band along the first axis, at low, median and high seeing.

    The other axes are at the lenses' median. Where no injections are, the curve is dotted and has
    no band.
    """
    function, axes = selection.function, selection.function.axes
    axis = axes[0]
    # Evenly in the coordinate, and on the nodes, where a grid may be supported and nowhere else.
    u = np.union1d(np.linspace(axis.nodes[0], axis.nodes[-1], _POINTS), axis.nodes)
    x = axis.values(u)
    numbers: dict[str, list[Any]] = {}
    with new_figure() as (figure, plot):
        for colour, (label, values) in zip(SERIES, _curves(selection, x), strict=False):
            inside, whole = function.evaluate(values), function.evaluate(values, masked=False)
            low, high = inside.bounds[0.95]
            plot.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
            plot.plot(x, whole.value, color=colour, lw=0.8, ls=":", alpha=0.7)
            plot.plot(x, inside.value, color=colour, label=label)
            if axis.is_grid:
                nodes = np.isin(u, axis.nodes)
                plot.plot(x[nodes], inside.value[nodes], "o", color=colour, ms=3)
            columns = {other.name: values[:, i] for i, other in enumerate(axes)}
            columns |= {"completeness": inside.value, "lo95": low, "hi95": high}
            columns["extrapolated"] = whole.value
            for name, column in columns.items():
                numbers.setdefault(name, []).extend(column.tolist())
        if axis.log:
            plot.set_xscale("log")
        plot.set(
            ylim=(-0.02, 1.02), xlabel=axis_label(axis.name, geometry), ylabel="Completeness C"
        )
        plot.grid(True)
        plot.legend(loc="best")
    caption = _caption(selection)
    return Plot("selection_function", "Selection function", caption, figure, numbers)


def _curves(selection: Selection, x: Floats) -> list[tuple[str, NDArray[np.float64]]]:
    """Points of each curve, with its label."""
    names = [axis.name for axis in selection.function.axes]
    base = np.tile(selection.median, (x.size, 1))
    base[:, 0] = x
    if "psfsize_r" not in names[1:]:
        return [("C", base)]
    curves = []
    for seeing in selection.seeing:
        values = base.copy()
        values[:, names.index("psfsize_r")] = seeing
        curves.append((f"seeing {seeing:.2f}″", values))
    return curves


def _caption(selection: Selection) -> str:
    names = [axis.name for axis in selection.function.axes]
    rest = [
        f"{name} {value:.3g}"
        for name, value in zip(names[1:], selection.median[1:], strict=True)
        if name != "psfsize_r"
    ]
    at = f" At the median of the other axes ({', '.join(rest)})." if rest else ""
    regions = selection.function.fit.n_regions
    band = f"95% interval from {regions} regions" if regions > 1 else "no interval, one region"
    threshold = threshold_text(selection.entries["threshold"]["name"])
    return (
        f"Smooth, monotone fit at the threshold for {threshold}.{at} Shaded: {band}; dotted: no "
        "injections there, extrapolated."
    )

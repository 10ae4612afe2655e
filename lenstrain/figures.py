"""Figures in journal style, each with the numbers behind it, drawn without a display."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import ArrayLike, NDArray

from lensprep.dataset import DECALS, Geometry
from lenstrain.evaluation.completeness import AxisBins
from lenstrain.evaluation.counterfactuals import FEWEST, SMOOTH
from lenstrain.evaluation.names import rate_text, threshold_text
from lenstrain.evaluation.operating import CompletenessTable
from lenstrain.evaluation.rate_table import RocBand
from lenstrain.evaluation.rates import FEWEST_FLAGGED

# Okabe & Ito's colours: distinct to colour-blind readers and in grey.
BLUE, RED, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#AA4499"
GREY = "#6b6b6b"
SERIES = (BLUE, RED, GREEN, PURPLE, ORANGE)
MARKERS = ("o", "s", "^", "D", "v")

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "legend.frameon": False,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "lenstrain",
    "pdf.fonttype": 42,
}
_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g}%")
WIDTH, HEIGHT = 3.5, 2.8
"""One column of a journal page, inches."""

MOST_DRAWN = 128
"""Side of a stamp's picture, pixels: a page shows dozens of them, each as wide as a thumb."""

_MOST = 0.5
"""Share of unresolved lenses above which a bin is marked."""

_AXES = {
    "theta_e_arcsec": ("Einstein radius", r"Einstein radius $\theta_\mathrm{E}$ [arcsec]"),
    "psfsize_r": ("seeing", "PSF FWHM, {} band [arcsec]"),
    "psfdepth_r": ("depth", "Depth, {} band, 5σ [mag]"),
    "arc_snr": ("arc signal-to-noise", "Peak signal-to-noise of the arc"),
    "src_dmag": ("source magnitude", "Source magnitude less lens magnitude"),
    "theta_e_over_psf": ("Einstein radius over seeing", r"$\theta_\mathrm{E}$ / PSF FWHM"),
}
AXIS_NAMES = {name: words for name, (words, _) in _AXES.items()}


def axis_label(name: str, geometry: Geometry = DECALS) -> str:
    """Label of an axis; seeing and depth are those of the reference band."""
    label = _AXES[name][1] if name in _AXES else name
    return label.replace("{}", geometry.reference_band)


@dataclass(frozen=True)
class Plot:
    """One figure with the numbers behind it."""

    name: str
    """File name without its ending."""
    title: str
    caption: str
    figure: Figure
    numbers: Mapping[str, Sequence[Any] | NDArray[Any]]
    """Columns of the CSV; all of one length."""


@contextmanager
def new_figure(
    width: float = WIDTH, height: float = HEIGHT, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Figure, Any]]:
    """A figure in the common style and its axes, as `Figure.subplots` gives them, to draw on.

    Panels side by side share their y axes.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, sharey=columns > 1)
        for each in np.ravel(axes):
            each.set_axisbelow(True)
        yield figure, axes


def smaller(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (..., S, S, 3) of at most `MOST_DRAWN` pixels a side, by the mean of whole blocks.

    What is left over by the blocks is cut off all around.
    """
    side = pictures.shape[-2]
    block = -(-side // MOST_DRAWN)
    if block == 1:
        return pictures
    count, edge = side // block, side % block // 2
    inside = slice(edge, edge + count * block)
    split = pictures[..., inside, inside, :].reshape(
        *pictures.shape[:-3], count, block, count, block, 3
    )
    return np.rint(split.mean((-4, -2))).astype(np.uint8)


def bars(values: ArrayLike, low: ArrayLike, high: ArrayLike) -> NDArray[np.float64]:
    """Lengths of error bars below and above some values, (2, n); 0 where an end is not known."""
    y, below, above = (np.asarray(given, np.float64) for given in (values, low, high))
    return np.asarray(np.nan_to_num(np.maximum([y - below, above - y], 0)), np.float64)


def fitted_limits(
    low: ArrayLike, high: ArrayLike, least: float = 0.2, top: float = 1.0
) -> tuple[float, float]:
    """Limits of an axis of shares that show their differences: a span of `least` or more in [0, 1].

    What lies near an end of the scale is drawn from that end.
    """
    known = np.concatenate([np.ravel(np.asarray(given, np.float64)) for given in (low, high)])
    known = known[np.isfinite(known)]
    if not known.size:
        return -0.02, top + 0.02
    bottom, above = float(known.min()), float(known.max())
    missing = max(least - (above - bottom), 0) / 2
    pad = 0.05 * max(above - bottom, least)
    bottom, above = bottom - missing - pad, above + missing + pad
    # What does not fit on one side goes to the other.
    bottom, above = bottom - max(above - (top + pad), 0), above - min(bottom + pad, 0)
    return max(bottom, -pad), min(above, top + pad)


def draw_roc(band: RocBand, rates: Mapping[str, Any], level: float, *, log: bool) -> Plot:
    """ROC curve with its band; `rates` are the entries of ``tpr_at_fpr``, drawn with support."""
    with new_figure() as (figure, axes):
        axes.fill_between(band.fpr, band.low, band.high, color=BLUE, alpha=0.25, lw=0, step="post")
        axes.step(band.fpr, band.tpr, color=BLUE, where="post")
        chance = np.geomspace(1e-7, 1, 100)
        axes.plot(chance, chance, color=GREY, lw=0.8, ls=":", label="chance")
        points = [
            (float(fpr), entry["value"]) for fpr, entry in rates.items() if entry["supported"]
        ]
        if points and log:
            axes.plot(*zip(*points, strict=True), "o", color=RED, label="rates stated", zorder=3)
        if log:
            axes.set_xscale("log")
        # A whole decade below what is drawn, and no further.
        drawn = [*band.fpr[band.fpr > 0], *(fpr for fpr, _ in points)]
        least = 10 ** np.floor(np.log10(min([*drawn, 0.1])))
        axes.set(xlim=(least if log else 0, 1), ylim=(0, 1.01))
        axes.set(xlabel="False-positive rate", ylabel="True-positive rate")
        axes.grid(True)
        axes.legend(loc="upper left" if log else "lower right")
    scale = "logarithmic" if log else "linear"
    return Plot(
        "roc_log" if log else "roc",
        f"ROC curve, {scale} rates" if log else "ROC curve",
        "True- against false-positive rate, where the non-lenses support the rate. Shaded: "
        f"{level:.0%} interval by region.",
        figure,
        {"fpr": band.fpr, "tpr": band.tpr, "tpr_low": band.low, "tpr_high": band.high},
    )


def draw_purity(band: RocBand, level: float) -> Plot:
    """Purity against completeness, where enough distinct non-lenses are flagged for an interval."""
    numbers: dict[str, Any] = {"fpr": band.fpr, "completeness": band.tpr}
    least = min((float(p) for p in band.purity), default=0.1)
    with new_figure() as (figure, axes):
        for (prevalence, purity), colour in zip(band.purity.items(), SERIES, strict=False):
            lines = {"": purity.value, "_low": purity.low, "_high": purity.high}
            numbers |= {f"purity_at_{prevalence}{end}": line for end, line in lines.items()}
            kept = np.isfinite(purity.low)
            x, low, high = band.tpr[kept], purity.low[kept], purity.high[kept]
            axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
            axes.plot(
                x, purity.value[kept], color=colour, label=f"1 in {1 / float(prevalence):,.0f}"
            )
        axes.set_yscale("log")
        axes.set(xlim=(0, 1), ylim=(least / 2, 1.2))
        axes.set(xlabel="Completeness (true-positive rate)", ylabel="Purity")
        axes.grid(True)
        axes.legend(title="Lenses among the objects", title_fontsize=7, loc="best")
    return Plot(
        "purity",
        "Purity against completeness",
        "What share of the flagged objects would be lenses, at the prevalence of a real search. "
        f"Drawn from {FEWEST_FLAGGED} distinct flagged non-lenses on. Shaded: {level:.0%} interval "
        "by region; both rates vary.",
        figure,
        numbers,
    )


def draw_histogram(
    labels: NDArray[np.integer], logits: NDArray[np.float64], thresholds: Mapping[str, float]
) -> Plot:
    """Scores of both classes, with the thresholds of the completeness tables."""
    edges = np.histogram_bin_edges(logits, bins=int(np.clip(np.sqrt(logits.size), 12, 60)))
    counts = [np.histogram(logits[labels == label], edges)[0] for label in (0, 1)]
    with new_figure() as (figure, axes):
        names = ("non-lenses", "lenses")
        for count, colour, name in zip(counts, (GREY, BLUE), names, strict=True):
            share = count / max(count.sum(), 1)
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.3)
            axes.stairs(share, edges, color=colour, lw=1.1, label=name)
        for (name, value), style in zip(thresholds.items(), ("--", ":", "-."), strict=False):
            axes.axvline(value, color=RED, ls=style, lw=1, label=threshold_text(name))
        axes.set_yscale("log")
        axes.set(xlabel="Logit", ylabel="Share of the class in a bin")
        figure.legend(loc="outside upper center", ncols=2 + len(thresholds), columnspacing=1.2)
    return Plot(
        "scores",
        "Scores of both classes",
        "Each class normalised to one. Right of a line: flagged at that threshold.",
        figure,
        {
            "logit_lo": edges[:-1],
            "logit_hi": edges[1:],
            "non_lenses": counts[0],
            "lenses": counts[1],
        },
    )


def draw_reliability(tables: Mapping[str, Mapping[str, Sequence[float]]], level: float) -> Plot:
    """Reliability curves; `tables` maps a name (raw, calibrated) to its columns."""
    numbers: dict[str, list[Any]] = {"scores": []}
    with new_figure(WIDTH, 3.2) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
        for (name, table), colour, marker in zip(tables.items(), SERIES, MARKERS, strict=False):
            x, y = np.array(table["mean_probability"]), np.array(table["observed"])
            spread = bars(y, table["low"], table["high"])
            axes.errorbar(x, y, spread, fmt=marker + "-", color=colour, label=name, lw=0.8)
            numbers["scores"] += [name] * x.size
            for column in ("n", "mean_probability", "observed", "low", "high"):
                numbers.setdefault(column, []).extend(table[column])
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set(xlabel="Mean probability in the bin", ylabel="Share of lenses in the bin")
        axes.grid(True)
        axes.legend(loc="upper left")
    return Plot(
        "reliability",
        "Reliability",
        f"Bins of equal count; bars: {level:.0%} intervals by region. On the diagonal, a "
        "probability means what it says, at the share of lenses in this sample.",
        figure,
        numbers,
    )


def draw_completeness(tables: Sequence[CompletenessTable], geometry: Geometry = DECALS) -> Plot:
    """Completeness along one axis, one series for each threshold."""
    axis = tables[0].cells.axes[0]
    numbers: dict[str, list[Any]] = {"threshold": []}
    # Too few negatives can make two target rates one threshold: draw it once, under both names.
    names: dict[float | None, list[str]] = {}
    for table in tables:
        shown = threshold_text(table.threshold.name)
        names.setdefault(table.threshold.threshold, []).append(shown)
    distinct = [*{table.threshold.threshold: table for table in tables}.values()]
    with new_figure() as (figure, axes):
        for table, colour, marker in zip(distinct, SERIES, MARKERS, strict=False):
            label = ", ".join(names[table.threshold.threshold])
            columns = table.cells.columns()
            x = _centres(axis)
            y = columns["completeness"]
            for name, width in (("joint_{}95", 0.5), ("region_{}95", 1.0), ("region_{}68", 2.2)):
                spread = bars(y, columns[name.format("lo")], columns[name.format("hi")])
                axes.errorbar(x, y, spread, fmt="none", ecolor=colour, elinewidth=width)
            if axis.values is None:  # a bin is as wide as it is; between values there is nothing
                axes.hlines(y, axis.edges[:-1], axis.edges[1:], color=colour, lw=0.7)
            axes.plot(x, y, marker, color=colour, label=label)
            blurred = columns["unresolved_share"] > _MOST
            axes.plot(x[blurred], y[blurred], marker, color=colour, mfc="white")
            numbers["threshold"] += [table.threshold.threshold] * y.size
            for name, column in columns.items():
                numbers.setdefault(name, []).extend(column.tolist())
        if axis.name == "arc_snr" and np.isfinite(axes.dataLim.minposx):  # none if all are 0
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        cells = [table.cells.columns() for table in distinct]
        low, high = (
            np.concatenate([columns[end][columns["n"] > 0] for columns in cells])
            for end in ("joint_lo95", "joint_hi95")
        )
        limits = fitted_limits(low, high)
        axes.set(ylim=limits, xlabel=axis_label(axis.name, geometry), ylabel="Completeness")
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.grid(True)
        axes.legend(title="Threshold at", title_fontsize=7, loc="best")
    return Plot(
        f"completeness_{axis.name}",
        f"Completeness against {AXIS_NAMES[axis.name]}",
        "",  # the page says once what all of these show
        figure,
        numbers,
    )


def _centres(axis: AxisBins) -> NDArray[np.float64]:
    if axis.values is not None:
        return axis.values
    low, high = axis.edges[:-1], axis.edges[1:]
    middle = np.sqrt(low * high) if axis.name == "arc_snr" and low[0] > 0 else (low + high) / 2
    return np.asarray(middle, np.float64)


def draw_map(table: CompletenessTable, geometry: Geometry = DECALS) -> Plot:
    """Completeness over two axes, with the number of lenses in each cell."""
    x, y = table.cells.axes
    columns = table.cells.columns()
    cells = {name: column.reshape(x.size, y.size).T for name, column in columns.items()}
    grid, n = np.ma.masked_invalid(cells["completeness"]), cells["n"]
    blurred = cells["unresolved_share"] > _MOST
    with new_figure(WIDTH, 3.0) as (figure, axes):
        least, most = np.clip(fitted_limits(grid.compressed(), grid.compressed()), 0, 1)
        mesh = axes.imshow(
            grid, origin="lower", aspect="auto", vmin=least, vmax=most, cmap="cividis"
        )
        for row, column in np.ndindex(n.shape):
            empty = n[row, column] == 0
            low, high = (cells[f"region_{end}95"][row, column] for end in ("lo", "hi"))
            text = (
                f"{grid[row, column]:.0%}\n{100 * low:.0f}–{high:.0%}" if not empty else "no lens"
            )
            shade = "white" if empty else mesh.to_rgba(grid[row, column])
            dark = not empty and np.dot(shade[:3], (0.3, 0.6, 0.1)) < 0.5
            if blurred[row, column]:
                corner, colour = (column - 0.5, row - 0.5), "#ffffff" if dark else GREY
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", lw=0, ec=colour,
                                         alpha=0.35))  # fmt: skip
            axes.text(column, row, text if empty else f"{text}\nn={n[row, column]:,}", ha="center",
                      va="center", fontsize=6, color="white" if dark else "black",
                      bbox={"facecolor": shade, "edgecolor": "none", "pad": 1})  # fmt: skip
        axes.set_xticks(range(x.size), [x.label(i) for i in range(x.size)])
        axes.set_yticks(range(y.size), [y.label(i) for i in range(y.size)])
        axes.tick_params(length=0)
        axes.set(xlabel=axis_label(x.name, geometry), ylabel=axis_label(y.name, geometry))
        figure.colorbar(mesh, ax=axes, label="Completeness", pad=0.02, format=_PERCENT)
    return Plot(
        f"completeness_{x.name}_{y.name}",
        f"Completeness: {AXIS_NAMES[x.name]} and {AXIS_NAMES[y.name]}",
        f"At the threshold for {threshold_text(table.threshold.name)}; below it the 95% interval "
        "by region, and the number of lenses. "
        "Hatched: most lenses of the cell are unresolved.",
        figure,
        columns,
    )


def draw_strata(
    entries: Sequence[Mapping[str, Any]],
    target: float | None,
    level: float,
    geometry: Geometry = DECALS,
) -> Plot:
    """False-positive rate in the bins of one quantity."""
    name = entries[0]["column"]
    kept = [entry for entry in entries if entry["fpr"]["value"] is not None]
    x = np.arange(len(kept))
    y = np.array([entry["fpr"]["value"] for entry in kept])
    ends, wilson = (
        np.array([[entry["fpr"][f"{kind}{end}"] for entry in kept] for end in ("low", "high")])
        for kind in ("", "wilson_")
    )
    with new_figure() as (figure, axes):
        for offset, bounds, colour, label in (
            (-0.08, ends, BLUE, f"{level:.0%} by region"),
            (0.08, wilson, GREY, f"{level:.0%} Wilson"),
        ):
            axes.errorbar(
                x + offset, y, bars(y, *bounds), fmt="o", color=colour, label=label, capsize=2
            )
        if target is not None:
            axes.axhline(target, color=RED, lw=0.8, ls="--", label=f"target {rate_text(target)}")
        axes.set_xticks(x, [entry["label"] for entry in kept])
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.set_xlim(-0.5, len(kept) - 0.5)
        axes.margins(y=0.35)
        top = axes.get_ylim()[1]
        axes.set_ylim(-0.04 * top, top)  # a point at 0 is seen whole
        axes.set(xlabel=axis_label(name, geometry), ylabel="False-positive rate")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1.2, handlelength=1.5)
    return Plot(
        f"fpr_{name}",
        f"False positives against {AXIS_NAMES[name]}",
        "A finder that is fair to its sky keeps the same rate in every bin. Wilson bars take rows "
        "as independent.",
        figure,
        {
            "lo": [entry["lo"] for entry in kept],
            "hi": [entry["hi"] for entry in kept],
            "false_positives": [entry["fpr"]["k"] for entry in kept],
            "n_negative": [entry["fpr"]["n"] for entry in kept],
            "fpr": y,
            "low": ends[0],
            "high": ends[1],
            "wilson_low": wilson[0],
            "wilson_high": wilson[1],
        },
    )


def draw_auroc_by(entries: Mapping[str, Mapping[str, Any]], overall: float, level: float) -> Plot:
    """AUROC of the lenses of each Einstein radius against all non-lenses."""
    kept = {name: entry for name, entry in entries.items() if entry["value"] is not None}
    y, low, high = (np.array([entry[name] for entry in kept.values()], float)
                    for name in ("value", "low", "high"))  # fmt: skip
    with new_figure() as (figure, axes):
        axes.errorbar(np.arange(y.size), y, bars(y, low, high), fmt="o", color=BLUE, capsize=2)
        axes.axhline(overall, color=GREY, lw=0.8, ls="--", label="all lenses")
        limits = fitted_limits([*low, *y, overall], [*high, *y, overall], least=0.1)
        if limits[0] < 0.5:
            axes.axhline(0.5, color=GREY, lw=0.8, ls=":", label="chance")
        axes.set_xticks(np.arange(y.size), list(kept))
        axes.set(xlim=(-0.5, y.size - 0.5), ylim=limits)
        axes.set(xlabel=axis_label("theta_e_arcsec"), ylabel="AUROC")
        axes.legend(loc="best")
    return Plot(
        "auroc_theta_e",
        "AUROC by Einstein radius",
        f"Lenses of one Einstein radius against all non-lenses; bars: {level:.0%} interval from "
        "draws of regions.",
        figure,
        {
            "theta_e_arcsec": list(kept),
            "n": [entry["n"] for entry in kept.values()],
            "auroc": y,
            "low": low,
            "high": high,
        },
    )


def draw_pairs(pairs: Mapping[str, Any], least: float, level: float) -> Plot:
    """AUROC across families against theta_E / PSF; `least` is what must surely be reached."""
    bins = [cell for cell in pairs["by_theta_e_over_psf"] if cell["n"]]
    together = "all" if {*SMOOTH}.isdisjoint(pairs["by_kind"]) else "smooth light, all kinds"
    series = {together: [cell["auroc_across"] for cell in bins]}
    series |= {kind: [cell["across_by_kind"][kind] for cell in bins] for kind in pairs["by_kind"]}
    step = 0.6 / len(series)
    numbers: dict[str, list[Any]] = {name: [] for name in ("kind", "lo", "hi")}
    with new_figure() as (figure, axes):
        colours, markers = ("black", *SERIES, GREY), (*MARKERS, "P", "X")
        for number, (kind, entries) in enumerate(series.items()):
            kept = [index for index, entry in enumerate(entries) if entry["value"] is not None]
            x = np.array(kept) + (number - (len(series) - 1) / 2) * step
            y, low, high = (
                np.array([entries[index][name] for index in kept], float)
                for name in ("value", "low", "high")
            )
            look = {"color": colours[number % len(colours)], "fmt": markers[number % len(markers)]}
            axes.errorbar(x, y, bars(y, low, high), label=kind, ms=3, lw=0.9, **look)
            numbers["kind"] += [kind] * len(kept)
            for name in ("lo", "hi"):
                numbers[name] += [bins[index][name] for index in kept]
            for name, column in (("families", [entries[index]["families"] for index in kept]),
                                 ("auroc", y), ("low", low), ("high", high)):  # fmt: skip
                numbers.setdefault(name, []).extend(column)
        axes.axhline(0.5, color=GREY, lw=0.8, ls=":")
        axes.axhline(least, color=GREY, lw=0.8, ls="--")
        axes.set_xticks(range(len(bins)), [cell["label"] for cell in bins])
        low, high, families = (np.array(numbers[name]) for name in ("low", "high", "families"))
        decides = families >= FEWEST
        limits = fitted_limits([0.5, *low[decides]], [least, *high[decides]])
        axes.set(xlim=(-0.5, len(bins) - 0.5), ylim=limits)
        axes.set(xlabel=axis_label("theta_e_over_psf"), ylabel="AUROC across families")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1.2, handlelength=1.5)
    return Plot(
        "pairs_theta_e_over_psf",
        "Lens against the same light",
        "How often a lens scores higher than the same light without lensing, on whichever host; "
        f"bars: {level:.0%} interval by region. "
        f"Dotted: chance. Dashed: {least:g}, above which the whole bar must lie for the finder to "
        f"tell a lens from light. Bars of fewer than {FEWEST} lenses do not decide, and may end "
        "beyond the scale.",
        figure,
        numbers,
    )

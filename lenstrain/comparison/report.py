"""What a comparison shows: rows of its table, figures, and the page."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from lenstrain.evaluation import metrics
from lenstrain.evaluation.metrics import RocCurve
from lenstrain.evaluation.names import rate_text
from lenstrain.evaluation.rates import FEWEST_FLAGGED
from lenstrain.figures import MARKERS, SERIES, Plot, new_figure
from lenstrain.pages.files import save_plot
from lenstrain.pages.headline import points, signed, verdict
from lenstrain.pages.page import interval, listed, number, percent, render

COMPARE_NAME = "compare.json"
"""This file marks a folder as a comparison."""
COMPARE_PAGE = "compare.html"
_LINES = ("-", "--", ":")


def write_comparison(
    folder: Path,
    result: Mapping[str, Any],
    pages: Sequence[str | None],
    curves: Mapping[str, RocCurve],
    rates: Collection[float],
) -> None:
    """Write the JSON, the figures and the page.

    Parameters
    ----------
    folder : Path
    result : mapping
        Content of compare.json.
    pages : sequence of str or None
        Link to the report of each run.
    curves : mapping of str to RocCurve
        Of the runs whose scores are of the same stamps.
    rates : collection of float
        False-positive rates that the runs validate at.
    """
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    (folder / COMPARE_NAME).write_text(text, encoding="utf-8")
    (folder / "figures").mkdir()
    drawn = (draw_rates(curves), draw_curves(result["curves"], rates))
    context = {
        "c": result,
        "pages": pages,
        "compared": listed(curves) if curves else "",
        "rows": rows_of(result),
        "unsupported": unsupported(result),
        "reasons": [
            (name, found["reason"])
            for name, found in result["differences"].items()
            if "reason" in found
        ],
        "figures": {plot.name: save_plot(plot, folder / "figures") for plot in drawn if plot},
        "provenance": _provenance(result),
    }
    (folder / COMPARE_PAGE).write_text(render("compare.html", context), encoding="utf-8")


class Row(NamedTuple):
    """A figure of a run beside that of the first, in words."""

    figure: str
    run: str
    value: str
    first: str
    """Value of the first run."""
    difference: str
    """With its interval."""
    verdict: str


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """Differences from the first run for tables, where there are any; a figure's runs together."""
    rows = []
    for metric in metrics.METRICS:
        for name, found in result["differences"].items():
            entry = found.get(metric.name)
            if entry is None:
                continue
            if metric.kind == "rate":
                rows += [
                    _row(f"{_at(metric, float(fpr))}, this sample", name, one, percent, points, 1)
                    for fpr, one in entry.items()
                    if one["value"] is not None
                ]
            else:
                rows.append(_row(metric.title, name, entry, number, signed, 4))
    order = list(dict.fromkeys(row.figure for row in rows))
    return sorted(rows, key=lambda row: order.index(row.figure))


def _row(
    title: str, run: str, entry: Mapping[str, Any], show: Any, difference: Any, digits: int
) -> Row:
    this, first = (show(entry[which], digits) for which in ("this", "other"))
    return Row(title, run, this, first, interval(entry, digits, difference), verdict(entry))


def unsupported(result: Mapping[str, Any]) -> list[str]:
    """Why figures are compared between no two runs, each once."""
    return [
        *dict.fromkeys(
            f"{_at(metric, float(fpr))}: {entry['reason']}."
            for metric in metrics.METRICS
            if metric.kind == "rate"
            for found in result["differences"].values()
            for fpr, entry in found.get(metric.name, {}).items()
            if entry["value"] is None
        )
    ]


def _at(metric: metrics.Metric, fpr: float) -> str:
    return f"{metric.title} {rate_text(fpr)}"


def draw_rates(curves: Mapping[str, RocCurve]) -> Plot | None:
    """ROC curves on the same stamps, from 10 false positives on; None of fewer than two runs."""
    if len(curves) < 2:
        return None
    numbers: dict[str, list[Any]] = {"run": [], "fpr": [], "tpr": []}
    with new_figure(5.0, 3.2) as (figure, axes):
        for k, (name, curve) in enumerate(curves.items()):
            kept = curve.fp >= FEWEST_FLAGGED
            fpr, tpr = (part[kept] / part[-1] for part in (curve.fp, curve.tp))
            axes.step(fpr, tpr, where="post", **_line(k, name))
            numbers["run"] += [name] * len(fpr)
            numbers["fpr"] += fpr.tolist()
            numbers["tpr"] += tpr.tolist()
        axes.set(xscale="log", xlim=(None, 1), xlabel="False-positive rate", ylabel="Completeness")
        axes.grid(True)
        axes.legend(loc="lower right")
    return Plot(
        "roc",
        "ROC curves",
        f"Completeness against false-positive rate, from {FEWEST_FLAGGED} flagged non-lenses on. "
        "The table above says which differences are shown.",
        figure,
        numbers,
    )


def draw_curves(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], rates: Collection[float] = ()
) -> Plot | None:
    """Loss and validation metrics of every run by epoch; None if no run has any.

    `rates` are the false-positive rates that the runs validate at.
    """
    titles = {"train_loss": "Training loss"}
    for name, metric in metrics.steering().items():
        lone = _at(metric, *rates) if len(rates) == 1 else f"{metric.title} eval.fpr"
        titles[name] = lone if metric.kind == "rate" else metric.title
    shown = [key for key in titles if any(key in r for run in curves.values() for r in run)]
    if not shown:
        return None
    numbers: dict[str, list[Any]] = {key: [] for key in ("run", "epoch", *shown)}
    for name, records in curves.items():
        for record in records:
            numbers["run"].append(name)
            for key in ("epoch", *shown):
                numbers[key].append("" if record.get(key) is None else record[key])
    # One below the other, since panels side by side share their y axes.
    with new_figure(5.0, 1.9 * len(shown) + 0.3, len(shown)) as (figure, panels):
        flat = np.ravel(panels)
        for axes, key in zip(flat, shown, strict=True):
            for k, (name, records) in enumerate(curves.items()):
                course = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
                if course:
                    marker = MARKERS[k % len(MARKERS)]
                    axes.plot(*zip(*course, strict=True), marker=marker, **_line(k, name))
            axes.set_title(titles[key], loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(True)
        flat[-1].set_xlabel("Epoch")
        labels = {
            label: line
            for axes in flat
            for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=3)
    return Plot(
        "curves",
        "Learning curves",
        "Training loss, and metrics on the validation split, after each epoch. Losses can be "
        "compared where the settings of the loss are the same.",
        figure,
        numbers,
    )


def _line(k: int, name: str) -> dict[str, Any]:
    """How run `k` is drawn; matplotlib neither leaves out its name nor reads mathematics in it."""
    style = _LINES[k // len(SERIES) % len(_LINES)]
    label = name.replace("$", r"\$").lstrip("_")
    return {"color": SERIES[k % len(SERIES)], "ls": style, "label": label}


def _provenance(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the figures come from."""
    facts = []
    for run in result["runs"]:
        said = {"checkpoint": "checkpoint", "checkpoint_sha256": "SHA-256", "dataset": "dataset",
                "dataset_id": "id", "scores_sha256": "scores' SHA-256"}  # fmt: skip
        text = ", ".join(f"{word} {run[key]}" for key, word in said.items() if run[key])
        facts.append((run["name"], text or "not known"))
    return [
        *facts,
        ("Draws of regions", f"{result['resamples']:,}, intervals of {100 * result['level']:g}%"),
        ("Created", result["created"]),
        ("Versions", f"lenstrain {result['versions']['lenstrain']}"),
    ]

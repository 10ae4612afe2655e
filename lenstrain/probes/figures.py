"""Figures of the probe page, in the style of the evaluation's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from lenstrain.pages.figures import BLUE, GREY, HEIGHT, RED, STYLE, WIDTH, Plot
from lenstrain.probes.attention import Attention

VIEW_TITLES = {
    "original": "as it is",
    "core_view": "core only",
    "brightness_view": "rings shuffled",
    "colour_scrambled": "bands swapped",
    "core_mask": "core masked",
    "annulus_only": "sky only",
}

CANDIDATE_TITLES = {
    "flux_line": "3 fluxes, line",
    "flux_boosting": "3 fluxes, boosting",
    "profile_line": "27 means, line",
    "profile_boosting": "27 means, boosting",
}


def draw_views(views: Mapping[str, Any]) -> Plot:
    """AUROC of every view, with its interval by region."""
    names = [name for name in VIEW_TITLES if name in views]
    values = [views[name]["auroc"] for name in names]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(names))[::-1]
        for place, entry in zip(places, values, strict=True):
            if entry["low"] is not None:
                axes.plot([entry["low"], entry["high"]], [place, place], color=BLUE)
            axes.plot(entry["value"], place, "o", color=BLUE)
        axes.axvline(0.5, color=GREY, lw=0.8, ls=":")
        axes.set_yticks(places, [VIEW_TITLES[name] for name in names])
        axes.set(xlabel="AUROC", xlim=(min(0.4, *(e["value"] for e in values)) - 0.02, 1.01))
    return Plot(
        "views",
        "What the finder can tell from a part of the stamp",
        "AUROC, 95% intervals from draws of regions. Without the core it should be chance, 0.5.",
        figure,
        {
            "view": names,
            "auroc": [e["value"] for e in values],
            "low": [e["low"] for e in values],
            "high": [e["high"] for e in values],
        },
    )


def draw_scores(views: Mapping[str, Any]) -> Plot:
    """Mean score of both classes in every view."""
    names = [name for name in VIEW_TITLES if name in views]
    lenses = [views[name]["mean_score_lenses"] for name in names]
    others = [views[name]["mean_score_non_lenses"] for name in names]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(names))[::-1]
        axes.hlines(places, others, lenses, color=GREY, lw=0.8)
        axes.plot(lenses, places, "o", color=BLUE, label="lenses")
        axes.plot(others, places, "s", color=RED, label="non-lenses")
        axes.set_yticks(places, [VIEW_TITLES[name] for name in names])
        axes.set(xlabel="Mean score", xlim=(-0.02, 1.02))
        axes.legend(loc="lower right")
    return Plot(
        "scores",
        "What is left of the scores",
        "Mean score of each class. Both should fall where the evidence is taken away.",
        figure,
        {"view": names, "lenses": lenses, "non_lenses": others},
    )


def draw_lead(entry: Mapping[str, Any]) -> Plot:
    """AUROC and completeness of every cheap classifier and of the network, with intervals."""
    rows = {CANDIDATE_TITLES[name]: found for name, found in entry["candidates"].items()}
    rows["network"] = entry["network"]
    places = np.arange(len(rows))[::-1]
    columns: dict[str, Any] = {"what": list(rows)}
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        titles = ("AUROC", f"TPR at FPR {entry['fpr']:g}")
        for axes, what, title in zip(panels, ("auroc", "tpr"), titles, strict=True):
            for place, row in zip(places, rows.values(), strict=True):
                color = RED if row is entry["network"] else BLUE
                if row[what]["low"] is not None:
                    axes.plot([row[what]["low"], row[what]["high"]], [place, place], color=color)
                axes.plot(row[what]["value"], place, "o", color=color)
            axes.set_xlabel(title)
            axes.margins(x=0.08)
            for end in ("value", "low", "high"):
                columns[f"{what}_{end}"] = [row[what][end] for row in rows.values()]
        panels[0].set_yticks(places, list(rows))
    return Plot(
        "baseline",
        "Light profiles alone, and the network",
        f"The same {entry['rows']:,} stamps, 95% intervals from draws of regions. What lies right "
        "of the best blue point is the network's own.",
        figure,
        columns,
    )


def draw_injections(flux_matched: Mapping[str, Any], rings: Mapping[str, Any], fpr: float) -> Plot:
    """Flagged share of what was added to non-lenses and to the sky."""
    bars: list[tuple[str, float, float, float]] = [
        ("unlensed source", flux_matched["pass_rate"], flux_matched["low"], flux_matched["high"]),
        ("blank sky", *(rings["blank"][name] for name in ("share", "low", "high"))),
    ]
    for where, title in (("sky", "on sky"), ("non_lens", "on non-lens")):
        for radius, entry in rings[where].items():
            ends = (entry["share"], entry["low"], entry["high"])
            bars.append((f"ring {radius}″ {title}", *ends))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(bars))[::-1]
        shares = np.array([bar[1] for bar in bars])
        spread = [np.maximum(shares - [b[2] for b in bars], 0),
                  np.maximum(np.array([b[3] for b in bars]) - shares, 0)]  # fmt: skip
        axes.barh(places, shares, xerr=spread, color=BLUE, alpha=0.6, ecolor="black",
                  error_kw={"lw": 0.8})  # fmt: skip
        axes.axvline(fpr, color=RED, lw=0.8, ls="--")
        axes.set_yticks(places, [bar[0] for bar in bars])
        axes.set(xlabel="Flagged share", xlim=(0, 1))
    return Plot(
        "injections",
        "What passes for a lens",
        "Share above the threshold, with 95% Wilson intervals. An unlensed source is no lens. "
        f"Dashed: the {100 * fpr:g}% of untouched non-lenses.",
        figure,
        {"what": [b[0] for b in bars], "share": shares, "low": [b[2] for b in bars],
         "high": [b[3] for b in bars]},
    )  # fmt: skip


def draw_d4(changes: Any, logit_sd: float) -> Plot:
    """Histogram of the logit's change under turns and flips."""
    values = np.asarray(changes, float)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        counts, edges, _ = axes.hist(values, bins=40, color=BLUE, alpha=0.6)
        axes.axvline(logit_sd, color=RED, lw=0.8, ls="--", label="scatter of the logits")
        axes.set(xlabel="Mean change of the logit over 7 views", ylabel="Stamps")
        axes.legend()
    return Plot(
        "d4",
        "Turns and flips",
        "A lens turned is a lens: the change should be small beside the scatter of the logits.",
        figure,
        {"from": edges[:-1], "to": edges[1:], "stamps": counts},
    )


def draw_attention(attention: Attention) -> Plot:
    """Stamps, and their maps below."""
    n = len(attention.pictures)
    with rc_context(STYLE):
        figure = Figure(figsize=(0.95 * n, 3.1), layout="constrained")
        grid = figure.subplots(3, n, squeeze=False)
        for column in range(n):
            kind = "lens" if attention.stamps.labels[column] else "non-lens"
            grid[0][column].imshow(attention.pictures[column], origin="lower")
            grid[0][column].set_title(f"{kind}\nlogit {attention.logits[column]:.1f}", fontsize=6)
            top = max(float(np.abs(attention.occlusion[column]).max()), 1e-9)
            grid[1][column].imshow(attention.occlusion[column], origin="lower", cmap="RdBu_r",
                                   vmin=-top, vmax=top)  # fmt: skip
            grid[2][column].imshow(attention.gradcam[column], origin="lower", cmap="viridis")
        for row, name in enumerate(("stamp", "occlusion", "Grad-CAM")):
            grid[row][0].set_ylabel(name)
            for axes in grid[row]:
                axes.set(xticks=[], yticks=[])
    return Plot(
        "attribution",
        "Where the evidence lies",
        "Occlusion: red where hiding the place lowers the logit, each stamp on its own scale. "
        "Grad-CAM: bright where the last map speaks for a lens.",
        figure,
        {"stamp": np.arange(n), "logit": attention.logits,
         "largest_occlusion": np.abs(attention.occlusion).max((1, 2))},
    )  # fmt: skip

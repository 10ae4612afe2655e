"""Figures of the probe page, in the style of the evaluation's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lenstrain.figures import BLUE, GREY, RED, Plot, bars, new_figure
from lenstrain.pages import number, percent
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
    "flux_line": "flux, logistic",
    "flux_boosting": "flux, boosting",
    "profile_line": "rings, logistic",
    "profile_boosting": "rings, boosting",
}


_ABREAST = 6
"""Stamps in a row of maps, so that a telephone shows them too."""


def draw_views(views: Mapping[str, Any]) -> Plot:
    """AUROC of every view, with its interval by region."""
    names = [name for name in VIEW_TITLES if views.get(name)]
    value, low, high = (np.array([views[name]["auroc"][end] for name in names], float)
                        for end in ("value", "low", "high"))  # fmt: skip
    with new_figure() as (figure, axes):
        y = np.arange(len(names))[::-1]
        axes.errorbar(value, y, xerr=bars(value, low, high), fmt="o", color=BLUE)
        axes.axvline(0.5, color=GREY, lw=0.8, ls=":")
        axes.set_yticks(y, [VIEW_TITLES[name] for name in names])
        axes.set(xlabel="AUROC", xlim=(np.nanmin([0.4, *value, *low]) - 0.02, 1.01))
    return Plot(
        "views",
        "What the finder can tell from less of the stamp",
        "AUROC of the finder, with 95% intervals from draws of regions; dotted: chance. With the "
        "core masked, or on sky alone, there is no arc left to find.",
        figure,
        {"view": names, "auroc": value, "low": low, "high": high},
    )


def draw_scores(views: Mapping[str, Any]) -> Plot:
    """Mean score of both classes in every view."""
    names = [name for name in VIEW_TITLES if views.get(name)]
    lenses = [views[name]["mean_score_lenses"] for name in names]
    others = [views[name]["mean_score_non_lenses"] for name in names]
    with new_figure() as (figure, axes):
        y = np.arange(len(names))[::-1]
        axes.hlines(y, others, lenses, color=GREY, lw=0.8)
        axes.plot(lenses, y, "o", color=BLUE, label="lenses")
        axes.plot(others, y, "s", color=RED, label="non-lenses")
        axes.set_yticks(y, [VIEW_TITLES[name] for name in names])
        axes.set(xlabel="Mean score")
        axes.legend(loc="best")
    return Plot(
        "scores",
        "Scores when content is taken away",
        "Mean score of the lenses (circles) and of the non-lenses (squares). With the core masked, "
        "or on sky alone, lenses should score like non-lenses.",
        figure,
        {"view": names, "lenses": lenses, "non_lenses": others},
    )


def draw_lead(entry: Mapping[str, Any]) -> Plot:
    """AUROC and completeness of every cheap classifier and of the network, with intervals."""
    rows = {CANDIDATE_TITLES[name]: found for name, found in entry["candidates"].items()}
    rows["network"] = entry["network"]
    colours = [BLUE] * len(entry["candidates"]) + [RED]
    columns: dict[str, Any] = {"what": list(rows)}
    with new_figure(columns=2) as (figure, panels):
        y = np.arange(len(rows))[::-1]
        titles = ("AUROC", "Completeness")
        for axes, what, title in zip(panels, ("auroc", "tpr"), titles, strict=True):
            ends = {end: np.array([row[what][end] for row in rows.values()], float)
                    for end in ("value", "low", "high")}  # fmt: skip
            axes.errorbar(ends["value"], y, xerr=bars(*ends.values()), fmt="none", ecolor=colours)
            axes.scatter(ends["value"], y, c=colours, s=16, zorder=3)
            axes.set_xlabel(title)
            axes.margins(x=0.08)
            axes.locator_params(axis="x", nbins=4)  # so that labels of two panels do not touch
            columns |= {f"{what}_{end}": column for end, column in ends.items()}
        panels[0].set_yticks(y, list(rows))
    return Plot(
        "baseline",
        "Light profiles alone, and the network",
        f"AUROC, and completeness at a false-positive rate (FPR) of {100 * entry['fpr']:g}%, on "
        f"the same {entry['rows']:,} stamps, with 95% intervals from draws of regions. Blue: light "
        "in each band (flux) or in rings of each band, by logistic regression or gradient "
        f"boosting; the network is compared with {CANDIDATE_TITLES[entry['best']]}, the best by "
        "cross-validation on train.",
        figure,
        columns,
    )


def draw_injections(
    flux_matched: dict[str, Any], rings: Mapping[str, Any] | None, fpr: float
) -> Plot:
    """Flagged share of what was added to non-lenses and to the sky; `rings` None: none fit."""
    shown = {"unlensed source": flux_matched | {"share": flux_matched["pass_rate"]}}
    rings = rings or {"sky": {}, "non_lens": {}}
    if "blank" in rings:
        shown["blank sky"] = rings["blank"]
    for where, title in (("sky", "on sky"), ("non_lens", "on non-lens")):
        shown |= {f"ring {radius}″ {title}": entry for radius, entry in rings[where].items()}
    share, low, high = (np.array([entry[name] for entry in shown.values()])
                        for name in ("share", "low", "high"))  # fmt: skip
    with new_figure() as (figure, axes):
        y = np.arange(len(shown))[::-1]
        axes.barh(y, share, xerr=bars(share, low, high), color=BLUE, alpha=0.6, ecolor="black",
                  error_kw={"lw": 0.8})  # fmt: skip
        for place, value, end in zip(y, share, high, strict=True):
            axes.text(end + 0.015, place, percent(value), va="center", fontsize=6)
        axes.axvline(fpr, color=RED, lw=0.8, ls="--")
        axes.set_yticks(y, list(shown))
        axes.set(xlabel="Flagged share", xlim=(-0.03, 1.1))
    return Plot(
        "injections",
        "What passes for a lens",
        "Share above the threshold, with 95% Wilson intervals, of non-lenses with an unlensed "
        "source added, of blank sky, and of rings. Dashed: the false-positive rate of "
        f"{100 * fpr:g}% that the threshold was set to.",
        figure,
        {"what": list(shown), "share": share, "low": low, "high": high},
    )


def draw_d4(changes: Any, logit_sd: float) -> Plot:
    """Histogram of the logit's change under rotations and flips."""
    with new_figure() as (figure, axes):
        counts, edges, _ = axes.hist(changes, bins=40, color=BLUE, alpha=0.6)
        axes.axvline(logit_sd, color=RED, lw=0.8, ls="--", label="scatter of the logits")
        axes.set(xlabel="Mean absolute change of the logit over 7 views", ylabel="Stamps")
        axes.legend()
    return Plot(
        "d4",
        "Rotations and flips",
        "How far the logit of a stamp moves when it is turned or flipped, lenses and non-lenses "
        f"together: {np.mean(changes):.2f} on average. "
        f"It should be small beside the scatter of the logits from stamp to stamp, {logit_sd:.2f}.",
        figure,
        {"from": edges[:-1], "to": edges[1:], "stamps": counts},
    )


def draw_attention(attention: Attention) -> Plot:
    """Stamps, and their maps below; at most `_ABREAST` side by side."""
    n = len(attention.pictures)
    abreast = min(n, _ABREAST)
    blocks = -(-n // abreast)
    alike = attention.entry["randomised_correlation"]
    with new_figure(0.95 * abreast, 3.1 * blocks, rows=3 * blocks, columns=abreast) as made:
        figure, grid = made
        for stamp in range(blocks * abreast):
            top, column = 3 * (stamp // abreast), stamp % abreast
            axes, hidden, gradcam = panels = [grid[top + row][column] for row in range(3)]
            for panel in panels:
                panel.set(xticks=[], yticks=[])
                panel.axis("on" if stamp < n else "off")
            if stamp >= n:
                continue
            kind = "lens" if attention.stamps.labels[stamp] else "non-lens"
            axes.imshow(attention.pictures[stamp], origin="lower")
            axes.set_title(f"{kind}\nlogit {number(attention.logits[stamp], 1)}", fontsize=6)
            most = max(float(np.abs(attention.occlusion[stamp]).max()), 1e-9)
            hidden.imshow(attention.occlusion[stamp], origin="lower", cmap="RdBu_r",
                          vmin=-most, vmax=most)  # fmt: skip
            gradcam.imshow(attention.gradcam[stamp], origin="lower", cmap="viridis")
            if not column:
                for panel, name in zip(panels, ("stamp", "occlusion", "Grad-CAM"), strict=True):
                    panel.set_ylabel(name)
    return Plot(
        "attribution",
        "Where the evidence lies",
        "The lenses with the widest bright arcs, and the non-lenses with the highest logits. "
        "Occlusion: red where hiding the pixels lowers the logit, blue where it raises it. "
        "Grad-CAM: bright where the last feature map favours a lens, dark beyond what the network "
        "sees. Each map has its own scale."
        + ("" if alike is None else " The rank correlation of Grad-CAM with that of a random "
           f"network is {alike:.2f}: the higher, the more it shows the stamp, not the finder."),
        figure,
        {"stamp": np.arange(n), "key": attention.stamps.table["key"].to_pylist(),
         "logit": attention.logits, "largest_occlusion": np.abs(attention.occlusion).max((1, 2))},
    )  # fmt: skip

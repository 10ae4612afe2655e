"""What each probe found and what it means, each in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lenstrain.pages import interval, number, percent
from lenstrain.pages.page import bounds

TITLES = {
    "baseline": "Light profiles alone",
    "core_mask": "Core masked",
    "annulus_only": "Sky annulus only",
    "core_view": "Core only",
    "core_only": "Core profile, logistic regression",
    "brightness_view": "Rings shuffled",
    "brightness_only": "Brightness, logistic regression",
    "psf_depth_only": "Seeing and depth, logistic regression",
    "colour_scrambled": "Bands swapped",
    "d4": "Rotations and flips",
    "arc_removal": "Arcs removed",
    "null_injection": "Nothing added",
    "flux_matched_null": "Unlensed source of equal flux",
    "ring_probe": "Rings without a lens",
    "permuted_labels": "Labels shuffled, logistic regression",
    "attribution": "Occlusion and Grad-CAM",
}

MEANINGS = {
    "baseline": "Cheap classifiers, trained on the train split, see the flux or the mean light in "
    "rings of each band: no arc and no shape. Only what the network adds to the best of them is "
    "evidence that it sees more.",
    "core_mask": "Host and arcs are replaced by sky. If the classes still differ, it is by wings "
    "of wide arcs, or by neighbours, noise or the normalisation, which would be a leak.",
    "annulus_only": "Only sky is left. An AUROC away from 0.5, to either side, comes from noise or "
    "from the normalisation.",
    "core_view": "Only the inner part is left. A finder of arcs should lose little.",
    "core_only": "Logistic regression on the brightness profile of the core. Arcs of small lenses "
    "blend into it (10 to 40 % of their light lies there), so a high value is not necessarily a "
    "leak; it is what a network must beat to claim shape.",
    "brightness_view": "Pixels are shuffled within rings: profile and colour stay, shape goes. "
    "What remains is found by brightness, not by arcs.",
    "brightness_only": "Logistic regression on the flux of the core in each band. Above about 0.6, "
    "lenses are brighter than non-lenses, by their hosts or by the light that was added; the audit "
    "adds an arc's light to the non-lenses first.",
    "psf_depth_only": "Seeing and depth say nothing about lensing: if they tell the classes apart, "
    "these were observed under different conditions.",
    "colour_scrambled": "Each stamp gets its bands in another order. The loss shows how much the "
    "finder depends on colour.",
    "d4": "A rotated lens is still a lens. Stamps that cross the threshold when rotated are "
    "decided by chance; average over the views (infer --tta).",
    "arc_removal": "Light without a counterpart on the other side of the host is removed. A finder "
    "of arcs must drop its score; a small drop means that the host was enough.",
    "null_injection": "A source of zero flux goes through every step that adds one. Any change "
    "would come from the code alone, and would invalidate the probes that add light.",
    "flux_matched_null": "Non-lenses get the flux and colours of arcs, unlensed. If they pass as "
    "lenses, the finder looks for extra flux.",
    "ring_probe": "Rings on blank sky are not lenses: there is no galaxy that could act as one. If "
    "all rings score near 1 wherever they are, the finder looks for rings alone, and only that "
    "fails; rings that pass at the threshold say how much the galaxy counts.",
    "permuted_labels": "The core's logistic regression with shuffled labels: the same code must "
    "find nothing, or it leaks labels across regions. The audit's item of this name trains the "
    "network.",
    "attribution": "Above 1, the evidence lies on the arcs more than their area explains. A "
    "Grad-CAM like that of a random network shows the stamp, not the finder.",
}


FIGURES = {
    "baseline": "baseline",
    "core_mask": "views",
    "annulus_only": "views",
    "core_view": "views",
    "brightness_view": "views",
    "colour_scrambled": "views",
    "d4": "d4",
    "flux_matched_null": "injections",
    "ring_probe": "injections",
    "attribution": "attribution",
}
"""The figure of the page that shows a probe."""


def not_run(content: Mapping[str, Any], name: str) -> str:
    """Why a probe has no result: what the sample does not allow, or too few rows or regions."""
    if reason := (content.get("not_run") or {}).get(name):
        return str(reason[0].upper() + reason[1:])
    sample = content.get("sample") or {}
    held = ", ".join(f"{sample.get(name, '?')} {name.replace('_', '-')}"
                     for name in ("lenses", "non_lenses", "regions"))  # fmt: skip
    return f"It needs columns that the sidecar lacks, or more than the {held} of the sample."


def stamps(content: Mapping[str, Any], name: str) -> int | None:
    """How many stamps a probe used (of each kind if it adds light); None if it was not run."""
    entry = content["probes"].get(name)
    if entry is None or "reason" in entry:
        return None
    if name in ("d4", "permuted_labels"):
        return int(content["sample"]["lenses"] + content["sample"]["non_lenses"])
    counts = (entry.get(key) for key in ("rows", "stamps", "n_removed", "n"))
    inner = entry.get("auroc") or entry.get("blank") or {}
    return next((int(count) for count in (*counts, inner.get("n")) if count is not None), None)


def readings(content: Mapping[str, Any]) -> dict[str, str]:
    """What each probe found on this run."""
    probes = content["probes"]
    found = {}
    for name in TITLES:
        entry = probes.get(name)
        if entry is None:
            found[name] = f"Not run. {not_run(content, name)}"
        elif "reason" in entry:
            found[name] = f"Not run: {entry['reason']}"
        elif "auroc" in entry:
            found[name] = _view(entry, probes.get("original"))
            if name == "annulus_only":
                found[name] += _annulus(content)
            if name == "brightness_view":
                found[name] += _shapeless(entry, probes.get("original"))
        elif name in _WRITERS:
            found[name] = _WRITERS[name](entry)
        else:
            found[name] = f"{area(entry)}, cross-validated over {entry['regions']} regions."
    if content.get("counterfactual_share") and "lead" in (probes.get("baseline") or {}):
        found["baseline"] += (
            " It was trained with counterfactuals, which take the cue of brightness away, so that "
            "it may be behind: what it sees of lensing, pairs of the same light tell."
        )
    return found


def area(entry: Mapping[str, Any]) -> str:
    """An AUROC, and how it compares with chance."""
    text = f"AUROC {interval(entry)}"
    if entry["low"] is None:
        return text
    if entry["low"] > 0.5:
        return f"{text}, above chance"
    return f"{text}, {'below' if entry['high'] < 0.5 else 'no better than'} chance"


def _change(drop: float) -> str:
    return f"lose {percent(drop)}" if drop >= 0 else f"gain {percent(-drop)}"


def _view(entry: Mapping[str, Any], original: Mapping[str, Any] | None) -> str:
    text = f"{area(entry['auroc'])}."
    if original is not None:
        ends = (f"from {number(original[name], 2)} to {number(entry[name], 2)}"
                for name in ("mean_score_lenses", "mean_score_non_lenses"))  # fmt: skip
        text += " Mean scores go {} (lenses) and {} (non-lenses).".format(*ends)
    if entry["bright_drop"] is not None:
        text += (
            f" The {entry['n_bright']:,} lenses with bright arcs {_change(entry['bright_drop'])} "
            "of their mean score."
        )
    return text


def _shapeless(entry: Mapping[str, Any], original: Mapping[str, Any] | None) -> str:
    """That the finder does no worse without shape, if so."""
    if original is None or entry["auroc"]["value"] < original["auroc"]["value"]:
        return ""
    whole = number(original["auroc"]["value"])
    return f" On whole stamps the AUROC is {whole}: without shape the finder is no worse."


def _annulus(content: Mapping[str, Any]) -> str:
    """Which annulus was looked at, where the stamps are too small for the one of the options."""
    scale = content["geometry"]["pixel_scale_arcsec"]
    inner, outer = (scale * radius for radius in content["radii_px"]["sky_annulus"])
    if math.isclose(outer, content["options"]["sky_outer_arcsec"]):
        return ""
    return (
        f" The stamps end at {number(outer, 2)}″, so that this is the sky beyond "
        f"{number(inner, 2)}″; wings of wide arcs may lie there."
    )


def _d4(entry: Mapping[str, Any]) -> str:
    share = entry["mean_abs_change"] / (entry["logit_sd"] or math.nan)
    return (
        f"The logit changes by {number(entry['mean_abs_change'], 2)} on average, "
        f"{percent(share, 0)} of its scatter from stamp to stamp; "
        f"{percent(entry['crossing_share'])} of the stamps cross the threshold in some views."
    )


def _arc_removal(entry: Mapping[str, Any]) -> str:
    if entry["drop"] is None:
        share = entry.get("removed_share")
        seen = "" if share is None else f" (the median is {percent(share)})"
        return (
            f"Not measured: no non-lens is a lens's own galaxy, and none of {entry['n']:,} lenses "
            f"with bright arcs could be freed of half its injected flux{seen}: arcs that are "
            "unresolved, alike on both sides or clipped cannot be separated from the host."
        )
    text = f"{entry['n_removed']:,} of {entry['n']:,} lenses with bright arcs"
    change = f"{_change(entry['drop'])} of their mean score"
    if entry["method"] == "paired":
        return f"{text}, each compared with its own galaxy without arcs, {change}."
    control = entry["control_drop"]
    moves = f"{'falls' if control >= 0 else 'rises'} by {number(abs(control))}"
    return (
        f"{text}, freed of at least half of their injected flux, {change}; the mean score of "
        f"non-lenses treated alike {moves if abs(control) >= 0.001 else 'stays as it is'}."
    )


def _null(entry: Mapping[str, Any]) -> str:
    pixels, delta = entry["pixels_changed"], entry["max_abs_delta_logit"]
    what = f"{pixels:,} pixels" if pixels else "No pixel"
    return f"{what} of {entry['n']:,} stamps changed, and " + (
        f"logits by up to {delta:.1g}." if delta else "no logit."
    )


def _flux(entry: Mapping[str, Any]) -> str:
    return (
        f"{percent(entry['pass_rate'])} {bounds(entry, 1, percent)} of {entry['n']:,} non-lenses "
        f"pass with the light added, {percent(entry['base_rate'])} without (at most "
        f"{percent(entry['base_upper'])}), and {percent(entry['lens_rate'])} of the lenses."
    )


def _rings(entry: Mapping[str, Any]) -> str:
    def share(cell: Mapping[str, Any]) -> str:
        return f"{percent(cell['share'])} ({number(cell['mean_score'], 2)})"

    def listed(where: str) -> str:
        cells = entry[where].items()
        return ", ".join(f"{share(cell)} at {radius}″" for radius, cell in cells)

    out = ", ".join(f"{radius:g}″" for radius in entry["left_out"])
    return (
        f"Of {entry['blank']['n']:,} stamps of each pass, mean scores in brackets: bare sky "
        f"{share(entry['blank'])}; rings on sky {listed('sky')}; rings on non-lenses "
        f"{listed('non_lens')}." + (f" Left out, for the stamps are smaller: {out}." if out else "")
    )


def _attribution(entry: Mapping[str, Any]) -> str:
    ratios = (entry[f"{kind}_mass_over_area"] for kind in ("occlusion", "gradcam"))
    known = [number(ratio, 1) for ratio in ratios]
    alike = entry["randomised_correlation"]
    return (
        f"The arcs hold {known[0]} times the part of the occlusion map that their area explains, "
        f"and {known[1]} times that of Grad-CAM (medians over the lenses)."
        + ("" if alike is None else " The rank correlation of Grad-CAM with that of a random "
           f"network is {number(alike, 2)}.")
    )  # fmt: skip


def _permuted(entry: Mapping[str, Any]) -> str:
    return f"Mean {area(entry)}, over {entry['permutations']} shuffles."


def _lead(entry: Mapping[str, Any]) -> str:
    best, network, lead = entry["candidates"][entry["best"]], entry["network"], entry["lead"]
    points = {name: value and 100 * value for name, value in lead["tpr"].items()}
    at = f"at a false-positive rate of {100 * entry['fpr']:g}%"
    return (
        f"{best['title']}, the best of {len(entry['candidates'])} such classifiers by "
        f"cross-validation on train, reaches AUROC {interval(best['auroc'])} and finds "
        f"{interval(best['tpr'], 1, percent)} of the lenses {at}. The network on the same "
        f"{entry['rows']:,} stamps: {interval(network['auroc'])} and "
        f"{interval(network['tpr'], 1, percent)}. Its lead: AUROC {interval(lead['auroc'])}, "
        f"{interval(points, 1)} points of completeness. {verdict(lead)}"
    )


def verdict(lead: Mapping[str, Any]) -> str:
    """What the lead over light profiles, with its intervals, allows to be said."""
    if any(entry["low"] is None for entry in lead.values()):
        return "With one region no interval can be drawn, so no lead can be shown."
    names = {"auroc": "AUROC", "tpr": "completeness"}
    ahead = [names[what] for what, entry in lead.items() if entry["low"] > 0]
    behind = [names[what] for what, entry in lead.items() if entry["high"] < 0]
    text = "The network has shown nothing beyond light profiles"
    if ahead:
        text = f"By {' and '.join(ahead)} it sees more than light profiles"
        rest = [name for name in names.values() if name not in ahead]
        text += f"; by {rest[0]} it has shown nothing beyond them" if rest else ""
    return f"{text}, and is behind them in {' and '.join(behind)}." if behind else f"{text}."


_WRITERS = {
    "baseline": _lead,
    "permuted_labels": _permuted,
    "d4": _d4,
    "arc_removal": _arc_removal,
    "null_injection": _null,
    "flux_matched_null": _flux,
    "ring_probe": _rings,
    "attribution": _attribution,
}

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
    "permuted_labels": "Labels shuffled",
    "attribution": "Occlusion and Grad-CAM",
}

MEANINGS = {
    "baseline": "Cheap classifiers, trained on train, see the flux or the mean light in rings of "
    "each band: no arc and no shape. Only what the network adds to the best of them is "
    "evidence that it sees more.",
    "core_mask": "Host and arcs are replaced by sky. If the classes still differ, it is by "
    "neighbours, noise or the normalisation: a leak.",
    "annulus_only": "Only sky is left. An AUROC away from 0.5, to either side, comes from noise or "
    "from the normalisation.",
    "core_view": "Only the inner part is left. A finder of arcs should lose little.",
    "core_only": "Logistic regression on the brightness profile of the core. Arcs of small lenses "
    "blend into it (10 to 40 % of their light lies there), so a high value is not necessarily a "
    "leak; it is what a network must beat to claim shape.",
    "brightness_view": "Pixels are shuffled within rings: profile and colour stay, shape goes. "
    "What remains is found by brightness, not by arcs.",
    "brightness_only": "Total flux in each band. Above about 0.6, lenses are brighter than "
    "non-lenses, by their hosts or by the light that was added.",
    "psf_depth_only": "Seeing and depth say nothing about lensing: above 0.55 the classes were "
    "observed under different conditions.",
    "colour_scrambled": "Each stamp gets its bands in another order. The loss shows how much the "
    "finder depends on colour.",
    "d4": "A rotated lens is still a lens. Stamps that cross the threshold when rotated are "
    "decided by chance; average over the views (infer --tta).",
    "arc_removal": "Light without a counterpart on the other side of the host is removed. A finder "
    "of arcs must drop its score; a small drop means that the host was enough.",
    "null_injection": "A source of zero flux goes through every step that adds one. Any change "
    "would come from the code alone, and would invalidate the two probes below.",
    "flux_matched_null": "Non-lenses get the flux and colours of arcs, unlensed. If they pass as "
    "lenses, the finder looks for extra flux.",
    "ring_probe": "Rings on blank sky are not lenses: there is no galaxy that could act as one. If "
    "all rings score near 1 wherever they are, the finder looks for rings alone.",
    "permuted_labels": "The core's logistic regression with shuffled labels: the same code must "
    "find nothing, or it leaks labels across regions.",
    "attribution": "Above 1, the evidence lies on the arcs more than their area explains. "
    "Correlation with a random network near 1 would mean that the maps show the stamp, not the "
    "finder.",
}


def not_run(content: Mapping[str, Any], name: str) -> str:
    """Why a probe has no result: what the sample does not allow, or too few rows or regions."""
    if reason := (content.get("not_run") or {}).get(name):
        return str(reason[0].upper() + reason[1:])
    sample = content.get("sample") or {}
    held = ", ".join(f"{sample.get(name, '?')} {name.replace('_', '-')}"
                     for name in ("lenses", "non_lenses", "regions"))  # fmt: skip
    return f"It needs columns that the sidecar lacks, or more than the {held} of the sample."


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
            found[name] = _view(entry) + (_annulus(content) if name == "annulus_only" else "")
        elif name in _WRITERS:
            found[name] = _WRITERS[name](entry)
        else:
            found[name] = (
                f"AUROC {interval(entry)}, cross-validated over {entry['regions']} regions."
            )
    return found


def _view(entry: Mapping[str, Any]) -> str:
    text = f"AUROC {interval(entry['auroc'])}."
    if entry["bright_drop"] is not None:
        text += (
            f" Lenses with bright arcs lose {percent(entry['bright_drop'])} of their score "
            f"(n = {entry['n_bright']})."
        )
    return text


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
    return (
        f"The logit changes by {number(entry['mean_abs_change'])} on average (its scatter is "
        f"{number(entry['logit_sd'], 2)}); {percent(entry['crossing_share'])} of the stamps cross "
        "the threshold."
    )


def _arc_removal(entry: Mapping[str, Any]) -> str:
    if entry["drop"] is None:
        share = entry.get("removed_share")
        seen = "" if share is None else f" (the median is {percent(share)})"
        return (
            f"Not measured: no non-lens is a lens's own galaxy, and none of {entry['n']} lenses "
            f"with bright arcs could be freed of half its injected flux{seen}: arcs that are "
            "unresolved, alike on both sides or clipped cannot be separated from the host."
        )
    drop = entry["drop"]
    change = f"{percent(drop)} of the score is lost" if drop >= 0 else f"{percent(-drop)} is gained"
    text = f"{change} by {entry['n_removed']} of {entry['n']}"
    if entry["method"] == "paired":
        return f"{text} bright-arc lenses, each compared with its own galaxy without arcs."
    return (
        f"{text} bright-arc lenses that lost at least half of their injected flux; non-lenses "
        f"treated alike lose {number(entry['control_drop'])}."
    )


def _null(entry: Mapping[str, Any]) -> str:
    return (
        f"{entry['pixels_changed']} pixels of {entry['n']} stamps changed; largest change of the "
        f"logit {entry['max_abs_delta_logit']:.1e}."
    )


def _flux(entry: Mapping[str, Any]) -> str:
    return (
        f"{percent(entry['pass_rate'])} pass {bounds(entry, 1, percent)}, "
        f"{percent(entry['base_rate'])} before (at most {percent(entry['base_upper'])}); lenses "
        f"pass at {percent(entry['lens_rate'])}."
    )


def _rings(entry: Mapping[str, Any]) -> str:
    def listed(where: str) -> str:
        cells = entry[where].items()
        return ", ".join(f"{radius}″ {number(cell['mean_score'], 2)}" for radius, cell in cells)

    out = ", ".join(f"{radius:g}″" for radius in entry["left_out"])
    return (
        f"Mean scores: bare sky {number(entry['blank']['mean_score'], 2)}; rings on sky "
        f"{listed('sky')}; on non-lenses {listed('non_lens')}."
        + (f" Left out, for the stamps are smaller: {out}." if out else "")
    )


def _attribution(entry: Mapping[str, Any]) -> str:
    return (
        "Share of the map on the arcs, over their share of the area: occlusion "
        f"{number(entry['occlusion_mass_over_area'], 2)}, Grad-CAM "
        f"{number(entry['gradcam_mass_over_area'], 2)} (medians); correlation of Grad-CAM with a "
        f"random network's {number(entry['randomised_correlation'], 2)}."
    )


def _permuted(entry: Mapping[str, Any]) -> str:
    return f"Mean AUROC {interval(entry)} over {entry['permutations']} shuffles."


def _lead(entry: Mapping[str, Any]) -> str:
    best, network, lead = entry["candidates"][entry["best"]], entry["network"], entry["lead"]
    points = {name: value and 100 * value for name, value in lead["tpr"].items()}
    at = f"at a false-positive rate of {100 * entry['fpr']:g}%"
    return (
        f"{best['title']}, the best of {len(entry['candidates'])} inside train, reaches AUROC "
        f"{interval(best['auroc'])} and finds {interval(best['tpr'], 1, percent)} of the lenses "
        f"{at}. The network on the same {entry['rows']:,} stamps: {interval(network['auroc'])} and "
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

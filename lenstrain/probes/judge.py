"""Which probes a finder passes: the thresholds, and the rules in words, of audit and probe page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from lensprep.configfile import typed
from lenstrain.pages.page import fill, listed


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeThresholds:
    """What a finder must do without, or in spite of, what a probe takes away or adds."""

    null_delta_logit: float = 1e-6
    """Largest change of a logit when nothing was added."""

    flux_matched_factor: float = 2.0
    """Unlensed sources may pass at this multiple of the upper limit of the false-positive rate."""

    min_bright: int = 20
    """Fewest lenses with bright arcs from which their mean loss of score means anything."""

    bright_drop: float = 0.5
    """Share of their score that lenses with bright arcs must lose when arcs are hidden (upstream's
    lost 0.69 of it)."""

    ring_score: float = 0.95
    """If every ring scores above this wherever it lies, the finder looks for rings alone."""

    annulus_distance: float = 0.1
    """Distance of the finder's AUROC on the sky alone from 0.5 that fails, if surely exceeded.
    Where pixels are divided by a stamp's scale (``mad_stamp``), arcs widen it, so that its sky
    looks quieter without any leak: 0.43 on a clean set, and 0.50 under ``asinh_survey``."""

    psf_depth_upper: float = 0.55
    """AUROC of seeing and depth that fails, if it is surely above 0.5 too. A fit learns which way a
    leak points, so one below 0.5 has found none."""

    gradcam_alike: float = 0.7
    """Rank correlation with a random network's Grad-CAM above which the map is that of the stamp
    more than of the finder, and is left out: half the variance of ranks is then in common."""


STANDARD_ERRORS: Final = 3.0
"""Distance of an AUROC of shuffled labels from 0.5 that chance may explain."""
_LOST: Final = "lenses with bright arcs lose at least {limits.bright_drop!p} of their mean score"
RULES: Final = {
    "baseline": "the network is surely ahead of the best of them in AUROC or completeness, and "
    "surely behind in neither",
    "core_mask": _LOST,
    "annulus_only": f"{_LOST}, and the AUROC is not surely more than {{limits.annulus_distance:g}} "
    "from 0.5",
    "psf_depth_only": "its AUROC is at most {limits.psf_depth_upper:g}, or its interval "
    "reaches 0.5",
    "arc_removal": _LOST,
    "null_injection": "no pixel changes, and no logit by more than {limits.null_delta_logit:g}",
    "flux_matched_null": "they pass at most at {limits.flux_matched_factor:g} times the upper "
    "limit of their rate without the light",
    "ring_probe": "at least one kind of ring has a mean score below {limits.ring_score:g}",
    "permuted_labels": f"the mean AUROC lies within {STANDARD_ERRORS:g} standard errors of 0.5",
    "attribution": "the arcs hold more of the occlusion map than of the area, and more of Grad-CAM "
    "unless its rank correlation with that of a random network is above {limits.gradcam_alike:g}",
}
"""What passes; a probe that is not named has nothing to pass, and is for the reader to weigh."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What a rule says of the result of a probe."""

    passed: bool | None
    """None: the result does not tell."""
    measured: Any = None
    threshold: Any = None
    note: str = ""
    """What follows from it, or why it does not tell; a sentence, or nothing."""


def rule(name: str, limits: ProbeThresholds) -> str:
    """What passes a probe; empty if it has nothing to pass."""
    return fill(RULES.get(name, ""), limits=limits)


def judge(name: str, found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    """Hold the result of a probe of `RULES`, as probe.json has it, against its rule."""
    return _JUDGES[name](found, limits)


def _loses(found: Mapping[str, Any], limits: ProbeThresholds, key: str, of: str) -> Judgement:
    drop, least = found[key], limits.min_bright
    if drop is None:
        return Judgement(passed=None)
    measured = {"drop": drop, "n": found[of]}
    if found[of] < least:
        note = f"Fewer than {least} lenses say nothing."
        return Judgement(passed=None, measured=measured, note=note)
    allowed = limits.bright_drop
    return Judgement(passed=drop >= allowed, measured=measured, threshold=allowed)


def _core_mask(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    lost, area = _loses(found, limits, "bright_drop", "n_bright"), found["auroc"]
    if area["low"] is None or area["low"] <= 0.5 <= area["high"]:
        return lost
    beyond = ("What still tells the classes apart lies beyond the core: wings of arcs, neighbours, "
              "noise or the normalisation.")  # fmt: skip
    return replace(lost, note=f"{lost.note} {beyond}".strip())


def _annulus(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    area, allowed = found["auroc"], limits.annulus_distance
    leaks = area["low"] is not None and (
        area["low"] > 0.5 + allowed or area["high"] < 0.5 - allowed
    )
    drop = _loses(found, limits, "bright_drop", "n_bright")
    if drop.passed is None and not leaks:
        return drop
    return Judgement(
        passed=bool(drop.passed) and not leaks,
        measured=(drop.measured or {}) | {"auroc": area},
        threshold={"drop": drop.threshold, "auroc_distance": allowed},
        note="Sky alone separates the classes: its level or its noise leaks." if leaks else "",
    )


def _arc_removal(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    drop = _loses(found, limits, "drop", "n_removed")
    # A finder of lenses may keep its score or gain by what an asymmetry leaves: only a loss counts.
    if drop.passed is False and found.get("method") == "asymmetry":
        return replace(
            drop,
            passed=None,
            note="What is left is alike on both sides, as two images are, so this does not tell: "
            "include the lenses' own galaxies without arcs as non-lenses.",
        )
    return drop


def _null(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    allowed = {"pixels_changed": 0, "max_abs_delta_logit": limits.null_delta_logit}
    passed = all(float(found[name]) <= most for name, most in allowed.items())
    return Judgement(passed=passed, measured=found, threshold=allowed)


def _flux(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    allowed = limits.flux_matched_factor * float(found["base_upper"])
    names = ("pass_rate", "low", "high", "base_rate", "base_upper", "n")
    passed = found["pass_rate"] <= allowed
    return Judgement(
        passed=passed,
        measured={name: found[name] for name in names},
        threshold=allowed,
        note="" if passed else "Extra flux is taken for a lens.",
    )


def _rings(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    scores = {f"{where} {radius}": cell["mean_score"] for where in ("sky", "non_lens")
              for radius, cell in found[where].items()}  # fmt: skip
    most = [radius for radius, cell in found["sky"].items() if cell["low"] > 0.5]
    return Judgement(
        passed=min(scores.values()) < limits.ring_score,
        measured=scores | {"blank": found["blank"]["mean_score"]},
        threshold={"least": limits.ring_score},
        note=f"Most rings of {listed(most)}″ pass on bare sky: this finder needs no galaxy to see "
        "a lens." if most else "",
    )  # fmt: skip


def _attribution(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    alike = (found.get("randomised_correlation") or 0) > limits.gradcam_alike
    kinds = ("occlusion",) if alike else ("occlusion", "gradcam")
    ratios = [found.get(f"{kind}_mass_over_area") for kind in kinds]
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return Judgement(
            passed=None,
            note="The sidecar has no theta_e_arcsec and psfsize_r: no arcs to look for.",
        )
    return Judgement(
        passed=min(known) > 1,
        measured=found,
        threshold={"mass_over_area": 1, "gradcam_alike": limits.gradcam_alike},
        note="Grad-CAM shows the stamp more than the finder, and is left out." if alike else "",
    )


def _lead(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    ends = found["lead"].values()
    if any(end["low"] is None for end in ends):  # the reading says so
        return Judgement(passed=None, measured=found["lead"])
    ahead, behind = any(end["low"] > 0 for end in ends), any(end["high"] < 0 for end in ends)
    return Judgement(passed=ahead and not behind, measured=found["lead"], threshold=0)


def _conditions(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    if found["low"] is None:
        note = "With one region no interval can be drawn."
        return Judgement(passed=None, measured=found["value"], note=note)
    allowed = limits.psf_depth_upper
    passed = found["value"] <= allowed or found["low"] <= 0.5
    return Judgement(passed=passed, measured=found["value"], threshold=allowed)


def _permuted(found: Mapping[str, Any], limits: ProbeThresholds) -> Judgement:
    error = found["sd"] / math.sqrt(found["permutations"])
    far, allowed = abs(found["value"] - 0.5), STANDARD_ERRORS * error
    return Judgement(passed=far <= allowed, measured=far, threshold=allowed)


_JUDGES: Final[dict[str, Callable[[Mapping[str, Any], ProbeThresholds], Judgement]]] = {
    "baseline": _lead,
    "core_mask": _core_mask,
    "annulus_only": _annulus,
    "psf_depth_only": _conditions,
    "arc_removal": _arc_removal,
    "null_injection": _null,
    "flux_matched_null": _flux,
    "ring_probe": _rings,
    "permuted_labels": _permuted,
    "attribution": _attribution,
}

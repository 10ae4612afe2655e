"""Rules of the probes: what passes, what fails, what does not tell."""

import pytest

from lenstrain.probes.judge import RULES, ProbeThresholds, judge, rule
from lenstrain.probes.probe import judged, marked
from lenstrain.probes.words import FIGURES, TITLES, readings, stamps

LIMITS = ProbeThresholds()


def lead(auroc, tpr):
    ends = ({"low": low, "high": low + 0.1} for low in (auroc, tpr))
    return {"lead": dict(zip(("auroc", "tpr"), ends, strict=True))}


def shuffled(value):
    return {
        "value": value,
        "low": value - 0.01,
        "high": value + 0.01,
        "sd": 0.02,
        "permutations": 4,
    }


def maps(occlusion, gradcam, alike):
    return {
        "occlusion_mass_over_area": occlusion,
        "gradcam_mass_over_area": gradcam,
        "randomised_correlation": alike,
    }


@pytest.mark.parametrize(
    ("name", "found", "passed"),
    [
        ("baseline", lead(0.01, -0.05), True),
        ("baseline", lead(-0.05, -0.05), False),
        ("baseline", lead(0.01, -0.2), False),
        ("psf_depth_only", {"value": 0.54, "low": 0.52}, True),
        ("psf_depth_only", {"value": 0.6, "low": 0.49}, True),
        ("psf_depth_only", {"value": 0.6, "low": 0.52}, False),
        ("psf_depth_only", {"value": 0.6, "low": None}, None),
        ("permuted_labels", shuffled(0.529), True),
        ("permuted_labels", shuffled(0.469), False),
        ("attribution", {"occlusion_mass_over_area": None, "gradcam_mass_over_area": None}, None),
        ("attribution", maps(2.0, 0.5, 0.7), False),
        ("attribution", maps(2.0, 0.5, 0.71), True),  # Grad-CAM of a random network does not count
        ("attribution", maps(0.5, 2.0, 0.71), False),
    ],
)
def test_what_the_rules_say(name, found, passed):
    assert judge(name, found, LIMITS).passed is passed


def test_rules_are_said_with_the_thresholds_they_judge_by():
    strict = ProbeThresholds(bright_drop=0.625, annulus_distance=0.05)
    text = rule("annulus_only", strict)
    assert "at least 62.5% of their mean score" in text
    assert "more than 0.05 from 0.5" in text
    found = {"bright_drop": 0.6, "n_bright": 30, "auroc": {"low": None}}
    assert (judge("core_mask", found, LIMITS).passed, judge("core_mask", found, strict).passed) == (
        True, False
    )  # fmt: skip
    assert {*RULES} < {*TITLES}
    assert {*FIGURES} < {*TITLES}
    assert rule("core_view", LIMITS) == ""


def test_what_passes_and_is_odd_is_said():
    masked = {"bright_drop": 0.8, "n_bright": 30, "auroc": {"low": 0.54, "high": 0.6}}
    found = judge("core_mask", masked, LIMITS)
    assert found.passed
    assert "lies beyond the core" in found.note
    assert judge("core_mask", masked | {"auroc": {"low": 0.48, "high": 0.6}}, LIMITS).note == ""
    sky = {radius: {"mean_score": 0.6, "low": low} for radius, low in (("1", 0.51), ("1.5", 0.6))}
    rings = {"sky": sky, "non_lens": {}, "blank": {"mean_score": 0.0}}
    found = judge("ring_probe", rings, LIMITS)
    assert found.passed
    assert "Most rings of 1 and 1.5″ pass on bare sky" in found.note
    sky["1"]["low"] = sky["1.5"]["low"] = 0.4
    assert judge("ring_probe", rings, LIMITS).note == ""


def test_training_with_counterfactuals_explains_a_network_behind_light_profiles():
    area = {"value": 0.9, "low": 0.88, "high": 0.92}
    both = {"auroc": area, "tpr": area}
    entry = {"candidates": {"a": both | {"title": "A"}}, "best": "a", "network": both,
             "lead": both, "fpr": 0.01, "rows": 9}  # fmt: skip
    content = {"probes": {"baseline": entry}, "sample": {}}
    assert "counterfactuals" not in readings(content)["baseline"]
    told = readings(content | {"counterfactual_share": 0.9})["baseline"]
    assert "trained with counterfactuals" in told


def test_what_was_not_run_is_neither_passed_nor_failed():
    changed = {"n": 3, "pixels_changed": 2, "max_abs_delta_logit": 0.5}
    probes = {"core_mask": None, "baseline": {"reason": "one class."}, "core_only": None,
              "null_injection": changed}  # fmt: skip
    content = {"probes": probes, "judged": judged(probes), "sample": {}}
    marks = {name: marked(content, name) for name in probes}
    assert marks == {"core_mask": "not run", "baseline": "not run", "core_only": "not run",
                     "null_injection": "FAILED"}  # fmt: skip
    assert stamps(content, "null_injection") == 3
    assert readings(content)["null_injection"] == (
        "2 pixels of 3 stamps changed, and logits by up to 0.5."
    )

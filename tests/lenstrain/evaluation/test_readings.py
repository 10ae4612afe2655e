"""Sentences say what the numbers say, and hardly ever what chance says."""

from math import erfc

import numpy as np
import pytest

from lenstrain.evaluation.completeness import AxisBins, Lenses, count_cells
from lenstrain.evaluation.intervals import wilson
from lenstrain.evaluation.operating import CompletenessTable, FrozenThreshold
from lenstrain.evaluation.readings import (
    Bins,
    Reading,
    contrast,
    difference,
    read_figures,
    stated,
    trend,
)


def bins(hits, trials, level=0.95):
    hits, trials = np.asarray(hits), np.broadcast_to(trials, np.shape(hits))
    low, high = wilson(hits, trials, level)
    return Bins.of(hits / trials, low, high, level, [str(n) for n in range(hits.size)])


@pytest.mark.parametrize(
    ("hits", "sign"), [((20, 40, 60, 80), 1), ((80, 60, 40, 20), -1), ((0, 0, 4, 30), 1)]
)
def test_a_trend_has_the_sign_of_the_slope(hits, sign):
    slope, p = trend(bins(hits, 100))
    assert np.sign(slope) == sign
    assert p < 1e-4


def test_what_is_the_same_in_every_bin_is_no_trend_and_no_difference():
    flat = bins((50, 52, 49, 51), 100)
    assert trend(flat)[1] > 0.5
    assert difference(flat) > 0.5


def test_a_difference_without_a_slope_is_seen():
    humped = bins((20, 60, 60, 20), 100)
    assert trend(humped)[1] > 0.9
    assert difference(humped) < 1e-6


def test_a_contrast_takes_the_side_that_could_bring_it_to_zero():
    """Of 0 in 30 against 5 in 30, the upper end of the first and the lower of the second count."""
    pair = bins((0, 5), 30)
    total, p = contrast(pair, [-1, 1])
    error = np.hypot(pair.high[0], pair.value[1] - pair.low[1]) / 1.959964
    assert total == pytest.approx(5 / 30)
    assert p == pytest.approx(erfc(total / error / 2**0.5), rel=1e-6)


def test_bins_without_an_interval_are_left_out():
    found = Bins.of([0.1, np.nan, 0.3], [0.0, np.nan, 0.2], [0.2, np.nan, 0.4], 0.95, "abc")
    assert found.labels == ["a", "c"]
    assert trend(Bins.of([0.1], [0.0], [0.2], 0.95, "a")) == (0.0, 1.0)


def test_holm_keeps_what_holds_together():
    def at(p):
        return Reading("", str(p), "", p)

    assert [r.p for r in stated(map(at, (0.02, 0.01, 0.6)))] == [0.02, 0.01]
    assert [r.p for r in stated(map(at, (0.03, 0.04, 0.6)))] == []
    assert [r.p for r in stated(map(at, (0.03, 0.01, 0.04, 0.02)))] == [0.01]
    assert stated([]) == []


@pytest.mark.parametrize(("share", "trials"), [(0.5, 300), (0.9, 100), (0.01, 500)])
def test_one_page_in_twenty_at_most_is_wrong(share, trials):
    """Pages of seven quantities in four bins, where nothing differs."""
    rng = np.random.default_rng(1)
    pages, wrong = 400, 0
    for _ in range(pages):
        drawn = [bins(rng.binomial(trials, share, 4), trials) for _ in range(7)]
        tests = [Reading("", "", "", p) for b in drawn for p in (trend(b)[1], difference(b))]
        wrong += bool(stated(tests))
    assert wrong / pages <= 0.05 + 3 * (0.05 * 0.95 / pages) ** 0.5


FAR = ((20, 20), 1000)
"""False positives that do not depend on the seeing, and are enough to say nothing of their number.
"""


def entry(value, low, high):
    return {"value": float(value), "low": float(low), "high": float(high)}


def content(
    observed=None, mean=None, fpr=((3, 3), 1000), error=(0.0, 0.2), auroc=((0.8, 0.9),) * 2
):
    """The parts of metrics.json that are read."""
    mean = np.linspace(0.1, 0.9, 5) if mean is None else np.asarray(mean)
    hits = np.rint(400 * (mean if observed is None else np.asarray(observed)))
    low, high = wilson(hits, 400)
    reliability = {"n": [400.0] * 5, "mean_probability": mean.tolist(),
                   "observed": (hits / 400).tolist(), "low": low.tolist(),
                   "high": high.tolist()}  # fmt: skip
    strata = []
    for label, k, area in zip(("0.9–1.2", "1.2–1.6"), fpr[0], auroc, strict=True):
        ends = wilson(k, fpr[1])
        rate = entry(k / fpr[1], *ends) | {"k": k}
        strata.append({"label": label, "fpr": rate, "auroc": entry(np.mean(area), *area)})
    return {
        "level": 0.95,
        "completeness_thresholds": [{"name": "FPR 0.01", "threshold": 0.0}],
        "strata": {"psfsize_r": strata},
        "calibrated": None,
        "reliability": reliability,
        "ece": {"debiased": {"low": error[0], "high": error[1]}},
    }


def texts(*given, **named):
    return [reading.text for reading in read_figures(*given, **named)]


def completeness(shares, each=400):
    """Completeness by Einstein radius, of lenses that are found in these shares."""
    theta = np.repeat([0.5, 1.0, 1.5], each)
    found = np.tile(np.arange(each) / each, 3) < np.repeat(shares, each)
    ones, region = np.ones(theta.size, np.int64), np.arange(theta.size) % 40
    lenses = Lenses(found, region, ones, 0.0, ones == 0, ones == 1)
    axis = AxisBins("theta_e_arcsec", np.array([0.25, 0.75, 1.25, 1.75]), np.array([0.5, 1.0, 1.5]))
    cut = FrozenThreshold(name="FPR 0.01", kind="given", threshold=0.0)
    return [CompletenessTable(cut, count_cells([axis], [theta], lenses))]


def test_completeness_is_said_to_rise_or_fall_or_to_be_flat_or_nothing():
    calm = content(fpr=FAR)
    assert texts(calm, completeness((0.1, 0.3, 0.6))) == [
        "Completeness rises with the Einstein radius: from 10.0% at 0.5″ to 60.0% at 1.5″."
    ]
    (text,) = texts(calm, completeness((0.6, 0.3, 0.1)))
    assert text.startswith("Completeness falls with the Einstein radius: from 60.0%")
    (text,) = texts(calm, completeness((0.3, 0.6, 0.3)))
    assert "differs with the Einstein radius, without a trend: 30.0% at 0.5″, 60.0% at" in text
    (text,) = texts(calm, completeness((0.97, 0.96, 0.97)))
    assert text.startswith("Completeness is flat in the Einstein radius: between 9")
    # As like each other, but of too few lenses to say so.
    assert texts(calm, completeness((0.97, 0.96, 0.97), each=60)) == []


def test_poor_seeing_is_named_where_it_brings_false_positives():
    (text,) = texts(content(fpr=((5, 60), 1000)), [])
    assert text == (
        "The false-positive rate rises with poorer seeing (PSF FWHM): from 0.50% at 0.9–1.2″ to "
        "6.00% at 1.2–1.6″."
    )
    assert texts(content(fpr=((30, 31), 1000)), []) == []


def test_seeing_that_changes_how_well_scores_rank_is_named():
    (text,) = texts(content(fpr=FAR, auroc=((0.84, 0.88), (0.92, 0.96))), [])
    assert (
        text
        == "AUROC rises with poorer seeing (PSF FWHM): from 0.860 at 0.9–1.2″ to 0.940 at 1.2–1.6″."
    )
    # An interval that is a point, or none, says nothing of how sure a figure is.
    assert texts(content(fpr=FAR, auroc=((0.84, 0.88), (1.0, 1.0))), []) == []
    unknown = content(fpr=FAR)
    unknown["strata"]["psfsize_r"][1]["auroc"] = dict.fromkeys(("value", "low", "high"))
    assert texts(unknown, []) == []


def made(passing=(0.3, 0.25, 0.35), lensed=(0.5, 0.45, 0.55), upper=0.01):
    """Counterfactuals of which one kind passes, and whose donors pass at 50%."""
    rate = entry(*passing)
    kinds = {
        "unlensed": {"pass_rate": entry(0.004, 0.001, 0.01), "factor": 0.4},
        "scattered": {"pass_rate": rate, "factor": rate["value"] / upper if upper else None},
        "lensed": {"pass_rate": entry(*lensed), "donors": entry(0.5, 0.45, 0.55),
                   "lenses_alike": None},
    }  # fmt: skip
    pairs = {"words": "Where it tells."}
    return {"name": "FPR 0.01", "fpr_upper": upper, "kinds": kinds, "pairs": pairs}


def test_light_that_passes_as_a_lens_is_named_after_where_it_is_told():
    calm = content(fpr=FAR)
    assert texts(calm | {"counterfactuals": made()}, []) == [
        "Where it tells.",
        "Of scattered light without a lens, 30.0% is flagged at the threshold for FPR 1%, 30 times "
        "the upper limit of the false-positive rate (1%): it is taken for a lens.",
    ]
    # Below twice the limit, or not surely above it, or without a limit.
    for other in (made((0.015, 0.0149, 0.0151)), made((0.05, 0.015, 0.2)), made(upper=0.0)):
        assert texts(calm | {"counterfactuals": other}, []) == ["Where it tells."]


def test_arcs_that_are_not_found_as_often_as_those_of_the_lenses_are_named():
    other = content(fpr=FAR) | {"counterfactuals": made((0, 0, 0.01), (0.3, 0.25, 0.35))}
    assert texts(other, [])[1].startswith(
        "Counterfactuals with a lensed arc are flagged less often than the donors of their arcs "
        "(30.0% against 50.0%): they are not drawn alike"
    )


def test_few_false_positives_are_said_to_be_few():
    (text,) = texts(content(fpr=((2, 0), 1000)), [])
    assert text.startswith("2 flagged non-lenses are too few")


@pytest.mark.parametrize(
    ("mean", "word"),
    [
        ((0.02, 0.1, 0.5, 0.9, 0.98), "overconfident"),
        ((0.35, 0.42, 0.5, 0.58, 0.65), "underconfident"),
        ((0.2, 0.4, 0.6, 0.8, 0.98), "too high"),
    ],
)
def test_probabilities_off_the_diagonal_are_named(mean, word):
    observed = (0.1, 0.3, 0.5, 0.7, 0.88)
    (text,) = texts(content(observed, mean, fpr=FAR), [])
    assert word in text


def test_calibrated_is_said_only_of_a_small_error_that_is_known():
    assert texts(content(fpr=FAR, error=(0.0, 0.02)), []) == [
        "Probabilities are calibrated to within 2.0% (95% limit of the root mean square error)."
    ]
    assert texts(content(fpr=FAR, error=(0.0, 0.05)), []) == []
    assert texts(content(fpr=FAR, error=(None, None)), []) == []


def test_one_region_that_has_most_false_positives_is_named():
    region = np.repeat(np.arange(20), 50)
    flagged = np.zeros(1000, bool)
    flagged[350:365] = True  # in region 7
    flagged[::200] = True
    (text,) = texts(content(fpr=FAR), [], region=region, flagged=flagged)
    assert text == (
        "One region dominates the false positives: 15 of 20 flagged non-lenses lie in region 7, "
        "which has 5.0% of the non-lenses."
    )
    spread = np.zeros(1000, bool)
    spread[::50] = True
    assert texts(content(fpr=FAR), [], region=region, flagged=spread) == []

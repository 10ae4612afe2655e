"""Entries of rates and precision: what the data carry is stated, and what they do not is not."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.rate_table import measure_rates, precision_entry, supports_of
from lenstrain.evaluation.scores import read_scores
from lenstrain.evaluation.threshold import negatives_needed
from tests.scoretables import BARE

OPTIONS = EvaluationOptions(fprs=(0.1, 1e-2, 1e-3), prevalence=(0.1, 1e-3))


@pytest.fixture
def scores_of(write_scores):
    """Scores of given numbers of both classes, by default each row in a region of its own."""

    def read(n0, n1, regions=None, shift=2.0, seed=0, **columns):
        rng = np.random.default_rng(seed)
        n = n0 + n1
        label = np.repeat([0, 1], [n0, n1])
        table = {
            "label": label.astype(np.int8),
            "logit": rng.normal(shift * label),
            "region_id": np.arange(n) % (regions or n),
        }
        return read_scores(write_scores(rows=n, **(BARE | table | columns)))

    return read


@pytest.mark.parametrize(("n0", "supported"), [(298, False), (299, True)])
def test_independent_non_lenses_support_a_rate_from_a_number_on(scores_of, n0, supported):
    support = supports_of(scores_of(n0, 50), [1e-2], 0.05)[0]
    assert negatives_needed(1e-2) == 299
    assert support == {
        "supported": supported,
        "negatives_needed": 299,
        "negatives_unique": n0,
        "negatives_effective": pytest.approx(n0),
    }


def test_repeated_images_support_what_they_would_once(scores_of):
    hashes = [f"{row // 4:x}" for row in range(1200)]
    region = np.arange(1200) // 4
    logit = np.random.default_rng(0).normal(size=300).repeat(4)
    scores = scores_of(
        800, 400, pixel_hash=hashes, region_id=region, logit=logit, key=[*map(str, range(1200))]
    )
    support = supports_of(scores, [0.1], 0.05)[0]
    assert (support["negatives_unique"], support["negatives_effective"]) == (200, 200)


def test_a_rate_without_support_has_a_reason_and_an_upper_end(scores_of):
    scores = scores_of(400, 100)
    rates = measure_rates(scores, OPTIONS)[0]["tpr_at_fpr"]
    assert [entry["supported"] for entry in rates.values()] == [True, True, False]
    unknown = rates["0.001"]
    assert (unknown["value"], unknown["low"], unknown["high"]) == (None, None, None)
    assert unknown["reason"] == "needs 2,995 independent non-lenses, there are 400 distinct"
    assert unknown["at_most"] == rates["0.01"]["high"]
    assert unknown["purity"]["0.001"]["value"] is None
    assert "at_most" not in rates["0.01"]


def test_where_no_rate_has_support_nothing_is_an_upper_end(scores_of):
    rates = measure_rates(scores_of(20, 20), OPTIONS)[0]["tpr_at_fpr"]
    assert {entry["at_most"] for entry in rates.values()} == {None}


def test_regions_in_common_are_said_to_be_worth_less(scores_of):
    rng = np.random.default_rng(3)
    region = np.arange(700) % 20
    logit = rng.normal(size=700) + 2 * rng.normal(size=20)[region]
    rates = measure_rates(scores_of(500, 200, 20, logit=logit), OPTIONS)[0]["tpr_at_fpr"]
    entry = rates["0.01"]
    assert not entry["supported"]
    assert entry["negatives_effective"] < 200
    assert f"worth {entry['negatives_effective']:,.0f} independent ones" in entry["reason"]


def test_one_region_supports_nothing(scores_of):
    entry = measure_rates(scores_of(5000, 100, 1), OPTIONS)[0]["tpr_at_fpr"]["0.1"]
    assert (entry["value"], entry["supported"]) == (None, False)
    assert entry["reason"] == "all non-lenses lie in one region"


def test_a_rate_is_the_share_of_lenses_above_the_highest_non_lenses(scores_of):
    scores = scores_of(1000, 300)
    entry = measure_rates(scores, OPTIONS)[0]["tpr_at_fpr"]["0.01"]
    negative = np.sort(scores.logits[scores.labels == 0])[::-1]
    lenses = scores.logits[scores.labels == 1]
    assert entry["threshold"] == negative[10]
    assert (entry["k"], entry["n"]) == ((lenses > negative[10]).sum(), 300)
    assert entry["value"] == entry["k"] / 300
    assert (entry["fp"], entry["fpr"]) == (10, 0.01)
    assert entry["low"] < entry["wilson_low"] < entry["value"]  # the threshold is not known either
    purity = entry["purity"]["0.1"]
    flagged = 0.1 * entry["value"] + 0.9 * 0.01
    assert purity["value"] == pytest.approx(0.1 * entry["value"] / flagged)
    assert purity["at_least"] < purity["low"] < purity["value"] < purity["high"]


def test_counts_of_a_sample_have_an_interval_where_their_rate_does(scores_of):
    scores = scores_of(1000, 300)
    entries, _ = measure_rates(scores, OPTIONS)
    assert (entries["tpr0"]["low"], entries["tpr0"]["high"]) == (None, None)
    negative = scores.logits[scores.labels == 0]
    lenses = scores.logits[scores.labels == 1]
    assert entries["tpr0"]["value"] == (lenses > negative.max()).mean()
    ten, rate = entries["tpr10"], entries["tpr_at_fpr"]["0.01"]  # ten of a thousand
    assert (ten["value"], ten["low"], ten["high"]) == (rate["value"], rate["low"], rate["high"])
    few = measure_rates(scores_of(9, 30), OPTIONS)[0]["tpr10"]
    assert (few["value"], few["low"]) == (1.0, None)


def test_the_band_begins_where_support_does(scores_of):
    _, band = measure_rates(scores_of(400, 100), OPTIONS)
    least = -math.expm1(math.log(0.05) / 400)  # the rate that 400 can certify
    assert least <= band.fpr[0] < least * 1.2
    assert band.fpr[-1] == pytest.approx(1.0)
    for values in (band.tpr, band.low, band.high, *(p.at_least for p in band.purity.values())):
        assert values.shape == band.fpr.shape
    assert np.all(np.diff(band.tpr) >= 0)


ENTRY = {"value": 0.5, "low": 0.4, "high": 0.6, "level": 0.95}


def test_precision_at_a_rare_prevalence_needs_non_lenses(scores_of):
    scores = scores_of(400, 100)
    common = precision_entry(ENTRY, scores, 0.1, 0.05)
    assert {name: common[name] for name in ENTRY} == ENTRY
    rare = precision_entry(ENTRY, scores, 1e-3, 0.05)
    assert (rare["value"], rare["low"], rare["high"], rare["supported"]) == (
        None,
        None,
        None,
        False,
    )
    assert rare["reason"].startswith("rests on a false-positive rate of 0.01%, which needs 29,956")


def test_precision_is_at_least_what_the_highest_non_lens_leaves(scores_of):
    scores = scores_of(400, 100)
    lenses = scores.logits[scores.labels == 1]
    k = int((lenses > scores.logits[scores.labels == 0].max()).sum())
    fpr = stats.beta.ppf(0.975, 1, 400)
    recall = stats.beta.ppf(0.025, k, 101 - k)
    expected, _ = integrate.quad(lambda r: 1e-3 * r / (1e-3 * r + 0.999 * fpr), 0, recall)
    assert precision_entry(ENTRY, scores, 1e-3, 0.05)["at_least"] == pytest.approx(expected)


def test_one_region_leaves_no_lower_limit(scores_of):
    assert precision_entry(ENTRY, scores_of(400, 100, 1), 1e-3, 0.05)["at_least"] is None

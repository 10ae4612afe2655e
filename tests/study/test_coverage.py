"""The short form of the study of coverage, and that it would notice what does not hold."""

import numpy as np
import pytest
from scipy import stats

from lenstrain.evaluation.metrics import auroc
from tests.study import coverage
from tests.study.population import MEANS, Population, Setting, draw


def test_drawn_scores_are_of_the_stated_population():
    setting = Setting(200, 0.1, negatives=20_000, positives=20_000)
    population = Population(setting)
    scores = draw(population, np.random.default_rng(0))
    lenses = 0.1 / (1 + np.var(MEANS))  # their kinds scatter too
    assert scores.correlations == pytest.approx((0.1, lenses), abs=0.03)
    assert auroc(scores.curve) == pytest.approx(auroc(population.curve), abs=0.01)
    cut = 1.0
    for label, rate in ((0, population.fpr(cut)), (1, population.tpr(cut))):
        seen = (scores.logits[scores.labels == label] > cut).mean()
        assert seen == pytest.approx(rate, abs=0.02)


def test_a_narrow_interval_and_a_rash_promise_are_noticed():
    assert coverage._inside("x", {"low": 0.1, "high": 0.2}, 0.3) == ("x", "interval", False)
    assert coverage._inside("x", {"low": None, "high": None}, 0.3) == ("x", "interval", None)
    found = {coverage.SHORT[0]: {("x", "interval"): [40, 100, 0], ("y", "promise"): [70, 100, 0]}}
    assert "| x | n/a | 40 (40) |" in coverage.report(found, 100)
    assert "| y | n/a | 30.0 (30.0) |" in coverage.report(found, 100)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_intervals_and_promises_hold():
    """Coverage is not below 90 %, nor failures above 5 %, as far as so few draws can tell."""
    draws = 60
    found = coverage.run(coverage.SHORT, draws, 2)
    for setting, counts in found.items():
        for (name, kind), (held, made, _) in counts.items():
            stated = 0.95 if kind == "promise" else 0.9
            # One of some 80 figures may be that unlucky in a thousand runs.
            luck = stats.binom.cdf(held, made, stated)
            assert luck > 1e-5, f"{setting.name}: {name} held {held} of {made} times"

"""Rates at rates, partial areas and purity: against loops, hand-made variances and numbers."""

import math

import numpy as np
import pytest
from scipy import special, stats

from lenstrain.evaluation.clustered import Shares
from lenstrain.evaluation.metrics import partial_auroc, roc_curve, tpr_at_fpr
from lenstrain.evaluation.rates import partial_area_interval, purities, tpr_intervals


def above(scores, region, thresholds, correlation=0.0):
    """Shares above each threshold, counted one by one; no image is repeated."""
    regions = region.max() + 1
    hits = [
        np.bincount(region[scores > cut], minlength=regions).astype(float) for cut in thresholds
    ]
    rows = np.tile(np.bincount(region, minlength=regions).astype(float), (len(hits), 1))
    return Shares(np.array(hits), rows, np.full(len(hits), float(scores.size)), correlation)


class Sample:
    """Scores of both classes, and their shares above the thresholds of some rates."""

    def __init__(self, negative, positive, regions=None, correlation=0.0):
        self.scores = [np.asarray(negative, float), np.asarray(positive, float)]
        n0, n1 = (scores.size for scores in self.scores)
        self.labels = np.repeat([0, 1], [n0, n1])
        region = np.arange(n0 + n1) if regions is None else np.arange(n0 + n1) % regions
        self.region = [region[:n0], region[n0:]]
        self.curve = roc_curve(self.labels, np.concatenate(self.scores))
        self.correlation = correlation

    def shares(self, fprs):
        cuts = [tpr_at_fpr(self.curve, fpr).threshold for fpr in fprs]
        size = 1 + max(region.max() for region in self.region)
        found = []
        for scores, region in zip(self.scores, self.region, strict=True):
            padded = above(
                np.append(scores, -np.inf), np.append(region, size - 1), cuts, self.correlation
            )
            rows = padded.rows.copy()
            rows[:, size - 1] -= 1  # the row that was added for the number of regions
            found.append(Shares(padded.hits, rows, padded.repeats - 1, self.correlation))
        return found

    def intervals(self, fprs, level=0.95):
        fprs = np.asarray(fprs)
        return tpr_intervals(*self.shares(fprs), self.curve, fprs, level)


def normal_sample(n0, n1, regions=None, seed=0, shift=2.0):
    rng = np.random.default_rng(seed)
    return Sample(rng.normal(size=n0), rng.normal(shift, 1, n1), regions)


@pytest.mark.parametrize("fpr", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("level", [0.68, 0.95])
def test_an_interval_of_independent_rows_joins_that_of_the_share_and_of_the_threshold(fpr, level):
    sample = normal_sample(120, 80)
    negative, positive = sample.scores
    tail = (1 - level) / 2
    counts = np.arange(121)
    cumulative = np.array([stats.binom.cdf(k, 120, fpr) for k in counts])
    fewest = counts[cumulative >= tail][0]
    most = counts[cumulative >= 1 - tail][0]
    ranked = np.sort(negative)[::-1]
    # Any threshold with so many negatives above it flags so many lenses, or more, and no more.
    least = np.mean(positive >= ranked[fewest - 1]) if fewest else 0.0
    largest = np.mean(positive > ranked[most])
    tpr = np.mean(positive > ranked[math.floor(fpr * 120 + 1e-9)])
    wilson = stats.binomtest(round(tpr * 80), 80).proportion_ci(level, "wilson")
    edge = 0.5 / 80

    def distance(share, rate):
        own = special.logit(np.clip(share, edge, 1 - edge)) - special.logit(tpr)
        threshold = special.logit(np.clip(rate, edge, 1 - edge)) - special.logit(tpr)
        return math.hypot(own, threshold)

    found = sample.intervals([fpr], level)
    assert found.low[0] == pytest.approx(
        special.expit(special.logit(tpr) - distance(wilson.low, least))
    )
    assert found.high[0] == pytest.approx(
        special.expit(special.logit(tpr) + distance(wilson.high, largest))
    )


FPRS = np.array([0.01, 0.03, 0.1, 0.3, 0.7])


@pytest.mark.parametrize("regions", [None, 2, 3, 12])
@pytest.mark.parametrize("shift", [0.0, 2.0, 50.0, -50.0])
def test_an_interval_holds_its_value_and_widens_with_its_level(regions, shift):
    sample = normal_sample(300, 40, regions, shift=shift)
    value = sample.shares(FPRS)[1].value
    narrow, wide = (sample.intervals(FPRS, level) for level in (0.8, 0.95))
    for found in (narrow, wide):
        assert np.all((found.low >= 0) & (found.low <= value))
        assert np.all((found.high <= 1) & (found.high >= value))
    assert np.all(wide.low <= narrow.low + 1e-12)
    assert np.all(wide.high >= narrow.high - 1e-12)


def test_the_lower_end_is_zero_where_no_negative_may_lie_above():
    sample = normal_sample(367, 200, shift=3.0)
    assert 0.99**367 > 0.025 > 0.99**368
    assert sample.intervals([0.01]).low[0] == 0.0
    assert normal_sample(368, 200, shift=3.0).intervals([0.01]).low[0] > 0.0


def test_both_ends_hold_where_few_negatives_lie_above():
    rng = np.random.default_rng(5)
    truth = stats.norm.sf(stats.norm.isf(0.01) - 2)
    trials = 400
    found = [
        Sample(rng.normal(size=400), rng.normal(2, 1, 2000)).intervals([0.01])
        for _ in range(trials)
    ]
    allowed = stats.binom.ppf(0.999, trials, 0.025)
    assert sum(ends.low[0] > truth for ends in found) <= allowed
    assert sum(ends.high[0] < truth for ends in found) <= allowed


def in_one_region():
    """Non-lenses of forty regions, all lenses in the first of them."""
    false, rows = np.full((1, 40), 2.0), np.full((1, 40), 50.0)
    true, lenses = np.zeros((1, 40)), np.zeros((1, 40))
    true[0, 0], lenses[0, 0] = 60.0, 100.0
    return Shares(false, rows, np.array([2000.0])), Shares(true, lenses, np.array([100.0]))


def test_lenses_of_one_region_have_no_interval():
    negative, positive = in_one_region()
    purity = purities(negative, positive, 0.01, 0.95)
    assert np.isnan([purity.low[0], purity.high[0], purity.at_least[0]]).all()
    curve = normal_sample(2000, 100).curve
    rates = tpr_intervals(negative, positive, curve, np.array([1e-3]), 0.95)
    assert np.isnan([rates.low[0], rates.high[0]]).all()


def test_lenses_of_two_regions_know_little_of_purity():
    negative, positive = in_one_region()
    positive.hits[0, :2], positive.rows[0, :2] = (45.0, 5.0), 50.0
    purity = purities(negative, positive, 0.01, 0.95)
    tpr_low, tpr_high = (ends[0] for ends in positive.interval(0.95))
    assert tpr_low < 0.01  # a purity cannot be known better than the rate in it
    assert tpr_high > 0.99
    assert purity.low[0] < 0.01 * 0.05 / (0.01 * 0.05 + 0.99 * 0.04)


def test_errors_of_both_classes_that_go_together_cancel():
    """Regions that shift both classes alike move the threshold with the lenses."""
    rng = np.random.default_rng(4)
    offset = rng.normal(0, 0.7, 30)
    both = [rng.normal(shift, 1, 900) + np.tile(offset, 30) for shift in (0.0, 1.5)]
    together = Sample(*both, regions=30)
    apart = Sample(*both, regions=30)
    apart.region[1] = (apart.region[1] + 7) % 30
    for sample in (together, apart):
        sample.correlation = 0.3
    one, other = (sample.intervals([0.1]) for sample in (together, apart))
    assert one.high[0] - one.low[0] < 0.9 * (other.high[0] - other.low[0])


def test_one_region_has_no_interval():
    sample = normal_sample(50, 50, regions=1)
    found = sample.intervals([0.1, 0.3])
    for ends in (found.low, found.high):
        assert np.isnan(ends).all()
    assert np.isnan(partial_area_interval(*sample.shares([0.05]), sample.curve, 0.1, 0.95)).all()


def test_many_rates_at_once_are_those_one_by_one():
    sample = normal_sample(500, 100, 25)
    together = sample.intervals(FPRS)
    for index, fpr in enumerate(FPRS):
        one = sample.intervals([fpr])
        for name in ("low", "high"):
            assert getattr(together, name)[index] == pytest.approx(getattr(one, name)[0])


@pytest.mark.parametrize("shift", [0.0, 2.0, 50.0, -50.0])
@pytest.mark.parametrize("max_fpr", [0.05, 0.5])
def test_a_partial_area_lies_within_its_interval(shift, max_fpr):
    sample = normal_sample(300, 60, 15, shift=shift)
    value = partial_auroc(sample.curve, max_fpr, standardize=False) / max_fpr
    ends = [
        partial_area_interval(*sample.shares([max_fpr / 2]), sample.curve, max_fpr, level)
        for level in (0.8, 0.95)
    ]
    (low, high), (lower, higher) = ends
    assert 0 <= lower <= low <= value + 1e-12
    assert value - 1e-12 <= high <= higher <= 1


# -- Purity ----------------------------------------------------------------------------------------

FALSE, TRUE = np.array([[3.0, 5, 4, 2]]), np.array([[40.0, 30, 35, 45]])
ROWS = np.array([[1000.0, 1100, 900, 1000]])
LENSES = np.array([[50.0, 50, 50, 50]])


def purity_of(false=FALSE, true=TRUE, prevalence=1e-3, level=0.95, dex=0.0):
    negative = Shares(false, ROWS, ROWS.sum(axis=1))
    positive = Shares(true, LENSES, LENSES.sum(axis=1))
    return purities(negative, positive, prevalence, level, dex)


def test_purity_is_the_share_of_lenses_among_what_is_flagged():
    lenses, others = 1e-3 * 150 / 200, 0.999 * 14 / 4000
    assert purity_of().value == pytest.approx([lenses / (lenses + others)])


@pytest.mark.parametrize("dex", [0.0, 0.3])
def test_the_interval_of_purity_is_that_of_its_log_odds_by_region(dex):
    tpr, fpr = 150 / 200, 14 / 4000
    errors = [
        (TRUE[0, g] - tpr * LENSES[0, g]) / (200 * tpr)
        - (FALSE[0, g] - fpr * ROWS[0, g]) / (4000 * fpr)
        for g in range(4)
    ]
    # Of unequal regions as of four equal ones: their rows differ by a tenth only.
    variance = sum(error**2 for error in errors) * 4 / 3 + (dex * math.log(10)) ** 2
    half = stats.t.isf(0.025, 3) * math.sqrt(variance)
    centre = math.log(1e-3 / 0.999 * tpr / fpr)
    found = purity_of(dex=dex)
    assert special.logit(found.low[0]) == pytest.approx(centre - half, abs=0.03)
    assert special.logit(found.high[0]) == pytest.approx(centre + half, abs=0.03)


def test_a_prevalence_that_is_not_known_widens_and_lowers_purity():
    known, doubtful = purity_of(), purity_of(dex=0.3)
    assert doubtful.value == known.value
    assert doubtful.low < known.low
    assert doubtful.high > known.high
    assert doubtful.at_least < known.at_least


def test_purity_is_at_least_what_both_limits_leave():
    """Rows in regions of their own: limits of Clopper and Pearson, each at 97.5 %."""
    kind = np.repeat([0, 1, 2, 3], [3, 497, 80, 20])  # of the one row of each region
    false, rows, true, lenses = (
        np.isin(kind, kinds).astype(float)[None] for kinds in ([0], [0, 1], [2], [2, 3])
    )
    found = purities(
        Shares(false, rows, rows.sum(axis=1)), Shares(true, lenses, lenses.sum(axis=1)), 0.01, 0.95
    )
    fpr = stats.beta.ppf(0.975, 4, 497)
    tpr = stats.beta.ppf(0.025, 80, 21)
    assert found.at_least == pytest.approx([0.01 * tpr / (0.01 * tpr + 0.99 * fpr)])
    assert np.isnan(found.low[0])  # three false ones are too few
    assert found.value == pytest.approx([0.01 * 0.8 / (0.01 * 0.8 + 0.99 * 3 / 500)])


def test_few_flagged_images_have_a_lower_limit_alone():
    none = purity_of(false=np.zeros((1, 4)))
    assert np.isnan([none.value[0], none.low[0], none.high[0]]).all()
    assert 0 < none.at_least[0] < 1
    nine = purity_of(false=np.array([[3.0, 2, 2, 2]]))
    assert np.isnan(nine.low[0])
    assert nine.at_least[0] < nine.value[0]
    repeated = purities(
        Shares(FALSE, ROWS, 2 * ROWS.sum(axis=1)),  # each image twice: seven are flagged
        Shares(TRUE, LENSES, LENSES.sum(axis=1)),
        1e-3,
        0.95,
    )
    assert np.isnan(repeated.low[0])


def test_no_lens_above_the_threshold_is_a_purity_of_none():
    found = purity_of(true=np.zeros((1, 4)))
    assert (found.value[0], found.at_least[0]) == (0.0, 0.0)


def test_the_lower_limit_lies_below_the_value():
    rng = np.random.default_rng(6)
    for _ in range(50):
        false = rng.binomial(1000, rng.uniform(0, 0.05), (1, 4)).astype(float)
        true = rng.binomial(50, rng.uniform(0, 1), (1, 4)).astype(float)
        found = purity_of(false, true, prevalence=rng.uniform(1e-4, 0.5), dex=rng.uniform(0, 0.5))
        if false.any():
            assert found.at_least[0] <= found.value[0] + 1e-12
        if not np.isnan(found.low[0]):
            assert found.low[0] <= found.value[0] <= found.high[0]

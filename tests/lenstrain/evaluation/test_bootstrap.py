"""The bootstrap over regions against brute force: rows written out as often as they are drawn."""

import time
from itertools import product

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation import metrics

REGIONS = 7


def sample(seed=0, n=260, levels=4.0):
    """Rows with many ties; region 5 has no positive and region 6 no negative."""
    rng = np.random.default_rng(seed)
    region = rng.integers(0, REGIONS, n)
    labels = rng.integers(0, 2, n)
    labels[region == 5] = 0
    labels[region == 6] = 1
    scores = np.round(rng.normal(labels + 0.2 * region) * levels) / levels
    return labels, scores, region


@pytest.fixture(scope="module")
def rows():
    return boot.rank_rows(*sample(), REGIONS)


@pytest.fixture(scope="module")
def weights():
    return boot.draw_weights(REGIONS, 40, seed=3)


def written_out(weight, *columns):
    """Repeat every row as often as its region was drawn; the last column is the region."""
    repeats = weight.astype(int)[columns[-1]]
    return [np.repeat(column, repeats) for column in columns]


def test_auroc_by_pairs_of_regions_equals_the_rows_written_out(rows, weights):
    labels, scores, region = sample()
    ours = boot.auroc_draws(rows, weights)
    for weight, value in zip(weights, ours, strict=True):
        y, z, _ = written_out(weight, labels, scores, region)
        assert value == pytest.approx(roc_auc_score(y, z), abs=1e-12)


def test_pair_counts_hold_twice_every_pair(rows):
    n1, n0 = rows.counts(True), rows.counts(False)
    labels, scores, region = sample()
    flipped = boot.pair_counts(boot.rank_rows(labels, -scores, region, REGIONS))
    assert np.array_equal(boot.pair_counts(rows) + flipped, 2 * np.outer(n1, n0))


def test_the_number_of_threads_changes_nothing(rows, weights):
    assert np.array_equal(boot.pair_counts(rows, 1), boot.pair_counts(rows, 3))
    for one, three in zip(
        boot.tpr_at_fprs(rows, weights, (0.1, 0.01), 1),
        boot.tpr_at_fprs(rows, weights, (0.1, 0.01), 3),
        strict=True,
    ):
        assert np.array_equal(one, three)


def test_one_pass_over_the_rows_equals_scikit_learn_on_every_draw(rows, weights):
    labels, scores, region = sample()
    many = boot.draw_weights(REGIONS, 70, seed=3)  # more than one chunk of lanes
    assert np.array_equal(many.sum(axis=1), np.full(70, REGIONS))
    draws = boot.curve_draws(rows, many, 0.13, (None, 0.01))
    for k, weight in enumerate(many):
        y, z, _ = written_out(weight, labels, scores, region)
        curve = metrics.roc_curve(y, z)
        assert draws.auroc[k] == pytest.approx(roc_auc_score(y, z), abs=1e-12)
        assert draws.partial_area[k] == pytest.approx(
            metrics.partial_auroc(curve, 0.13, standardize=False), abs=1e-12
        )
        assert draws.average_precision[0, k] == pytest.approx(
            average_precision_score(y, z), abs=1e-12
        )
        assert draws.average_precision[1, k] == pytest.approx(
            metrics.average_precision(curve, 0.01), abs=1e-12
        )


@pytest.mark.parametrize("levels", [4.0, 1e6])
def test_tpr_at_fpr_equals_the_rows_written_out(weights, levels):
    labels, scores, region = sample(1, levels=levels)
    rows = boot.rank_rows(labels, scores, region, REGIONS)
    fprs = (0.2, 0.001, 0.05)  # in any order
    ours, thresholds = boot.tpr_at_fprs(rows, weights, fprs)
    for k, weight in enumerate(weights):
        y, z, _ = written_out(weight, labels, scores, region)
        curve = metrics.roc_curve(y, z)
        for f, fpr in enumerate(fprs):
            point = metrics.tpr_at_fpr(curve, fpr)
            assert ours[f, k] == pytest.approx(point.tpr, abs=1e-12)
            assert thresholds[f, k] == point.threshold


def test_tpr_at_a_count_of_false_positives(rows):
    labels, scores, _ = sample()
    curve = metrics.roc_curve(labels, scores)
    rates = (0.0, 10 / curve.n_negative)
    ours, _ = boot.tpr_at_fprs(rows, np.ones((1, REGIONS)), rates)
    assert ours[:, 0] == pytest.approx([metrics.tpr_at_fp(curve, k).tpr for k in (0, 10)])


def test_a_draw_without_a_class_is_undefined(rows):
    weights = np.zeros((2, REGIONS))
    weights[0, 5] = weights[1, 6] = REGIONS  # negatives only, positives only
    assert np.isnan(boot.auroc_draws(rows, weights)).all()
    draws = boot.curve_draws(rows, weights, 0.1)
    assert np.isnan(draws.auroc).all()
    assert np.isnan(draws.average_precision[0, 0])
    assert np.isnan(boot.tpr_at_fprs(rows, weights, (0.1,))[0]).all()


def test_exhaustive_draws_of_three_regions_equal_the_worked_vector():
    false_positives, sizes = np.array([0.0, 1.0, 5.0]), np.array([4.0, 4.0, 8.0])
    draws = np.array([np.bincount(d, minlength=3) for d in product(range(3), repeat=3)], float)
    rates = boot.ratio(draws @ false_positives, draws @ sizes)
    assert rates.size == 27
    assert rates.mean() == pytest.approx(0.3435185, abs=5e-8)
    assert rates.std() == pytest.approx(0.1655065, abs=5e-8)


def test_random_draws_approach_the_exhaustive_ones():
    weights = boot.draw_weights(3, 60_000, seed=1)
    rates = boot.ratio(weights @ [0.0, 1.0, 5.0], weights @ [4.0, 4.0, 8.0])
    assert rates.mean() == pytest.approx(0.3435185, abs=0.003)
    assert rates.std() == pytest.approx(0.1655065, abs=0.003)


def test_the_same_seed_gives_the_same_draws():
    one, two = (boot.draw_weights(50, 20, seed=9) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, boot.draw_weights(50, 20, seed=10))


def test_regions_of_correlated_rows_widen_the_interval():
    """Rows that share an offset by region spread far more than independent rows would."""
    rng = np.random.default_rng(4)
    region = np.repeat(np.arange(40), 100)
    labels = np.tile([0, 1], 2000)
    shared = rng.normal(0, 1.5, 40)[region] * np.where(labels == 1, 1, -1)
    scores = rng.normal(labels + shared)
    rows = boot.rank_rows(labels, scores, region, 40)
    weights = boot.draw_weights(40, 400, 0)
    by_region = boot.auroc_draws(rows, weights).std()
    singles = boot.rank_rows(labels, scores, rng.permutation(4000), 4000)
    by_row = boot.curve_draws(singles, boot.draw_weights(4000, 400, 0), 0.1).auroc.std()
    assert by_region > 3 * by_row


@pytest.mark.slow
def test_a_survey_of_rows_takes_seconds():
    """3.7 million rows, 782 regions, 1,000 draws: AUROC and TPR at four rates in under 30 s."""
    rng = np.random.default_rng(0)
    n = 3_700_000
    labels, region = rng.integers(0, 2, n), rng.integers(0, 782, n)
    scores = rng.normal(3 * labels).astype(np.float32)
    weights = boot.draw_weights(782, 1000, 0)
    boot.pair_counts(boot.rank_rows(labels[:9], scores[:9], region[:9], 782))  # compile
    started = time.perf_counter()
    rows = boot.rank_rows(labels, scores, region, 782)
    auroc = boot.auroc_draws(rows, weights)
    tpr, _ = boot.tpr_at_fprs(rows, weights, (1e-2, 1e-3, 1e-4, 1e-5))
    assert time.perf_counter() - started < 30
    # d' = 3: AUROC = Phi(3 / sqrt 2), TPR at 1 % = Phi(3 - 2.326).
    assert auroc.mean() == pytest.approx(0.98305, abs=2e-4)
    assert tpr[0].mean() == pytest.approx(0.74973, abs=2e-3)


@pytest.mark.parametrize("region", [-1, REGIONS, 2**32])
def test_a_region_outside_the_tables_is_refused(region):
    with pytest.raises(ValueError, match=r"must lie in 0 \.\.\. \d"):
        boot.rank_rows(np.array([0, 1]), np.array([0.1, 0.2]), np.array([0, region]), REGIONS)


def test_both_ways_to_the_auroc_are_exact(rows, weights, monkeypatch):
    by_pairs = boot.auroc_draws(rows, weights)
    monkeypatch.setattr(boot, "MAX_PAIRED_REGIONS", REGIONS - 1)
    assert np.array_equal(boot.auroc_draws(rows, weights), by_pairs)


def test_weights_that_do_not_fit_the_rows_are_refused(rows, weights):
    for short in (weights[:, 1:], weights[0]):
        with pytest.raises(ValueError, match="for 7 regions"):
            boot.curve_draws(rows, short, 0.1)
        with pytest.raises(ValueError, match="for 7 regions"):
            boot.tpr_at_fprs(rows, short, (0.1,))

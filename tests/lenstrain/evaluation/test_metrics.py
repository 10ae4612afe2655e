"""Ranking metrics against worked vectors, scikit-learn, and the definition by pairs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from lensprep.errors import ScoresError
from lenstrain.evaluation import metrics

LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
SCORES = np.array([0.9, 0.8, 0.7, 0.4, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1])


def tied_sample(seed: int, n: int = 400, levels: int = 25) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    return labels, np.round(rng.normal(labels, 1.0) * levels / 4) / levels


def by_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    gap = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_tie_blocks_count_half_in_any_row_order(order):
    curve = metrics.roc_curve(LABELS[order], SCORES[order])
    assert metrics.auroc(curve) == pytest.approx(20 / 24, abs=1e-15)
    assert metrics.average_precision(curve) == pytest.approx(0.7470238, abs=5e-8)


@pytest.mark.parametrize(("max_fp", "tpr"), [(0, 0.25), (1, 0.75), (2, 0.75)])
def test_tpr_within_a_number_of_false_positives(max_fp, tpr):
    point = metrics.tpr_at_fp(metrics.roc_curve(LABELS, SCORES), max_fp)
    assert point.tpr == tpr
    assert point.fp <= max_fp
    flagged = point.threshold < SCORES
    assert flagged[LABELS == 1].mean() == tpr
    assert flagged[LABELS == 0].sum() == point.fp


@pytest.mark.parametrize("seed", range(6))
def test_areas_equal_scikit_learn_with_many_ties(seed):
    labels, scores = tied_sample(seed)
    curve = metrics.roc_curve(labels, scores)
    assert metrics.auroc(curve) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision(curve) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    for max_fpr in (0.01, 0.1, 0.37, 1 - 1e-9):
        assert metrics.partial_auroc(curve, max_fpr) == pytest.approx(
            roc_auc_score(labels, scores, max_fpr=max_fpr), abs=1e-9
        )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_won(rows):
    labels = np.array([row[0] for row in rows], dtype=int)
    scores = np.array([row[1] for row in rows], dtype=float)
    if labels.min() == labels.max():
        with pytest.raises(ScoresError, match="one class"):
            metrics.roc_curve(labels, scores)
        return
    curve = metrics.roc_curve(labels, scores)
    assert metrics.auroc(curve) == pytest.approx(by_pairs(labels, scores), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=40),
    st.floats(0.001, 0.999),
)
def test_no_threshold_beats_the_one_chosen(rows, max_fpr):
    labels = np.array([row[0] for row in rows], dtype=int)
    scores = np.array([row[1] for row in rows], dtype=float)
    if labels.min() == labels.max():
        return
    point = metrics.tpr_at_fpr(metrics.roc_curve(labels, scores), max_fpr)
    best = 0.0
    for cut in np.append(np.unique(scores), -np.inf):
        flagged = scores > cut
        if flagged[labels == 0].mean() <= max_fpr:
            best = max(best, flagged[labels == 1].mean())
    assert point.tpr == pytest.approx(best, abs=1e-12)
    assert point.fpr <= max_fpr


def test_rates_that_are_not_binary_fractions_lose_no_negative():
    # 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996 in floats.
    labels = np.repeat([0, 1], 100)
    scores = np.arange(200.0)[::-1] % 100
    for rate, allowed in ((0.07, 7), (0.29, 29)):
        assert metrics.tpr_at_fpr(metrics.roc_curve(labels, scores), rate).fp == allowed


def test_average_precision_at_the_prevalence_of_the_sample_is_the_plain_one():
    labels, scores = tied_sample(3)
    curve = metrics.roc_curve(labels, scores)
    assert metrics.average_precision(curve, float(labels.mean())) == pytest.approx(
        metrics.average_precision(curve), abs=1e-12
    )


def test_average_precision_at_a_prevalence_equals_repeating_the_negatives():
    labels, scores = tied_sample(4, n=60)
    n1, n0 = int(labels.sum()), int((labels == 0).sum())
    repeats = np.where(labels == 1, 1, 7)
    prevalence = n1 / (n1 + 7 * n0)
    direct = average_precision_score(np.repeat(labels, repeats), np.repeat(scores, repeats))
    curve = metrics.roc_curve(labels, scores)
    assert metrics.average_precision(curve, prevalence) == pytest.approx(direct, abs=1e-12)


def test_ties_at_a_threshold_are_counted():
    curve = metrics.roc_curve(LABELS, SCORES)
    assert [metrics.tied_rows(curve, s) for s in (0.8, 0.4, 0.9, 0.55, -1.0)] == [2, 2, 1, 0, 0]
    assert metrics.largest_tie(metrics.roc_curve([1, 0, 0, 1], [1, 2, 2, 2])) == (2.0, 3)


@pytest.mark.parametrize(
    ("tpr", "fpr", "expected"), [(0.71, 1e-3, 0.0663), (0.75, 1e-4, 0.4286), (0.5, 0.0, 1.0)]
)
def test_purity_at_one_lens_in_ten_thousand(tpr, fpr, expected):
    assert metrics.purity(tpr, fpr, 1e-4) == pytest.approx(expected, abs=1e-4)


def test_purity_of_nothing_is_nan():
    assert math.isnan(metrics.purity(0.0, 0.0, 1e-4))


def test_step_bounds_hold_the_auroc():
    labels, scores = tied_sample(5)
    curve = metrics.roc_curve(labels, scores)
    fpr, tpr = curve.fp[::7] / curve.n_negative, curve.tp[::7] / curve.n_positive
    low, high = metrics.step_bounds(fpr, tpr)
    assert low <= metrics.auroc(curve) <= high
    with pytest.raises(ScoresError, match="rise together"):
        metrics.step_bounds([0.0102, 0.0179], [0.747, 0.70])


def test_nan_scores_are_refused():
    with pytest.raises(ScoresError, match="1 scores are NaN"):
        metrics.roc_curve([1, 0], [math.nan, 0.0])

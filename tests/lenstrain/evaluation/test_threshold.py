"""Thresholds against worked vectors, the binomial sum, and their guarantee."""

import numpy as np
import pytest
from scipy import stats

from lenstrain.evaluation import threshold
from lenstrain.evaluation.metrics import at_threshold, roc_curve


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    [
        (58, 0.05, None),
        (59, 0.05, 59),
        (100, 0.05, 99),
        (1000, 0.01, 996),
        (100_000, 1e-4, 99_996),  # 4 allowed, not 10
        (29_955, 1e-4, None),
        (0, 0.05, None),
    ],
)
def test_neyman_pearson_rank_equals_the_worked_vectors(n, alpha, rank):
    assert threshold.neyman_pearson_rank(n, alpha) == rank


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.5])
def test_the_rank_is_the_least_that_keeps_the_binomial_sum(alpha, delta):
    for n in (5, 44, 300, 1777):
        sums = [stats.binom.sf(k - 1, n, 1 - alpha) for k in range(1, n + 1)]
        kept = [k for k, total in enumerate(sums, 1) if total <= delta]
        assert threshold.neyman_pearson_rank(n, alpha, delta) == (kept[0] if kept else None)


@pytest.mark.parametrize(
    ("alpha", "needed"), [(1e-2, 299), (1e-3, 2_995), (1e-4, 29_956), (1e-5, 299_572)]
)
def test_negatives_needed_are_just_enough(alpha, needed):
    assert threshold.negatives_needed(alpha) == needed
    assert threshold.neyman_pearson_rank(needed, alpha) == needed
    assert threshold.neyman_pearson_rank(needed - 1, alpha) is None


def test_the_guarantee_holds_in_repeated_trials():
    rng = np.random.default_rng(5)
    trials, misses = 2000, 0
    for _ in range(trials):
        found = threshold.neyman_pearson(rng.random(500), 0.02, 0.05)
        misses += (1 - found.threshold) > 0.02  # the true rate of a uniform score
    upper = stats.binom.ppf(0.999, trials, 0.05)
    assert 0.01 * trials < misses <= upper


def test_a_threshold_allows_what_its_rank_says():
    scores = np.random.default_rng(1).permutation(1000).astype(float)
    found = threshold.neyman_pearson(scores, 0.01)
    assert (found.rank, found.allowed, found.threshold) == (996, 4, 995.0)
    assert int((scores > found.threshold).sum()) == 4
    assert threshold.neyman_pearson(scores[:100], 0.01) is None


@pytest.mark.parametrize(
    ("beta", "best", "cut"),
    [(1, 0.7428571, 0.3714286), (2, 0.8461538, 0.1692308), (0.5, 0.7317073, 0.5853659)],
)
def test_expected_fbeta_equals_the_worked_vectors(beta, best, cut):
    found = threshold.expected_fbeta(np.arange(1, 10) / 10, beta)
    assert found.value == pytest.approx(best, abs=5e-8)
    assert found.threshold == pytest.approx(cut, abs=5e-8)


def test_no_cut_has_a_better_fbeta():
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(labels), 1)
    curve = roc_curve(labels, scores)
    for beta in (0.5, 1.0, 2.0):
        found = threshold.best_fbeta(curve, beta)

        def f(cut, beta=beta):
            flagged = scores > cut
            hits = (flagged & (labels == 1)).sum()
            return (1 + beta**2) * hits / (beta**2 * labels.sum() + max(flagged.sum(), 1))

        cuts = np.append(np.unique(scores), -np.inf)
        assert found.value == pytest.approx(max(f(cut) for cut in cuts))
        assert f(found.threshold) == pytest.approx(found.value)


def test_fbeta_at_a_lower_prevalence_cuts_higher():
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 2, 2000)
    curve = roc_curve(labels, rng.normal(2 * labels))
    usual = threshold.best_fbeta(curve, 1.0)
    rare = threshold.best_fbeta(curve, 1.0, prevalence=1e-3)
    assert rare.threshold > usual.threshold
    assert rare.value < usual.value
    assert at_threshold(curve, rare.threshold).fpr < 0.02


def test_budget_over_population_is_a_rate():
    assert threshold.fpr_for_budget(1000, 1e7) == pytest.approx(1e-4)
    assert threshold.fpr_for_budget(10, 5) == 1.0


def test_unique_rows_keep_the_first_of_each_image():
    hashes = np.array(["b", "a", "b", "c", "a"])
    assert threshold.unique_rows(hashes).tolist() == [0, 1, 3]

"""Thresholds against worked vectors, the binomial sum, and their guarantee."""

import numpy as np
import pytest
from scipy import stats

from lenstrain.evaluation import threshold
from lenstrain.evaluation.clustered import few_regions, latent_correlation, tail_correlation
from lenstrain.evaluation.metrics import roc_curve


def rank_of(n, alpha, delta=0.05):
    """Rank of the threshold among n distinct scores, lowest first."""
    found = threshold.neyman_pearson(np.arange(1, n + 1), alpha, delta)
    return None if found is None else int(found)


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
def test_the_rank_equals_the_worked_vectors(n, alpha, rank):
    assert rank_of(n, alpha) == rank


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.3])
def test_the_rank_is_the_least_that_keeps_the_binomial_sum(alpha, delta):
    for n in (*range(1, 60), 300, 1777):
        sums = [stats.binom.sf(k - 1, n, 1 - alpha) for k in range(1, n + 1)]
        kept = [k for k, total in enumerate(sums, 1) if total <= delta]
        assert rank_of(n, alpha, delta) == (kept[0] if kept else None)


def lowest_by_trial(scores, alpha, delta):
    """Lowest score above which, and above all higher ones, few enough of the scores lie."""
    kept = None
    for cut in np.unique(scores)[::-1]:
        k = int((scores > cut).sum())
        # Clopper and Pearson's limit is at most alpha where so few hits are too rare at alpha.
        if k == scores.size or stats.binom.cdf(k, scores.size, alpha) > delta:
            break
        kept = cut
    return kept


def test_ties_are_flagged_whole_or_not_at_all():
    rng = np.random.default_rng(3)
    for _ in range(300):
        n, levels = rng.integers(1, 400), rng.integers(1, 60)
        scores = rng.integers(0, levels, n).astype(float)
        alpha, delta = rng.uniform(0.01, 0.5), rng.uniform(0.01, 0.4)
        expected = lowest_by_trial(scores, alpha, delta)
        assert threshold.neyman_pearson(scores, alpha, delta) == expected
        shuffled = rng.permutation(scores)
        assert threshold.neyman_pearson(shuffled, alpha, delta) == expected


def test_regions_of_one_row_change_nothing():
    rng = np.random.default_rng(4)
    scores = np.round(rng.normal(size=500), 1)
    for alpha in (0.01, 0.05, 0.2):
        alone = threshold.neyman_pearson(
            scores, alpha, region=rng.permutation(500), correlation=0.5
        )
        assert alone == threshold.neyman_pearson(scores, alpha)


def limit_by_region(flagged, region, correlation, delta):
    """Upper limit of a share, written out for rows that are not repeated."""
    n, k = flagged.size, flagged.sum()
    rows = np.bincount(region).astype(float)
    hits = np.bincount(region, flagged)
    shared = tail_correlation(correlation, 0.1)
    few = few_regions(rows, shared)
    worth = n / (1 + (np.sum(rows**2) / n - 1) * shared)
    scatter = np.sum((hits - k / n * rows) ** 2) * few.factor
    if scatter > 0:
        worth = min(worth, n * k * (1 - k / n) / scatter)
    worth *= (stats.norm.ppf(1 - delta) / stats.t.ppf(1 - delta, few.degrees)) ** 2
    return stats.beta.ppf(1 - delta, k / n * worth + 1, worth * (1 - k / n))


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_regions_keep_the_limit_at_and_above_the_threshold(correlation):
    rng = np.random.default_rng(5)
    region = rng.integers(0, 50, 2000)
    scores = np.round(rng.normal(size=2000) + correlation * rng.normal(size=50)[region], 2)
    found = threshold.neyman_pearson(scores, 0.1, region=region, correlation=correlation)
    cuts = np.unique(scores)[::-1]
    limits = [limit_by_region(scores > cut, region, correlation, 0.05) for cut in cuts[:400]]
    first = int(np.argmax(np.array(limits) > 0.1))
    assert found == cuts[first - 1]
    assert found > threshold.neyman_pearson(scores, 0.1)
    order = rng.permutation(2000)
    again = threshold.neyman_pearson(
        scores[order], 0.1, region=region[order], correlation=correlation
    )
    assert again == found


def test_repeated_negatives_are_worth_their_images():
    images = np.random.default_rng(6).normal(size=200)
    region = np.arange(200).repeat(12)
    found = threshold.neyman_pearson(
        images.repeat(12), 0.05, region=region, repeats=200.0 * 12**2, correlation=0.4
    )
    assert found == threshold.neyman_pearson(images, 0.05)


def test_one_region_promises_nothing():
    scores = np.arange(10_000.0)
    assert threshold.neyman_pearson(scores, 0.05, region=np.full(10_000, 3)) is None


@pytest.mark.parametrize(
    ("alpha", "needed"), [(1e-2, 299), (1e-3, 2_995), (1e-4, 29_956), (1e-5, 299_572)]
)
def test_negatives_needed_are_just_enough(alpha, needed):
    assert threshold.negatives_needed(alpha) == needed
    assert rank_of(needed, alpha) == needed
    assert rank_of(needed - 1, alpha) is None


def test_the_guarantee_holds_in_repeated_trials():
    rng = np.random.default_rng(5)
    trials, misses = 2000, 0
    for _ in range(trials):
        cut = threshold.neyman_pearson(rng.random(500), 0.02, 0.05)
        misses += (1 - cut) > 0.02  # the true rate of a uniform score
    upper = stats.binom.ppf(0.999, trials, 0.05)
    assert 0.01 * trials < misses <= upper


def test_the_guarantee_holds_for_regions_that_differ():
    rng = np.random.default_rng(6)
    region = np.repeat(np.arange(40), 25)
    trials, misses, naive = 400, 0, 0
    for _ in range(trials):
        scores = np.sqrt(0.2) * rng.normal(size=40)[region] + np.sqrt(0.8) * rng.normal(size=1000)
        cuts = (
            threshold.neyman_pearson(
                scores,
                0.1,
                0.05,
                region=region,
                correlation=latent_correlation(scores, region),
            ),
            threshold.neyman_pearson(scores, 0.1, 0.05),
        )
        kept = [stats.norm.sf(cut) <= 0.1 for cut in cuts]
        misses, naive = misses + (not kept[0]), naive + (not kept[1])
    assert misses <= stats.binom.ppf(0.999, trials, 0.05)
    assert naive > 0.1 * trials  # as if all rows were independent


def test_a_threshold_allows_what_its_rank_says():
    scores = np.random.default_rng(1).permutation(1000).astype(float)
    found = threshold.neyman_pearson(scores, 0.01)
    assert found == 995.0
    assert int((scores > found).sum()) == 4
    assert threshold.neyman_pearson(scores[:100], 0.01) is None


def test_no_cut_has_a_better_fbeta():
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(labels), 1)
    curve = roc_curve(labels, scores)
    for beta in (0.5, 1.0, 2.0):
        value, best = threshold.best_fbeta(curve, beta)

        def f(cut, beta=beta):
            flagged = scores > cut
            hits = (flagged & (labels == 1)).sum()
            return (1 + beta**2) * hits / (beta**2 * labels.sum() + max(flagged.sum(), 1))

        cuts = np.append(np.unique(scores), -np.inf)
        assert value == pytest.approx(max(f(cut) for cut in cuts))
        assert f(best) == pytest.approx(value)


def test_fbeta_at_a_lower_prevalence_cuts_higher():
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 2, 2000)
    curve = roc_curve(labels, rng.normal(2 * labels))
    usual = threshold.best_fbeta(curve, 1.0)
    rare = threshold.best_fbeta(curve, 1.0, prevalence=1e-3)
    assert rare[1] > usual[1]
    assert rare[0] < usual[0]
    assert curve.fp[curve.scores > rare[1]].max(initial=0) < 0.02 * curve.n_negative


def test_unique_rows_keep_the_first_of_each_image():
    hashes = np.array(["b", "a", "b", "c", "a"])
    assert threshold.unique_rows(hashes).tolist() == [0, 1, 3]

"""Straight lines over regions: they find what is there, and nothing where nothing is."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lenstrain.evaluation.linear import auroc_by_region, cross_validated, linear_probe


def table(n=600, regions=20, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    region = np.arange(n) % regions
    return rng, labels, region


def test_a_leaking_column_is_found():
    rng, labels, region = table()
    features = np.stack([labels + rng.normal(0, 1, 600), rng.normal(0, 1, 600)], 1)
    found = linear_probe(features, labels, region)
    assert found["value"] == pytest.approx(roc_auc_score(labels, features[:, 0]), abs=0.02)
    assert found["low"] > 0.6
    assert found["regions"] == 20


def test_noise_tells_nothing():
    rng, labels, region = table(2000)
    found = linear_probe(rng.normal(0, 1, (2000, 5)), labels, region)
    assert found["low"] < 0.5 < found["high"]


def test_a_property_of_the_region_does_not_pass_for_one_of_the_class():
    """Regions with their own share of lenses: rows of a region are not split over folds."""
    rng = np.random.default_rng(0)
    region = np.repeat(np.arange(30), 40)
    share = rng.uniform(0.1, 0.9, 30)
    labels = (rng.random(1200) < share[region]).astype(int)
    identity = np.eye(30)[region]
    found = linear_probe(identity, labels, region)
    assert found["value"] < 0.55
    assert roc_auc_score(labels, share[region]) > 0.7


def test_unbalanced_folds_do_not_bias_the_pooled_auroc():
    rng = np.random.default_rng(1)
    region = np.repeat(np.arange(5), 400)
    labels = (rng.random(2000) < np.array([0.1, 0.3, 0.5, 0.7, 0.9])[region]).astype(int)
    scores = cross_validated(rng.normal(0, 1, (2000, 1)), labels, region)
    assert roc_auc_score(labels, scores) == pytest.approx(0.5, abs=0.05)


def test_the_value_is_scikit_learns_and_one_region_has_no_interval():
    rng, labels, region = table(300)
    scores = np.round(labels + rng.normal(0, 1, 300), 1)
    found = auroc_by_region(labels, scores, region, resamples=200)
    assert found["value"] == pytest.approx(roc_auc_score(labels, scores))
    alone = auroc_by_region(labels, scores, np.zeros(300), resamples=200)
    assert alone["low"] is None


@pytest.mark.parametrize("regions", [np.zeros(20), np.arange(20) % 2])
def test_what_cannot_be_cross_validated_is_not_run(regions):
    """One region; and two regions of one class each."""
    labels = np.arange(20) % 2
    assert linear_probe(np.ones((20, 1)), labels, regions) is None

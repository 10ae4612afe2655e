"""The discriminant that says whether two sets of stamps differ in what is not shape."""

import numpy as np
import pytest
from scipy import stats

from lensprep.counterfactual.balance import FEATURES, features, separation


def normals(rows, shift, seed, columns=3):
    values = np.random.default_rng(seed).standard_normal((rows, columns))
    values[:, 0] += shift
    return values


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_two_normal_sets_are_as_far_apart_as_theory_says(shift):
    found = separation(normals(4000, 0.0, 0), normals(4000, shift, 1))
    assert found == pytest.approx(stats.norm.cdf(shift / np.sqrt(2)), abs=0.015)


def test_sets_that_are_alike_are_not_told_apart_however_many_features():
    areas = [
        separation(normals(500, 0, seed, 9), normals(500, 0, 100 + seed, 9)) for seed in range(20)
    ]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.015)


def test_a_long_tail_changes_nothing():
    first, second = normals(1000, 0.0, 2), normals(1000, 1.0, 3)
    assert separation(np.exp(4 * first), np.exp(4 * second)) == separation(first, second)


def test_few_rows_say_nothing():
    assert separation(normals(49, 0, 0), normals(500, 0, 1)) is None


def test_more_light_is_seen_by_its_flux_and_noise_by_the_annulus():
    rng = np.random.default_rng(4)
    noise = rng.normal(0.0, 0.003, (300, 3, 64, 64)).astype(np.float32)
    y, x = np.mgrid[:64, :64] - 31.5
    blob = np.exp(-0.5 * (x**2 + y**2) / 2.0**2).astype(np.float32)
    dark, bright, noisy = (
        features(stamps) for stamps in (noise[:100], noise[100:200] + 0.1 * blob, 2 * noise[200:])
    )
    assert dark.shape == (100, max(columns.stop for columns in FEATURES.values()))

    def apart(name, other):
        return separation(dark[:, FEATURES[name]], other[:, FEATURES[name]])

    assert apart("fluxes", bright) > 0.99
    assert apart("annulus", bright) == pytest.approx(0.5, abs=0.12)
    assert apart("annulus", noisy) > 0.99
    assert apart("statistics", noisy) > 0.99

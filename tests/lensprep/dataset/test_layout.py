"""What the layout computes."""

import numpy as np
import pytest

from lensprep.dataset.layout import band_fluxes


def test_fluxes_follow_from_one_band_and_the_colours():
    """A red source is fainter in g than in r, and brighter in z."""
    g, r, z = band_fluxes(2.0, [1.0, 0.5])
    assert r == 2.0
    assert -2.5 * np.log10(g / r) == pytest.approx(1.0)
    assert -2.5 * np.log10(r / z) == pytest.approx(0.5)


def test_fluxes_of_many_sources_are_those_of_each():
    colours = np.array([[0.2, 0.1], [-0.3, np.nan]])
    many = band_fluxes([1.0, 3.0], colours)
    assert many.shape == (2, 3)
    np.testing.assert_array_equal(many[0], band_fluxes(1.0, colours[0]))
    assert many[1, 1] == 3.0
    assert np.isnan(many[1, 2])

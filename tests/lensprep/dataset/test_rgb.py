"""Colour pictures: one look for every survey, whatever its bands and depth."""

from dataclasses import replace

import numpy as np
import pytest

from lensprep.dataset import DECALS, Geometry
from lensprep.dataset.rgb import lupton_rgb
from tests.datasets import PAIR


def noise_stamp(geometry: Geometry, times: float = 20.0):
    """Every band at the same ratio of signal to noise, brighter to the right."""
    ramp = np.linspace(0, times, geometry.side) * np.ones((geometry.side, 1))
    return np.array(geometry.sky_noise)[:, None, None] * ramp


def of_bands(number, noise=0.3):
    names = tuple("ugrizyJH"[:number])
    return replace(PAIR, bands=names, reference_band=names[0], side=64, sky_noise=(noise,) * number)


def test_decals_is_drawn_with_the_viewers_scales():
    pixel = np.array([0.01, 0.02, 0.04])[:, None, None]
    shifted = pixel[:, 0, 0] * [6.0, 3.4, 2.2] + 0.03
    intensity = shifted.mean()
    expected = np.clip(shifted * np.arcsinh(20 * intensity) / np.sqrt(20) / intensity, 0, 1)
    assert lupton_rgb(pixel)[0, 0].tolist() == np.rint(255 * expected[::-1]).tolist()


def test_a_deeper_survey_in_other_units_looks_the_same():
    ours = replace(DECALS, survey="deep", sky_noise=tuple(7.3 * n for n in DECALS.sky_noise))
    expected = lupton_rgb(noise_stamp(DECALS))
    assert np.abs(lupton_rgb(noise_stamp(ours), ours).astype(int) - expected).max() <= 1
    many = lupton_rgb(noise_stamp(of_bands(5)), of_bands(5))
    np.testing.assert_array_equal(many, expected)


def test_one_band_is_grey():
    one = of_bands(1)
    picture = lupton_rgb(noise_stamp(one), one)
    assert picture.shape == (64, 64, 3)
    assert (picture == picture[..., :1]).all()
    assert picture.std() > 20


@pytest.mark.parametrize("bands", [2, 3, 4, 8])
def test_each_band_shows_in_its_channel(bands):
    geometry = of_bands(bands)
    sky = np.zeros(geometry.shape)
    shown = {}
    for band in (0, bands // 2, bands - 1):
        stamp = sky.copy()
        stamp[band] = 100 * geometry.sky_noise[band]
        colour = lupton_rgb(stamp, geometry)[0, 0].astype(int)
        shown[band] = set(np.flatnonzero(colour > colour.max() / 3).tolist())
    if bands == 2:
        assert shown == {0: {1, 2}, 1: {0, 1}}
    else:
        assert shown == {0: {2}, bands // 2: {1}, bands - 1: {0}}

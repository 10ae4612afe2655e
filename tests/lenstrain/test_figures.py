"""What figures call their axes, and how large they draw stamps."""

import numpy as np
import pytest

from lensprep.dataset import DECALS
from lenstrain.figures import MOST_DRAWN, axis_label, fitted_limits, smaller
from tests.datasets import PAIR


def test_seeing_and_depth_are_those_of_the_reference_band():
    assert axis_label("psfsize_r") == "PSF FWHM, r band [arcsec]"
    assert axis_label("psfsize_r", PAIR) == "PSF FWHM, Y band [arcsec]"
    assert axis_label("psfdepth_r", PAIR) == "Depth, Y band, 5σ [mag]"
    assert axis_label("arc_snr", PAIR) == axis_label("arc_snr", DECALS)
    assert axis_label("magnification", PAIR) == "magnification"


@pytest.mark.parametrize("side", [32, 64, MOST_DRAWN])
def test_small_stamps_are_drawn_pixel_by_pixel(side):
    pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    assert smaller(pictures) is pictures


@pytest.mark.parametrize(("side", "drawn"), [(129, 64), (201, 100), (256, 128)])
def test_large_stamps_are_averaged_over_blocks(side, drawn):
    pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    found = smaller(pictures)
    assert found.shape == (2, drawn, drawn, 3)
    corner = pictures[:, :2, 2:4].mean((1, 2))  # what is cut off lies at the far side
    assert np.abs(found[:, 0, 1] - corner).max() <= 0.5


@pytest.mark.parametrize(
    ("low", "high"), [(0.9, 0.99), (0.95, 1.0), (0.0, 0.02), (0.2, 0.3), (0.0, 1.0), (0.5, 0.5)]
)
def test_an_axis_shows_differences_and_stays_a_share(low, high):
    bottom, top = fitted_limits([low], [high])
    assert bottom < low
    assert top > high
    assert 0.2 <= top - bottom <= max(0.23, 1.11 * (high - low))
    assert bottom >= -0.05
    assert top <= 1.05


def test_an_axis_of_nothing_is_that_of_all_shares():
    assert fitted_limits([np.nan], []) == (-0.02, 1.02)

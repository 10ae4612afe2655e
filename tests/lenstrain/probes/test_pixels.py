"""Undoing and redoing the normalisation: bit for bit what conversion stored."""

import numpy as np
import pytest

from lensprep.dataset import NormalizationSpec
from lensprep.decode.normalize import Normalizer, normalization_spec
from lensprep.errors import ConfigError
from lenstrain.probes.pixels import band_statistics, inject, normalize, radius_px

SPECS = [
    normalization_spec("mad_stamp"),
    normalization_spec("mad_annulus", inner_px=18.0, outer_px=30.5),
    normalization_spec("sqrt", clip=5.0),
]


def random_flux(n=40, seed=3):
    rng = np.random.default_rng(seed)
    flux = rng.normal(0.001, 0.01, (n, 3, 64, 64))
    flux[:, :, 30:34, 30:34] += rng.lognormal(-2, 2, (n, 3, 4, 4))
    return flux.astype(np.float32)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.mode)
def test_statistics_and_stored_pixels_are_conversions_bits(spec):
    flux = random_flux()
    stored = np.empty(flux.shape, np.float16)
    measured = Normalizer(spec)(flux, stored)
    median, scale = band_statistics(flux, spec)
    assert np.array_equal(median, measured.median)
    assert np.array_equal(scale, measured.scale)
    again = normalize(flux, spec, median, scale)
    assert np.array_equal(again.view(np.uint16) & 0x7FFF, stored.view(np.uint16) & 0x7FFF)
    assert np.array_equal(again, stored)


def test_asinh_is_conversions_to_one_step_of_float16():
    spec, flux = normalization_spec("asinh_survey"), random_flux()
    stored = np.empty(flux.shape, np.float16)
    Normalizer(spec)(flux, stored)
    again = normalize(flux, spec, 0, 0)
    steps = np.abs(again.view(np.int16).astype(int) - stored.view(np.int16).astype(int))
    assert (steps > 0).mean() < 1e-3
    assert steps.max() <= 1


@pytest.mark.parametrize("spec", [*SPECS, normalization_spec("asinh_survey")], ids=lambda s: s.mode)
def test_adding_nothing_changes_no_bit(spec):
    flux = random_flux()
    stored = np.empty(flux.shape, np.float16)
    measured = Normalizer(spec)(flux, stored)
    again = inject(stored, np.zeros_like(flux), spec, measured.median, measured.scale)
    assert np.array_equal(again, stored)


def test_adding_flux_is_converting_the_brighter_stamp():
    """Away from the clip, where stored pixels hold the flux, to the rounding of float16."""
    spec = normalization_spec("mad_stamp")
    rng = np.random.default_rng(0)
    flux = rng.normal(0, 0.01, (8, 3, 64, 64)).astype(np.float32)
    added = np.zeros_like(flux)
    added[:, :, 24:40, 24:40] = 0.03
    before, after = np.empty(flux.shape, np.float16), np.empty(flux.shape, np.float16)
    measured = Normalizer(spec)(flux, before)
    Normalizer(spec)(flux + added, after)
    made = inject(before, added, spec, measured.median, measured.scale)
    assert np.abs(made.astype(np.float32) - after.astype(np.float32)).max() < 0.02
    assert np.abs(made.astype(np.float32) - before.astype(np.float32)).max() > 2


def test_an_unknown_mode_says_which_are_known():
    spec = NormalizationSpec(mode="zscale", clip=10.0)
    with pytest.raises(ConfigError, match="mad_stamp"):
        normalize(random_flux(1), spec, np.zeros((1, 3)), np.ones((1, 3)))


def test_the_centre_is_the_corner_of_four_pixels():
    distance = radius_px(64)
    assert distance.min() == pytest.approx(np.sqrt(0.5))
    assert np.array_equal(distance, distance[::-1, ::-1])

"""Normalising and undoing it: bit for bit what conversion stores; specs that are refused."""

import numpy as np
import pytest

from lensprep.dataset import DECALS, NormalizationSpec
from lensprep.dataset.normalization import (
    MODES,
    add_flux,
    annulus_indices,
    band_statistics,
    denormalize,
    normalization_spec,
    normalize,
    radius_px,
)
from lensprep.decode.normalize import Normalizer
from lensprep.errors import ConfigError, DatasetError
from tests.datasets import PAIR

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
    again, median, scale = add_flux(
        stored, np.zeros_like(flux), spec, measured.median, measured.scale
    )
    assert np.array_equal(again, stored)
    assert np.array_equal(median, measured.median)
    assert np.array_equal(scale, measured.scale)


@pytest.mark.parametrize("mode", MODES)
def test_adding_flux_is_converting_the_brighter_stamp(mode):
    """Away from the clip, where stored pixels hold the flux, to the rounding of float16."""
    spec = normalization_spec(mode)
    rng = np.random.default_rng(0)
    flux = rng.normal(0, 0.01, (8, 3, 64, 64)).astype(np.float32)
    added = np.zeros_like(flux)
    added[:, :, 24:40, 24:40] = 0.03
    added[:, :, :, 52:] = 0.01  # beyond the inner radius of the annulus too
    before, after = np.empty(flux.shape, np.float16), np.empty(flux.shape, np.float16)
    measured = Normalizer(spec)(flux, before)
    true = Normalizer(spec)(flux + added, after)
    made, median, scale = add_flux(before, added, spec, measured.median, measured.scale)
    assert np.abs(made.astype(np.float32) - after.astype(np.float32)).max() < 0.02
    assert np.abs(made.astype(np.float32) - before.astype(np.float32)).max() > 0.5
    np.testing.assert_allclose(median, true.median, atol=2e-5)
    np.testing.assert_allclose(scale, true.scale, rtol=2e-3)
    assert (median - measured.median).min() > 5e-4


@pytest.mark.parametrize("change", [normalize, denormalize])
def test_an_unknown_mode_says_which_are_known(change):
    spec = NormalizationSpec(mode="zscale", clip=10.0)
    with pytest.raises(ConfigError, match=r"'zscale' is unknown.*mad_stamp"):
        change(random_flux(1), spec, np.zeros((1, 3)), np.ones((1, 3)))


def test_the_centre_is_the_corner_of_four_pixels():
    distance = radius_px(64)
    assert distance.min() == pytest.approx(np.sqrt(0.5))
    assert np.array_equal(distance, distance[::-1, ::-1])


@pytest.mark.parametrize("mode", MODES)
def test_spec_names_every_number_and_survives_json(mode):
    spec = normalization_spec(mode)
    assert spec.of_bands(DECALS) == spec
    assert spec.clip == 10
    assert Normalizer(NormalizationSpec.from_dict(spec.to_dict())).spec == spec


@pytest.mark.parametrize("mode", MODES)
def test_stamps_of_other_surveys_come_back(mode):
    spec = normalization_spec(mode, geometry=PAIR)
    flux = np.random.default_rng(1).normal(0, 0.03, (5, *PAIR.shape)).astype(np.float32)
    median, scale = band_statistics(flux, spec)
    assert median.shape == scale.shape == (5, 2)
    stored = normalize(flux, spec, median, scale)
    np.testing.assert_allclose(denormalize(stored, spec, median, scale), flux, atol=3e-4)


def test_defaults_follow_the_survey():
    assert normalization_spec("asinh_survey", geometry=PAIR).parameters == {
        "softening_nir": 0.02,
        "softening_Y": 0.05,
    }
    annulus = normalization_spec("mad_annulus", geometry=PAIR)
    assert annulus.parameters == {"inner_px": 10.0, "outer_px": 16.0}
    assert normalization_spec("mad_annulus").parameters == {"inner_px": 20.0, "outer_px": 32.0}
    with pytest.raises(ConfigError, match=r"a stamp of 32 pixels .* the defaults are 10 and 16"):
        normalization_spec("mad_annulus", geometry=PAIR, inner_px=23.0, outer_px=32.0)
    with pytest.raises(ConfigError, match="does not know softening_g: it has softening_nir, "):
        normalization_spec("asinh_survey", geometry=PAIR, softening_g=0.1)


def test_softenings_are_put_in_the_order_of_the_bands():
    parameters = {"softening_Y": 0.05, "softening_nir": 0.02}
    spec = NormalizationSpec(mode="asinh_survey", clip=10.0, parameters=parameters)
    assert [*spec.of_bands(PAIR).parameters] == ["softening_nir", "softening_Y"]
    stored = normalize(np.full((1, 2, 4, 4), 0.02, np.float32), spec.of_bands(PAIR), 0, 0)
    assert stored[0, :, 0, 0].tolist() == [np.float16(np.arcsinh(1)), np.float16(np.arcsinh(0.4))]
    with pytest.raises(DatasetError, match=r"are softening_g, softening_r, softening_z, not"):
        spec.of_bands(DECALS)
    with pytest.raises(ConfigError, match="has softenings of 2 bands, the stamps have 3"):
        normalize(random_flux(1), spec, 0, 0)


def test_spec_completes_partial_parameters():
    spec = NormalizationSpec(mode="mad_annulus", clip=10.0, parameters={"inner_px": 24.0})
    assert Normalizer(spec).spec.parameters == {"inner_px": 24.0, "outer_px": 32.0}


def test_parameters_change_the_result():
    wide, narrow = (
        band_statistics(random_flux(1), normalization_spec("mad_annulus", inner_px=r))[1]
        for r in (20, 28)
    )
    assert (wide != narrow).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "zscale"}, "choose one of mad_stamp, mad_annulus, asinh_survey, sqrt"),
        ({"mode": "mad_stamp", "inner_px": 3}, "does not know inner_px: it has no parameters"),
        ({"mode": "mad_annulus", "inner": 3}, "it has inner_px, outer_px"),
        ({"mode": "mad_annulus", "inner_px": 40, "outer_px": 20}, "no annulus"),
        ({"mode": "asinh_survey", "softening_g": 0}, "softening_g must be positive"),
        ({"mode": "asinh_survey", "softening_r": float("nan")}, "softening_r must be positive"),
        ({"mode": "sqrt", "clip": 0}, "clip must lie in"),
        ({"mode": "sqrt", "clip": -1}, "clip must lie in"),
        ({"mode": "sqrt", "clip": float("nan")}, "clip must lie in"),
        ({"mode": "sqrt", "clip": float("inf")}, "clip must lie in"),
        ({"mode": "sqrt", "clip": 0.1}, "not exact in float16; the nearest that is: 0.0999"),
    ],
)
def test_wrong_spec_is_refused_with_what_would_do(arguments, message):
    with pytest.raises(ConfigError, match=message):
        normalization_spec(**arguments)


def test_annulus_has_the_area_and_the_symmetry_of_a_ring():
    mask = np.zeros((64, 64), bool)
    mask.reshape(-1)[annulus_indices(64, 20, 32)] = True
    assert abs(mask.sum() - np.pi * (32**2 - 20**2)) < 20
    for image in (mask.T, mask[::-1], mask[:, ::-1], np.rot90(mask)):
        np.testing.assert_array_equal(image, mask)
    assert not mask[31, 31]
    assert mask[31, 0]  # 31.5 pixels from the centre
    assert not mask[0, 0]

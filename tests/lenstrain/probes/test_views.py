"""What each view takes away, and what it leaves."""

import numpy as np
import pytest

from lensprep.dataset.normalization import (
    MODES,
    band_statistics,
    denormalize,
    normalization_spec,
    normalize,
    radius_px,
)
from lenstrain.probes import views
from lenstrain.probes.radii import sky_inner_px
from lenstrain.probes.sources import point, ring, sigma_px

RADIUS = radius_px(64)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).standard_normal((5, 3, 64, 64)).astype(np.float16)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def test_masking_the_core_changes_the_core_alone(pixels, rng):
    masked = views.mask_core(pixels, 10, rng)
    outside = RADIUS >= 10
    assert np.array_equal(masked[..., outside], pixels[..., outside])
    assert (masked[..., ~outside] != pixels[..., ~outside]).mean() > 0.99


def test_the_filling_is_the_stamps_own_sky_with_its_bands_together(rng):
    """Pixel values name their place: every filled pixel comes from one place of the sky."""
    place = np.arange(64 * 64, dtype=np.float16).reshape(64, 64) % 2048
    pixels = np.stack([place, place, place])[None].repeat(2, axis=0)
    masked = views.mask_core(pixels, 10, rng)
    core = masked[..., RADIUS < 10]
    assert np.array_equal(core[:, 0], core[:, 1])
    sky = set(place[sky_inner_px() <= RADIUS].tolist())
    assert set(core.ravel().tolist()) <= sky


def test_core_and_mask_are_complements(pixels, rng):
    kept = views.keep_core(pixels, 10, rng)
    assert np.array_equal(kept[..., RADIUS < 10], pixels[..., RADIUS < 10])
    annulus = views.keep_annulus(pixels, 20, 32, rng)
    inside = (RADIUS >= 20) & (RADIUS < 32)
    assert np.array_equal(annulus[..., inside], pixels[..., inside])
    assert (annulus[..., ~inside] != pixels[..., ~inside]).mean() > 0.99


def test_shuffled_rings_keep_every_rings_pixels_and_their_colours(pixels, rng):
    shuffled = views.shuffle_rings(pixels, rng)
    number = RADIUS.astype(int)
    for index in (0, 5, 30):
        before = pixels[0][:, number == index]
        after = shuffled[0][:, number == index]
        order, other = np.lexsort(before), np.lexsort(after)
        assert np.array_equal(before[:, order], after[:, other])
    assert (shuffled != pixels).mean() > 0.9


def test_no_stamp_keeps_its_order_of_bands(rng):
    pixels = np.arange(3, dtype=np.float16)[None, :, None, None] * np.ones((50, 3, 4, 4))
    scrambled = views.scramble_colour(pixels.astype(np.float16), rng)[:, :, 0, 0]
    assert (np.sort(scrambled, axis=1) == [0, 1, 2]).all()
    assert not (scrambled == [0, 1, 2]).all(axis=1).any()
    assert len(np.unique(scrambled, axis=0)) == 5


def test_an_arc_on_one_side_goes_and_a_symmetric_host_stays(rng):
    noise = rng.standard_normal((4, 3, 64, 64))
    host = 8 * np.exp(-(RADIUS**2) / 20)
    x = np.arange(64) - 31.5
    arc = 6.0 * (np.abs(RADIUS - 7) < 1.5) * (x < -3)
    reach = np.full(4, 12.0)
    lens = (noise + host + arc).astype(np.float16)
    removed = views.remove_asymmetry(lens, lens.astype(np.float32), reach)
    left = removed.astype(float) - noise - host
    assert (left * arc).sum() < 0.15 * (arc * arc).sum() * 12
    bare = (noise + host).astype(np.float16)
    untouched = views.remove_asymmetry(bare, bare.astype(np.float32), reach)
    assert np.mean(untouched != bare) < 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_as_much_of_an_arc_goes_whatever_the_normalisation(rng, mode):
    """Bright for asinh, and yet below the clip of the other modes."""
    spec = normalization_spec(mode)
    x = np.arange(64) - 31.5
    host = 4 * np.exp(-(RADIUS**2) / 20)
    arc = 6.0 * (np.abs(RADIUS - 7) < 1.5) * (x < -3)
    light = rng.standard_normal((4, 3, 64, 64)) + host + arc
    true = (0.01 * light).astype(np.float32)
    measured = band_statistics(true, spec)
    pixels = normalize(true, spec, *measured)
    flux = denormalize(pixels, spec, *measured)
    removed = views.remove_asymmetry(pixels, flux, np.full(4, 12.0))
    taken = (flux - denormalize(removed, spec, *measured)).sum((2, 3))
    assert (taken / (0.01 * arc.sum()) > 0.6).all()
    stays = (x > 0) & (RADIUS < 64)
    same = removed[..., stays].view(np.uint16) == pixels[..., stays].view(np.uint16)
    assert same.mean() > 0.999


def test_injected_light_has_unit_flux_and_the_width_asked_for():
    width = sigma_px(1.3, 0.15)
    light = point([0.0, 3.0], [0.0, -2.0], np.full(2, width))
    assert light.sum((1, 2)) == pytest.approx([1, 1], abs=1e-9)
    offset = np.arange(64) - 31.5
    assert (light[1] * offset).sum() == pytest.approx(3.0, abs=1e-6)
    assert (light[1] * offset[:, None]).sum() == pytest.approx(-2.0, abs=1e-6)
    # Pixels of width 1 add 1/12 to the second moment.
    assert (light[0] * offset**2).sum() == pytest.approx(width**2 + 1 / 12, rel=1e-6)
    circle = ring(np.array([4.0]), np.array([2.0]))[0]
    assert circle.sum() == pytest.approx(1)
    # Second moment of a ring and its blur: R^2 + 2 s^2.
    assert (circle * RADIUS**2).sum() == pytest.approx(16 + 8, rel=1e-3)

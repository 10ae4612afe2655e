"""The camera: declared FWHM and depth are what the images have; light is neither lost nor made."""

import math

import numpy as np
import pytest
import scipy.fft

from lensprep.synth.imaging import (
    CENTRE,
    GRID,
    MARGIN,
    Sersic,
    add_point,
    add_sersic,
    make_camera,
    observe,
    smooth_noise,
)
from lensprep.synth.survey import Brick

PIXEL = 0.262


def brick(size=(1.5, 1.3, 1.2), depth=(25.0, 24.5, 23.5), seed=4):
    return Brick("0001m040", 1, (0.0, 0.25), (-4.1, -3.9), size, depth, 0.03, 0, 0, seed)


def pixel_response():
    frequency = np.sinc(scipy.fft.fftfreq(GRID))
    return frequency[:, None] * frequency[: GRID // 2 + 1]


def fwhm_px(image):
    """Full width at half maximum of a centred peak: from the area above half of it."""
    spectrum = scipy.fft.fftshift(scipy.fft.fft2(scipy.fft.fftshift(image)))
    wide = np.zeros((8 * GRID, 8 * GRID), complex)
    edge = (8 * GRID - GRID) // 2
    wide[edge : edge + GRID, edge : edge + GRID] = spectrum
    fine = np.abs(scipy.fft.ifft2(scipy.fft.ifftshift(wide))) * 64
    return 2 * math.sqrt((fine > fine.max() / 2).sum() / 64 / math.pi)


@pytest.mark.parametrize("seeing", [0.8, 1.3, 1.6])
def test_psf_with_its_pixel_has_the_declared_fwhm(seeing):
    camera = make_camera(brick(size=(seeing * 1.15, seeing, seeing)))
    for band, declared in enumerate((seeing * 1.15, seeing, seeing)):
        seen = scipy.fft.irfft2(camera.transfer[band] * pixel_response(), s=(GRID, GRID))
        assert fwhm_px(seen) * PIXEL == pytest.approx(declared, rel=0.02)
        assert seen.sum() == pytest.approx(1.0, abs=1e-4)


def test_sky_noise_gives_the_declared_depth():
    """5 sigma of a PSF-fitted flux, with the noise that is measured in blank images."""
    one, rng = brick(), np.random.default_rng(0)
    camera = make_camera(one)
    dark = np.zeros((3, GRID, GRID // 2 + 1), np.complex64)
    images = np.stack([observe(dark, camera, rng) for _ in range(40)])
    for band in range(3):
        sigma = float(images[:, band].std())
        assert sigma == pytest.approx(camera.sky_sigma[band], rel=0.02)
        psf = scipy.fft.irfft2(camera.transfer[band] * pixel_response(), s=(GRID, GRID))
        flux = 5 * sigma / math.sqrt((psf**2).sum())
        assert 22.5 - 2.5 * math.log10(flux) == pytest.approx(one.psfdepth_mag[band], abs=0.02)
        mean = float(images[:, band].mean())
        assert mean == pytest.approx(camera.sky_residual[band], abs=sigma / 50)


def test_bright_light_has_photon_noise():
    camera, rng = make_camera(brick()), np.random.default_rng(0)
    level = 30 * camera.sky_sigma**2 * camera.photons
    light = scipy.fft.rfft2(
        np.ones((3, GRID, GRID), np.float32) * level.astype("f4")[:, None, None]
    )
    images = np.stack([observe(light, camera, rng) for _ in range(20)])
    variance = camera.sky_sigma**2 + level / camera.photons
    assert images.var(axis=(0, 2, 3)) == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("weight", [0.0, 0.11, 0.19])
def test_resampling_correlates_neighbours_and_keeps_the_variance(weight):
    white = np.random.default_rng(1).standard_normal((50, 66, 66)).astype(np.float32)
    noise = smooth_noise(white, weight)
    assert noise.shape == (50, 64, 64)
    assert noise.var() == pytest.approx(1.0, abs=0.02)
    neighbours = (noise[:, :, 1:] * noise[:, :, :-1]).mean()
    assert neighbours == pytest.approx(2 * weight / (1 + 2 * weight**2), abs=0.01)


@pytest.mark.parametrize(
    ("n", "radius", "tolerance"),
    [(1.0, 1.0, 0.01), (1.0, 8.0, 0.005), (4.0, 1.5, 0.02), (2.5, 5.0, 0.01)],
)
def test_sersic_has_its_flux_and_half_of_it_inside_its_radius(n, radius, tolerance):
    scene = np.zeros((2, 601, 601), np.float32)
    add_sersic(scene, 300.2, 299.7, Sersic(radius, n, 1.0, 0.0), np.array([1.0, 3.0]))
    assert scene.sum((1, 2), dtype=float) == pytest.approx([1.0, 3.0], rel=tolerance)
    y, x = np.mgrid[:601, :601]
    if radius >= 5:
        inside = scene[0][np.hypot(x - 300.2, y - 299.7) < radius].sum()
        assert inside == pytest.approx(0.5, abs=0.02)


def test_sersic_is_long_along_its_angle():
    scene = np.zeros((1, 201, 201), np.float32)
    add_sersic(scene, 100, 100, Sersic(6.0, 1.0, 0.5, math.radians(30)), np.array([1.0]))
    y, x = np.mgrid[:201, :201] - 100.0
    xx, xy, yy = ((scene[0] * m).sum() for m in (x * x, x * y, y * y))
    assert math.degrees(0.5 * math.atan2(2 * xy, xx - yy)) == pytest.approx(30, abs=0.5)
    low, high = np.linalg.eigvalsh([[xx, xy], [xy, yy]])
    assert math.sqrt(low / high) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("x_px", "q", "radius_px", "bands"),
    [(math.nan, 0.5, 3.0, 1), (math.inf, 0.5, 3.0, 1), (50, 1.5, 3.0, 1), (50, 0.1, 3.0, 1),
     (50, 0.5, 0.0, 1), (50, 0.5, math.nan, 1), (50, 0.5, 3.0, 2)],
)  # fmt: skip
def test_a_profile_that_cannot_be_drawn_is_refused(x_px, q, radius_px, bands):
    scene, flux = np.zeros((1, 96, 96), np.float32), np.ones(bands)
    with pytest.raises(ValueError, match=r"no profile to draw|does not take a flux"):
        add_sersic(scene, x_px, 50.0, Sersic(radius_px, 1.0, q, 0.0), flux)
    assert not scene.any()


def test_a_profile_far_outside_costs_nothing():
    scene = np.zeros((1, 96, 96), np.float32)
    add_sersic(scene, 1e12, 50.0, Sersic(3.0, 4.0, 0.5, 0.0), np.ones(1))
    assert not scene.any()


def test_spiral_arms_change_no_flux():
    smooth, arms = np.zeros((2, 1, 301, 301), np.float32)
    add_sersic(smooth, 150, 150, Sersic(9.0, 1.0, 0.8, 0.3), np.array([1.0]))
    add_sersic(arms, 150, 150, Sersic(9.0, 1.0, 0.8, 0.3, 0.8, 1.0), np.array([1.0]))
    assert arms.sum() == pytest.approx(smooth.sum(), rel=1e-3)
    assert np.abs(arms - smooth).sum() > 0.2


def test_point_keeps_flux_and_centroid():
    image = np.zeros((GRID, GRID), np.float32)
    add_point(image, 40.3, 50.8, 2.0)
    y, x = np.mgrid[:GRID, :GRID]
    assert image.sum() == pytest.approx(2.0)
    assert (image * x).sum() / 2 == pytest.approx(40.3, abs=1e-4)
    assert (image * y).sum() / 2 == pytest.approx(50.8, abs=1e-4)


def test_stamp_is_centred_on_the_grid():
    camera = make_camera(brick(depth=(35.0, 35.0, 35.0)))
    scene = np.zeros((3, GRID, GRID), np.float32)
    for image in scene:
        add_point(image, CENTRE, CENTRE, 1.0)
    stamp = observe(scipy.fft.rfft2(scene), camera, np.random.default_rng(0))[1]
    y, x = np.mgrid[:64, :64]
    assert (stamp * x).sum() / stamp.sum() == pytest.approx(CENTRE - MARGIN, abs=0.02)
    assert (stamp * y).sum() / stamp.sum() == pytest.approx(31.5, abs=0.02)

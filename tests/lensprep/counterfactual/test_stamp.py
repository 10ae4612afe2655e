"""Light on a host: the PSF it is seen through, the flux that arrives, the noise it brings."""

import numpy as np
import pytest

from lensprep.counterfactual.light import disc, on_pixels
from lensprep.counterfactual.stamp import (
    Host,
    add_light,
    measure_host,
    peak_snr,
    psf_transfer,
)
from lensprep.synth.imaging import CENTRE, GRID, MARGIN

PIXEL = 0.262
FWHM = np.array([1.5, 1.3, 0.9])
SIGMA = np.array([0.002, 0.003, 0.009])
FLUX = np.array([3.0, 5.0, 6.0])


def dark(sigma=SIGMA):
    return Host(np.zeros((3, 64, 64), np.float32), CENTRE, CENTRE, sigma, np.zeros(3))


def point(x_arcsec=0.0, y_arcsec=0.0):
    return on_pixels(disc(x_arcsec, y_arcsec, 0.001, 0.0, 0.0), CENTRE, CENTRE)


def unit(image):
    return image / image.sum()


@pytest.mark.parametrize("psf", ["gaussian", "moffat"])
def test_all_the_flux_arrives_where_it_was_put(psf):
    light = unit(point(1.1, -0.7))
    seen = add_light(dark(), light, FLUX, psf_transfer(FWHM, psf), None)
    missing = 0.005 if psf == "gaussian" else 0.02  # wings beyond the stamp
    assert seen.sum((1, 2)) == pytest.approx(FLUX, rel=missing)
    y, x = np.mgrid[:64, :64] - 31.5
    near = np.hypot(x - 1.1 / PIXEL, y + 0.7 / PIXEL) < 12
    for band in seen.astype(np.float64):
        core = np.where(near, band, 0.0)
        found = [(core * at).sum() / core.sum() * PIXEL for at in (x, y)]
        assert found == pytest.approx([1.1, -0.7], abs=0.01)


@pytest.mark.parametrize("psf", ["gaussian", "moffat"])
def test_the_width_is_that_of_the_band(psf):
    """Full width at half maximum of a point, from its profile at many places within a pixel."""
    transfer = psf_transfer(FWHM, psf)
    at, values = [], []
    for shift in np.arange(0, 1, 0.05):
        light = unit(point(shift * PIXEL, 0.5 * PIXEL))
        seen = add_light(dark(), light, FLUX, transfer, None)
        at.append(np.arange(64) - 31.5 - shift)
        values.append(seen[:, 32] / FLUX[:, None])
    order = np.argsort(np.concatenate(at))
    at, profiles = np.concatenate(at)[order], np.concatenate(values, axis=1)[:, order]
    for profile, fwhm in zip(profiles, FWHM, strict=True):
        peak = profile.max()
        above = np.flatnonzero(profile > peak / 2)
        assert (at[above[-1]] - at[above[0]]) * PIXEL == pytest.approx(fwhm, rel=0.03)
    # A Gaussian's second moment says it exactly.
    if psf == "gaussian":
        seen = add_light(dark(), unit(point()), FLUX, transfer, None).astype(np.float64)
        x = np.arange(64) - 31.5
        widths = np.sqrt((seen.sum(1) * x**2).sum(1) / seen.sum((1, 2))) * 2.35482 * PIXEL
        assert widths == pytest.approx(FWHM, rel=0.005)


def test_light_brings_its_poisson_noise():
    """Variance of a pixel = light / photons; a dark sky's photons give the host's sky noise."""
    light = unit(np.ones((GRID, GRID), np.float32))
    flat = psf_transfer(np.full(3, 0.8), "gaussian")
    flux = np.full(3, 500.0)
    rng = np.random.default_rng(0)
    stamps = np.stack([
        add_light(dark(), light, flux, flat, rng.standard_normal((3, 66, 66), np.float32))
        for _ in range(40)
    ])  # fmt: skip
    level = 500.0 / GRID**2
    sky = 10 ** (0.4 * (22.5 - np.array([22.0, 20.9, 18.8]))) * PIXEL**2
    expected = level * SIGMA**2 / sky
    noise = stamps - level
    assert noise.var((0, 2, 3)) == pytest.approx(expected, rel=0.03)
    # Resampling correlates neighbours, in DR10 by 0.29.
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean((0, 2, 3)) / noise.var((0, 2, 3))
    assert neighbours == pytest.approx([0.287] * 3, abs=0.02)
    assert abs(noise.mean()) < 5e-3 * level


def test_without_noise_nothing_but_light_is_added():
    rng = np.random.default_rng(1)
    pixels = rng.normal(0.01, 0.003, (3, 64, 64)).astype(np.float32)
    host = measure_host(pixels)
    transfer = psf_transfer(FWHM, "gaussian")
    light = unit(point())
    added = add_light(host, light, FLUX, transfer, None) - pixels
    alone = add_light(dark(), light, FLUX, transfer, None)
    assert np.abs(added - alone).max() < 1e-6 * alone.max()
    assert (add_light(host, light, 0.0 * FLUX, transfer, None) == pixels).all()
    white = rng.standard_normal((3, 66, 66), np.float32)
    assert (add_light(host, light, 0.0 * FLUX, transfer, white) == pixels).all()


def test_a_host_is_measured():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:64, :64] - 31.5
    galaxy = np.exp(-0.5 * np.hypot(x - 0.4, y + 0.3) ** 2 / 2.5**2)
    noise = rng.normal(0.0, 1.0, (3, 64, 64)) * SIGMA[:, None, None]
    flux = 40.0 * galaxy / galaxy.sum()
    host = measure_host((flux + noise + 0.01).astype(np.float32))
    assert host.sky_sigma == pytest.approx(SIGMA, rel=0.1)
    assert host.flux == pytest.approx([40.0] * 3, rel=0.01)
    assert (host.x_px - CENTRE, host.y_px - CENTRE) == pytest.approx((0.4, -0.3), abs=0.05)


def test_a_stamp_without_light_has_its_centre_in_the_middle():
    host = measure_host(np.zeros((3, 64, 64), np.float32))
    assert (host.x_px, host.y_px) == (CENTRE, CENTRE)
    assert (host.sky_sigma == 0).all()


def test_the_peak_snr_is_of_the_arc_alone():
    pixels = np.full((3, 64, 64), 7.0, np.float32)
    host = Host(pixels, CENTRE, CENTRE, SIGMA, np.zeros(3))
    light, transfer = unit(point()), psf_transfer(FWHM, "gaussian")
    seen = add_light(dark(), light, FLUX, transfer, None)[1, :, :]
    assert seen.shape == (GRID - 2 * MARGIN,) * 2
    assert peak_snr(host, light, FLUX, transfer) == pytest.approx(seen.max() / SIGMA[1], rel=1e-5)

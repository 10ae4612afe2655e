"""Where the light of each kind lies, against lenstronomy's own images and the donor's columns."""

import dataclasses
import math

import numpy as np
import pytest

from lensprep.counterfactual.light import (
    COMPANION_ARCSEC,
    arc_of,
    disc,
    draw_light,
    on_pixels,
)
from lensprep.counterfactual.stamp import Host, add_light, psf_transfer
from lensprep.dataset.layout import COUNTERFACTUALS
from lensprep.synth.imaging import CENTRE, GRID
from lensprep.synth.lenses import Lens

PIXEL = 0.262
LENS = Lens(
    lens_model="SIE",
    theta_e_arcsec=1.0,
    lens_e=0.2,
    lens_phi_rad=0.6,
    shear=0.03,
    shear_phi_rad=1.1,
    src_dmag=1.0,
    src_reff_arcsec=0.15,
    src_e=0.3,
    src_phi_rad=0.4,
    src_x_arcsec=0.35,
    src_y_arcsec=-0.2,
)


def drawn(kind, lens=LENS, seed=0):
    return draw_light(kind, np.random.default_rng(seed), lens, arc_of(lens))


def centroid(light):
    return tuple(
        float(np.average(at, weights=light.flux)) for at in (light.x_arcsec, light.y_arcsec)
    )


def half_light_radius(light):
    x, y = centroid(light)
    radius = np.hypot(light.x_arcsec - x, light.y_arcsec - y)
    order = np.argsort(radius)
    flux = np.cumsum(light.flux[order])
    return radius[order][np.searchsorted(flux, 0.5 * flux[-1])]


@pytest.mark.parametrize("kind", COUNTERFACTUALS)
@pytest.mark.parametrize("at", [(CENTRE, CENTRE), (CENTRE + 0.37, CENTRE - 1.2)])
def test_flux_and_centroid_survive_the_pixels(kind, at):
    light = drawn(kind)
    image = on_pixels(light, *at)
    assert image.sum() == pytest.approx(1.0, abs=1e-5)
    y, x = np.mgrid[:GRID, :GRID]
    found = ((image * x).sum() - at[0]) * PIXEL, ((image * y).sum() - at[1]) * PIXEL
    assert found == pytest.approx(centroid(light), abs=1e-4)


def test_light_beyond_the_grid_is_lost_and_does_not_come_back_at_the_other_side():
    far = disc(GRID * PIXEL, 0.0, 0.1, 0.0, 0.0)
    assert on_pixels(far, CENTRE, CENTRE).sum() == 0
    half = disc(GRID / 2 * PIXEL, 0.0, 0.3, 0.0, 0.0)
    image = on_pixels(half, CENTRE, CENTRE)
    assert image.sum() == pytest.approx(0.5 * half.flux.sum(), rel=0.02)
    assert image[:, : GRID // 2].sum() == 0


FWHM = 1.3


@pytest.mark.parametrize(("kind", "lensed"), [("unlensed", False), ("lensed", True)])
@pytest.mark.parametrize("reff", [0.08, 0.15])
def test_behind_a_gaussian_it_is_what_lenstronomy_draws(kind, lensed, reff):
    """Source, deflection, PSF and pixel, against lenstronomy's simulator, finely sampled."""
    lens = dataclasses.replace(LENS, src_reff_arcsec=reff)
    light = on_pixels(drawn(kind, lens), CENTRE, CENTRE)
    dark = Host(np.zeros((3, 64, 64), np.float32), CENTRE, CENTRE, np.ones(3), np.zeros(3))
    transfer = psf_transfer(np.full(3, FWHM), "gaussian")
    found = add_light(dark, light, np.ones(3), transfer, None)[1]
    expected = lenstronomy_image(lens, lensed=lensed)
    assert found.sum() == pytest.approx(1.0, abs=0.005)
    assert arc_of(lens).flux.sum() == pytest.approx(expected.sum(), rel=0.005) or not lensed
    assert np.abs(found - expected / expected.sum()).max() < 0.005 * found.max()


def lenstronomy_image(lens, lensed):
    """The source of unit flux in a stamp, 11 rays a pixel, convolved as finely."""
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    grid = ImageData(
        image_data=np.zeros((64, 64)),
        transform_pix2angle=PIXEL * np.eye(2),
        ra_at_xy_0=-31.5 * PIXEL,
        dec_at_xy_0=-31.5 * PIXEL,
    )

    def components(size, phi):
        return size * math.cos(2 * phi), size * math.sin(2 * phi)

    e1, e2 = components(lens.lens_e, lens.lens_phi_rad)
    g1, g2 = components(lens.shear, lens.shear_phi_rad)
    s1, s2 = components(lens.src_e, lens.src_phi_rad)
    # The declared FWHM includes the pixel, which the simulator adds: 1/12 of its square.
    fwhm = math.sqrt(FWHM**2 - 8 * math.log(2) * PIXEL**2 / 12)
    model = ImageModel(
        grid,
        PSF(psf_type="GAUSSIAN", fwhm=fwhm, pixel_size=PIXEL, truncation=6),
        LensModel(["SIE", "SHEAR"]) if lensed else None,
        LightModel(["SERSIC_ELLIPSE"]),
        kwargs_numerics={"supersampling_factor": 11, "supersampling_convolution": True},
    )
    source = {
        "amp": 1.0, "R_sersic": lens.src_reff_arcsec, "n_sersic": 1.0, "e1": s1, "e2": s2,
        "center_x": lens.src_x_arcsec, "center_y": lens.src_y_arcsec,
    }  # fmt: skip
    masses = [{"theta_E": lens.theta_e_arcsec, "e1": e1, "e2": e2, "center_x": 0, "center_y": 0},
              {"gamma1": g1, "gamma2": g2}] if lensed else None  # fmt: skip
    total = LightModel(["SERSIC_ELLIPSE"]).total_flux([source])[0]
    return model.image(masses, [source]) / total


def test_a_source_that_is_not_lensed_lies_where_the_donors_does_and_has_its_size():
    light = drawn("unlensed")
    assert centroid(light) == pytest.approx((LENS.src_x_arcsec, LENS.src_y_arcsec), abs=1e-9)
    round_one = dataclasses.replace(LENS, src_e=0.0)
    assert half_light_radius(drawn("unlensed", round_one)) == pytest.approx(0.15, rel=0.01)


def test_one_image_lies_where_the_arc_is_brightest():
    arc = arc_of(LENS)
    x, y = centroid(drawn("magnified"))
    near = np.hypot(arc.x_arcsec - x, arc.y_arcsec - y) < 0.1
    assert arc.flux[near].max() == arc.flux.max()
    # Images of an isothermal lens lie about theta_E from it.
    assert math.hypot(x, y) == pytest.approx(1.0, abs=0.6)


def test_the_extended_ellipse_has_the_centroid_and_the_second_moments_of_the_arc():
    arc, light = arc_of(LENS), drawn("extended")
    assert centroid(light) == pytest.approx(centroid(arc), abs=1e-6)

    def moments(rays):
        return np.cov(rays.x_arcsec, rays.y_arcsec, aweights=rays.flux, ddof=0)

    assert moments(light) == pytest.approx(moments(arc), rel=0.02, abs=1e-3)


@pytest.mark.parametrize(("theta_e", "apart"), [(0.15, 0.02), (1.0, 0.2)])
def test_behind_the_seeing_a_small_arc_is_the_extended_ellipse(theta_e, apart):
    """Largest difference of the two images over the peak: the limit that no finder can pass."""
    shift = {"src_x_arcsec": 0.3 * theta_e, "src_y_arcsec": 0.1 * theta_e}
    lens = dataclasses.replace(LENS, theta_e_arcsec=theta_e, src_reff_arcsec=0.05, **shift)
    dark = Host(np.zeros((3, 64, 64), np.float32), CENTRE, CENTRE, np.ones(3), np.zeros(3))
    transfer = psf_transfer(np.full(3, FWHM), "gaussian")
    images = [
        add_light(dark, on_pixels(drawn(kind, lens), CENTRE, CENTRE), np.ones(3), transfer, None)[1]
        for kind in ("extended", "lensed")
    ]
    found = np.abs(images[0] - images[1]).max() / images[1].max()
    assert found < apart if theta_e < 0.5 else found > apart


@pytest.mark.parametrize("seed", range(3))
def test_pieces_keep_flux_and_distance_and_lose_the_configuration(seed):
    middle = {"src_x_arcsec": 0.0, "src_y_arcsec": 0.0, "src_e": 0.0, "shear": 0.0, "lens_e": 0.0}
    ring = dataclasses.replace(LENS, **middle)
    arc, light = arc_of(ring), drawn("scattered", ring, seed)
    assert light.flux.sum() == pytest.approx(1.0)

    def mean_radius(rays):
        return np.average(np.hypot(rays.x_arcsec, rays.y_arcsec), weights=rays.flux)

    assert mean_radius(light) == pytest.approx(mean_radius(arc), rel=0.12)
    # The arc is a ring: its light is even in azimuth. The pieces' is not.
    first = [
        abs(np.sum(r.flux * np.exp(2j * np.arctan2(r.y_arcsec, r.x_arcsec)))) / r.flux.sum()
        for r in (arc, light)
    ]
    assert first[0] < 0.01 < 0.05 < first[1]


def test_companions_lie_where_neighbours_do():
    distances = [math.hypot(*centroid(drawn("companion", seed=seed))) for seed in range(300)]
    low, high = COMPANION_ARCSEC
    assert low < min(distances) < low + 0.3
    assert high - 0.3 < max(distances) < high

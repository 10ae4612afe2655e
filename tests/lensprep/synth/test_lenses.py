"""Lensing against theory: Einstein radius, magnification, stretch, multiple images."""

import dataclasses
import math

import numpy as np
import pytest

from lensprep.synth.hosts import draw_host
from lensprep.synth.imaging import CENTRE, GRID
from lensprep.synth.lenses import (
    SHEAR,
    SRC_E,
    SRC_REFF_ARCSEC,
    THETA_E_ARCSEC,
    Lens,
    deflection,
    draw_lens,
    from_phase4c,
    trace,
    trace_as_phase4c,
)
from lensprep.synth.priors import PRIORS

PIXEL = 0.262
POINT = 0.012
"""Half-light radius that is small against every Einstein radius here, arcsec."""

SIS = Lens(
    lens_model="SIS",
    theta_e_arcsec=1.0,
    lens_e=0.0,
    lens_phi_rad=0.0,
    shear=0.0,
    shear_phi_rad=0.0,
    src_dmag=1.0,
    src_reff_arcsec=POINT,
    src_e=0.0,
    src_phi_rad=0.0,
    src_x_arcsec=0.0,
    src_y_arcsec=0.0,
)


def radius(image, x_px=CENTRE, y_px=CENTRE):
    y, x = np.mgrid[:GRID, :GRID]
    return (image * np.hypot(x - x_px, y - y_px)).sum() / image.sum() * PIXEL


@pytest.mark.parametrize("theta_e", [0.6, 1.0, 1.5])
def test_source_at_the_centre_makes_a_ring_at_theta_e(theta_e):
    arc = trace(dataclasses.replace(SIS, theta_e_arcsec=theta_e), CENTRE, CENTRE, subpixels=15)
    assert arc.radius_arcsec == pytest.approx(theta_e, rel=0.01)
    assert radius(arc.image) == pytest.approx(theta_e, abs=PIXEL / 4)
    # mu = 2 theta_E / beta, averaged over an exponential disc: <1 / beta> = 1.678 / r_eff.
    assert arc.magnification == pytest.approx(2 * theta_e * 1.678 / POINT, rel=0.03)


@pytest.mark.parametrize("beta", [0.15, 0.3, 0.45])
def test_sis_magnifies_a_point_by_two_theta_e_over_beta(beta):
    arc = trace(dataclasses.replace(SIS, src_x_arcsec=beta), CENTRE, CENTRE, subpixels=25)
    assert arc.magnification == pytest.approx(2 / beta, rel=0.02)
    assert arc.image.sum() == pytest.approx(arc.magnification, rel=1e-5)
    # Of two images, the flux-weighted harmonic mean of |mu| is half their sum.
    assert arc.tangential_stretch == pytest.approx(1 / beta, rel=0.05)
    assert arc.radial_stretch == pytest.approx(1.0, abs=1e-6)


def test_images_of_a_sis_lie_at_beta_plus_and_minus_theta_e():
    source = dataclasses.replace(SIS, src_x_arcsec=0.4)
    image = trace(source, CENTRE, CENTRE, subpixels=41).image
    row = image.sum(0)
    x = (np.arange(GRID) - CENTRE) * PIXEL
    right, left = row * (x > 0), row * (x < 0)
    assert (right * x).sum() / right.sum() == pytest.approx(1.4, abs=PIXEL / 2)
    assert (left * x).sum() / left.sum() == pytest.approx(-0.6, abs=PIXEL / 2)
    # magnifications 1 + 1 / beta and 1 / beta - 1
    assert right.sum() / left.sum() == pytest.approx(3.5 / 1.5, rel=0.03)


@pytest.mark.parametrize(("x", "y"), [(0.31, 0.05), (-0.12, 0.22), (0.02, -0.37)])
def test_sie_with_shear_magnifies_as_the_lens_equation_says(x, y):
    """Against lenstronomy's solver: the sum of the magnifications at the images of a point."""
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver

    lens = dataclasses.replace(
        SIS,
        lens_model="SIE",
        lens_e=0.15,
        lens_phi_rad=0.7,
        shear=0.03,
        shear_phi_rad=1.1,
        src_x_arcsec=x,
        src_y_arcsec=y,
    )
    model = LensModel(["SIE", "SHEAR"])
    e1, e2 = 0.15 * math.cos(1.4), 0.15 * math.sin(1.4)
    arguments = [
        {"theta_E": 1.0, "e1": e1, "e2": e2, "center_x": 0.0, "center_y": 0.0},
        {"gamma1": 0.03 * math.cos(2.2), "gamma2": 0.03 * math.sin(2.2)},
    ]
    at = LensEquationSolver(model).image_position_from_source(
        x, y, arguments, min_distance=0.02, search_window=5.0, verbose=False
    )
    expected = np.abs(model.magnification(*at, arguments)).sum()
    assert trace(lens, CENTRE, CENTRE, subpixels=25).magnification == pytest.approx(
        expected, rel=0.04
    )


def test_shear_adds_to_the_deflection_of_a_sis():
    lens = dataclasses.replace(SIS, shear=0.03, shear_phi_rad=0.4)
    x, y = np.array([0.5, -1.2]), np.array([0.9, 0.3])
    ax, ay = deflection(lens, x, y)
    g1, g2 = 0.03 * math.cos(0.8), 0.03 * math.sin(0.8)
    assert ax == pytest.approx(x / np.hypot(x, y) + g1 * x + g2 * y)
    assert ay == pytest.approx(y / np.hypot(x, y) + g2 * x - g1 * y)


@pytest.mark.parametrize("reff", SRC_REFF_ARCSEC)
@pytest.mark.parametrize("theta_e", THETA_E_ARCSEC)
def test_default_ray_spacing_is_fine_enough(theta_e, reff):
    lens = dataclasses.replace(
        SIS, theta_e_arcsec=theta_e, src_reff_arcsec=reff, src_x_arcsec=0.3 * theta_e, src_e=0.3
    )
    coarse = trace(lens, 47.31, 47.62)
    fine = trace(lens, 47.31, 47.62, subpixels=20)
    assert coarse.magnification == pytest.approx(fine.magnification, rel=0.01)
    assert coarse.tangential_stretch == pytest.approx(fine.tangential_stretch, rel=0.05)


def test_lens_follows_its_centre():
    arc = trace(dataclasses.replace(SIS, src_reff_arcsec=0.15), 47.1, 47.9)
    y, x = np.mgrid[:GRID, :GRID]
    assert (arc.image * x).sum() / arc.image.sum() == pytest.approx(47.1, abs=0.02)
    assert (arc.image * y).sum() / arc.image.sum() == pytest.approx(47.9, abs=0.02)


@pytest.mark.parametrize(("beta", "warned"), [(0.5, False), (0.99, False), (1.01, True)])
def test_source_with_a_single_image_is_no_valid_lens(beta, warned):
    arc = trace(dataclasses.replace(SIS, src_x_arcsec=beta), CENTRE, CENTRE)
    assert ("source_may_be_single_imaged" in arc.warnings) is warned


@pytest.mark.parametrize("priors", PRIORS.values(), ids=list(PRIORS))
def test_drawn_lenses_are_strong_and_fill_the_grid(priors):
    rng = np.random.default_rng(4)
    lenses = [draw_lens(rng, draw_host(rng, 0.03, priors), priors) for _ in range(1500)]
    assert {lens.theta_e_arcsec for lens in lenses} == set(THETA_E_ARCSEC)
    assert len({lens.config_id for lens in lenses}) == 3 * 2**4
    axes = {"src_dmag": priors.src_dmag, "src_reff_arcsec": SRC_REFF_ARCSEC, "src_e": SRC_E}
    for name, values in (axes | {"shear": SHEAR}).items():
        assert {getattr(lens, name) for lens in lenses} == set(values)
    assert all((lens.lens_e == 0) == (lens.lens_model == "SIS") for lens in lenses)
    arcs = [trace(from_phase4c(lens), CENTRE, CENTRE) for lens in lenses[:150]]
    assert all(not arc.warnings for arc in arcs)


def phase4c_image(lens):
    """The arc of a row as Phase 4c defines it: a ray through the centre of each pixel.

    From the formulae of Kormann et al. 1994, A&A 284, 285, without lenstronomy.
    """
    at = (np.arange(GRID) - CENTRE) * PIXEL
    x, y = np.meshgrid(at, at)
    cos, sin = math.cos(lens.lens_phi_rad), math.sin(lens.lens_phi_rad)
    along, across = cos * x + sin * y, cos * y - sin * x
    q = (1 - lens.lens_e) / (1 + lens.lens_e)
    flat = math.sqrt(1 - q**2)
    psi = np.hypot(q * along, across)
    a1 = lens.theta_e_arcsec / flat * np.arctan(flat * along / psi)
    a2 = lens.theta_e_arcsec / flat * np.arctanh(flat * across / psi)
    g1 = lens.shear * math.cos(2 * lens.shear_phi_rad)
    g2 = lens.shear * math.sin(2 * lens.shear_phi_rad)
    bx = x - (cos * a1 - sin * a2) - (g1 * x + g2 * y) - lens.src_x_arcsec
    by = y - (sin * a1 + cos * a2) - (g2 * x - g1 * y) - lens.src_y_arcsec
    return exponential_disc(lens, bx, by)


def exponential_disc(lens, x, y):
    """Flux in pixels of a disc of unit flux, whose half-light radius is that of its major axis."""
    cos, sin = math.cos(lens.src_phi_rad), math.sin(lens.src_phi_rad)
    q = (1 - lens.src_e) / (1 + lens.src_e)
    scale = lens.src_reff_arcsec / 1.67835
    radius = np.hypot(cos * x + sin * y, (cos * y - sin * x) / q)
    return np.exp(-radius / scale) / (2 * math.pi * q * scale**2) * PIXEL**2


def test_arc_of_phase4c_is_that_of_its_formulae():
    rng = np.random.default_rng(6)
    for lens in [draw_lens(rng, draw_host(rng, 0.03)) for _ in range(60)]:
        arc, expected = trace_as_phase4c(lens), phase4c_image(lens)
        # lenstronomy's approximation of the half-light radius is 0.4 % off.
        np.testing.assert_allclose(arc.image, expected, rtol=0.02, atol=2e-4 * expected.max())
        at = (np.arange(GRID) - CENTRE) * PIXEL
        x, y = np.meshgrid(at - lens.src_x_arcsec, at - lens.src_y_arcsec)
        ratio = expected.sum() / exponential_disc(lens, x, y).sum()
        assert arc.magnification == pytest.approx(ratio, rel=0.02)

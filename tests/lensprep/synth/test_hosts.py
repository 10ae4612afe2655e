"""Hosts: a magnitude-limited sample of mostly old galaxies, with neighbours."""

import math

import numpy as np
import pytest

from lensprep.synth.hosts import draw_host, draw_scene
from lensprep.synth.imaging import GRID
from lensprep.synth.priors import UPSTREAM


@pytest.fixture(scope="module")
def hosts():
    rng = np.random.default_rng(3)
    return [draw_host(rng, 0.0) for _ in range(3000)]


def flux(host):
    return np.sum([flux for _, flux in host.parts], axis=0)


def test_sample_is_limited_in_z_and_colour_and_reddens_with_redshift(hosts):
    fluxes = np.array([flux(host) for host in hosts])
    z_mag = 22.5 - 2.5 * np.log10(fluxes[:, 2])
    assert z_mag.max() < UPSTREAM.host_z_limit_mag
    rz = 2.5 * np.log10(fluxes[:, 2] / fluxes[:, 1])
    assert rz.min() > UPSTREAM.host_rz_limit_mag
    redshift = np.array([host.redshift for host in hosts])
    assert np.corrcoef(redshift, rz)[0, 1] > 0.5


def test_colour_alone_does_not_make_a_host_old(hosts):
    """A share of controls is blue: g - r below what any old galaxy of the sample has."""
    gr = np.array([2.5 * math.log10(flux(h)[1] / flux(h)[0]) for h in hosts])
    assert 0.3 * UPSTREAM.late_share < (gr < 0.9).mean() < 1.2 * UPSTREAM.late_share


def test_parts_are_positive_and_centred(hosts):
    assert all((part_flux > 0).all() for host in hosts for _, part_flux in host.parts)
    assert max(abs(host.x_px - (GRID - 1) / 2) for host in hosts) <= 0.5


def test_dust_dims_g_most():
    clear, dusty = (draw_host(np.random.default_rng(8), ebv) for ebv in (0.0, 0.2))
    dimming = -2.5 * np.log10(flux(dusty) / flux(clear))
    assert dimming == pytest.approx([0.643, 0.433, 0.242], abs=0.002)


def test_scene_holds_the_host_and_more():
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(40):
        host = draw_host(rng, 0.03)
        scene = draw_scene(rng, host, 0.03)
        assert scene.shape == (3, GRID, GRID)
        assert np.isfinite(scene).all()
        assert scene.min() >= 0
        shares.append(scene[1].sum() / host.flux_r)
    # The widest profiles spread a little beyond the grid; most stamps have neighbours.
    assert min(shares) > 0.7
    assert np.median(shares) > 1.02

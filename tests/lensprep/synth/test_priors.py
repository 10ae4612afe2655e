"""Priors: what is drawn has the distributions that they state, and upstream's are as published."""

import math

import numpy as np
import pytest
import scipy.fft
from click.testing import CliRunner
from scipy import stats

from lensprep.cli import main
from lensprep.errors import ConfigError
from lensprep.source.tree import Source
from lensprep.synth import rows, synthesize
from lensprep.synth.hosts import draw_host
from lensprep.synth.imaging import MARGIN, gaussian_transfer, make_camera
from lensprep.synth.lenses import Lens, draw_lens, from_phase4c, trace, trace_as_phase4c
from lensprep.synth.priors import PRIORS, REALISTIC, UPSTREAM, find_priors
from lensprep.synth.survey import is_lens, plan_survey

PIXEL = 0.262
COUNT = 6000


@pytest.fixture(scope="module", params=PRIORS.values(), ids=list(PRIORS))
def drawn(request):
    """Priors, and hosts with lenses drawn from them."""
    rng = np.random.default_rng(2)
    hosts = [draw_host(rng, 0.04, request.param) for _ in range(COUNT)]
    return request.param, hosts, [draw_lens(rng, host, request.param) for host in hosts]


def values(lenses, name):
    return np.array([getattr(lens, name) for lens in lenses])


def test_sources_are_uniform_in_area_and_in_direction(drawn):
    priors, _, lenses = drawn
    x, y = values(lenses, "src_x_arcsec"), values(lenses, "src_y_arcsec")
    offset = np.hypot(x, y) / values(lenses, "theta_e_arcsec")
    assert offset.max() <= priors.source_offset == 0.8
    assert stats.kstest((offset / 0.8) ** 2, "uniform").pvalue > 0.01
    assert stats.kstest(np.arctan2(y, x) / (2 * math.pi) + 0.5, "uniform").pvalue > 0.01


def test_mass_has_its_own_ellipticity_or_that_of_the_light(drawn):
    priors, hosts, lenses = drawn
    e, light = values(lenses, "lens_e"), np.array([host.ellipticity for host in hosts])
    turned = values(lenses, "lens_phi_rad") - np.array([host.angle_rad for host in hosts])
    elliptical = e > 0
    assert (~elliptical).mean() == pytest.approx(priors.sis_share, abs=0.02)
    if priors.lens_e is None:
        # 10 degrees about the light: <cos 2 d> = exp(-2 * 0.17**2)
        assert np.cos(2 * turned).mean() == pytest.approx(0.944, abs=0.01)
        assert np.corrcoef(e[elliptical], light[elliptical])[0, 1] > 0.9
        return
    low, high = priors.lens_e
    assert stats.kstest((e - low) / (high - low), "uniform").pvalue > 0.01
    assert e.mean() == pytest.approx(0.275, abs=0.005)
    assert abs(np.cos(2 * turned).mean()) < 0.03
    assert abs(np.corrcoef(e, light)[0, 1]) < 0.04


def test_source_colours_have_the_stated_mean_and_scatter(drawn):
    priors, _, _ = drawn
    rng = np.random.default_rng(5)
    gr, rz = np.array([rows._source_colour(rng, priors) for _ in range(20_000)]).T
    at_0, slope, scatter = priors.source_rz_mag
    assert gr.mean() == pytest.approx(priors.source_gr_mag[0], abs=0.01)
    assert gr.std() == pytest.approx(priors.source_gr_mag[1], rel=0.02)
    assert (rz - slope * gr).mean() == pytest.approx(at_0, abs=0.01)
    assert (rz - slope * gr).std() == pytest.approx(scatter, rel=0.03)


def test_upstream_hosts_have_the_published_magnitudes():
    """Medians of its 19.7 million galaxies: g 22.66, r 21.17, z 19.99; 95 % have r < 22.02."""
    rng = np.random.default_rng(2)
    reddening = 0.04 * rng.lognormal(0.0, 0.6, COUNT)
    flux = np.array(
        [sum(part for _, part in draw_host(rng, ebv, UPSTREAM).parts) for ebv in reddening]
    )
    g, r, z = (22.5 - 2.5 * np.log10(flux)).T
    assert (np.median(g), np.median(r), np.median(z)) == pytest.approx(
        (22.66, 21.17, 19.99), abs=0.08
    )
    assert np.quantile(r, 0.95) == pytest.approx(22.02, abs=0.08)
    assert (r - z).mean() == pytest.approx(1.243, abs=0.06)


@pytest.fixture(scope="module")
def injected():
    """Einstein radius, offset in it, magnification and flux in r of injections."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(2500):
        host = draw_host(rng, 0.04, UPSTREAM)
        lens = draw_lens(rng, host, UPSTREAM)
        arc = trace_as_phase4c(lens)
        flux = host.flux_r * 10 ** (-0.4 * lens.src_dmag) * arc.image.sum()
        offset = math.hypot(lens.src_x_arcsec, lens.src_y_arcsec) / lens.theta_e_arcsec
        found.append((lens.theta_e_arcsec, offset, arc.magnification, flux))
    return np.array(found).T


def test_upstream_magnifications_are_as_published(injected):
    """Median 5.65, mean 8.38, 1.80 % below 1, 56 % above 5; mean offsets of these 0.69 and 0.46."""
    _, offset, found, _ = injected
    assert np.median(found) == pytest.approx(5.65, rel=0.03)
    assert found.mean() == pytest.approx(8.38, rel=0.06)
    assert (found < 1).mean() == pytest.approx(0.018, abs=0.005)
    assert (found >= 5).mean() == pytest.approx(0.56, abs=0.02)
    assert offset[found < 1].mean() == pytest.approx(0.69, abs=0.04)
    assert offset[found >= 5].mean() == pytest.approx(0.46, abs=0.02)


def test_upstream_fluxes_are_as_published_at_every_einstein_radius(injected):
    """Median flux in r: 4.47, 4.75 and 4.65 nmgy at 0.3, 0.6 and 1.0 arcsec; mean of all 7.10."""
    theta_e, _, _, flux = injected
    medians = [np.median(flux[theta_e == value]) for value in (0.3, 0.6, 1.0)]
    assert medians == pytest.approx([4.465, 4.749, 4.647], rel=0.15)
    assert max(medians) / min(medians) < 1.15
    assert flux.mean() == pytest.approx(7.10, rel=0.15)


def lens_rows(count, seed=4):
    """Indices and bricks of some rows with a lens."""
    plan = plan_survey(100, seed)
    found = [
        (row, plan.brick_of(row))
        for row in range(100)
        if is_lens(seed, rows.galaxy_id(plan.brick_of(row), row))
    ]
    return seed, found[:count]


def with_and_without_arc(monkeypatch, seed, index, brick, priors):
    """A row, the pixels of the same row whose source is dark, and flux in g, r, z of the source."""
    row = rows.render_row(seed, index, brick, "train", priors)
    fluxes = []

    def dark(*arguments):
        fluxes.append(source_flux(*arguments))
        return np.zeros(3)

    source_flux = rows._source_flux
    with monkeypatch.context() as patched:
        patched.setattr(rows, "_source_flux", dark)
        return row, rows.render_row(seed, index, brick, "train", priors).pixels, fluxes[0]


def lens_of(columns):
    return Lens(**{name: columns[name] for name in Lens.__dataclass_fields__})


def test_added_arcs_are_noiseless_and_blurred_by_a_gaussian(monkeypatch):
    """Row less row without arc = arc of the columns through a Gaussian, to float32."""
    seed, found = lens_rows(4)
    for index, brick in found:
        row, without, flux = with_and_without_arc(monkeypatch, seed, index, brick, UPSTREAM)
        image = trace_as_phase4c(lens_of(row.columns)).image.astype(np.float64)
        for band, name in enumerate("grz"):
            fwhm = row.columns[f"psf_fwhm_used_{name}"]
            assert row.columns[f"psf_source_{name}"] == 1
            offset = np.arange(-24, 25) * PIXEL
            profile = np.exp(-4 * math.log(2) * (offset / fwhm) ** 2)
            profile /= profile.sum()
            seen = np.apply_along_axis(np.convolve, 0, image, profile, "same")
            seen = np.apply_along_axis(np.convolve, 1, seen, profile, "same") * flux[band]
            expected = seen[MARGIN:-MARGIN, MARGIN:-MARGIN]
            difference = row.pixels[band].astype(np.float64) - without[band]
            scale = np.abs(row.pixels[band]).max()
            np.testing.assert_allclose(difference, expected, rtol=0, atol=1e-6 * scale)
        assert row.columns["total_injected_flux_r"] == pytest.approx(
            image.sum() * flux[1], rel=1e-6
        )


def test_exposed_arcs_have_photon_noise_and_the_psf_of_their_host(monkeypatch):
    seed, found = lens_rows(12)
    misfit = {"camera": 0.0, "gaussian": 0.0}
    for index, brick in found:
        row, without, flux = with_and_without_arc(monkeypatch, seed, index, brick, REALISTIC)
        host = draw_host(np.random.default_rng([seed, 2, index]), brick.ebv, REALISTIC)
        image = trace(from_phase4c(lens_of(row.columns)), host.x_px, host.y_px).image * flux[1]
        psfs = {
            "camera": make_camera(brick).transfer[1],
            "gaussian": gaussian_transfer(brick.psfsize_arcsec)[1],
        }
        for name, psf in psfs.items():
            seen = scipy.fft.irfft2(scipy.fft.rfft2(image) * psf)[MARGIN:-MARGIN, MARGIN:-MARGIN]
            rest = np.abs((row.pixels - without)[1] - seen).max() / seen.max()
            misfit[name] += rest / len(found)
    # What is left of the difference is its photon noise.
    assert 0.001 < misfit["camera"] < 0.05 < misfit["gaussian"]


def test_priors_change_neither_sky_nor_labels():
    plan = plan_survey(60, 9)
    for index in range(60):
        one, other = (
            rows.render_row(9, index, plan.brick_of(index), "train", priors).columns
            for priors in (UPSTREAM, REALISTIC)
        )
        for name in ("is_control", "brickname", "psfsize_r", "psfdepth_r", "ebv", "task_seed64"):
            assert one[name] == other[name]


def test_priors_decide_the_bytes_and_nothing_else_does(tmp_path):
    trees = {}
    for name, priors in (("a", "realistic"), ("b", "realistic"), ("c", "upstream")):
        summary = synthesize(tmp_path / name, rows=12, seed=2, priors=priors, workers=1)
        assert summary["priors"] == priors
        source = Source.open(tmp_path / name)
        trees[name] = [(tmp_path / name / file.path).read_bytes() for file in source.files]
    assert trees["a"] == trees["b"]
    assert trees["a"] != trees["c"]


def test_unknown_priors_are_one_line_that_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="no priors 'nature'; there are: upstream, realistic"):
        find_priors("nature")
    arguments = ["synth", str(tmp_path / "x"), "--rows", "9", "--priors", "nature"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "upstream, realistic" in result.stderr
    assert not (tmp_path / "x").exists()

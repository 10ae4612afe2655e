"""Probes of stamps of other surveys: radii in arcsec, any bands, odd sides, small stamps."""

from dataclasses import replace

import numpy as np
import pytest

from lensprep.dataset import DECALS
from lensprep.dataset.normalization import normalization_spec, radius_px
from lenstrain.probes import adding, looking, profiles, views
from lenstrain.probes.attention import measure_attention
from lenstrain.probes.attribution import arc_masks
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.possible import cannot_add, impossible
from lenstrain.probes.probe import measure
from lenstrain.probes.radii import annulus_px, core_px, sky_inner_px
from lenstrain.probes.sample import find_partners
from lenstrain.probes.scoring import Scorer
from lenstrain.probes.sky import sky_statistics
from lenstrain.probes.words import readings
from tests.lenstrain.probes.conftest import RUBIN, VIS, Sees, make_sample, other_survey

OPTIONS = ProbeOptions(resamples=50, attribution=2, injections=10, fpr=0.1,
                       occlusion_stride_arcsec=2.096)  # fmt: skip
TINY = other_survey("tiny", "gr", 32, 0.05, "r")
"""Stamps of 1.6 arcsec: no core of 2.62 arcsec fits, nor does any ring beyond 0.8."""


def samples():
    return [make_sample(40, spec=normalization_spec("asinh_survey", geometry=geometry),
                        geometry=geometry) for geometry in (VIS, RUBIN)]  # fmt: skip


def finder(geometry):
    """Adds up all light within 3 arcsec."""
    mask = radius_px(geometry.side) * geometry.pixel_scale_arcsec < 3
    return Scorer(Sees(mask * 1.0, 280.0).eval())


def test_radii_of_decals_are_those_in_pixels_that_they_were():
    assert core_px(DECALS, ProbeOptions()) == 10
    assert sky_inner_px(DECALS) == 20
    assert annulus_px(DECALS, ProbeOptions()) == (20, 32)
    edges = [0, 1.5, 3, 4.5, 6, 8, 10, 13, 20, 32]
    assert [profiles.to_px(edge, DECALS) for edge in profiles.RING_EDGES_ARCSEC] == edges


@pytest.mark.parametrize("side", [32, 33, 64, 101, 256])
@pytest.mark.parametrize("scale", [0.05, 0.1, 0.262, 0.5, 3.0])
def test_every_stamp_has_sky_beyond_its_core_and_rings_that_hold_pixels(side, scale):
    geometry = other_survey("any", "gri", side, scale, "r")
    inner, outer = annulus_px(geometry, ProbeOptions())
    distance = radius_px(side)
    assert ((distance >= inner) & (distance < outer)).any()
    assert (distance >= sky_inner_px(geometry)).sum() > side**2 / 2
    flat = np.ones((2, *geometry.shape), np.float16)
    means = profiles.azimuthal_means(flat, geometry)
    assert means.shape[1] % 3 == 0
    assert np.allclose(means, 1)


def test_rings_of_light_profiles_lie_at_the_same_arcsec_whatever_the_pixels():
    geometry = other_survey("fine", "grz", 128, 0.131, "r")
    coarse = np.exp(-radius_px(64)[None, None] / 4)
    fine = np.exp(-radius_px(128)[None, None] / 8)
    ours, theirs = profiles.azimuthal_means(coarse), profiles.azimuthal_means(fine, geometry)
    assert np.allclose(ours, theirs, rtol=0.1)


def test_an_arc_lies_at_its_radius_in_arcsec():
    (mask,) = arc_masks(np.array([3.0]), np.array([0.4]), 101, 0.1)
    distance = radius_px(101)[mask]
    assert distance.min() > 27.9
    assert distance.max() < 32.1


@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.geometry.survey)
def test_all_probes_run_on_one_band_and_on_six(sample):
    scorer = finder(sample.geometry)
    base = looking.measure_baseline(sample, scorer, OPTIONS)
    partners = np.empty(0, np.int64), sample.take(np.empty(0, np.int64))
    found, attention = measure(base, scorer, OPTIONS, lambda *_: None, partners)
    one = len(sample.geometry.bands) == 1
    assert {name for name, entry in found.items() if entry is None} == (
        {"colour_scrambled"} if one else set()
    )
    assert found["null_injection"]["pixels_changed"] == 0
    assert found["original"]["auroc"]["value"] > 0.95
    assert abs(found["core_mask"]["auroc"]["value"] - 0.5) < 0.25
    assert found["arc_removal"]["removed_share"] > 0.5
    # This finder adds up light, so that light that is not lensed passes.
    assert found["flux_matched_null"]["pass_rate"] > 0.8
    side = sample.geometry.side
    assert attention.pictures.shape[1:] == (side, side, 3)
    assert (attention.pictures[..., :1] == attention.pictures).all() == one


def test_six_bands_without_colours_say_which_columns_injections_lack():
    sample = samples()[1]
    sample = replace(sample, table=sample.table.drop_columns(["src_ri", "psf_fwhm_used_i"]))
    reason = "the sidecar lacks src_ri, psf_fwhm_used_i."
    assert cannot_add(sample) == reason
    left_out = impossible(sample, OPTIONS)
    assert left_out == {"flux_matched_null": reason, "ring_probe": reason}
    content = {"probes": dict.fromkeys(left_out), "not_run": left_out}
    assert readings(content)["ring_probe"] == f"Not run. T{reason[1:]}"


def test_colours_are_relative_to_the_reference_band():
    sample = samples()[1]
    table = sample.table
    for name in ("src_ri", "src_iz"):
        column = np.full(table.num_rows, 2.5)
        table = table.set_column(table.column_names.index(name), name, [column])
    lenses = replace(sample, table=table).take(sample.labels == 1)
    ratio = adding.source_fluxes(lenses) / lenses.numbers("total_injected_flux_r")[:, None]
    assert np.allclose(ratio, [0.1, 0.1, 0.1, 1, 10, 10])


def test_what_does_not_fit_a_small_stamp_is_left_out_with_its_reason():
    sample = make_sample(40, geometry=TINY)
    options = replace(OPTIONS, ring_radii_arcsec=(0.4, 1.0))
    left_out = impossible(sample, options)
    names = {"core_mask", "core_view", "core_only", "permuted_labels", "brightness_only"}
    assert {*left_out} == names
    assert "Set core_arcsec to 0.5 at most" in left_out["core_mask"]
    scorer = finder(TINY)
    base = looking.measure_baseline(sample, scorer, options)
    found = looking.measure_views(base, scorer, options)
    assert found.keys() == {"original", "annulus_only", "brightness_view", "colour_scrambled"}
    rings = adding.measure_rings(base, scorer, options)
    assert rings["sky"].keys() == {"0.4"}
    assert rings["left_out"] == [1.0]
    smaller = impossible(sample, replace(options, core_arcsec=0.5, ring_radii_arcsec=(1.0,)))
    assert smaller == {"ring_probe": "no ring of ring_radii_arcsec fits a stamp of 1.6 arcsec."}


def test_the_reading_says_where_the_sky_of_a_small_stamp_begins():
    sample = samples()[0]
    inner, outer = annulus_px(VIS, OPTIONS)
    entry = {"auroc": {"value": 0.5, "low": 0.4, "high": 0.6}, "bright_drop": None}
    content = {
        "probes": {"annulus_only": entry},
        "geometry": sample.geometry.to_dict(),
        "radii_px": {"sky_annulus": (inner, outer)},
        "options": {"sky_outer_arcsec": OPTIONS.sky_outer_arcsec},
    }
    assert (
        "The stamps end at 5.05″, so that this is the sky beyond 3.16″"
        in readings(content)["annulus_only"]
    )


def test_sky_is_measured_outside_the_light_whatever_the_scale():
    for sample in samples():
        level, scatter = sky_statistics(
            sample.pixels, sample.spec, *sample.statistics(), sample.geometry
        )
        assert level.shape == (40, len(sample.geometry.bands))
        assert np.allclose(scatter, 0.01, rtol=0.15)
        assert np.allclose(level, 0, atol=0.002)


def test_an_occluded_large_stamp_is_scored_in_parts():
    """More squares than a batch give the same map as one batch would."""
    sample = samples()[1].take(np.arange(4))
    scorer = finder(RUBIN)
    base = looking.Baseline(sample, np.zeros(4), 0.0, 0, 1.0, sample.labels == 1)
    fine = replace(OPTIONS, occlusion_arcsec=1.0, occlusion_stride_arcsec=0.4)
    maps = measure_attention(base, scorer, fine).occlusion
    inside = radius_px(48) * 0.2 < 2.5
    assert np.isfinite(maps).all()
    assert np.abs(maps[:, inside]).mean() > 5 * np.abs(maps[:, radius_px(48) * 0.2 > 4.2]).mean()


def test_views_fill_with_the_sky_of_their_own_stamps():
    sample = samples()[1]
    pixels = np.where(radius_px(48) >= sky_inner_px(RUBIN), 1, 0).astype(np.float16)
    pixels = np.broadcast_to(pixels, sample.pixels.shape)
    rng = np.random.default_rng(0)
    assert (views.mask_core(pixels, core_px(RUBIN, OPTIONS), rng, RUBIN)[..., 24, 24] == 1).all()


def test_partners_carry_the_geometry():
    sample = samples()[0]
    rows, partners = find_partners(None, replace(sample, table=sample.table.drop_columns(["ra"])))
    assert not rows.size
    assert partners.geometry == VIS

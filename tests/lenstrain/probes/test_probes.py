"""Each probe on finders whose shortcut is known: it must tell them apart."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from lensprep.dataset import DECALS, Dataset
from lensprep.dataset.normalization import MODES, band_statistics, normalization_spec, normalize
from lensprep.dataset.writer import write_dataset
from lenstrain.probes import adding, looking, possible
from lenstrain.probes.attention import measure_attention, randomised
from lenstrain.probes.attribution import gradcam_maps, mass_over_area, occlusion_maps
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.sample import Sample, find_partners
from lenstrain.probes.scoring import Scorer
from tests.lenstrain.probes.conftest import make_sample

OPTIONS = ProbeOptions(
    resamples=200, attribution=2, occlusion_stride_arcsec=2.096, injections=20, fpr=0.1
)
NOBODY = np.empty(0, np.int64)


def baseline(sample, model):
    scorer = Scorer(model)
    return looking.measure_baseline(sample, scorer, OPTIONS), scorer


def test_both_finders_work(sample, arc_finder, flux_finder):
    for model in (arc_finder, flux_finder):
        base, _ = baseline(sample, model)
        entry = looking.view_entry(base, base.logits, OPTIONS)
        assert entry["auroc"]["value"] > 0.99
        assert base.flagged_controls <= 3


def test_hiding_the_core_leaves_chance_and_takes_the_score(sample, arc_finder):
    base, scorer = baseline(sample, arc_finder)
    found = looking.measure_views(base, scorer, OPTIONS)
    assert found["core_mask"]["auroc"]["low"] < 0.5 < found["core_mask"]["auroc"]["high"]
    assert found["core_mask"]["bright_drop"] > 0.5
    assert found["core_mask"]["n_bright"] == 30
    assert found["core_view"]["auroc"]["value"] > 0.99


def test_what_is_lost_is_a_share_of_the_score_whatever_the_share_of_lenses():
    assert looking.lost_share(np.full(4, 9.0), np.full(4, -9.0)) == pytest.approx(1, abs=1e-3)
    assert looking.lost_share(np.full(4, -3.0), np.full(4, -9.0)) == pytest.approx(1, abs=0.01)
    assert looking.lost_share(np.array([0.0, -99]), np.array([-99, 0.0])) == pytest.approx(0)


def test_shuffled_rings_tell_shape_from_brightness(sample, arc_finder, flux_finder):
    by_shape = looking.measure_views(*baseline(sample, arc_finder), OPTIONS)
    by_flux = looking.measure_views(*baseline(sample, flux_finder), OPTIONS)
    assert by_shape["brightness_view"]["auroc"]["value"] < 0.75
    assert by_flux["brightness_view"]["auroc"]["value"] > 0.95


def test_removing_arcs_takes_the_score_of_an_arc_finder(sample, arc_finder):
    base, scorer = baseline(sample, arc_finder)
    nobody = (NOBODY, sample.take(NOBODY))
    found = looking.measure_arc_removal(base, scorer, OPTIONS, nobody)
    assert found["method"] == "asymmetry"
    assert found["n_removed"] > 20
    assert found["drop"] > 0.5
    assert abs(found["control_drop"]) < 0.1


@pytest.mark.parametrize("mode", MODES)
def test_arcs_can_be_removed_whatever_the_normalisation(arc_finder, mode):
    made = make_sample(spec=normalization_spec(mode))
    base, scorer = baseline(made, arc_finder)
    found = looking.measure_arc_removal(base, scorer, OPTIONS, (NOBODY, made.take(NOBODY)))
    assert found["n_removed"] > 20
    assert found["removed_share"] > 0.6


def test_a_galaxys_own_non_lens_is_the_better_removal(sample, arc_finder):
    base, scorer = baseline(sample, arc_finder)
    lenses = np.flatnonzero(sample.labels == 1)
    partners = (lenses, sample.take(lenses - 1))
    found = looking.measure_arc_removal(base, scorer, OPTIONS, partners)
    assert found["method"] == "paired"
    assert found["n_removed"] == 30
    assert found["drop"] > 0.8


def test_orientation_decides_for_a_finder_of_left_arcs_only(sample, arc_finder, flux_finder):
    sided = looking.measure_d4(*baseline(sample, arc_finder))
    round_ = looking.measure_d4(*baseline(sample, flux_finder))
    assert sided["crossing_share"] > 0.4
    assert round_["mean_abs_change"] < 1e-3
    assert round_["crossing_share"] < 0.05


def test_zero_flux_changes_nothing(sample, flux_finder):
    base, scorer = baseline(sample, flux_finder)
    found = adding.measure_null_injection(base, scorer, OPTIONS)
    assert found == {"n": 20, "pixels_changed": 0, "max_abs_delta_logit": 0.0}


@pytest.mark.parametrize("mode", MODES)
def test_blank_sky_is_that_beyond_the_host(mode):
    """A host over much of the stamp, and a sky that is not at zero."""
    rng = np.random.default_rng(0)
    spec = normalization_spec(mode)
    flux = rng.normal(0.02, 0.01, (20, 3, 64, 64))
    flux[:, :, 20:44, 20:44] += 0.05
    flux = flux.astype(np.float32)
    median, scale = band_statistics(flux, spec)
    columns = dict(
        zip(
            DECALS.band_columns("median", "scale"),
            np.concatenate([median, scale], axis=1).T,
            strict=True,
        )
    )
    pixels = normalize(flux, spec, median, scale)
    made = Sample(pixels, np.zeros(20, np.int8), pa.table(columns), spec, "val")
    blank = adding.blank_sky(made, 0)
    np.testing.assert_allclose(blank.std((2, 3)), 0.01, rtol=0.08)
    assert blank.std((2, 3)).mean() == pytest.approx(0.01, rel=0.01)
    assert blank.mean() == pytest.approx(0.02, rel=0.01)


def test_a_wrong_scale_is_caught_by_the_null_injection(sample, flux_finder):
    scale = sample.table["scale_r"].to_numpy() * 1.01
    names = sample.table.column_names
    table = sample.table.set_column(names.index("scale_r"), "scale_r", [scale.astype(np.float32)])
    # The restored stamp is off by the scale, but comes back; off by the mode, it does not.
    broken = Sample(sample.pixels + np.float16(20), sample.labels, table, sample.spec, "val")
    base, scorer = baseline(broken, flux_finder)
    assert adding.measure_null_injection(base, scorer, OPTIONS)["pixels_changed"] > 0


def test_unlensed_flux_fools_the_flux_finder_alone(sample, arc_finder, flux_finder):
    for model, low, high in ((flux_finder, 0.9, 1.0), (arc_finder, 0.0, 0.3)):
        found = adding.measure_flux_matched(*baseline(sample, model), OPTIONS)
        assert low <= found["pass_rate"] <= high
        assert found["n"] == 20


def test_injected_flux_is_the_donors_in_every_band(sample):
    donors = adding.draw_donors(sample, 10, 0)
    assert (donors.labels == 1).all()
    fluxes = adding.source_fluxes(donors)
    assert fluxes[:, 1] == pytest.approx(donors.numbers("total_injected_flux_r"))
    assert fluxes[:, 0] == pytest.approx(fluxes[:, 1])
    blur = adding.seeing(sample.take(np.arange(0, 20, 2)), donors)
    own = sample.numbers("psfsize_r")[0:20:2]
    assert blur[:, 1] == pytest.approx(own)
    assert blur[:, 0] == pytest.approx(own * 1.5 / 1.3)


def test_flux_in_other_bands_follows_the_colours(sample):
    lens = sample.take(np.flatnonzero(sample.labels == 1)[:1])
    colours = pa.table({"total_injected_flux_r": [2.0], "src_gr": [2.5], "src_rz": [-2.5]})
    fluxes = adding.source_fluxes(replace(lens, table=colours))
    assert fluxes == pytest.approx(np.array([[0.2, 2.0, 0.2]]))  # 2.5 magnitudes fainter: a tenth


def test_rings_and_blank_sky(sample, flux_finder):
    found = adding.measure_rings(*baseline(sample, flux_finder), OPTIONS)
    assert found["blank"]["flagged"] == 0
    assert found["blank"]["upper"] < 0.15
    assert found["non_lens"]["1"]["share"] > 0.9
    assert set(found["sky"]) == {"0.6", "1", "1.5"}


def test_straight_lines(sample):
    found = looking.measure_linear(sample, OPTIONS)
    assert found["brightness_only"]["value"] > 0.95
    assert found["core_only"]["value"] > 0.95
    assert abs(found["permuted_labels"]["value"] - 0.5) < 0.15
    assert found["permuted_labels"]["permutations"] == 10
    assert found["psf_depth_only"]["value"] < 0.75


def test_occlusion_points_at_what_the_finder_sees(sample, arc_finder):
    scorer = Scorer(arc_finder)
    lenses = sample.pixels[sample.labels == 1][:2]
    maps = occlusion_maps(scorer, lenses, patch=8, stride=4, seed=0)
    place = np.unravel_index(maps[0].argmax(), maps[0].shape)
    assert 18 <= place[1] <= 31
    assert 22 <= place[0] <= 42


def test_gradcam_is_zero_where_the_network_does_not_look(sample, flux_finder):
    maps = gradcam_maps(flux_finder, sample.pixels[1:3])
    assert maps.shape == (2, 64, 64)
    assert maps[:, :10].max() == 0
    assert maps[:, 31, 31].min() > 0


class Precise(torch.nn.Module):
    """Notes whether TF32 is allowed when it runs, and when its gradient does."""

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Conv2d(3, 1, 1)
        self.allowed = []

    def note(self, *_):
        self.allowed.append(torch.backends.cudnn.allow_tf32)
        self.allowed.append(torch.backends.cuda.matmul.allow_tf32)

    def forward(self, x_BCHW):
        self.note()
        feature_BCHW = self.last(x_BCHW)
        feature_BCHW.register_hook(self.note)
        return feature_BCHW.sum((1, 2, 3))


@pytest.fixture
def tf32_allowed():
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield
    after = [place.allow_tf32 for place in places]
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed
    assert after == [True, True]


@pytest.mark.usefixtures("tf32_allowed")
def test_gradcam_is_in_full_float32_forward_and_backward(sample):
    model = Precise()
    gradcam_maps(model, sample.pixels[:2])
    assert model.allowed == [False] * 4


def test_mass_over_area_by_hand():
    maps = np.zeros((1, 8, 8))
    maps[0, 2, 2], maps[0, 5, 5], maps[0, 0, 0] = 3, 1, 100
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 2, 2] = True
    # In the window of 4: three quarters of the mass on one of 16 pixels.
    assert mass_over_area(maps, masks, 4) == pytest.approx([0.75 * 16])
    assert np.isnan(mass_over_area(np.zeros((1, 8, 8)), masks, 8)).all()


def test_attention_measures_lenses_and_the_worst_non_lenses(sample, arc_finder):
    base, scorer = baseline(sample, arc_finder)
    found = measure_attention(base, scorer, OPTIONS)
    assert found.stamps.labels.tolist() == [1, 1, 0]
    assert found.logits[2] == base.logits[sample.labels == 0].max()
    assert found.entry["occlusion_mass_over_area"] > 1
    assert found.pictures.shape == (3, 64, 64, 3)


def untouched(seed):
    raise AssertionError("the generators of the GPUs were seeded, and nobody restores them")


def test_a_randomised_twin_leaves_the_model_and_every_generator_alone(arc_finder, monkeypatch):
    before = arc_finder.last.weight.detach().clone()
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", untouched)
    twin = randomised(arc_finder, 0)
    assert not torch.equal(twin.last.weight, before)
    assert torch.equal(arc_finder.last.weight, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(randomised(arc_finder, 0).last.weight, twin.last.weight)


def with_column(sample, name, values):
    place = sample.table.column_names.index(name)
    table = sample.table.set_column(place, name, pa.array(values, pa.float64()))
    return Sample(sample.pixels, sample.labels, table, sample.spec, sample.split)


def test_light_behind_an_unknown_seeing_is_not_added(sample, flux_finder):
    """It would be NaN, and pass for nothing."""
    psf = [None if i % 4 == 0 else 1.2 for i in range(60)]
    base, scorer = baseline(with_column(sample, "psfsize_r", psf), flux_finder)
    found = adding.measure_flux_matched(base, scorer, OPTIONS)
    assert (found["n"], found["pass_rate"]) == (15, 1.0)
    assert adding.measure_rings(base, scorer, OPTIONS)["non_lens"]["1"]["n"] == 15
    assert possible.cannot_add(with_column(sample, "psfsize_r", [None] * 60))
    assert possible.cannot_add(with_column(sample, "total_injected_flux_r", [None] * 60))


def test_one_unknown_seeing_does_not_spoil_the_removal_of_arcs(sample, arc_finder):
    psf = [None if i == 1 else 1.2 for i in range(60)]
    base, scorer = baseline(with_column(sample, "psfsize_r", psf), arc_finder)
    nobody = (NOBODY, sample.take(NOBODY))
    found = looking.measure_arc_removal(base, scorer, OPTIONS, nobody)
    assert np.isfinite([found["removed_share"], found["control_drop"]]).all()
    assert found["drop_all"] > 0.5


def test_two_unknown_positions_are_not_the_same_galaxy(tmp_path, sample):
    ra = [None if i < 4 else float(i // 2) for i in range(60)]
    table = with_column(with_column(sample, "ra", ra), "dec", [1.0] * 60).table
    write_dataset(tmp_path / "ds", {"val": (sample.pixels, table)}, sample.spec, shard_rows=40)
    rows, partners = find_partners(
        Dataset.open(tmp_path / "ds"), with_column(with_column(sample, "ra", ra), "dec", [1.0] * 60)
    )
    assert rows.tolist() == list(range(5, 60, 2))
    assert (partners.labels == 0).all()

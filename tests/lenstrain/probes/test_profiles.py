"""Light profiles alone: they see no shape, are judged on other regions, and the lead is paired."""

import numpy as np
import pyarrow as pa
import pytest

from lensprep.dataset import Dataset
from lensprep.dataset.writer import write_dataset
from lenstrain.probes import profiles
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.scoring import Scorer
from lenstrain.probes.words import readings, verdict
from tests.lenstrain.probes.conftest import SPEC, make_sample

OPTIONS = ProbeOptions(resamples=200, fpr=0.1)


def ring_or_arc(n, seed):
    """Stored pixels: a ring for a non-lens, for a lens its left half at twice the light."""
    labels = np.arange(n) % 2
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64] - 31.5
    ring = 3.0 * (np.abs(np.hypot(x, y) - 7) < 2)
    pixels = rng.normal(0, 1, (n, 3, 64, 64))
    pixels += np.where(labels[:, None, None] == 1, 2 * ring * (x < 0), ring)[:, None]
    table = pa.table(
        {
            "key": [f"{seed:x}{i:031x}" for i in range(n)],
            "label": pa.array(labels, pa.int8()),
            "region_id": pa.array(100 * seed + np.arange(n) // 12, pa.int32()),
            "pixel_hash": [f"{seed}-{i}" for i in range(n)],
        }
    )
    return pixels.astype(np.float16), table


def make_dataset(folder, splits, shard_rows=50):
    write_dataset(folder, splits, SPEC, shard_rows=shard_rows)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """A dataset whose classes differ in shape alone."""
    splits = {"train": ring_or_arc(240, 1), "val": ring_or_arc(120, 2)}
    return make_dataset(tmp_path_factory.mktemp("shaped"), splits)


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """A dataset whose lenses have the light of an arc more than its non-lenses."""
    train, val = make_sample(120, 1), make_sample(60, 2)
    splits = {"train": (train.pixels, train.table), "val": (val.pixels, val.table)}
    return make_dataset(tmp_path_factory.mktemp("bright"), splits)


def test_azimuthal_means_are_the_means_and_know_nothing_of_shape():
    pixels = np.zeros((1, 3, 64, 64), np.float32)
    y, x = np.mgrid[:64, :64] - 31.5
    core, band = np.hypot(x, y) < 1.5, 2
    pixels[0, band][core] = np.arange(core.sum())
    means = profiles.azimuthal_means(pixels)
    assert means.shape == (1, 27)
    assert means[0, band * 9] == pytest.approx(np.arange(core.sum()).mean())
    assert np.count_nonzero(means) == 1

    stamps, _ = ring_or_arc(4, 0)
    for other in (stamps[..., ::-1], np.rot90(stamps, axes=(2, 3))):
        np.testing.assert_allclose(
            profiles.azimuthal_means(other), profiles.azimuthal_means(stamps), atol=1e-5
        )


def test_a_network_that_sees_shape_leads_by_what_profiles_cannot_tell(shaped, arc_finder):
    found = profiles.measure_lead(shaped, Scorer(arc_finder), OPTIONS)
    assert set(found["candidates"]) == {"profile_line", "profile_boosting"}  # no statistics
    assert all(c["auroc"]["value"] < 0.75 for c in found["candidates"].values())
    assert found["network"]["auroc"]["value"] > 0.99
    assert found["lead"]["auroc"]["low"] > 0.2
    assert found["lead"]["tpr"]["low"] > 0.2
    assert verdict(found["lead"]).startswith("By AUROC and completeness it sees more")


def test_a_network_of_flux_has_shown_nothing(bright, flux_finder):
    found = profiles.measure_lead(bright, Scorer(flux_finder), OPTIONS)
    assert found["candidates"][found["best"]]["auroc"]["value"] > 0.95
    assert "shown nothing beyond light profiles" in verdict(found["lead"])
    text = readings({"probes": {"baseline": found}})["baseline"]
    assert found["candidates"][found["best"]]["title"] in text
    assert "shown nothing" in text


def test_the_lead_is_taken_on_the_same_draws(shaped):
    """A network that scores as the best candidate does leads by exactly nothing in every draw."""
    light = profiles.read_light(shaped, "train", 1000, 10.0)
    inside = {
        name: profiles.cross_validate(profiles.CANDIDATES[name], light)
        for name in ("profile_line", "profile_boosting")
    }
    best = max(inside, key=inside.__getitem__)
    model = profiles.CANDIDATES[best].make().fit(light.features["profiles"], light.labels)

    def same(pixels):
        return model.decision_function(profiles.azimuthal_means(pixels))

    found = profiles.measure_lead(shaped, same, OPTIONS)
    assert found["best"] == best
    for what in ("auroc", "tpr"):
        entry = found["lead"][what]
        assert (entry["value"], entry["low"], entry["high"]) == (0, 0, 0)
        assert found["network"][what]["high"] > found["network"][what]["low"]


def test_the_same_dataset_gives_the_same_figures(bright, flux_finder):
    first, again = (profiles.measure_lead(bright, Scorer(flux_finder), OPTIONS) for _ in range(2))
    assert first == again


def test_the_candidate_is_chosen_by_regions_it_was_not_trained_on():
    """Each region has its own light and label: within regions learnable, across them not."""
    rng = np.random.default_rng(0)
    regions = np.repeat(np.arange(20), 20)
    labels = (np.arange(400) % 2).astype(np.int8)
    own = rng.normal(0, 5, (20, 27))[regions]  # what a row says of its region
    sign = np.where(rng.random(20) < 0.5, 1, -1)[regions]
    features = own + (0.5 * sign * (2 * labels - 1))[:, None] + rng.normal(0, 0.1, (400, 27))
    light = profiles.Light(labels, regions, {"profiles": features}, np.empty(0))
    boosting = profiles.CANDIDATES["profile_boosting"]
    assert profiles.cross_validate(boosting, light) < 0.7
    shuffled = profiles.Light(
        labels, rng.permutation(400) // 20, {"profiles": features}, np.empty(0)
    )
    assert profiles.cross_validate(boosting, shuffled) > 0.85


def test_rows_are_bounded_and_each_image_counts_once(tmp_path):
    pixels, table = ring_or_arc(120, 1)
    twice = table.set_column(3, "pixel_hash", pa.array([f"i{i // 2 // 2}" for i in range(120)]))
    data = make_dataset(tmp_path / "ds", {"train": (pixels, twice)})
    light = profiles.read_light(data, "train", 1000, 10.0)
    assert len(light.labels) == 30
    assert len(profiles.read_light(data, "train", 17, 10.0).labels) == 17
    np.testing.assert_allclose(
        light.features["profiles"], profiles.azimuthal_means(pixels[::4]), atol=1e-6
    )


def test_what_cannot_be_measured_says_why(shaped, bright, tmp_path, flux_finder):
    def reason(data, **options):
        settings = ProbeOptions(resamples=50, **options)
        return profiles.measure_lead(data, Scorer(flux_finder), settings)["reason"]

    assert "trained on these rows" in reason(bright, split="train")
    lonely = make_dataset(tmp_path / "val", {"val": ring_or_arc(24, 1)})
    assert "no train split" in reason(lonely)
    one = {"train": ring_or_arc(12, 1), "val": ring_or_arc(24, 2)}
    assert "too few regions" in reason(make_dataset(tmp_path / "one", one))


@pytest.mark.parametrize(
    ("auroc", "tpr", "text"),
    [
        ((0.1, 0.2), (0.1, 0.2), "By AUROC and completeness it sees more than light profiles."),
        ((0.1, 0.2), (-0.1, 0.2), "By AUROC it sees more than light profiles; by completeness it"),
        ((-0.1, 0.2), (0.1, 0.2), "By completeness it sees more than light profiles; by AUROC it"),
        ((-0.1, 0.2), (0.0, 0.2), "has shown nothing beyond light profiles."),
        ((-0.2, -0.1), (-0.1, 0.2), "beyond light profiles, and is behind them in AUROC."),
        ((-0.2, -0.1), (-0.3, -0.2), "is behind them in AUROC and completeness."),
        ((None, None), (None, None), "no interval can be drawn"),
    ],
)
def test_the_verdict_follows_from_the_intervals(auroc, tpr, text):
    lead = {name: {"value": 0.0, "low": low, "high": high}
            for name, (low, high) in {"auroc": auroc, "tpr": tpr}.items()}  # fmt: skip
    assert text in verdict(lead)
    surely_ahead = min(auroc[0] or 0, tpr[0] or 0) > 0
    assert ("has shown nothing" in verdict(lead)) == (auroc[0] is not None and not surely_ahead)

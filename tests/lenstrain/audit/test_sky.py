"""The sky and the normalisation: clean stamps pass, a planted difference is found."""

import numpy as np
import pyarrow as pa
import pytest

from lensprep.dataset.normalization import MODES, normalization_spec, radius_px
from lensprep.errors import ConfigError
from lenstrain.audit import sky
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError
from tests.lenstrain.audit.conftest import SPEC
from tests.lenstrain.audit.stamps import SIGMA, make_stamps, write_stamps


@pytest.fixture
def evidence(tmp_path):
    def make(change=None, spoil=None, spec=SPEC, **options):
        made = make_stamps(change, spec=spec, **options)
        if spoil is not None:
            made = {split: spoil(*part) for split, part in made.items()}
        return Evidence(tmp_path / "run", write_stamps(tmp_path / "ds", made, spec))

    return make


def lift(share):
    """A sky that lies higher in lenses, outside of what a host covers."""

    def change(flux, labels, rng):
        offset = share * SIGMA[:, None, None] * (radius_px() >= 18)
        return flux + (labels == 1)[:, None, None, None] * offset

    return change


def scale(factor):
    return lambda flux, labels, rng: flux * np.where(labels == 1, factor, 1)[:, None, None, None]


def test_the_same_sky_tells_nothing(evidence, config):
    found = sky.check_sky_probe(evidence(), config)
    assert found.passed, found.detail
    assert 0.4 < found.measured["value"] < 0.55
    assert abs(found.measured["log_scatter_gap"]["r"]) < 0.01


@pytest.mark.parametrize("change", [lift(0.2), scale(1.05)], ids=["offset", "5 percent"])
def test_another_sky_in_lenses_blocks(evidence, config, change):
    found = sky.check_sky_probe(evidence(change), config)
    assert not found.passed
    assert found.severity == "blocker"


def test_the_gap_is_told_by_band(evidence, config):
    found = sky.check_sky_probe(evidence(scale(1.05)), config).measured
    assert found["log_scatter_gap"]["z"] == pytest.approx(np.log(1.05), abs=0.01)


def test_what_a_brick_has_is_no_leak():
    """Depth and level of the sky differ from place to place, whatever the label."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(20), 10)
    deep, high = rng.normal(0, 1, (2, 20))
    noise = 1 + 0.01 * rng.standard_normal((200, 3))
    scatter = np.exp(deep[place])[:, None] * noise
    level = high[place][:, None] * np.exp(deep[place])[:, None] * np.ones(3)
    features = sky.sky_features(level, scatter, place)
    assert features.shape == (200, 6)
    assert np.abs(features[:, :3]).max() < 0.05
    assert features[:, :3].std() == pytest.approx(0.01, rel=0.1)
    assert np.abs(features[:, 3:]).max() < 0.1


def test_rows_without_a_brick_are_compared_within_their_region():
    table = pa.table({"brickname": ["1p0", None, None, None], "region_id": [7, 7, 7, -2]})
    assert sky.places(table, "brickname").tolist() == ["1p0", "region 7", "region 7", "region -2"]


def test_only_so_many_rows_are_read_brick_by_brick(evidence):
    table, pixels = evidence().grouped_pixels("brickname", ["brickname", "label"], 100, 0)
    assert table.num_rows == len(pixels) == 120
    assert len(set(table["brickname"].to_pylist())) == 3


@pytest.fixture(scope="module", params=MODES)
def converted(request):
    """A normalisation, and pixels and table as conversion made them."""
    spec = normalization_spec(request.param)
    return spec, *make_stamps(spec=spec)["train"]


def test_stamps_as_conversion_made_them_are_normalised(converted, config, tmp_path):
    spec, *part = converted
    made = Evidence(tmp_path, write_stamps(tmp_path / "ds", {"train": part}, spec))
    found = sky.check_normalization(made, config)
    assert found.passed
    assert found.measured["largest"] < 0.002


@pytest.mark.parametrize("height", [10, 30, 50, 100, -10, -100])
def test_stamps_in_the_halo_of_a_star_are_normalised(evidence, config, height):
    """Asinh stores such a sky in steps of up to half its noise."""
    spec = normalization_spec("asinh_survey")
    softening = np.array([spec.parameters[f"softening_{band}"] for band in "grz"])

    def change(flux, labels, rng):
        noise = rng.standard_normal(flux.shape)
        return (noise + height) * softening[:, None, None]

    made = evidence(change, spec=spec)
    table = made.sampled_pixels(["median_r"], 10)[0]
    assert abs(table["median_r"][0].as_py() / softening[1]) == pytest.approx(abs(height), rel=0.1)
    found = sky.check_normalization(made, config)
    assert found.passed, found.detail


def scaled(pixels, table):
    lens = table["label"].to_numpy() == 1
    factor = np.where(lens, 1.05, 1)[:, None, None, None]
    return (pixels.astype(np.float32) * factor).astype(np.float16), table


def lifted(pixels, table):
    lens = table["label"].to_numpy() == 1
    return pixels + np.where(lens, 0.1, 0)[:, None, None, None].astype(np.float16), table


@pytest.mark.parametrize("spoil", [scaled, lifted])
def test_pixels_changed_after_conversion_block(converted, config, tmp_path, spoil):
    spec, *part = converted
    made = Evidence(tmp_path, write_stamps(tmp_path / "ds", {"train": spoil(*part)}, spec))
    found = sky.check_normalization(made, config)
    assert not found.passed
    assert found.measured["wrong"] == {"0": 0, "1": 240}


def test_a_scale_that_is_not_positive_is_told_with_its_stamp(evidence, config):
    def flat(pixels, table):
        place = table.column_names.index("scale_r")
        return pixels, table.set_column(
            place, "scale_r", pa.array([0.0] * len(table), pa.float32())
        )

    with pytest.raises(ConfigError, match=r"480 stamps have a scale .* such as \w{32}\. "):
        sky.check_normalization(evidence(spoil=flat), config)


def test_a_mode_of_a_later_version_cannot_be_undone(evidence, config):
    made = evidence()
    object.__setattr__(made.dataset.manifest.normalization, "mode", "zscale")
    with pytest.raises(NotRunError, match="zscale is unknown"):
        sky.check_normalization(made, config)

"""Normalisation in torch: the values of conversion, and NaN where that has no stamp."""

import numpy as np
import pytest
import torch
from scipy import special

from lensprep.dataset import DECALS
from lensprep.dataset.normalization import MODES, band_statistics, normalization_spec, normalize
from lensprep.decode.normalize import Normalizer
from lensprep.decode.parts import plan_tree
from lensprep.decode.stampnpz import decode_batch
from lensprep.source.survey import STAMP_COLUMN
from lensprep.source.tree import Source
from lenstrain.export.network import FluxFinder, Normalize
from lenstrain.networks.ensemble import D4Mean
from lenstrain.networks.finder import build_model
from tests.golden.test_golden import GOLDEN
from tests.lenstrain.export.conftest import CALIBRATION, FINDER
from tests.lenstrain.geometries import UGRIZY, VIS
from tests.realstamps import needs_real_cutouts, real_pixels


def sky(geometry, rows=64, seed=0):
    """Noise of the sky, light from nothing to far beyond the clip, and values that are equal."""
    rng = np.random.default_rng(seed)
    noise = np.array(geometry.sky_noise)[:, None, None]
    flux = rng.standard_normal((rows, *geometry.shape)) * noise
    flux *= 10 ** rng.uniform(-3, 6, (rows, 1, 1, 1))
    flux[::3] = np.round(flux[::3] / noise, 1) * noise
    flux[:, :, :4] += 10 ** rng.uniform(-9, 9, flux[:, :, :4].shape) * noise
    flux[:, :, 5, :9] = 0.0
    return flux.astype(np.float32)


def converted(flux, spec, geometry):
    stored = np.empty(flux.shape, np.float16)
    return stored, Normalizer(spec, geometry)(flux, stored).constant


def assert_same(flux, spec, geometry):
    expected, constant = converted(flux, spec, geometry)
    found, usable = Normalize(spec, geometry)(torch.from_numpy(flux))
    assert found.dtype == torch.float32
    if spec.by_stamp:
        np.testing.assert_array_equal(usable, ~constant)
    else:
        assert not (constant < ~usable.numpy()).any()
    good = ~constant
    assert good.sum() > len(flux) // 2
    found = found.numpy()[good].astype(np.float16)
    np.testing.assert_array_equal(found, expected[good])
    plain = normalize(flux[good], spec, *band_statistics(flux[good], spec))
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("geometry", [DECALS, VIS, UGRIZY], ids=lambda g: g.survey)
@pytest.mark.parametrize("mode", MODES)
def test_values_are_exactly_those_that_conversion_stores(mode, geometry):
    for clip in (10.0, 3.5):
        assert_same(sky(geometry), normalization_spec(mode, clip, geometry), geometry)


@needs_real_cutouts
@pytest.mark.parametrize("mode", MODES)
def test_values_of_real_stamps_too(mode):
    assert_same(real_pixels(48), normalization_spec(mode), DECALS)


@pytest.mark.parametrize("mode", MODES)
def test_values_of_the_stamps_of_a_tree_are_those_of_the_golden_dataset(mode):
    source = Source.open(GOLDEN / "phase4c")
    (file,) = source.files
    blobs = source.read_row_group(file, 0, [STAMP_COLUMN])[STAMP_COLUMN]
    flux = np.empty((len(blobs), *DECALS.shape), np.float32)
    good = [reason is None for reason in decode_batch(blobs, flux)]
    stored, usable = Normalize(normalization_spec(mode), DECALS)(torch.from_numpy(flux[good]))
    (part,) = plan_tree(GOLDEN / "phase4c", "train").parts
    _, expected, _ = part.decode(normalization_spec(mode))
    ours = stored[usable].numpy()
    for stamp in expected:
        assert (ours == stamp).all((1, 2, 3)).any()


SPOILT = {
    "nan": lambda stamp: stamp[0, 0].__setitem__(0, np.nan),
    "inf": lambda stamp: stamp[-1, 3].__setitem__(3, np.inf),
    "-inf": lambda stamp: stamp[-1, 3].__setitem__(3, -np.inf),
    "so bright that its sums overflow": lambda stamp: stamp[0, 1].__setitem__(1, 5e37),
    "a band of one value": lambda stamp: stamp[-1].fill(0.25),
    "nothing": lambda stamp: stamp.fill(0.0),
}


def spoilt(geometry):
    """A good stamp, then one spoilt in each way, and another good one."""
    flux = np.repeat(sky(geometry, 1), len(SPOILT) + 2, axis=0)
    for number, spoil in enumerate(SPOILT.values(), 1):
        spoil(flux[number])
    return flux


@pytest.fixture
def model():
    from lensprep.configfile import load_config
    from lenstrain.config import Config

    torch.manual_seed(5)
    return build_model(load_config(Config, None, FINDER).model).eval()


def facts_of(mode="asinh_survey", tta=False, calibration=None):
    return {
        "normalization": normalization_spec(mode).to_dict(),
        "geometry": DECALS.to_dict(),
        "tta": tta,
        "calibration": calibration,
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_stamp_that_cannot_be_used_is_nan_and_the_others_are_not(mode, model):
    flux = spoilt(DECALS)
    with torch.inference_mode():
        logit, probability = FluxFinder(model, facts_of(mode))(torch.from_numpy(flux))
    unknown = [False, *[True] * len(SPOILT), False]
    np.testing.assert_array_equal(torch.isnan(logit), unknown)
    np.testing.assert_array_equal(torch.isnan(probability), unknown)
    assert logit[0] == logit[-1]


@pytest.mark.parametrize("mode", MODES)
def test_a_band_without_scatter_is_nan_where_the_mode_divides_by_it(mode):
    flux = sky(DECALS, 2)
    flux[1, 1].reshape(-1)[: 64 * 40] = 0.5  # more than half, also of the annulus
    _, usable = Normalize(normalization_spec(mode), DECALS)(torch.from_numpy(flux))
    assert usable.tolist() == [True, mode == "asinh_survey"]


def test_the_mean_over_d4_is_that_of_scoring(model):
    flux = torch.from_numpy(sky(DECALS, 5))
    with torch.inference_mode():
        logit, _ = FluxFinder(model, facts_of(tta=True))(flux)
        stored, _ = Normalize(normalization_spec(), DECALS)(flux)
        expected, single = D4Mean(model)(stored), model(stored)
    np.testing.assert_allclose(logit, expected, atol=1e-6)
    assert (logit - single).abs().max() > 1e-4


def test_a_probability_is_the_sigmoid_of_the_corrected_logit(model):
    flux = torch.from_numpy(sky(DECALS, 5))
    with torch.inference_mode():
        logit, probability = FluxFinder(model, facts_of(calibration=CALIBRATION))(flux)
        _, plain = FluxFinder(model, facts_of())(flux)
    expected = special.expit(1.5 * logit.double().numpy() - 0.25)
    np.testing.assert_allclose(probability, expected, rtol=1e-6)
    np.testing.assert_allclose(plain, special.expit(logit.double().numpy()), rtol=1e-6)

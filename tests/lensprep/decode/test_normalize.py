"""Normalisation: the bits that NumPy gives, in place, and bands without a scale seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensprep.dataset.geometry import Geometry
from lensprep.dataset.layout import STAMP_SHAPE
from lensprep.dataset.normalization import MODES, annulus_indices, normalization_spec
from lensprep.dataset.record import new_records, payload_view
from lensprep.decode.normalize import Normalizer, _half_bits
from lensprep.kernel import kernel
from tests.lensprep.blobs import ALIKE, SURVEYS, noise


def stamps(n=6, seed=0):
    """Sky with a source that passes the clip, nanomaggies."""
    pixels = np.stack([noise(seed + i) for i in range(n)])
    pixels[:, :, 28:36, 28:36] += np.linspace(0.05, 3, n, dtype=np.float32)[:, None, None, None]
    return pixels


def seed_path(pixels, mode="mad_stamp", clip=10.0, softening=(0.0019, 0.0028, 0.0087)):
    """The same by NumPy, as people write it: (unclipped float32, float16)."""
    flat = pixels.reshape(*pixels.shape[:2], -1)
    side = pixels.shape[-1]
    inner, outer = 20 * side / 64, 32 * side / 64
    where = annulus_indices(side, inner, outer) if mode == "mad_annulus" else slice(None)
    median = np.median(flat[..., where], axis=-1, keepdims=True)
    mad = np.median(np.abs(flat[..., where] - median), axis=-1, keepdims=True)
    value = (flat - median) / (np.float32(1.4826) * mad)
    if mode == "sqrt":
        value = np.sign(value) * np.sqrt(np.abs(value))
    if mode == "asinh_survey":
        softening = np.array(softening)[:, None]
        value = np.arcsinh(flat.astype(np.float64) / softening).astype(np.float32)
    value = value.reshape(pixels.shape)
    return value, np.clip(value, -clip, clip).astype(np.float16)


def normalize(pixels, mode="mad_stamp", clip=10.0, **parameters):
    out = np.full(pixels.shape, np.nan, np.float16)
    return out, Normalizer(normalization_spec(mode, clip, **parameters))(pixels, out)


@pytest.mark.parametrize("mode", MODES)
def test_same_bits_as_numpy(mode):
    pixels = stamps()
    out, _ = normalize(pixels, mode)
    np.testing.assert_array_equal(out.view(np.uint16), seed_path(pixels, mode)[1].view(np.uint16))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [*SURVEYS, ALIKE], ids=str)
def test_same_bits_as_numpy_for_any_bands_and_side(kind, mode):
    softening = np.geomspace(0.01, 3, len(kind.bands)).tolist()
    geometry = Geometry(
        survey="other",
        bands=kind.bands,
        side=kind.side,
        pixel_scale_arcsec=0.1,
        reference_band=kind.bands[0],
        zero_point=27.0,
        sky_noise=tuple(softening),
    )
    n = max(2, 40_000 // kind.side**2)
    pixels = noise(4, shape=(n, *kind.shape)) * np.float32(softening)[:, None, None] * 100
    pixels[:, :, 14:18, 14:18] *= 30
    records = new_records(n, geometry)
    untouched = records.copy()
    spec = normalization_spec(mode, 3.0, geometry)
    measured = Normalizer(spec, geometry)(pixels, payload_view(records, geometry))
    value, expected = seed_path(pixels, mode, 3.0, softening)
    np.testing.assert_array_equal(
        payload_view(records, geometry).view(np.uint16), expected.view(np.uint16)
    )
    clipped = (np.abs(value) > 3).reshape(n, len(kind.bands), -1).sum(axis=-1)
    np.testing.assert_array_equal(
        measured.clip_frac, clipped.astype(np.float32) / np.float32(kind.side**2)
    )
    assert 0 < measured.clip_frac.mean() < 0.1
    payload_view(records, geometry)[:] = payload_view(untouched, geometry)
    np.testing.assert_array_equal(records, untouched)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clip", [0.5, 3.0, 20.0])
def test_clip_holds_and_is_counted(mode, clip):
    pixels = stamps()
    value, expected = seed_path(pixels, mode, clip)
    out, measured = normalize(pixels, mode, clip)
    np.testing.assert_array_equal(out, expected)
    assert np.abs(out).max() <= clip
    np.testing.assert_array_equal(
        measured.clip_frac, (np.abs(value) > clip).mean(axis=(2, 3)).astype(np.float32)
    )


def test_some_pixels_of_the_test_stamps_are_clipped_and_most_are_not():
    assert 0 < normalize(stamps())[1].clip_frac.mean() < 0.1


@pytest.mark.parametrize("mode", MODES)
def test_statistics_are_those_of_numpy(mode):
    pixels = stamps()
    flat = pixels.reshape(*pixels.shape[:2], -1)
    where = annulus_indices(64, 20, 32) if mode == "mad_annulus" else slice(None)
    median = np.median(flat[..., where], axis=-1)
    mad = np.median(np.abs(flat[..., where] - median[..., None]), axis=-1)
    _, measured = normalize(pixels, mode)
    np.testing.assert_array_equal(measured.median, median)
    np.testing.assert_array_equal(measured.scale, np.float32(1.4826) * mad)
    assert measured.scale.dtype == np.float32


def test_scale_of_gaussian_noise_is_its_standard_deviation():
    pixels = np.random.default_rng(1).normal(0.3, 0.02, (200, 3, 64, 64)).astype(np.float32)
    _, measured = normalize(pixels)
    assert measured.scale.mean() == pytest.approx(pixels.std(), rel=0.003)
    assert measured.median.mean() == pytest.approx(pixels.mean(), abs=0.0002)


def test_science_vector():
    """science.md: [1, 2, 3, 4, 100] -> [-1.34898, -0.67449, 0, 0.67449, 65.4255 -> 10]."""
    pixels = np.full((1, 3, 4096), 3, np.float32)
    pixels[..., :4095] = np.tile(np.array([1, 2, 3, 4, 100], np.float32), 819)
    out, measured = normalize(pixels.reshape(1, *STAMP_SHAPE))
    assert (measured.median[0] == 3).all()
    np.testing.assert_allclose(measured.scale[0], 1.4826)
    expected = np.array([-1.34898, -0.67449, 0, 0.67449, 10]).astype(np.float16)
    np.testing.assert_array_equal(out.reshape(-1)[:5], expected)


@pytest.mark.parametrize("mode", MODES)
def test_band_without_a_scale_is_reported_and_the_stamp_is_zeros(mode):
    pixels = stamps(3)
    pixels[1, 2] = np.where(np.arange(4096).reshape(64, 64) < 2100, 5.0, pixels[1, 2])
    if mode == "mad_annulus":
        pixels[1, 2] = 5.0
    out, measured = normalize(pixels, mode)
    assert measured.constant.tolist() == [False, True, False]
    assert (out[1] == 0).all()
    assert (measured.clip_frac[1] == 0).all()
    np.testing.assert_array_equal(out[[0, 2]], normalize(pixels[[0, 2]], mode)[0])


def test_smallest_scale_is_a_scale():
    tiny = np.float32(1e-45)
    pixels = np.tile(np.array([0, tiny, 2 * tiny, 3 * tiny], np.float32), 3 * 1024)
    _, measured = normalize(pixels.reshape(1, *STAMP_SHAPE))
    assert not measured.constant[0]


def test_annulus_ignores_the_source():
    pixels = stamps(1)
    brighter = pixels.copy()
    brighter[:, :, 28:36, 28:36] *= 50
    _, one = normalize(pixels, "mad_annulus")
    _, other = normalize(brighter, "mad_annulus")
    np.testing.assert_array_equal(one.scale, other.scale)


def test_asinh_keeps_colour_where_mad_does_not():
    """Twice the flux in one band: with per-band scales that is invisible."""
    pixels = stamps(1)
    redder = pixels.copy()
    redder[:, 2] *= 2
    np.testing.assert_array_equal(normalize(pixels)[0], normalize(redder)[0])
    assert (normalize(pixels, "asinh_survey")[0] != normalize(redder, "asinh_survey")[0]).any()


@pytest.mark.parametrize("softening", [1e-3, 1.0, 1e5])
def test_asinh_is_right_from_zero_to_the_largest_pixel(softening):
    size = np.geomspace(1e-30, 4e37, 6144)
    pixels = np.concatenate([size, -size]).astype(np.float32).reshape(1, *STAMP_SHAPE)
    names = [f"softening_{band}" for band in "grz"]
    out, _ = normalize(pixels, "asinh_survey", 128.0, **dict.fromkeys(names, softening))
    expected = np.arcsinh(pixels.astype(np.float64) / softening).astype(np.float32)
    np.testing.assert_array_equal(out, expected.astype(np.float16))


def test_records_are_written_in_place_and_nothing_else_is():
    pixels = stamps(4)
    records = new_records(4)
    untouched = records.copy()
    Normalizer(normalization_spec("mad_stamp"))(pixels, payload_view(records))
    np.testing.assert_array_equal(payload_view(records), seed_path(pixels)[1])
    payload_view(records)[:] = payload_view(untouched)
    np.testing.assert_array_equal(records, untouched)


def test_one_stamp_and_none():
    pixels = stamps(2)
    records = new_records(1)
    Normalizer(normalization_spec("mad_stamp"))(pixels[1:], payload_view(records))
    np.testing.assert_array_equal(payload_view(records)[0], seed_path(pixels)[1][1])
    out, measured = normalize(pixels[:0])
    assert out.shape == (0, *STAMP_SHAPE)
    assert measured.scale.shape == (0, 3)


def test_take_selects_stamps():
    _, measured = normalize(stamps(4))
    some = measured.take(np.array([3, 1]))
    np.testing.assert_array_equal(some.median, measured.median[[3, 1]])
    assert some.constant.shape == (2,)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, *STAMP_SHAPE), np.float32),
        np.empty((2, *STAMP_SHAPE), ">f2"),
        np.empty((2, 64, 64, 3), np.float16).transpose(0, 3, 1, 2),
        np.empty((2, *STAMP_SHAPE), np.float16)[::-1],
        np.broadcast_to(np.empty(STAMP_SHAPE, np.float16), (2, *STAMP_SHAPE)),
        np.empty((3, *STAMP_SHAPE), np.float16),
    ],
    ids=["float32", "big-endian", "layout", "backwards", "overlapping", "too long"],
)
def test_output_that_does_not_fit_is_refused(out):
    with pytest.raises(ValueError, match=r"out|must be"):
        Normalizer(normalization_spec("mad_stamp"))(stamps(2), out)


# -- float16 ---------------------------------------------------------------------------------------


@kernel
def half_all(values, out):
    for i in range(values.size):
        out[i] = _half_bits(values[i])


def check_half(values):
    out = np.empty(values.size, np.uint16)
    half_all(values, out)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(
        out[~np.isnan(values)], expected.view(np.uint16)[~np.isnan(values)]
    )


def test_float16_of_every_half_and_its_neighbours():
    """Every float16, the midpoints to the next, and the float32 on either side of both."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.sort(halves[np.isfinite(halves)])
    middle = (halves[1:].astype(np.float64) + halves[:-1]) / 2
    points = np.concatenate([halves, middle.astype(np.float32), [65519.996, 65520, 1e38, np.inf]])
    points = points.astype(np.float32)
    for shift in (-1, 0, 1):
        check_half((points.view(np.int32) + np.int32(shift)).view(np.float32))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_float16_of_any_bits(seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, 1000, np.uint32)
    check_half(bits.view(np.float32))

"""Medians and MADs: bit-equal to NumPy, whatever the numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lensprep.dataset.normalization import annulus_indices
from lensprep.decode.robust import median_mad
from tests.lensprep.blobs import noise


def by_numpy(rows):
    """Median and MAD over the last axis, in float32."""
    with np.errstate(over="ignore"):
        median = np.median(rows, axis=-1)
        mad = np.median(np.abs(rows - median[..., None]), axis=-1)
    return median, mad


def check(rows):
    rows = np.ascontiguousarray(rows, np.float32)
    median, mad = median_mad(rows)
    expected_median, expected_mad = by_numpy(rows)
    assert median.dtype == mad.dtype == np.float32
    np.testing.assert_array_equal(median, expected_median)
    np.testing.assert_array_equal(mad, expected_mad)


RNG = np.random.default_rng(5)
SHAPE = (4, 3, 4096)
SIGNS = RNG.choice([-1.0, 1.0], SHAPE)
DATA = {
    "sky": RNG.normal(0.0005, 0.002, SHAPE),
    "far from zero": RNG.normal(1000.0, 0.01, SHAPE),
    "bright source": RNG.normal(0, 1, SHAPE) + 1e4 * (RNG.random(SHAPE) < 0.2),
    "heavy tails": np.clip(RNG.standard_cauchy(SHAPE) ** 3, -1e30, 1e30),
    "all exponents": np.exp(RNG.uniform(-86, 85, SHAPE)) * SIGNS,
    "subnormal": RNG.integers(1, 2**20, SHAPE).astype(np.int32).view(np.float32) * SIGNS,
    "constant": np.full(SHAPE, 5.0),
    "zeros of both signs": SIGNS * 0.0,
    "half zero": RNG.normal(0, 1, SHAPE) * (RNG.random(SHAPE) < 0.5),
    "just over half zero": np.where(np.arange(4096) < 2049, 0.0, RNG.normal(0, 1, SHAPE)),
    "two values": np.where(np.arange(4096) < 2048, 1.0, 2.0) + np.zeros(SHAPE),
    "two values, by one": np.where(np.arange(4096) < 2047, 1.0, 2.0) + np.zeros(SHAPE),
    "three values": RNG.integers(0, 3, SHAPE),
    "counts": RNG.poisson(50, SHAPE),
    "ascending": np.sort(RNG.normal(0, 1, SHAPE)),
    "descending": -np.sort(RNG.normal(0, 1, SHAPE)),
    "ramp": np.arange(4096) + np.zeros(SHAPE),
    "neighbours in float": (np.float32(1.0).view(np.int32) + RNG.integers(0, 9, SHAPE))
    .astype(np.int32)
    .view(np.float32),
    "one outlier": np.where(np.arange(4096) == 77, 3e37, 1.0) + np.zeros(SHAPE),
    "geometric": 1e-35 * 1.04 ** (np.arange(4096) % 4000) + np.zeros(SHAPE),
    "gap in the middle": np.where(np.arange(4096) < 2048, -1e30, 1e30) * (1 + RNG.random(SHAPE)),
    "infinities": np.where(RNG.random(SHAPE) < 0.3, np.inf, RNG.normal(0, 1, SHAPE)),
}


@pytest.mark.parametrize("name", DATA)
def test_bit_equal_to_numpy(name):
    check(DATA[name])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 100, 1001, 1964, 4095, 9216])
def test_any_number_of_pixels_odd_or_even(n):
    check(RNG.normal(0, 1, (5, 3, n)))
    check(RNG.integers(0, 4, (5, 3, n)))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("side", [32, 256])
def test_bit_equal_to_numpy_for_the_smallest_and_the_largest_stamps(name, side):
    data = DATA[name].astype(np.float32)
    if side == 256:  # other numbers of the same kind: times and in an order of their own
        rows = np.tile(data[0, :1], (1, 16)) * np.repeat(np.float32([1, 0.5, 1, 2]), 16384)
    else:
        rows = data[0, :, 1536:2560]
    check(rows[None])
    check(rows[None, :, :-1])


@pytest.mark.parametrize(
    ("side", "inner", "outer"),
    [(32, 10, 16), (33, 0, 3), (101, 31.5, 50.5), (101, 0, 50), (256, 80, 128), (256, 0, 0.8)],
)
def test_any_annulus_of_any_side(side, inner, outer):
    where = annulus_indices(side, inner, outer)
    assert where.size % 2 == (side % 2 and inner == 0)  # the central pixel has no others like it
    pixels = RNG.normal(0, 1, (2, 2, side, side)).astype(np.float32)
    pixels[1] = np.round(pixels[1])  # ties
    median, mad = median_mad(pixels, where)
    expected_median, expected_mad = by_numpy(pixels.reshape(2, 2, -1)[..., where])
    np.testing.assert_array_equal(median, expected_median)
    np.testing.assert_array_equal(mad, expected_mad)


# Infinite only where NumPy's own |x - m| is not NaN: finite medians.
FLOATS = st.floats(-(2.0**125), 2.0**125, width=32)


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=FLOATS, fill=FLOATS)
    | hnp.arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([0, -0.0, 1e-45, 1, -2]))
)
def test_any_numbers(values):
    check(values.reshape(1, 1, -1))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**31 - 1))
def test_any_interval_of_bits(seed, low, width):
    """Floats that are dense in bits, not in value: the worst case of the secant."""
    bits = np.random.default_rng(seed).integers(
        low, min(low + width, 2**31 - 1), (1, 1, 4096), np.int32, endpoint=True
    )
    values = bits.view(np.float32)
    check(np.where(np.abs(values) < 2.0**125, values, 1.0))


def test_nan_ends_and_leaves_other_bands_right():
    pixels = np.stack([noise(1), noise(2)])
    pixels[0, 1] = np.nan
    pixels[1, 2, 5, 5] = np.nan
    median, mad = median_mad(pixels)
    for stamp, band in ((0, 0), (0, 2), (1, 0), (1, 1)):
        expected = by_numpy(pixels[stamp, band].reshape(-1))
        assert (median[stamp, band], mad[stamp, band]) == expected


def test_median_of_zeros_is_plus_zero():
    median, mad = median_mad(np.full((1, 1, 4), -0.0, np.float32))
    assert not np.signbit(median[0, 0])
    assert mad[0, 0] == 0


def test_input_is_not_changed():
    pixels = noise(3)[None]
    before = pixels.copy()
    median_mad(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_science_vector():
    median, mad = median_mad(np.array([1, 2, 3, 4, 100], np.float32).reshape(1, 1, 5))
    assert (median[0, 0], mad[0, 0]) == (3, 1)


def test_annulus_alone_counts():
    pixels = np.stack([noise(4), noise(5)])
    where = annulus_indices(64, 20, 32)
    inside = np.setdiff1d(np.arange(4096), where)
    disturbed = pixels.reshape(2, 3, -1).copy()
    disturbed[..., inside] = 1e6
    median, mad = median_mad(disturbed.reshape(pixels.shape), where)
    expected_median, expected_mad = by_numpy(pixels.reshape(2, 3, -1)[..., where])
    np.testing.assert_array_equal(median, expected_median)
    np.testing.assert_array_equal(mad, expected_mad)


def test_no_stamps_have_no_statistics():
    median, mad = median_mad(np.empty((0, 3, 64, 64), np.float32))
    assert median.shape == mad.shape == (0, 3)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 3, 4)), "C-contiguous float32"),
        (np.zeros((3, 4), np.float32), "C-contiguous float32"),
        (np.zeros((4, 3, 1), np.float32).T, "C-contiguous float32"),
        (np.zeros((2, 3, 0), np.float32), "without pixels"),
    ],
)
def test_wrong_input_is_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        median_mad(pixels)


@pytest.mark.parametrize("where", [[64 * 64], [-1], []])
def test_pixels_outside_the_band_are_refused(where):
    with pytest.raises(ValueError, match="pixels"):
        median_mad(noise()[None], np.array(where, np.int64))

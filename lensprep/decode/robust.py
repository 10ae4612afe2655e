"""Exact median and median absolute deviation of every band, without sorting.

    median_mad(pixels, where=None) -> BandStats

The result is bit-equal to NumPy in float32: ``m = np.median(x)`` and ``np.median(abs(x - m))``.

Why not sort or partition: a pass that counts how many of 4,096 integers lie below a pivot compiles
to a few vector instructions for every 8 or 16 of them and takes 0.13 µs; a scalar step, such as
moving one element, costs a nanosecond for each. So the median is searched by its rank. Floats are
mapped to integers of the same order, a sample of 32 gives the first pivot and the density, and the
secant through the counts gives the next pivots: about seven passes on sky-dominated stamps.
Adversarial data cannot make it slow or wrong: after `_SECANT_STEPS` every second pivot halves the
interval of integers, so 32 more halvings end it, and ties end it as soon as the interval holds a
single value. Measured on one core of an AMD EPYC (Zen 4), numba 0.68, medians of 15 runs: 12 µs
for the six medians of a stamp, where NumPy takes some hundreds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lensprep.kernel import kernel

_I = np.int32
_F = np.float32
_Keys = npt.NDArray[np.int32]
_LOWEST = np.int32(-(2**31))
_HIGHEST = np.int32(2**31 - 1)
_MAGNITUDE = np.int32(0x7FFFFFFF)

_SAMPLE = 32
_PLAIN_STEPS = 3
"""Passes that only count; later ones, which may end the search, also find the neighbours."""
_SECANT_STEPS = 12


class BandStats(NamedTuple):
    """Robust centre and scatter of each band, in the units of the pixels."""

    median: npt.NDArray[np.float32]
    """Shape (n_stamps, n_bands)."""
    mad: npt.NDArray[np.float32]
    """Median of ``|x - median|``, not scaled to a standard deviation. Shape as `median`."""


def median_mad(
    pixels: npt.NDArray[np.float32], where: npt.NDArray[np.int64] | None = None
) -> BandStats:
    """Median and MAD of each band of each stamp.

    Parameters
    ----------
    pixels : ndarray of float32, shape (n_stamps, n_bands, ...), C-contiguous
        No NaN: of a band that has one the result is meaningless (but the call ends). Infinities
        are values like others.
    where : ndarray of int64, optional
        Flat indices of the pixels of a band that count, such as those of an annulus. Default: all.

    Returns
    -------
    BandStats
        A median of zero is +0, whatever the signs of the zeros.

    Raises
    ------
    ValueError
        If `pixels` has another type or layout, a band has no pixel, or `where` points outside.

    Notes
    -----
    As in ``np.median``, the median of an even number is the mean of the two middle values in
    float32; it overflows to infinity where their sum does.

    References
    ----------
    .. [1] Rousseeuw & Croux 1993, JASA 88, 1273 (the MAD as an estimator of scatter).
    """
    if pixels.dtype != np.float32 or not pixels.flags.c_contiguous or pixels.ndim < 3:
        raise ValueError(
            "pixels must be C-contiguous float32 of shape (n_stamps, n_bands, ...), "
            f"not {pixels.dtype} {pixels.shape}"
        )
    shape = pixels.shape[:2]
    rows = pixels.reshape(shape[0] * shape[1], int(np.prod(pixels.shape[2:])))
    if where is not None:
        if where.size and not (where.min() >= 0 and where.max() < rows.shape[1]):
            raise ValueError(f"where points outside the {rows.shape[1]} pixels of a band")
        rows = _pick(rows, np.ascontiguousarray(where, np.int64))
    if rows.shape[1] == 0:
        raise ValueError("a band without pixels has no median")
    median = np.empty(shape, np.float32)
    mad = np.empty(shape, np.float32)
    _median_mad_rows(rows, rows.view(np.int32), median.reshape(-1), mad.reshape(-1))
    return BandStats(median, mad)


# ---------------------------------------------------------------------------------------------
# Kernels. A key is a float32 as an int32 of the same order.
# ---------------------------------------------------------------------------------------------


@kernel
def _ordered(bits: np.int32) -> np.int32:
    """Key of the bits of a float32, or the bits of a key: the map is its own inverse."""
    return _I(bits ^ ((bits >> _I(31)) & _MAGNITUDE))


@kernel
def _key_of(value: float) -> np.int32:
    return _ordered(_F(value).view(np.int32))


@kernel
def _value_of(key: np.int32) -> np.float32:
    return _I(_ordered(key)).view(np.float32)


@kernel
def _count_below(keys: _Keys, pivot: np.int32) -> np.int32:
    """How many keys are less than the pivot."""
    count = _I(0)
    for i in range(keys.size):
        count = _I(count + _I(keys[i] < pivot))
    return count


@kernel
def _divide(keys: _Keys, pivot: np.int32) -> tuple[np.int32, np.int32, np.int32]:
    """Count below the pivot, the greatest key below it, and the least that is not."""
    count, below, above = _I(0), _LOWEST, _HIGHEST
    for i in range(keys.size):
        key = keys[i]
        less = key < pivot
        count = _I(count + _I(less))
        below = max(below, key if less else _LOWEST)
        above = min(above, _HIGHEST if less else key)
    return count, below, above


@kernel
def _nearest_rank(sample: _Keys, ranks: _Keys, target: int) -> np.int32:
    """Member of the sample whose rank is nearest to the target."""
    best, distance = sample[0], sample.size + 1
    for i in range(sample.size):
        d = abs(ranks[i] - target)
        if d < distance:
            best, distance = sample[i], d
    return best


@kernel
def _sample_quartiles(
    keys: _Keys, sample: _Keys, ranks: _Keys
) -> tuple[np.int32, np.int32, np.int32]:
    """Rough quartiles of the keys, from a few of them spread over the whole band."""
    n = sample.size
    step = max(keys.size // n, 1)
    for i in range(n):
        sample[i] = keys[(i * step + (i * 7) % step) % keys.size]
        ranks[i] = 0
    for j in range(n):
        pivot = sample[j]
        for i in range(n):
            ranks[i] = _I(ranks[i] + _I(sample[i] > pivot))
    low = _nearest_rank(sample, ranks, n // 4)
    middle = _nearest_rank(sample, ranks, n // 2)
    high = _nearest_rank(sample, ranks, 3 * n // 4)
    return low, middle, high


@kernel
def _next_pivot(
    step: int,
    pivot: np.int32,
    error: int,
    slope: float,
    low: np.int32,
    high: np.int32,
    share: float,
) -> np.int32:
    """Where to cut next, strictly inside the interval (low, high] of keys.

    `error` is by how many elements the last pivot was short; `share` is where the wanted rank lies
    between the counts of the two ends, negative as long as one end is unknown.
    """
    wide = np.int64(high) - np.int64(low)
    guess = _I(np.int64(low) + (wide >> 1))
    if step <= _SECANT_STEPS or step % 2 == 1:
        if share >= 0.0:
            start, stop = np.float64(_value_of(low)), np.float64(_value_of(high))
            guess = _key_of(start + (stop - start) * share)
        elif slope > 0.0:  # a little too far, so that the other end becomes known
            guess = _key_of(np.float64(_value_of(pivot)) + 1.3 * error / slope)
    return min(max(guess, _I(low + _I(1))), _I(high - _I(1)))


@kernel
def _middle_pair(keys: _Keys, sample: _Keys, ranks: _Keys) -> tuple[np.int32, np.int32]:
    """The two middle keys of an even number of keys, or the middle one twice of an odd number.

    Invariant: the wanted keys lie in [low, high); n_low keys are below low, n_high below high.
    """
    target, even = keys.size // 2, keys.size % 2 == 0
    quarter, pivot, three = _sample_quartiles(keys, sample, ranks)
    width = np.float64(_value_of(three)) - np.float64(_value_of(quarter))
    slope = 0.5 * keys.size / width if width > 0.0 else 0.0
    low, high, n_low, n_high = _LOWEST, _HIGHEST, 0, keys.size
    low_known = high_known = False
    step = 0
    while np.int64(high) - np.int64(low) > 1:
        step += 1
        if step <= _PLAIN_STEPS:
            count, below, above = _count_below(keys, pivot), _I(pivot - _I(1)), pivot
        else:
            count, below, above = _divide(keys, pivot)
        if even and count == target:
            if step <= _PLAIN_STEPS:
                count, below, above = _divide(keys, pivot)
            return below, above
        if count > target:
            high, n_high, high_known = _I(below + _I(1)), count, True
        else:
            low, n_low, low_known = above, count, True
        share = (target - n_low) / (n_high - n_low) if low_known and high_known else -1.0
        pivot = _next_pivot(step, pivot, target - count, slope, low, high, share)
    return low, low


@kernel
def _median_of_keys(keys: _Keys, sample: _Keys, ranks: _Keys) -> np.float32:
    """Median as ``np.median`` gives it: the mean of the middle pair, in float32."""
    below, above = _middle_pair(keys, sample, ranks)
    if below == above:
        return _F(_value_of(below) + _F(0.0))  # -0 becomes +0
    return _F(_F(_value_of(below) + _value_of(above)) / _F(2.0))


@kernel
def _pick(rows: npt.NDArray[np.float32], where: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Some elements of every row, in half the time of ``np.take``."""
    picked = np.empty((rows.shape[0], where.size), _F)
    for row in range(rows.shape[0]):
        for i in range(where.size):
            picked[row, i] = rows[row, where[i]]
    return picked


@kernel
def _median_mad_rows(
    rows: npt.NDArray[np.float32],
    bits: _Keys,
    median: npt.NDArray[np.float32],
    mad: npt.NDArray[np.float32],
) -> None:
    """Fill median and MAD of every row.

    `bits` is the same memory as `rows`; given as an argument, so that the loops compile to vectors.
    """
    size = rows.shape[1]
    keys, deviations = np.empty(size, _I), np.empty(size, _F)
    sample, ranks = np.empty(_SAMPLE, _I), np.empty(_SAMPLE, _I)
    for row in range(rows.shape[0]):
        values, value_bits = rows[row], bits[row]
        for i in range(size):
            keys[i] = _ordered(value_bits[i])
        centre = _median_of_keys(keys, sample, ranks)
        for i in range(size):
            deviations[i] = abs(values[i] - centre)
        median[row] = centre
        # Of numbers that are not negative the bits are the keys.
        mad[row] = _median_of_keys(deviations.view(np.int32), sample, ranks)

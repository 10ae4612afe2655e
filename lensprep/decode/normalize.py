"""Raw pixels -> the float16 that is stored: the kernels of every mode, one pass.

    Normalizer(spec, geometry)(pixels, out) -> Measured      many stamps at once

The modes and their numbers are those of `lensprep.dataset.normalization`. The arithmetic is float32
as NumPy does it, with a true division, so ``np.clip((x - m) / (np.float32(1.4826) * mad), -c,
c).astype(np.float16)`` gives the same bits; only the logarithm of ``asinh_survey`` is float64, from
additions, products and divisions alone, so that every machine stores the same bytes.

A band whose MAD is 0 has no scale. It is reported, in every mode; the standard deviation never
replaces it, since that would store a masked band as if it were sky.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.layout import STAMP_DTYPE
from lensprep.dataset.normalization import (
    MAD_TO_SIGMA,
    NormalizationSpec,
    measured_pixels,
    normalization_spec,
)
from lensprep.decode.robust import median_mad
from lensprep.kernel import kernel

_SCALED, _ROOT, _ASINH = 0, 1, 2
_FORMULA = {"mad_stamp": _SCALED, "mad_annulus": _SCALED, "asinh_survey": _ASINH, "sqrt": _ROOT}


@dataclass(frozen=True, slots=True)
class Measured:
    """What normalisation measured, one row per stamp and one column per band."""

    median: npt.NDArray[np.float32]
    """In the unit of the pixels, shape (n, bands)."""
    scale: npt.NDArray[np.float32]
    """1.4826 MAD in the unit of the pixels, shape (n, bands)."""
    clip_frac: npt.NDArray[np.float32]
    """Fraction of the pixels of a band beyond the clip, shape (n, bands)."""
    constant: npt.NDArray[np.bool_]
    """Stamps with a band whose MAD is 0, shape (n,): to be rejected. Their pixels are zeros."""

    def take(self, rows: npt.NDArray[np.integer]) -> Measured:
        """The same for a selection of the stamps."""
        return Measured(
            self.median[rows], self.scale[rows], self.clip_frac[rows], self.constant[rows]
        )


class Normalizer:
    """Turns raw stamps into stored ones by one normalisation.

    Parameters
    ----------
    spec : NormalizationSpec
        As from `normalization_spec`, or from a manifest.
    geometry : Geometry
        Of the stamps.

    Raises
    ------
    ConfigError
        If this version does not know the mode or a parameter.
    """

    def __init__(self, spec: NormalizationSpec, geometry: Geometry = DECALS) -> None:
        self.spec = normalization_spec(spec.mode, spec.clip, geometry=geometry, **spec.parameters)
        self.geometry = geometry
        self._where = measured_pixels(self.spec, geometry.side)
        self._softening = np.array(
            [self.spec.parameters.get(f"softening_{band}", 1.0) for band in geometry.bands],
            np.float64,
        )

    def __call__(self, pixels: npt.NDArray[np.float32], out: npt.NDArray[np.float16]) -> Measured:
        """Normalise many stamps.

        Parameters
        ----------
        pixels : ndarray of float32, shape (n, bands, side, side), C-contiguous
            Flux in the unit of the survey, as `lensprep.decode.stampnpz.decode_batch` leaves it:
            finite.
        out : ndarray of little-endian float16, shape (n, bands, side, side)
            Receives the stored pixels. Each stamp must be contiguous; the stride from stamp to
            stamp is free, so this may be the payload of records in a shard.

        Returns
        -------
        Measured

        Raises
        ------
        ValueError
            If an array has another shape, type or layout.
        """
        n, shape = len(pixels), self.geometry.shape
        if pixels.shape[1:] != shape or out.shape != pixels.shape:
            text = "(n, " + ", ".join(map(str, shape)) + ")"
            raise ValueError(f"pixels {pixels.shape} and out {out.shape} must be {text}")
        stats = median_mad(pixels, self._where)
        scale = MAD_TO_SIGMA * stats.mad
        clip_frac = np.zeros((n, shape[0]), np.float32)
        flat, stride = _flat_stamps(out)
        _store_stamps(
            pixels.reshape(n, shape[0], shape[1] * shape[2]),
            stats.median,
            scale,
            self._softening,
            np.float32(self.spec.clip),
            _FORMULA[self.spec.mode],
            flat,
            stride,
            clip_frac,
        )
        return Measured(stats.median, scale, clip_frac, (stats.mad == 0).any(axis=1))


def _flat_stamps(out: npt.NDArray[np.float16]) -> tuple[npt.NDArray[np.uint16], int]:
    """The memory from the first stamp to the end of the last as one array, and the stride in it.

    A kernel that knows its output to be contiguous writes whole vectors.
    """
    bands, side, _ = out.shape[1:]
    inner, stamp = (2 * side * side, 2 * side, 2), bands * side * side
    if len(out) == 0:
        return np.empty(0, np.uint16), stamp
    stride, odd = divmod(out.strides[0], 2)
    plain = out.dtype == STAMP_DTYPE and out.dtype.isnative and out.flags.writeable
    if len(out) == 1:
        stride, odd = stamp, 0
    if not plain or out.strides[1:] != inner or odd or stride < stamp:
        raise ValueError(
            f"out must be writable little-endian float16 with contiguous stamps that do not "
            f"overlap, not {out.dtype} with strides {out.strides}"
        )
    length = (len(out) - 1) * stride + stamp
    flat = np.lib.stride_tricks.as_strided(out.view(np.uint16), (length,), (2,))
    return flat, stride


# ---------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------

_F = np.float32
_U = np.uint32
_LN2 = 0.6931471805599453


@kernel
def _half_bits(value: float) -> np.uint16:
    """Round a float32 to the nearest float16, ties to even: its bits. For any value but NaN.

    A number that is normal in float16 is rounded by adding just under half of its last place to
    the bits; a subnormal one by adding 0.5, whose last place in float32 is the unit of float16.
    """
    bits = _F(value).view(np.uint32)
    sign = _U((bits >> _U(16)) & _U(0x8000))
    size = _U(bits & _U(0x7FFFFFFF))
    # 0xC8000000 is -112 << 23: from the exponent bias 127 to the bias 15.
    normal = _U((size + _U(0xC8000FFF) + ((size >> _U(13)) & _U(1))) >> _U(13))
    subnormal = _U(_F(_F(abs(value)) + _F(0.5)).view(np.uint32) - _U(0x3F000000))
    half = subnormal if size < _U(0x38800000) else normal  # 2**-14
    half = _U(0x7C00) if size >= _U(0x477FF000) else half  # 65520 and above: infinity
    return np.uint16(half | sign)


@kernel
def _clipped_half(value: float, clip: float) -> np.uint16:
    low = clip if value > clip else value
    return _half_bits(_F(-clip if low < -clip else low))


@kernel
def _store_scaled(
    band: npt.NDArray[np.float32],
    centre: np.float32,
    scale: np.float32,
    clip: np.float32,
    out: npt.NDArray[np.uint16],
) -> np.int32:
    """Write one band as mad_stamp; return how many pixels lie beyond the clip."""
    beyond = np.int32(0)
    for i in range(band.size):
        value = _F((band[i] - centre) / scale)
        beyond = np.int32(beyond + np.int32(abs(value) > clip))
        out[i] = _clipped_half(value, clip)
    return beyond


@kernel
def _store_root(
    band: npt.NDArray[np.float32],
    centre: np.float32,
    scale: np.float32,
    clip: np.float32,
    out: npt.NDArray[np.uint16],
) -> np.int32:
    """Write one band as sqrt; return how many pixels lie beyond the clip."""
    beyond = np.int32(0)
    for i in range(band.size):
        scaled = _F((band[i] - centre) / scale)
        root = _F(np.sqrt(abs(scaled)))
        beyond = np.int32(beyond + np.int32(root > clip))
        out[i] = _clipped_half(-root if scaled < _F(0.0) else root, clip)
    return beyond


@kernel
def _asinh_positive(t: float) -> float:
    """Inverse hyperbolic sine of t >= 0 to an absolute error of 1e-15, without a library's log.

    ``log(w)`` of ``w = t + sqrt(t**2 + 1)``: the exponent of w, and the series of
    ``2 atanh((m - 1) / (m + 1))`` of its mantissa m in [1 / sqrt 2, sqrt 2].
    """
    w = t + np.sqrt(t * t + 1.0)
    bits = np.float64(w).view(np.int64)
    exponent = (bits >> 52) - 1023
    mantissa = np.int64((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).view(np.float64)
    large = mantissa > 1.4142135623730951
    m = 0.5 * mantissa if large else mantissa
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 1.0 / 13.0 + z * (1.0 / 15.0 + z * (1.0 / 17.0))
    series = 1.0 / 7.0 + z * (1.0 / 9.0 + z * (1.0 / 11.0 + z * series))
    series = 1.0 + z * (1.0 / 3.0 + z * (1.0 / 5.0 + z * series))
    return (exponent + (1 if large else 0)) * _LN2 + 2.0 * s * series


@kernel
def _store_asinh(
    band: npt.NDArray[np.float32],
    softening: float,
    clip: np.float32,
    out: npt.NDArray[np.uint16],
) -> np.int32:
    """Write one band as asinh_survey; return how many pixels lie beyond the clip."""
    beyond = np.int32(0)
    for i in range(band.size):
        size = _F(_asinh_positive(np.float64(abs(band[i])) / softening))
        beyond = np.int32(beyond + np.int32(size > clip))
        out[i] = _clipped_half(-size if band[i] < _F(0.0) else size, clip)
    return beyond


@kernel
def _store_stamps(
    pixels: npt.NDArray[np.float32],
    median: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    softening: npt.NDArray[np.float64],
    clip: np.float32,
    formula: int,
    flat: npt.NDArray[np.uint16],
    stride: int,
    clip_frac: npt.NDArray[np.float32],
) -> None:
    """Write all bands of all stamps; a stamp with a band without a scale is all zeros."""
    n, bands, size = pixels.shape
    for row in range(n):
        usable = True
        for band in range(bands):
            usable = usable and scale[row, band] > _F(0.0)
        for band in range(bands):
            start = row * stride + band * size
            out = flat[start : start + size]
            values = pixels[row, band]
            beyond = np.int32(0)
            if not usable:
                out[:] = 0
            elif formula == _SCALED:
                beyond = _store_scaled(values, median[row, band], scale[row, band], clip, out)
            elif formula == _ROOT:
                beyond = _store_root(values, median[row, band], scale[row, band], clip, out)
            else:
                beyond = _store_asinh(values, softening[band], clip, out)
            clip_frac[row, band] = _F(beyond) / _F(size)

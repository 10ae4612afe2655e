"""Colour pictures of stamps: Lupton RGB (pure NumPy)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.dataset.geometry import DECALS, Geometry

_BLUE, _GREEN, _RED = zip((6.0, 3.4, 2.2), DECALS.sky_noise, strict=True)
"""Scale of each channel, and the sky noise that it is meant for."""
_MINIMUM, _SOFTENING = 0.03, 20.0


def lupton_rgb(pixels: ArrayLike, geometry: Geometry = DECALS) -> NDArray[np.uint8]:
    """Colour picture of stamps as the Legacy Survey viewer draws them.

    Intensity ``I`` is the mean of the scaled channels, compressed by
    ``asinh(Q I) / sqrt(Q)``; each channel keeps its share of ``I``, so hue survives. The scales are
    the viewer's for DECaLS; those of another survey draw its sky noise as they do that of DECaLS.

    Parameters
    ----------
    pixels : array_like, shape (..., bands, H, W)
        Flux per pixel.
    geometry : Geometry
        Of the stamps.

    Returns
    -------
    ndarray of uint8, shape (..., H, W, 3)
        Blue is the first band, red the last, green the middle one or the mean of the two in the
        middle: g, r, z of DECaLS. One band is grey.

    References
    ----------
    .. [1] Lupton et al. 2004, PASP 116, 133.
    .. [2] The scales, m = 0.03 and Q = 20 are those of the Legacy Survey sky viewer.
    """
    flux = np.asarray(pixels, np.float64)

    def scaled(band: int, channel: tuple[float, float]) -> NDArray[np.float64]:
        scale, noise = channel
        return flux[..., band, :, :] * (scale * (noise / geometry.sky_noise[band]))

    last = len(geometry.bands) - 1
    green = (scaled(last // 2, _GREEN) + scaled(last - last // 2, _GREEN)) / 2
    blue, red = (scaled(0, _BLUE), scaled(last, _RED)) if last else (green, green)
    shifted = np.stack([blue, green, red], axis=-3) + _MINIMUM
    intensity = np.maximum(0.0, shifted).mean(axis=-3, keepdims=True)
    compressed = np.arcsinh(_SOFTENING * intensity) / np.sqrt(_SOFTENING)
    safe = np.where(intensity > 0, intensity, 1.0)
    picture = np.clip(shifted * compressed / safe, 0.0, 1.0)
    picture = np.moveaxis(picture[..., ::-1, :, :], -3, -1)
    return np.rint(255 * picture).astype(np.uint8)

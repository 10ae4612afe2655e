"""Colour pictures of stamps: Lupton RGB (pure NumPy)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHANNEL_SCALE = {"g": 6.0, "r": 3.4, "z": 2.2}
_MINIMUM, _SOFTENING = 0.03, 20.0


def lupton_rgb(pixels: ArrayLike) -> NDArray[np.uint8]:
    """Colour picture of g, r, z stamps as the Legacy Survey viewer draws them.

    Intensity ``I`` is the mean of the scaled channels, compressed by
    ``asinh(Q I) / sqrt(Q)``; each channel keeps its share of ``I``, so hue survives.

    Parameters
    ----------
    pixels : array_like, shape (..., 3, H, W)
        Bands g, r, z in nanomaggies per pixel.

    Returns
    -------
    ndarray of uint8, shape (..., H, W, 3)
        Red is z, green is r, blue is g.

    References
    ----------
    .. [1] Lupton et al. 2004, PASP 116, 133.
    .. [2] The scales, m = 0.03 and Q = 20 are those of the Legacy Survey sky viewer.
    """
    flux = np.asarray(pixels, np.float64)
    scales = np.array([_CHANNEL_SCALE[band] for band in "grz"])[:, None, None]
    shifted = flux * scales + _MINIMUM
    intensity = np.maximum(0.0, shifted).mean(axis=-3, keepdims=True)
    compressed = np.arcsinh(_SOFTENING * intensity) / np.sqrt(_SOFTENING)
    safe = np.where(intensity > 0, intensity, 1.0)
    picture = np.clip(shifted * compressed / safe, 0.0, 1.0)
    picture = np.moveaxis(picture[..., ::-1, :, :], -3, -1)
    return np.rint(255 * picture).astype(np.uint8)

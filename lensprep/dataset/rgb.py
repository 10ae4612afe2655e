"""Colour pictures of stamps: Lupton RGB (pure NumPy)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.dataset.layout import BANDS

_CHANNELS = (0, len(BANDS) // 2, len(BANDS) - 1)
"""Bands drawn as blue, green and red."""
_SCALES = np.array([6.0, 3.4, 2.2])[:, None, None]
_MINIMUM, _SOFTENING = 0.03, 20.0


def lupton_rgb(pixels: ArrayLike) -> NDArray[np.uint8]:
    """Colour picture of stamps as the Legacy Survey viewer draws them.

    Intensity ``I`` is the mean of the scaled channels, compressed by
    ``asinh(Q I) / sqrt(Q)``; each channel keeps its share of ``I``, so hue survives.

    Parameters
    ----------
    pixels : array_like, shape (..., bands, H, W)
        Nanomaggies per pixel.

    Returns
    -------
    ndarray of uint8, shape (..., H, W, 3)
        Blue, green and red are the first, the middle and the last of `BANDS`: g, r, z.

    References
    ----------
    .. [1] Lupton et al. 2004, PASP 116, 133.
    .. [2] The scales, m = 0.03 and Q = 20 are those of the Legacy Survey sky viewer.
    """
    flux = np.asarray(pixels, np.float64)
    shifted = flux[..., _CHANNELS, :, :] * _SCALES + _MINIMUM
    intensity = np.maximum(0.0, shifted).mean(axis=-3, keepdims=True)
    compressed = np.arcsinh(_SOFTENING * intensity) / np.sqrt(_SOFTENING)
    safe = np.where(intensity > 0, intensity, 1.0)
    picture = np.clip(shifted * compressed / safe, 0.0, 1.0)
    picture = np.moveaxis(picture[..., ::-1, :, :], -3, -1)
    return np.rint(255 * picture).astype(np.uint8)

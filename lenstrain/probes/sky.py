"""Level and scatter of the sky of stamps, in flux."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.dataset import NormalizationSpec
from lensprep.dataset.normalization import MAD_TO_SIGMA, denormalize, radius_px
from lenstrain.probes.views import SKY_INNER_PX

Floats = NDArray[np.float64]
_BLOCK = 1024
"""Stamps at a time: 100 MB in float64."""


def sky_statistics(
    pixels: NDArray[np.float16], spec: NormalizationSpec, median: ArrayLike, scale: ArrayLike
) -> tuple[Floats, Floats]:
    """Median and ``1.4826 MAD`` of the flux beyond `SKY_INNER_PX`, nanomaggies; shapes (n, 3)."""
    outside = radius_px(pixels.shape[-1]) >= SKY_INNER_PX
    shape = pixels.shape[:2]
    median, scale = (np.broadcast_to(np.asarray(v, np.float32), shape) for v in (median, scale))
    level, scatter = np.empty(shape), np.empty(shape)
    for start in range(0, len(pixels), _BLOCK):
        part = slice(start, start + _BLOCK)
        sky = denormalize(pixels[part], spec, median[part], scale[part])[..., outside]
        level[part] = np.median(sky, axis=-1)
        scatter[part] = MAD_TO_SIGMA * np.median(np.abs(sky - level[part][..., None]), axis=-1)
    return level, scatter

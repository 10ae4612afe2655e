"""Level and scatter of the sky of stamps, in flux."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.dataset import DECALS, Geometry, NormalizationSpec
from lensprep.dataset.normalization import MAD_TO_SIGMA, denormalize, radius_px
from lenstrain.probes.radii import sky_inner_px

Floats = NDArray[np.float64]
_BLOCK_VALUES = 1024 * DECALS.payload_bytes // 2
"""Pixels at a time, over all bands: 100 MB in float64."""


def stamp_blocks(pixels: NDArray[np.float16]) -> Iterator[slice]:
    """Slices of stamps, shape (n, bands, S, S), that are worked on at a time."""
    step = max(1, _BLOCK_VALUES // math.prod(pixels.shape[1:]))
    return (slice(start, start + step) for start in range(0, len(pixels), step))


def sky_statistics(
    pixels: NDArray[np.float16],
    spec: NormalizationSpec,
    median: ArrayLike,
    scale: ArrayLike,
    geometry: Geometry = DECALS,
) -> tuple[Floats, Floats]:
    """Median and ``1.4826 MAD`` of the flux beyond `sky_inner_px`; shapes (n, bands)."""
    outside = radius_px(pixels.shape[-1]) >= sky_inner_px(geometry)
    shape = pixels.shape[:2]
    median, scale = (np.broadcast_to(np.asarray(v, np.float32), shape) for v in (median, scale))
    level, scatter = np.empty(shape), np.empty(shape)
    for part in stamp_blocks(pixels):
        sky = denormalize(pixels[part], spec, median[part], scale[part])[..., outside]
        level[part] = np.median(sky, axis=-1)
        scatter[part] = MAD_TO_SIGMA * np.median(np.abs(sky - level[part][..., None]), axis=-1)
    return level, scatter

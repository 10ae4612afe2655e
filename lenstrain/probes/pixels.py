"""From stored pixels to flux and back, and masks of a stamp (pure NumPy).

`lensprep.decode.normalize` made the stored pixels from flux; a probe that adds flux has to do it
again. The arithmetic here is the same, float32 step by step, so that a stamp to which nothing is
added comes back bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.dataset import BANDS, STAMP_SIZE, NormalizationSpec
from lensprep.dataset.rgb import restore
from lensprep.errors import ConfigError

MAD_TO_SIGMA = np.float32(1.4826)

Floats = NDArray[np.float32]


def radius_px(size: int = STAMP_SIZE) -> NDArray[np.float64]:
    """Distance of every pixel from the centre of the stamp, in pixels; shape (size, size)."""
    offset = np.arange(size) - (size - 1) / 2
    return np.hypot(offset[:, None], offset[None, :])


def band_statistics(flux: Floats, spec: NormalizationSpec) -> tuple[Floats, Floats]:
    """Median and ``1.4826 MAD`` of every band, over the pixels that the normalisation looks at.

    Parameters
    ----------
    flux : ndarray of float32, shape (n, 3, 64, 64)
        Nanomaggies, finite.
    spec : NormalizationSpec

    Returns
    -------
    median, scale : ndarray of float32, shape (n, 3)
    """
    values = flux.reshape(*flux.shape[:2], -1)
    if spec.mode == "mad_annulus":
        inner, outer = spec.parameters["inner_px"], spec.parameters["outer_px"]
        distance = radius_px(flux.shape[-1]).ravel()
        values = values[..., (distance >= inner) & (distance <= outer)]
    median = np.median(values, axis=-1).astype(np.float32)
    mad = np.median(np.abs(values - median[..., None]), axis=-1).astype(np.float32)
    return median, MAD_TO_SIGMA * mad


def normalize(
    flux: Floats, spec: NormalizationSpec, median: ArrayLike, scale: ArrayLike
) -> NDArray[np.float16]:
    """Flux to stored pixels, by given statistics.

    Parameters
    ----------
    flux : ndarray of float32, shape (n, 3, H, W)
        Nanomaggies.
    spec : NormalizationSpec
    median, scale : array_like, shape (n, 3)
        As from `band_statistics`; not used by ``asinh_survey``.

    Returns
    -------
    ndarray of float16, shape (n, 3, H, W)

    Raises
    ------
    ConfigError
        If this version does not know the mode.
    """
    clip = np.float32(spec.clip)
    if spec.mode == "asinh_survey":
        softening = np.array([spec.parameters[f"softening_{band}"] for band in BANDS])
        scaled = np.arcsinh(flux.astype(np.float64) / softening[:, None, None]).astype(np.float32)
    elif spec.mode in ("mad_stamp", "mad_annulus", "sqrt"):
        centre = np.asarray(median, np.float32)[..., None, None]
        width = np.asarray(scale, np.float32)[..., None, None]
        scaled = (flux - centre) / width
        if spec.mode == "sqrt":
            scaled = np.sign(scaled) * np.sqrt(np.abs(scaled))
    else:
        raise ConfigError(
            f"normalisation {spec.mode!r} cannot be undone by this version; probes that add flux "
            "need mad_stamp, mad_annulus, sqrt or asinh_survey."
        )
    return np.clip(scaled, -clip, clip).astype(np.float16)


def inject(
    stored: NDArray[np.float16],
    added: Floats,
    spec: NormalizationSpec,
    median: Floats,
    scale: Floats,
) -> NDArray[np.float16]:
    """Stored pixels of stamps to which flux is added before they are normalised.

    The statistics that conversion measured move by what the added flux changes. They are not
    measured anew: stored pixels are rounded and clipped, and so would the statistics be.

    Parameters
    ----------
    stored : ndarray of float16, shape (n, 3, H, W)
    added : ndarray of float32, same shape
        Nanomaggies per pixel. All zeros give `stored` again, bit for bit.
    spec : NormalizationSpec
    median, scale : ndarray of float32, shape (n, 3)
        The sidecar's ``median_*`` and ``scale_*``.

    Returns
    -------
    ndarray of float16, same shape as `stored`
    """
    before = restore(stored, spec, median, scale)
    after = before + added
    if spec.mode == "asinh_survey":
        return normalize(after, spec, median, scale)
    old_median, old_scale = band_statistics(before, spec)
    new_median, new_scale = band_statistics(after, spec)
    grown = np.where(old_scale > 0, new_scale / np.where(old_scale > 0, old_scale, 1), 1)
    return normalize(
        after, spec, median + (new_median - old_median), scale * grown.astype(np.float32)
    )

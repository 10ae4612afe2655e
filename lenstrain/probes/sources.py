"""Light to inject: blurred points and rings of unit flux on the pixel grid (pure NumPy/SciPy)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from lensprep.dataset import DECALS
from lensprep.dataset.normalization import radius_px

FWHM_TO_SIGMA = 1 / (2 * math.sqrt(2 * math.log(2)))
_EXPONENTIAL_SIGMA = math.sqrt(3) / 1.678347
"""Dispersion along one axis of an exponential disc, in half-light radii."""


def sigma_px(
    fwhm_arcsec: ArrayLike,
    half_light_arcsec: ArrayLike = 0.0,
    scale: float = DECALS.pixel_scale_arcsec,
) -> NDArray[np.float64]:
    """Gaussian sigma in pixels of an exponential source behind a Gaussian PSF.

    The second moments add. A source of 0.15 arcsec behind a PSF of 1.2 arcsec widens it by 5 %,
    so what the exponential has beyond a Gaussian is lost in the seeing. `scale` is that of pixels,
    arcsec.
    """
    psf = np.asarray(fwhm_arcsec, np.float64) * FWHM_TO_SIGMA
    source = np.asarray(half_light_arcsec, np.float64) * _EXPONENTIAL_SIGMA
    return np.hypot(psf, source) / scale


def point(
    x_px: ArrayLike, y_px: ArrayLike, sigma: ArrayLike, size: int = DECALS.side
) -> NDArray[np.float64]:
    """Gaussians of unit flux, integrated over pixels; shape (..., size, size).

    Parameters
    ----------
    x_px, y_px : array_like
        Offsets from the centre of the stamp.
    sigma : array_like
        Pixels.
    size : int
    """
    edges = np.arange(size + 1) - size / 2

    def along(offset: ArrayLike) -> NDArray[np.float64]:
        reach = (edges - np.asarray(offset, np.float64)[..., None]) / (
            math.sqrt(2) * np.asarray(sigma, np.float64)[..., None]
        )
        return np.asarray(np.diff(special.erf(reach), axis=-1) / 2, np.float64)

    return along(y_px)[..., :, None] * along(x_px)[..., None, :]


def ring(radius: ArrayLike, sigma: ArrayLike, size: int = DECALS.side) -> NDArray[np.float64]:
    """Thin rings around the centre, blurred by a Gaussian, of unit flux; shape (..., size, size).

    A ring that lies outside the stamp leaves no light in it.

    Parameters
    ----------
    radius, sigma : array_like
        Pixels.
    size : int
    """
    distance = radius_px(size)
    big = np.asarray(radius, np.float64)[..., None, None]
    width = np.asarray(sigma, np.float64)[..., None, None]
    # A ring convolved with a Gaussian: exp(-(r^2 + R^2) / 2 s^2) I0(r R / s^2), written with the
    # scaled Bessel function, which does not overflow.
    light = np.exp(-0.5 * ((distance - big) / width) ** 2) * special.ive(
        0, distance * big / width**2
    )
    total = light.sum(axis=(-2, -1), keepdims=True)
    return np.asarray(light / np.where(total > 0, total, 1.0), np.float64)

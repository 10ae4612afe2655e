"""A host with more light: through its own seeing, with the noise that light brings (pure)."""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from lensprep.counterfactual.light import SPREAD_PX2
from lensprep.dataset.layout import BANDS, PIXEL_SCALE_ARCSEC, STAMP_SIZE
from lensprep.dataset.normalization import MAD_TO_SIGMA, annulus_indices
from lensprep.decode.robust import median_mad
from lensprep.synth.imaging import (
    FWHM_PER_SIGMA,
    GRID,
    MARGIN,
    SKY_MAG_ARCSEC2,
    gaussian_transfer,
    magnitude_to_flux,
    moffat,
    smooth_noise,
)

Psf = Literal["gaussian", "moffat"]
MOFFAT_BETA: Final = 3.5
CORRELATION: Final = 0.15
"""Weight of the next pixel when noise is smoothed: neighbours then correlate by 0.29, as in DR10
coadds."""
CORE_PX: Final = 10.0
"""Radius within which the flux of a host is measured: 2.6 arcsec."""

_SKY = annulus_indices(STAMP_SIZE, 20.0, STAMP_SIZE / 2)
_CORE = annulus_indices(STAMP_SIZE, 0.0, CORE_PX)
_WINDOW_PX = 2.0
_CENTRINGS = 8
_FURTHEST_PX = 2.0


class Host(NamedTuple):
    """A non-lens and what was measured on it."""

    pixels: NDArray[np.float32]
    """Shape (bands, 64, 64), nanomaggies."""
    x_px: float
    """Centre on the grid on which light is drawn."""
    y_px: float
    sky_sigma: NDArray[np.float64]
    """Noise of a pixel of sky in each band, nanomaggies; shape (bands,)."""
    flux: NDArray[np.float64]
    """Flux above the sky within `CORE_PX` in each band, nanomaggies; shape (bands,)."""


def sky_and_flux(
    pixels: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Level and noise of the sky beyond 20 pixels, and the flux above it within `CORE_PX`.

    Parameters
    ----------
    pixels : ndarray of float32, shape (n, bands, 64, 64), C-contiguous
        Nanomaggies.

    Returns
    -------
    sky, sigma, flux : ndarray, shape (n, bands)
        Nanomaggies; the first two for each pixel.
    """
    sky = median_mad(pixels, _SKY)
    core = pixels.reshape(*pixels.shape[:2], -1)[..., _CORE] - sky.median[..., None]
    return sky.median, MAD_TO_SIGMA * sky.mad, core.sum(-1, dtype=np.float64)


def measure_host(pixels: NDArray[np.float32]) -> Host:
    """Sky, flux and centre of a stamp.

    The centre is the windowed centroid of the light in all bands, in units of their noise (as
    ``XWIN_IMAGE`` of SExtractor): a galaxy that is catalogued at the centre of its stamp is seldom
    there to the tenth of a pixel.
    """
    sky, sigma, flux = (np.asarray(values[0], np.float64) for values in sky_and_flux(pixels[None]))
    noise = np.where(sigma > 0, sigma, 1.0)
    light = ((pixels - sky[:, None, None]) / noise[:, None, None]).sum(0)
    offset = np.arange(STAMP_SIZE) - (STAMP_SIZE - 1) / 2
    x = y = 0.0
    for _ in range(_CENTRINGS):
        near = [np.exp(-0.5 * ((offset - at) / _WINDOW_PX) ** 2) for at in (x, y)]
        total = float(near[1] @ light @ near[0])
        if total <= 0:
            break
        x += 2 * float(near[1] @ light @ (near[0] * (offset - x))) / total
        y += 2 * float((near[1] * (offset - y)) @ light @ near[0]) / total
    if not math.hypot(x, y) < _FURTHEST_PX:  # no galaxy, or another one
        x = y = 0.0
    middle = (GRID - 1) / 2
    return Host(pixels, middle + x, middle + y, sigma, flux)


def psf_transfer(fwhm_arcsec: NDArray[np.float64], psf: Psf) -> NDArray[np.complex64]:
    """Fourier transform of the PSF of each band; shape (bands, GRID, GRID // 2 + 1).

    The FWHM includes the pixel. What `lensprep.counterfactual.light.on_pixels` has widened light by
    is taken off.
    """
    squares = (fwhm_arcsec / PIXEL_SCALE_ARCSEC) ** 2 - FWHM_PER_SIGMA**2 * SPREAD_PX2
    widths = np.sqrt(np.maximum(squares, SPREAD_PX2))  # a PSF of less than 1.3 pixels gets wider
    if psf == "moffat":
        return np.stack([scipy.fft.rfft2(moffat(width, MOFFAT_BETA)) for width in widths])
    return gaussian_transfer(tuple((widths * PIXEL_SCALE_ARCSEC).tolist()))


def add_light(
    host: Host,
    light: NDArray[np.float32],
    flux: NDArray[np.float64],
    transfer: NDArray[np.complex64],
    white: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Add light to a host.

    Parameters
    ----------
    host : Host
    light : ndarray of float32, shape (GRID, GRID)
        Light of unit flux on pixels, before the atmosphere.
    flux : ndarray of float64, shape (bands,)
        Nanomaggies.
    transfer : ndarray of complex64, shape (bands, GRID, GRID // 2 + 1)
        As from `psf_transfer`.
    white : ndarray of float32, shape (bands, 66, 66), or None
        Normal noise of unit variance, which becomes the photon noise of the added light; None adds
        none. The photons of a nanomaggie follow from the brightness of a dark sky and the noise
        that the host has without objects.

    Returns
    -------
    ndarray of float32, shape (bands, 64, 64)
    """
    spectrum = scipy.fft.rfft2(light) * flux.astype(np.float32)[:, None, None]
    seen = scipy.fft.irfft2(spectrum * transfer, s=(GRID, GRID))
    inner = slice(MARGIN, GRID - MARGIN)
    image = host.pixels + seen[:, inner, inner]
    if white is not None:
        sky = np.array([magnitude_to_flux(m) * PIXEL_SCALE_ARCSEC**2 for m in SKY_MAG_ARCSEC2])
        edge = slice(MARGIN - 1, GRID - MARGIN + 1)
        variance = np.maximum(seen[:, edge, edge], 0.0)
        variance *= (host.sky_sigma**2 / sky)[:, None, None].astype(np.float32)
        image += smooth_noise(white * np.sqrt(variance), CORRELATION)
    return np.ascontiguousarray(image, np.float32)


def peak_snr(
    host: Host,
    light: NDArray[np.float32],
    flux: NDArray[np.float64],
    transfer: NDArray[np.complex64],
) -> float:
    """Largest signal of a pixel in r over the noise of the sky, as ``arc_snr``."""
    band = BANDS.index("r")
    seen = scipy.fft.irfft2(scipy.fft.rfft2(light) * transfer[band], s=(GRID, GRID))
    return float(seen.max() * flux[band] / host.sky_sigma[band])

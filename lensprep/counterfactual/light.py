"""The light of each kind of counterfactual: points around a host, of unit flux in all (pure).

A lens's light without the lens. All kinds have the flux and the colours of a donor's arc; they
differ in where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.layout import LENSED, PIXEL_SCALE_ARCSEC
from lensprep.kernel import kernel
from lensprep.synth.imaging import GRID
from lensprep.synth.lenses import Lens, Rays, trace_rays

SCATTER_LEAST: Final = 0.5
"""Least theta_E / PSF FWHM at which an arc is scattered: below it the images of a lens lie closer
together than one FWHM, and so would the pieces."""
COMPANION_ARCSEC: Final = (1.5, 8.0)
"""Nearest and furthest distance of a companion."""

SPREAD_PX2: Final = 0.25
"""Variance along each axis that `on_pixels` adds, pixels squared."""

_EXPONENTIAL = 1.678346990
"""Half-light radius of an exponential disc in scale lengths."""
_REACH = 10.0
"""Scale lengths out to which a disc is drawn: 0.05 % of its light lies beyond."""
_PIECES = 6

Draw = Callable[[np.random.Generator, Lens, Rays], Rays]


def draw_light(kind: str, rng: np.random.Generator, lens: Lens, arc: Rays) -> Rays:
    """Points of one kind of counterfactual.

    Parameters
    ----------
    kind : str
        One of `lensprep.dataset.layout.COUNTERFACTUALS`.
    rng : numpy.random.Generator
    lens : Lens
        The donor's lens and source.
    arc : Rays
        Its lensed image, as from `trace_rays`.

    Returns
    -------
    Rays
        Positions in arcsec from the centre of the host; the flux sums to 1.
    """
    light = _KINDS[kind](rng, lens, arc)
    return light._replace(flux=light.flux / light.flux.sum())


def on_pixels(light: Rays, x_px: float, y_px: float) -> NDArray[np.float32]:
    """Put points on the pixels of a grid.

    Each point is shared between the nine nearest pixels by a quadratic B-spline. That keeps its
    flux and its centroid, and widens it by the same variance wherever it lies (`SPREAD_PX2`):
    summed over the pixel that it falls in, a compact source would lie in the middle of a pixel.

    Parameters
    ----------
    light : Rays
    x_px, y_px : float
        Where (0, 0) arcsec lies on the grid; (0, 0) is the centre of the first pixel.

    Returns
    -------
    ndarray of float32, shape (GRID, GRID)
        What falls beyond the grid is lost.
    """
    image = np.zeros((GRID, GRID))
    x, y = light.x_arcsec / PIXEL_SCALE_ARCSEC + x_px, light.y_arcsec / PIXEL_SCALE_ARCSEC + y_px
    _spread(x, y, light.flux, image)
    return image.astype(np.float32)


@kernel
def _spread(
    x_px: NDArray[np.float64],
    y_px: NDArray[np.float64],
    flux: NDArray[np.float64],
    image: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    for i in range(flux.size):
        column, row = round(x_px[i]), round(y_px[i])
        dx, dy = x_px[i] - column, y_px[i] - row
        # Shares of the pixel before the nearest one, of that, and of the one after it.
        across = (0.5 * (0.5 - dx) ** 2, 0.75 - dx * dx, 0.5 * (0.5 + dx) ** 2)
        down = (0.5 * (0.5 - dy) ** 2, 0.75 - dy * dy, 0.5 * (0.5 + dy) ** 2)
        for j in range(3):
            for k in range(3):
                at_row, at_column = row + j - 1, column + k - 1
                if 0 <= at_row < image.shape[0] and 0 <= at_column < image.shape[1]:
                    image[at_row, at_column] += flux[i] * down[j] * across[k]


def arc_of(lens: Lens) -> Rays:
    """The lensed image of a source of unit flux; its flux sums to the magnification."""
    return trace_rays(lens, 0.0, 0.0)


def disc(
    x_arcsec: float, y_arcsec: float, reff_arcsec: float, ellipticity: float, phi_rad: float
) -> Rays:
    """An exponential disc, the profile that is lensed.

    Parameters
    ----------
    x_arcsec, y_arcsec : float
        Its centre.
    reff_arcsec : float
        Half-light radius: geometric mean of the axes.
    ellipticity : float
        (1 - q) / (1 + q) of the axis ratio q.
    phi_rad : float
        Direction of the long axis.
    """
    q = (1 - ellipticity) / (1 + ellipticity)
    scale = reff_arcsec / _EXPONENTIAL
    steps = np.arange(-4 * _REACH, 4 * _REACH + 1) / 4  # of a quarter of a scale length
    along, across = (axis.ravel() for axis in np.meshgrid(steps, steps))
    radius = np.hypot(along, across)
    inside = radius <= _REACH
    flux = np.exp(-radius[inside])
    along = along[inside] * scale / math.sqrt(q)
    across = across[inside] * scale * math.sqrt(q)
    cos, sin = math.cos(phi_rad), math.sin(phi_rad)
    return Rays(x_arcsec + along * cos - across * sin, y_arcsec + along * sin + across * cos, flux)


def _unlensed(rng: np.random.Generator, lens: Lens, arc: Rays) -> Rays:
    """The source where it is, as if there were no mass."""
    return disc(
        lens.src_x_arcsec, lens.src_y_arcsec, lens.src_reff_arcsec, lens.src_e, lens.src_phi_rad
    )


def _magnified(rng: np.random.Generator, lens: Lens, arc: Rays) -> Rays:
    """The source at the brightest place of the arc: one image, and no other one."""
    brightest = int(np.argmax(arc.flux))
    x, y = float(arc.x_arcsec[brightest]), float(arc.y_arcsec[brightest])
    return disc(x, y, lens.src_reff_arcsec, lens.src_e, lens.src_phi_rad)


def _extended(rng: np.random.Generator, lens: Lens, arc: Rays) -> Rays:
    """A disc of the size of the arc: of its centroid and its second moments.

    Where an arc is small against the seeing nothing but these moments is left of it, and no finder
    can tell the two apart. The dispersion of an exponential disc is the root of 3 scale lengths.
    """
    x, y = (float(np.average(at, weights=arc.flux)) for at in (arc.x_arcsec, arc.y_arcsec))
    spread, axes = np.linalg.eigh(np.cov(arc.x_arcsec, arc.y_arcsec, aweights=arc.flux, ddof=0))
    short, long = np.sqrt(spread / 3)
    reff = _EXPONENTIAL * math.sqrt(short * long)
    return disc(x, y, reff, (long - short) / (long + short), math.atan2(axes[1, 1], axes[0, 1]))


def _scattered(rng: np.random.Generator, lens: Lens, arc: Rays) -> Rays:
    """The arc cut into six sectors, each moved about the host and turned about itself.

    A sector keeps its distance from the host, its brightness and its size; what goes is that images
    lie opposite each other and arcs lie along the circle.
    """
    azimuth = np.arctan2(arc.y_arcsec, arc.x_arcsec) + rng.uniform(0, 2 * math.pi)
    sector = (azimuth % (2 * math.pi) // (2 * math.pi / _PIECES)).astype(np.int64)
    x, y = arc.x_arcsec.copy(), arc.y_arcsec.copy()
    for number in range(_PIECES):
        piece = sector == number
        moved, turned = rng.uniform(0, 2 * math.pi, 2)
        if not piece.any():
            continue
        place = complex(*(np.average(at[piece], weights=arc.flux[piece]) for at in (x, y)))
        offset = (x[piece] + 1j * y[piece] - place) * np.exp(1j * turned)
        there = place * np.exp(1j * moved) + offset
        x[piece], y[piece] = there.real, there.imag
    return Rays(x, y, arc.flux)


def _companion(rng: np.random.Generator, lens: Lens, arc: Rays) -> Rays:
    """The source as a neighbour of the host."""
    distance, bearing = rng.uniform(*COMPANION_ARCSEC), rng.uniform(0, 2 * math.pi)
    x, y = distance * math.cos(bearing), distance * math.sin(bearing)
    return disc(x, y, lens.src_reff_arcsec, lens.src_e, lens.src_phi_rad)


def _lensed(rng: np.random.Generator, lens: Lens, arc: Rays) -> Rays:
    """The arc itself."""
    return arc


_KINDS: Final[dict[str, Draw]] = {
    "unlensed": _unlensed,
    "magnified": _magnified,
    "extended": _extended,
    "scattered": _scattered,
    "companion": _companion,
    LENSED: _lensed,
}

"""Galaxies and stars of the synthetic sky: what a lens finder meets, with and without a lens.

Hosts are luminous galaxies of a sample limited in z. Most are early types whose colours follow a
passively evolving population with redshift; some are late types, which are bluer and have arms, so
that neither colour nor a blue ring reveals the label. Around them are satellites of the same group,
field galaxies and stars.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, PIXEL_SCALE_ARCSEC
from lensprep.synth.imaging import (
    CENTRE,
    GRID,
    Sersic,
    add_point,
    add_sersic,
    magnitude_to_flux,
)
from lensprep.synth.priors import UPSTREAM, Priors

R_BRIGHT_MAG: Final = 17.0
EXTINCTION: Final = (3.214, 2.165, 1.211)
"""A / E(B-V) in g, r, z (DECam)."""

_REDSHIFT = np.array([0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
_R_MAG = np.array([17.1, 17.8, 19.0, 19.85, 20.55, 21.3, 22.0, 22.6])
"""Apparent r of a passively evolving galaxy of M_r = -22.3 (z = 0)."""
_OLD_GR = np.array([1.00, 1.12, 1.40, 1.65, 1.74, 1.76, 1.72, 1.66])
_OLD_RZ = np.array([0.66, 0.70, 0.78, 0.88, 1.05, 1.32, 1.60, 1.85])
_YOUNG_GR = np.array([0.55, 0.62, 0.78, 0.92, 0.95, 0.90, 0.82, 0.75])
_YOUNG_RZ = np.array([0.38, 0.42, 0.50, 0.58, 0.68, 0.82, 0.95, 1.05])
_KPC_PER_ARCSEC = np.array([2.61, 3.30, 4.45, 5.37, 6.10, 6.69, 7.15, 7.51])
"""Planck cosmology."""


@dataclass(frozen=True, slots=True)
class Host:
    """A galaxy in the middle of a stamp."""

    x_px: float
    y_px: float
    redshift: float
    r_mag: float
    """Observed, extinction included."""
    parts: tuple[tuple[Sersic, NDArray[np.float64]], ...]
    """Profiles, each with its flux in g, r, z (nanomaggies)."""
    ellipticity: float
    """(1 - q) / (1 + q) of the light."""
    angle_rad: float

    @property
    def flux_r(self) -> float:
        """Total flux in r, nanomaggies."""
        return float(sum(flux[1] for _, flux in self.parts))


def draw_host(rng: np.random.Generator, ebv: float, priors: Priors = UPSTREAM) -> Host:
    """Draw one host from the limited sample; ``ebv`` is the brick's reddening, mag."""
    late = rng.random() < priors.late_share
    redshift, magnitudes, brightness = _draw_magnitudes(rng, late, priors)
    scale = np.interp(redshift, _REDSHIFT, _KPC_PER_ARCSEC) * PIXEL_SCALE_ARCSEC  # kpc per pixel
    size = 6.5 * 10 ** (0.24 * brightness) * rng.lognormal(0.0, 0.3) / scale
    angle = rng.uniform(0.0, math.pi)
    dust = np.array([10 ** (-0.4 * a * ebv) for a in EXTINCTION])
    flux = np.array([magnitude_to_flux(m) for m in magnitudes]) * dust
    if late:
        parts, q = _late_parts(rng, flux, redshift, size, angle)
    else:
        parts, q = _early_parts(rng, flux, size, angle)
    x, y = CENTRE + rng.uniform(-0.5, 0.5, 2)
    r_mag = 22.5 - 2.5 * math.log10(flux[1])
    return Host(x, y, redshift, r_mag, parts, (1 - q) / (1 + q), angle)


def _draw_magnitudes(
    rng: np.random.Generator, late: bool, priors: Priors
) -> tuple[float, tuple[float, float, float], float]:
    """Redshift, (g, r, z) magnitudes, and magnitudes above the characteristic brightness."""
    while True:
        redshift = 0.15 + 0.65 * rng.beta(*priors.host_redshift_beta)
        brightness = rng.normal(*priors.host_brightness_mag)
        gr = np.interp(redshift, _REDSHIFT, _YOUNG_GR if late else _OLD_GR)
        rz = np.interp(redshift, _REDSHIFT, _YOUNG_RZ if late else _OLD_RZ)
        gr += rng.normal(0.0, 0.20 if late else 0.06)
        rz += rng.normal(0.0, 0.13 if late else 0.05)
        r = np.interp(redshift, _REDSHIFT, _R_MAG) - brightness
        inside = r - rz < priors.host_z_limit_mag and rz > priors.host_rz_limit_mag
        if inside and r > R_BRIGHT_MAG:
            return float(redshift), (float(r + gr), float(r), float(r - rz)), float(brightness)


def _early_parts(
    rng: np.random.Generator, flux: NDArray[np.float64], size: float, angle: float
) -> tuple[tuple[tuple[Sersic, NDArray[np.float64]], ...], float]:
    """An elliptical galaxy, or a lenticular one with a disc."""
    q = float(np.clip(rng.normal(0.78, 0.13), 0.35, 0.99))
    bulge = Sersic(size, float(np.clip(rng.normal(4.0, 0.8), 2.0, 6.0)), q, angle)
    if rng.random() > 0.35:
        return ((bulge, flux),), q
    share = rng.uniform(0.15, 0.5) * np.array([1.08, 1.0, 0.96])  # discs are a little bluer
    disc = Sersic(1.5 * size, 1.0, float(np.clip(q * rng.uniform(0.6, 1.0), 0.2, 1)), angle)
    bulge = Sersic(0.75 * size, bulge.n, q, angle)
    return ((bulge, flux * (1 - share)), (disc, flux * share)), q


def _late_parts(
    rng: np.random.Generator,
    flux: NDArray[np.float64],
    redshift: float,
    size: float,
    angle: float,
) -> tuple[tuple[tuple[Sersic, NDArray[np.float64]], ...], float]:
    """A disc, often with arms, and an old bulge, with the given total fluxes."""
    q = float(rng.uniform(0.25, 0.98))
    old = np.array(
        [
            10 ** (-0.4 * np.interp(redshift, _REDSHIFT, _OLD_GR)),
            1.0,
            10 ** (0.4 * np.interp(redshift, _REDSHIFT, _OLD_RZ)),
        ]
    )
    bulge_flux = np.minimum(rng.uniform(0.05, 0.45) * flux[1] * old, 0.9 * flux)
    arms = rng.uniform(0.3, 0.9) if rng.random() < 0.6 else 0.0
    disc = Sersic(1.1 * size, 1.0, q, angle, arms, rng.uniform(0, 2 * math.pi))
    bulge = Sersic(0.35 * size, 2.5, max(q, 0.6), angle)
    return ((bulge, bulge_flux), (disc, flux - bulge_flux)), q


def draw_scene(rng: np.random.Generator, host: Host, ebv: float) -> NDArray[np.float32]:
    """Light of a host and everything around it, before the atmosphere.

    Returns
    -------
    ndarray of float32, shape (3, GRID, GRID)
        Nanomaggies per pixel in g, r, z.
    """
    scene = np.zeros((len(BANDS), GRID, GRID), np.float32)
    for profile, flux in host.parts:
        add_sersic(scene, host.x_px, host.y_px, profile, flux)
    dust = np.array([10 ** (-0.4 * a * ebv) for a in EXTINCTION])
    _add_satellites(rng, scene, host)
    _add_field(rng, scene, dust)
    _add_stars(rng, scene, dust)
    return scene


def _add_satellites(rng: np.random.Generator, scene: NDArray[np.float32], host: Host) -> None:
    """Group members: fainter, mostly with the old colour of the host, denser near the host."""
    old_gr = np.interp(host.redshift, _REDSHIFT, _OLD_GR)
    old_rz = np.interp(host.redshift, _REDSHIFT, _OLD_RZ)
    for _ in range(rng.poisson(1.1)):
        distance, angle = rng.uniform(1.5, 16.0) / PIXEL_SCALE_ARCSEC, rng.uniform(0, 2 * math.pi)
        x, y = host.x_px + distance * math.cos(angle), host.y_px + distance * math.sin(angle)
        r = host.r_mag + rng.uniform(0.5, 4.0)
        blue = rng.random() < 0.35
        gr = old_gr + rng.normal(-0.55, 0.25) if blue else old_gr + rng.normal(-0.05, 0.07)
        rz = old_rz + rng.normal(-0.25, 0.15) if blue else old_rz + rng.normal(-0.03, 0.06)
        radius = 0.5 * 10 ** (-0.12 * (r - 21.5)) * rng.lognormal(0.0, 0.3)
        n = 1.0 if blue else rng.uniform(2.0, 4.0)
        _add_galaxy(rng, scene, (x, y), (r + gr, r, r - rz), radius, n)


def _add_field(
    rng: np.random.Generator, scene: NDArray[np.float32], dust: NDArray[np.float64]
) -> None:
    """Unrelated galaxies, 20 < r < 24.6: 22 a square arcminute, counts growing as 10^(0.35 m)."""
    area = (GRID * PIXEL_SCALE_ARCSEC / 60.0) ** 2
    for _ in range(rng.poisson(22.0 * area)):
        r = 24.6 + math.log10(1 - rng.random() * (1 - 10 ** (-0.35 * 4.6))) / 0.35
        gr = rng.normal(0.65, 0.38)
        rz = 0.07 + 0.65 * gr + rng.normal(0.0, 0.2)
        radius = 0.42 * 10 ** (-0.13 * (r - 23.0)) * rng.lognormal(0.0, 0.35)
        x, y = rng.uniform(0, GRID - 1, 2)
        n = 1.0 if rng.random() < 0.8 else 3.0
        magnitudes = tuple(
            m - 2.5 * math.log10(d) for m, d in zip((r + gr, r, r - rz), dust, strict=True)
        )
        _add_galaxy(rng, scene, (x, y), magnitudes, radius, n)


def _add_galaxy(
    rng: np.random.Generator,
    scene: NDArray[np.float32],
    position: tuple[float, float],
    magnitudes: tuple[float, ...],
    radius_arcsec: float,
    n: float,
) -> None:
    profile = Sersic(
        radius_arcsec / PIXEL_SCALE_ARCSEC,
        n,
        float(rng.uniform(0.3, 1.0)),
        float(rng.uniform(0.0, math.pi)),
    )
    add_sersic(scene, *position, profile, np.array([magnitude_to_flux(m) for m in magnitudes]))


def _add_stars(
    rng: np.random.Generator, scene: NDArray[np.float32], dust: NDArray[np.float64]
) -> None:
    """Stars of the halo and disc, 17 < r < 23.5: 1.6 a square arcminute, most of them red."""
    area = (GRID * PIXEL_SCALE_ARCSEC / 60.0) ** 2
    for _ in range(rng.poisson(1.6 * area)):
        r = 17.0 + 6.5 * math.sqrt(rng.random())
        gr = float(np.clip(rng.normal(1.1, 0.4), 0.2, 1.6))
        rz = 0.45 * gr if gr < 1.2 else 0.54 + rng.uniform(0.0, 1.4)
        x, y = rng.uniform(0, GRID - 1, 2)
        for band, magnitude in enumerate((r + gr, r, r - rz)):
            add_point(scene[band], x, y, magnitude_to_flux(magnitude) * dust[band])

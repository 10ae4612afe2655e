"""Lensed sources: rays traced through an SIE or SIS with shear, by lenstronomy.

`trace` is correct to a per cent; `trace_as_phase4c` follows the conventions and the sampling of
Phase 4c. Only a window around the Einstein ring is traced, on a grid finer than the pixels. Magnification,
radius and stretch are measured on the traced image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray

from lensprep.dataset.layout import PIXEL_SCALE_ARCSEC
from lensprep.synth.hosts import Host
from lensprep.synth.imaging import CENTRE, GRID
from lensprep.synth.priors import UPSTREAM, Priors

THETA_E_ARCSEC: Final = (0.3, 0.6, 1.0)
SRC_DMAG: Final = (1.0, 2.0)
SRC_REFF_ARCSEC: Final = (0.08, 0.15)
SRC_E: Final = (0.0, 0.3)
SHEAR: Final = (0.0, 0.03)
SUBPIXELS: Final = 5
"""Rays along each side of a pixel: one every 0.052 arcsec."""

_SOURCE_N = 1.0
_SOURCE_REACH = 5.5
"""Half-light radii beyond which the light of an exponential source is not worth tracing."""
_STRETCH_FLOOR = 0.02
"""Fraction of the peak brightness below which a ray does not count for the stretch."""


@dataclass(frozen=True, slots=True)
class Lens:
    """A mass and a source behind it. Angles are counter-clockwise from x, lengths in arcsec."""

    lens_model: str
    """SIE or SIS."""
    theta_e_arcsec: float
    lens_e: float
    """(1 - q) / (1 + q) of the mass."""
    lens_phi_rad: float
    shear: float
    shear_phi_rad: float
    src_dmag: float
    """Magnitudes by which the unlensed source is fainter than the host in r."""
    src_reff_arcsec: float
    src_e: float
    src_phi_rad: float
    src_x_arcsec: float
    """Position of the source relative to the centre of the lens."""
    src_y_arcsec: float

    @property
    def config_id(self) -> str:
        """Name of this point of the injection grid."""
        return (
            f"te{self.theta_e_arcsec:.1f}_dm{self.src_dmag:.1f}_re{self.src_reff_arcsec:.2f}"
            f"_e{self.src_e:.1f}_g{self.shear:.2f}"
        )


class Arc(NamedTuple):
    """The image of a source of unit flux."""

    image: NDArray[np.float32]
    """Shape (GRID, GRID): before the atmosphere; its sum is the magnification."""
    magnification: float
    tangential_stretch: float
    """Flux-weighted harmonic mean of 1 / abs(1 - kappa - gamma) over the image."""
    radial_stretch: float
    """Likewise of 1 / abs(1 - kappa + gamma); 1 for an isothermal lens without shear."""
    radius_arcsec: float
    """Flux-weighted mean distance from the lens."""
    warnings: tuple[str, ...]
    """Reasons why it does not count as a strong lens; empty if there are none."""


def draw_lens(rng: np.random.Generator, host: Host, priors: Priors = UPSTREAM) -> Lens:
    """Draw a point of the injection grid for a host, and what the grid leaves open."""
    theta_e = float(rng.choice(THETA_E_ARCSEC))
    dmag, reff = float(rng.choice(SRC_DMAG)), float(rng.choice(SRC_REFF_ARCSEC))
    src_e, shear = float(rng.choice(SRC_E)), float(rng.choice(SHEAR))
    model = "SIS" if rng.random() < priors.sis_share else "SIE"
    ellipticity, angle = _draw_mass(rng, host, priors)
    distance = priors.source_offset * theta_e * math.sqrt(rng.random())
    bearing, src_phi, shear_phi = rng.uniform(0, 2 * math.pi), *rng.uniform(0, math.pi, 2)
    return Lens(
        lens_model=model,
        theta_e_arcsec=theta_e,
        lens_e=0.0 if model == "SIS" else ellipticity,
        lens_phi_rad=angle,
        shear=shear,
        shear_phi_rad=float(shear_phi),
        src_dmag=dmag,
        src_reff_arcsec=reff,
        src_e=src_e,
        src_phi_rad=float(src_phi),
        src_x_arcsec=distance * math.cos(bearing),
        src_y_arcsec=distance * math.sin(bearing),
    )


def _draw_mass(rng: np.random.Generator, host: Host, priors: Priors) -> tuple[float, float]:
    """Ellipticity and direction of the mass."""
    if priors.lens_e is not None:
        return rng.uniform(*priors.lens_e), rng.uniform(0.0, math.pi)
    # Scatter about the light: 10 degrees, as found in lenses (Koopmans et al. 2006, ApJ 649, 599).
    ellipticity = float(np.clip(host.ellipticity * rng.normal(1.0, 0.2), 0.02, 0.33))
    return ellipticity, (host.angle_rad + rng.normal(0.0, 0.17)) % math.pi


def trace(lens: Lens, x_px: float, y_px: float, *, subpixels: int = SUBPIXELS) -> Arc:
    """Image of an exponential source of unit flux behind a lens.

    Parameters
    ----------
    lens : Lens
    x_px, y_px : float
        Centre of the lens on the grid; (0, 0) is the centre of the first pixel.
    subpixels : int
        Rays along each side of a pixel.

    Returns
    -------
    Arc
    """
    size, left, top, x, y, rays = _rays(lens, x_px, y_px, subpixels)
    window = rays.reshape(size, subpixels, size, subpixels).sum((1, 3))
    image = np.zeros((GRID, GRID), np.float32)
    image[top : top + size, left : left + size] = window
    magnification = float(rays.sum())
    tangential, radial = _stretch(lens, x.ravel(), y.ravel(), rays)
    # No dot product here: in BLAS the order of the sum depends on the number of threads.
    radius = float(np.sum(np.hypot(x, y).ravel() * rays)) / magnification
    warnings = _warnings(lens, magnification)
    return Arc(image, magnification, tangential, radial, radius, warnings)


class Rays(NamedTuple):
    """Light as points around the lens; arrays of shape (rays,)."""

    x_arcsec: NDArray[np.float64]
    y_arcsec: NDArray[np.float64]
    flux: NDArray[np.float64]


def trace_rays(lens: Lens, x_px: float, y_px: float, *, subpixels: int = SUBPIXELS) -> Rays:
    """The image of `trace` before it falls on pixels: every ray that meets light of the source."""
    *_, x, y, flux = _rays(lens, x_px, y_px, subpixels)
    lit = flux > 0
    return Rays(x.ravel()[lit], y.ravel()[lit], flux[lit])


def _rays(
    lens: Lens, x_px: float, y_px: float, subpixels: int
) -> tuple[int, int, int, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Side, left and top of the window in pixels, positions of the rays from the lens, flux."""
    distance = math.hypot(lens.src_x_arcsec, lens.src_y_arcsec)
    extent = _SOURCE_REACH * lens.src_reff_arcsec * math.sqrt((1 + lens.src_e) / (1 - lens.src_e))
    reach = (lens.theta_e_arcsec * (1 + lens.lens_e) + distance + extent) / (1 - lens.shear)
    half = math.ceil(reach / PIXEL_SCALE_ARCSEC) + 1
    left, top = round(x_px) - half, round(y_px) - half
    size = 2 * half + 1
    offset = (np.arange(size * subpixels) + 0.5) / subpixels - 0.5
    x, y = np.meshgrid(
        (left + offset - x_px) * PIXEL_SCALE_ARCSEC, (top + offset - y_px) * PIXEL_SCALE_ARCSEC
    )
    flux = _source_light(lens, x.ravel(), y.ravel()) * (PIXEL_SCALE_ARCSEC / subpixels) ** 2
    return size, left, top, x, y, flux


def trace_as_phase4c(lens: Lens) -> Arc:
    """Image of a source of unit flux as Phase 4c draws it, from the columns of a row alone.

    It differs from `trace` in four ways:

    - ``theta_e_arcsec`` is measured along the minor axis of the mass, and ``src_reff_arcsec`` along
      the major axis of the source, not as the geometric mean of both axes.
    - The lens is in the centre of the stamp, wherever its host is.
    - One ray is traced through the centre of each pixel. Sources are smaller than pixels, so the
      flux of an arc is wrong by 14 % (rms).
    - ``magnification`` is the flux of the arc over that of the same source without a lens, drawn
      likewise; that flux is wrong by a factor of up to 8. So it is not the sum of ``image``, and
      falls below 1 in 2 % of the rows.
    """
    ours = from_phase4c(lens)
    no_lens = replace(ours, lens_model="SIS", theta_e_arcsec=0.0, lens_e=0.0, shear=0.0)
    arc, source = (trace(each, CENTRE, CENTRE, subpixels=1) for each in (ours, no_lens))
    magnification = arc.magnification / source.magnification
    return arc._replace(magnification=magnification, warnings=_warnings(ours, magnification))


def from_phase4c(lens: Lens) -> Lens:
    """A lens in the terms of `trace`, from the columns of Phase 4c.

    There ``theta_e_arcsec`` is measured along the minor axis of the mass, and ``src_reff_arcsec``
    along the major axis of the source, not as the geometric mean of both axes.
    """
    return replace(
        lens,
        theta_e_arcsec=lens.theta_e_arcsec / math.sqrt(_axis_ratio(lens.lens_e)),
        src_reff_arcsec=lens.src_reff_arcsec * math.sqrt(_axis_ratio(lens.src_e)),
    )


def _axis_ratio(ellipticity: float) -> float:
    return (1.0 - ellipticity) / (1.0 + ellipticity)


def deflection(
    lens: Lens, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Deflection angles in arcsec of lens and shear at positions in arcsec."""
    ax, ay = (sum(part) for part in zip(*_of_each_mass(lens, "derivatives", x, y), strict=True))
    return ax, ay


@cache
def _profiles() -> dict[str, Any]:
    """Profiles of lenstronomy; imported when first used, since the import takes a second."""
    with _kept_if_possible():
        from lenstronomy.LensModel.Profiles.shear import Shear
        from lenstronomy.LensModel.Profiles.sie import SIE
        from lenstronomy.LensModel.Profiles.sis import SIS
        from lenstronomy.LightModel.Profiles.sersic import SersicElliptic

        # Making them imports more.
        return {"SIE": SIE(), "SIS": SIS(), "shear": Shear(), "sersic": SersicElliptic()}


@contextmanager
def _kept_if_possible() -> Iterator[None]:
    """Let kernels declared with ``cache=True`` work without a cache where nothing can be written.

    Otherwise numba refuses to define them, and these are not ours; see `lensprep.kernel`.
    """
    kernels: Any = Dispatcher
    usual = kernels.enable_caching

    def enable(dispatcher: Any) -> None:
        with suppress(RuntimeError):
            usual(dispatcher)

    kernels.enable_caching = enable
    try:
        yield
    finally:
        kernels.enable_caching = usual


def _of_each_mass(
    lens: Lens, method: str, x: NDArray[np.float64], y: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """Results of a method of lenstronomy's profiles for the lens, and for the shear if any."""
    shape = _components(lens.lens_e, lens.lens_phi_rad) if lens.lens_model == "SIE" else ()
    yield getattr(_profiles()[lens.lens_model], method)(x, y, lens.theta_e_arcsec, *shape)
    if lens.shear:
        components = _components(lens.shear, lens.shear_phi_rad)
        yield getattr(_profiles()["shear"], method)(x, y, *components)


def _components(modulus: float, angle_rad: float) -> tuple[float, float]:
    """Components of a quantity that repeats after half a turn."""
    return modulus * math.cos(2 * angle_rad), modulus * math.sin(2 * angle_rad)


def _source_light(
    lens: Lens, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Surface brightness per square arcsec along rays; surface brightness is conserved."""
    ax, ay = deflection(lens, x, y)
    sersic = _profiles()["sersic"]
    e1, e2 = _components(lens.src_e, lens.src_phi_rad)
    amplitude = 1.0 / sersic.total_flux(1.0, lens.src_reff_arcsec, _SOURCE_N)
    light = sersic.function(
        x - ax, y - ay, amplitude, lens.src_reff_arcsec, _SOURCE_N, e1, e2,
        lens.src_x_arcsec, lens.src_y_arcsec,
    )  # fmt: skip
    return np.asarray(light, np.float64)


def _stretch(
    lens: Lens, x: NDArray[np.float64], y: NDArray[np.float64], flux: NDArray[np.float64]
) -> tuple[float, float]:
    """Tangential and radial stretch of the image (harmonic means: critical curves are finite)."""
    lit = np.flatnonzero(flux > _STRETCH_FLOOR * flux.max())
    lit = lit[:: max(1, len(lit) // 400)]
    x, y, weight = x[lit], y[lit], flux[lit] / flux[lit].sum()
    fxx, fxy, _, fyy = map(sum, zip(*_of_each_mass(lens, "hessian", x, y), strict=True))
    kappa, gamma = (fxx + fyy) / 2, np.hypot((fxx - fyy) / 2, fxy)
    tangential = 1.0 / float(np.sum(np.abs(1 - kappa - gamma) * weight))
    return tangential, 1.0 / float(np.sum(np.abs(1 - kappa + gamma) * weight))


def _warnings(lens: Lens, magnification: float) -> tuple[str, ...]:
    """Whether the source may be singly imaged, and whether it is made fainter."""
    angle = np.arange(32) * (2 * math.pi / 32)
    # The deflection next to the centre of an isothermal lens traces its cut: within it a
    # source has more than one image.
    ax, ay = deflection(lens, 1e-4 * np.cos(angle), 1e-4 * np.sin(angle))
    found = []
    if math.hypot(lens.src_x_arcsec, lens.src_y_arcsec) >= float(np.hypot(ax, ay).min()):
        found.append("source_may_be_single_imaged")
    if magnification < 1.0:
        found.append("magnification_below_one")
    return tuple(found)

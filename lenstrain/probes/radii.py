"""Radii on stamps: stated in arcsec, as hosts and arcs have them, and used in pixels (pure)."""

from __future__ import annotations

from typing import Final

from lensprep.dataset import DECALS, Geometry
from lenstrain.probes.options import ProbeOptions

SKY_INNER_ARCSEC: Final = 5.24
"""Beyond this radius lies sky: outside most hosts and every arc of the grid. An arc of 1 arcsec
leaves 1 % of a sigma there."""
SKY_SHARE: Final = 0.625
"""The sky begins at this share of half a stamp's side at the latest, so that every stamp has some.
"""


def to_px(arcsec: float, geometry: Geometry) -> float:
    """A length in pixels of a stamp; rounded, so that 2.62 arcsec are 10 pixels of 0.262."""
    return round(arcsec / geometry.pixel_scale_arcsec, 9)


def sky_inner_px(geometry: Geometry = DECALS) -> float:
    """Radius beyond which a stamp is taken to be sky, pixels."""
    return min(to_px(SKY_INNER_ARCSEC, geometry), SKY_SHARE * geometry.side / 2)


def annulus_px(geometry: Geometry, options: ProbeOptions) -> tuple[float, float]:
    """Radii of the annulus of sky, pixels: as told, or the outskirts if it does not fit a stamp."""
    half = geometry.side / 2
    inner, outer = (to_px(radius, geometry) for radius in
                    (options.sky_inner_arcsec, options.sky_outer_arcsec))  # fmt: skip
    return (inner, outer) if outer <= half else (min(inner, SKY_SHARE * half), half)


def core_px(geometry: Geometry, options: ProbeOptions) -> float:
    """Radius of the core; whether it fits is said by `why_no_core`."""
    return to_px(options.core_arcsec, geometry)


def why_no_core(geometry: Geometry, options: ProbeOptions) -> str:
    """Why a stamp has no core and sky around it, and what helps; empty if it has."""
    scale, core = geometry.pixel_scale_arcsec, core_px(geometry, options)
    most = sky_inner_px(geometry)
    if core < 1:
        return f"core_arcsec, {options.core_arcsec:g}, is less than a pixel of {scale:g} arcsec."
    if core > most:
        return (
            f"a core of {options.core_arcsec:g} arcsec leaves no sky in a stamp of "
            f"{geometry.side_arcsec:.3g} arcsec. Set core_arcsec to {most * scale:.3g} at most."
        )
    return ""

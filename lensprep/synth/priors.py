"""What the synthetic survey draws hosts, lenses and arcs from (pure).

Two sets, measured against the published figures of Phase 4c in docs/explanation/survey.md:

    upstream    as Phase 4c: its hosts, its injections, and its way to add an arc to an image
    realistic   mass that follows light, arcs seen through the atmosphere and with photon noise

Both share the injection grid (`lensprep.synth.lenses`) and the sky (`lensprep.synth.survey`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from lensprep.errors import ConfigError, names_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    """Distributions of everything that differs between the sets."""

    name: str
    late_share: float
    """Share of hosts with a young disc."""
    host_z_limit_mag: float
    """Faintest host in z, before dust."""
    host_rz_limit_mag: float
    """Bluest host in r - z, before dust."""
    host_redshift_beta: tuple[float, float]
    """Parameters of the beta distribution of redshift, from 0.15 to 0.8, before the limits."""
    host_brightness_mag: tuple[float, float]
    """Mean and scatter of the magnitudes above the characteristic brightness, before the limits."""
    sis_share: float
    """Share of round lenses without ellipticity (SIS); the rest are elliptical (SIE)."""
    lens_e: tuple[float, float] | None
    """Range of a uniform ellipticity of the mass, in any direction; None: mass follows light."""
    source_offset: float
    """Largest distance of a source from its lens, in Einstein radii; uniform in area."""
    source_gr_mag: tuple[float, float]
    """Mean and scatter of the source's g - r."""
    source_rz_mag: tuple[float, float, float]
    """Mean of the source's r - z where g - r is 0, its growth with g - r, and its scatter."""
    arcs: Literal["added", "exposed"]
    """``added`` to the finished image, noiselessly, as Phase 4c does (see
    `lensprep.synth.lenses.trace_as_phase4c`), through a round Gaussian of the declared FWHM; or
    ``exposed`` with their host: through its PSF and with photon noise."""
    psf_source_shares: tuple[float, float, float]
    """Shares of ``psf_source`` 0 (map), 1 (manifest) and 2 (fallback)."""


UPSTREAM: Final = Priors(
    name="upstream",
    # Luminous red galaxies: z < 20.4 and r - z > 0.4, as observed through E(B-V) = 0.04. The rest is
    # fitted to the published medians of the 19.7 million (g 22.66, r 21.17, z 19.99), of which 95 %
    # have r < 22.02.
    late_share=0.38,
    host_z_limit_mag=20.35,
    host_rz_limit_mag=0.4,
    host_redshift_beta=(6.0, 1.2),
    host_brightness_mag=(-0.2, 0.7),
    sis_share=0.0,
    lens_e=(0.05, 0.5),
    source_offset=0.8,
    source_gr_mag=(0.2, 0.2),
    source_rz_mag=(0.1, 0.0, 0.2),
    arcs="added",
    psf_source_shares=(0.0, 1.0, 0.0),
)
REALISTIC: Final = Priors(
    name="realistic",
    late_share=0.25,
    host_z_limit_mag=20.9,
    host_rz_limit_mag=-1.0,
    host_redshift_beta=(2.8, 1.2),
    host_brightness_mag=(-0.2, 0.55),
    sis_share=0.2,
    lens_e=None,
    source_offset=0.8,
    source_gr_mag=(0.35, 0.30),
    source_rz_mag=(0.05, 0.6, 0.18),  # dust and age redden both colours
    arcs="exposed",
    psf_source_shares=(0.96, 0.03, 0.01),
)
PRIORS: Final = {priors.name: priors for priors in (UPSTREAM, REALISTIC)}


def find_priors(name: str) -> Priors:
    """Priors of a name.

    Raises
    ------
    ConfigError
        If there are none of that name.
    """
    if name not in PRIORS:
        raise ConfigError(f"There are no priors {name!r}; there are: {names_text(PRIORS, name)}.")
    return PRIORS[name]

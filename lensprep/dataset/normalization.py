"""Normalisation: raw pixels to stored ones and back, every mode in one table (pure NumPy).

    normalization_spec("asinh_survey", clip=10.0) -> NormalizationSpec   what travels with the data
    normalize(flux, spec, median, scale), denormalize(stored, spec, median, scale)
    band_statistics(flux, spec) -> median, scale                         what the mode measures

========== =====================================================================================
mode       stored value, before it is clipped to [-clip, clip] and rounded to float16
========== =====================================================================================
mad_stamp  ``(x - median) / scale``, per band, statistics of the whole stamp
mad_annulus the same, statistics of the annulus between ``inner_px`` and ``outer_px`` (the sky)
asinh_survey ``asinh(x / softening)`` with one softening a band for all stamps: colour survives
sqrt       ``sign(t) sqrt(|t|)`` of the value ``t`` of mad_stamp
========== =====================================================================================

``scale`` is ``1.4826 MAD``: for Gaussian noise the standard deviation. The arithmetic is float32,
step by step that of the kernels of `lensprep.decode.normalize`, which conversion uses: a stamp that
is denormalised and normalised again comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from reprlib import repr as shortened
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.strictjson import check_number, check_object, get_entry
from lensprep.errors import ConfigError, DatasetError

Floats = NDArray[np.float32]
Mode = Literal["mad_stamp", "mad_annulus", "asinh_survey", "sqrt"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)

MAD_TO_SIGMA: Final = np.float32(1.4826)
"""Standard deviation of a Gaussian over its MAD, 1 / Phi^-1(3/4), to the digits in common use."""

DEFAULT_MODE: Final[Mode] = "asinh_survey"
"""What a finder learns least light from, once it is shown counterfactuals (docs: shortcuts)."""
DEFAULT_CLIP: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizationSpec:
    """How raw pixels became the stored ones; it travels in manifest, checkpoint and scores."""

    mode: str
    """One of `MODES`, or one of a later version: that may be trained with, if not undone."""
    clip: float
    """Stored values lie in [-clip, clip]."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Further numbers of the mode (the annulus in pixels, softenings in units of flux, ...); those
    of bands are in the order of the bands."""

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str):
            raise DatasetError(f"normalization: mode is {shortened(self.mode)}, not text")
        if not 0 < check_number(self.clip, "normalization: clip") <= 65504:
            raise DatasetError(f"normalization: clip {self.clip} is not in (0, 65504]")
        for name, value in check_object(self.parameters, "normalization: parameters").items():
            check_number(value, f"normalization: {name!r:.60}")
        if {"mode", "clip"} & {*self.parameters}:
            raise DatasetError("normalization: mode and clip are no parameters")

    @property
    def by_stamp(self) -> bool | None:
        """Whether flux is restored with median and scale; None of a mode that is not known."""
        known = _TRANSFORMS.get(self.mode)
        return None if known is None else known.by_stamp

    def of_bands(self, geometry: Geometry) -> NormalizationSpec:
        """The same for these bands: every parameter of the mode, in the order of the bands.

        Raises
        ------
        DatasetError
            If one is missing, or is none of the mode; not of a mode that is not known.
        """
        if self.mode not in _TRANSFORMS:
            return self
        known = _TRANSFORMS[self.mode].parameters(geometry)
        if not {*self.parameters} <= {*known}:
            raise DatasetError(
                f"normalization: the parameters of {self.mode} are {', '.join(known) or 'none'}, "
                f"not {shortened(sorted(self.parameters))}"
            )
        where = f"normalization: {self.mode}"
        return replace(
            self, parameters={name: get_entry(self.parameters, name, where) for name in known}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {"mode": self.mode, "clip": self.clip, "parameters": dict(self.parameters)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NormalizationSpec:
        """Inverse of `to_dict`."""
        entry = check_object(data, "normalization")
        clip = check_number(get_entry(entry, "clip", "normalization"), "normalization: clip")
        mode = get_entry(entry, "mode", "normalization")
        return cls(mode=mode, clip=float(clip), parameters=entry.get("parameters", {}))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Transform:
    """One mode, but for clip and rounding."""

    forward: Callable[[Floats, NormalizationSpec], Floats]
    back: Callable[[Floats, NormalizationSpec], Floats]
    parameters: Callable[[Geometry], dict[str, float]] = lambda geometry: {}
    """The numbers it needs and their defaults: radii in pixels, softenings in units of flux."""
    by_stamp: bool = True
    """Whether it takes ``(x - median) / scale`` of each stamp and band, not nanomaggies."""


def _same(values: Floats, spec: NormalizationSpec) -> Floats:
    return values


def _root(values: Floats, spec: NormalizationSpec) -> Floats:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: Floats, spec: NormalizationSpec) -> Floats:
    return values * np.abs(values)


def _annulus(geometry: Geometry) -> dict[str, float]:
    # Outside most lenses and their hosts, inside the inscribed circle: 20 and 32 of 64 pixels.
    return {"inner_px": geometry.side * 20 / 64, "outer_px": geometry.side / 2}


def _softenings(geometry: Geometry) -> dict[str, float]:
    return dict(zip(geometry.band_columns("softening"), geometry.sky_noise, strict=True))


def _of_bands(values: Floats, spec: NormalizationSpec) -> NDArray[np.float64]:
    """Softenings to divide or multiply by."""
    softening = np.array([*spec.parameters.values()])
    if len(softening) != values.shape[-3]:
        raise ConfigError(
            f"normalisation {spec.mode} has softenings of {len(softening)} bands, the stamps have "
            f"{values.shape[-3]}."
        )
    return softening[:, None, None]


def _asinh(values: Floats, spec: NormalizationSpec) -> Floats:
    softening = _of_bands(values, spec)
    return np.arcsinh(values.astype(np.float64) / softening).astype(np.float32)


def _sinh(values: Floats, spec: NormalizationSpec) -> Floats:
    return np.sinh(values) * _of_bands(values, spec).astype(np.float32)


_TRANSFORMS: Final[dict[str, _Transform]] = {
    "mad_stamp": _Transform(forward=_same, back=_same),
    "mad_annulus": _Transform(forward=_same, back=_same, parameters=_annulus),
    "asinh_survey": _Transform(forward=_asinh, back=_sinh, parameters=_softenings, by_stamp=False),
    "sqrt": _Transform(forward=_root, back=_square),
}


def normalization_spec(
    mode: str = DEFAULT_MODE,
    clip: float = DEFAULT_CLIP,
    geometry: Geometry = DECALS,
    **parameters: float,
) -> NormalizationSpec:
    """Complete and check a normalisation.

    Parameters
    ----------
    mode : str
        One of `MODES`.
    clip : float
        Stored values lie in [-clip, clip]. It must be a float16, or rounding would pass it.
    geometry : Geometry
        Of the stamps; the defaults follow from its sky noise and side.
    **parameters : float
        Instead of the defaults of the mode.

    Returns
    -------
    NormalizationSpec
        With every parameter of the mode, the defaults too.

    Raises
    ------
    ConfigError
        If the mode or a parameter is unknown, or a number is out of range.
    """
    if mode not in _TRANSFORMS:
        raise ConfigError(f"normalisation {mode!r} is unknown; choose one of {', '.join(MODES)}.")
    known = _TRANSFORMS[mode].parameters(geometry)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        has = f"has {', '.join(known)}" if known else "has no parameters"
        raise ConfigError(f"normalisation {mode} does not know {', '.join(unknown)}: it {has}.")
    numbers = {**known, **{name: float(value) for name, value in parameters.items()}}
    if not 0 < clip <= float(np.finfo(np.float16).max):
        raise ConfigError(f"clip must lie in (0, 65504], got {clip}; the default is 10.")
    nearest = float(np.float16(clip))
    if nearest != clip:
        raise ConfigError(f"clip {clip} is not exact in float16; the nearest that is: {nearest}.")
    if mode == "mad_annulus":
        inner, outer = numbers["inner_px"], numbers["outer_px"]
        if annulus_indices(geometry.side, inner, outer).size < 2:
            raise ConfigError(
                f"no annulus of a stamp of {geometry.side} pixels lies between inner_px {inner} "
                f"and outer_px {outer}; the defaults are {known['inner_px']:g} and "
                f"{known['outer_px']:g}."
            )
    for name, value in numbers.items():
        if name.startswith("softening") and not 1e-30 < value < 1e30:
            raise ConfigError(f"{name} must be positive, got {value}.")
    return NormalizationSpec(mode=mode, clip=float(clip), parameters=numbers)


def radius_px(size: int = DECALS.side) -> NDArray[np.float64]:
    """Distance of every pixel from the centre of a stamp, in pixels; shape (size, size).

    The centre of an even side is the corner of four pixels, so flips and quarter turns map the
    stamp on itself.
    """
    offset = np.arange(size) - (size - 1) / 2
    return np.hypot(offset[:, None], offset[None, :])


def annulus_indices(size: int, inner: float, outer: float) -> NDArray[np.int64]:
    """Flat indices of the pixels of a square stamp between two radii, both included; ascending."""
    radius = radius_px(size)
    return np.flatnonzero((radius >= inner) & (radius <= outer))


def measured_pixels(spec: NormalizationSpec, size: int = DECALS.side) -> NDArray[np.int64] | None:
    """Flat indices of the pixels of a band whose statistics the mode takes; None for all."""
    if spec.mode != "mad_annulus":
        return None
    return annulus_indices(size, spec.parameters["inner_px"], spec.parameters["outer_px"])


def band_statistics(flux: Floats, spec: NormalizationSpec) -> tuple[Floats, Floats]:
    """Median and ``1.4826 MAD`` of every band, over the pixels that the mode looks at.

    Parameters
    ----------
    flux : ndarray of float32, shape (n, bands, side, side)
        Finite.
    spec : NormalizationSpec

    Returns
    -------
    median, scale : ndarray of float32, shape (n, bands)
    """
    values = flux.reshape(*flux.shape[:2], -1)
    where = measured_pixels(spec, flux.shape[-1])
    if where is not None:
        values = values[..., where]
    median = np.median(values, axis=-1).astype(np.float32)
    mad = np.median(np.abs(values - median[..., None]), axis=-1).astype(np.float32)
    return median, MAD_TO_SIGMA * mad


def normalize(
    flux: Floats, spec: NormalizationSpec, median: ArrayLike, scale: ArrayLike
) -> NDArray[np.float16]:
    """Flux to stored pixels, by given statistics.

    Parameters
    ----------
    flux : ndarray of float32, shape (..., bands, H, W)
    spec : NormalizationSpec
        Of these bands, in their order.
    median, scale : array_like, shape (..., bands)
        As from `band_statistics`; not used by ``asinh_survey``.

    Returns
    -------
    ndarray of float16, shape (..., bands, H, W)

    Raises
    ------
    ConfigError
        If this version does not know the mode, or it is that of another number of bands.
    """
    transform, clip = _transform(spec), np.float32(spec.clip)
    values = (flux - _of_band(median)) / _of_band(scale) if transform.by_stamp else flux
    return np.clip(transform.forward(values, spec), -clip, clip).astype(np.float16)


def denormalize(
    stored: NDArray[np.floating], spec: NormalizationSpec, median: ArrayLike, scale: ArrayLike
) -> Floats:
    """Stored pixels back to flux; what was clipped stays clipped.

    Parameters
    ----------
    stored : ndarray, shape (..., bands, H, W)
    spec : NormalizationSpec
        The manifest's.
    median, scale : array_like, shape (..., bands)
        The sidecar's ``median_*`` and ``scale_*``; not used by ``asinh_survey``.

    Returns
    -------
    ndarray of float32, shape (..., bands, H, W)
        Flux per pixel, in the unit of the survey's zero point.

    Raises
    ------
    ConfigError
        As `normalize`.
    """
    transform = _transform(spec)
    values = transform.back(np.asarray(stored, np.float32), spec)
    return values * _of_band(scale) + _of_band(median) if transform.by_stamp else values


def add_flux(
    stored: NDArray[np.float16],
    added: Floats,
    spec: NormalizationSpec,
    median: Floats,
    scale: Floats,
) -> tuple[NDArray[np.float16], Floats, Floats]:
    """Stamps as they were stored had flux been added before they were normalised.

    The statistics that conversion measured move by what the added flux changes, in every mode: the
    sidecar holds them also where, as in asinh_survey, pixels do not depend on them. They are not
    measured anew: stored pixels are rounded and clipped, and so would the statistics be.

    Parameters
    ----------
    stored : ndarray of float16, shape (n, bands, H, W)
    added : ndarray of float32, same shape
        Flux per pixel. All zeros give `stored` again, bit for bit.
    spec : NormalizationSpec
    median, scale : ndarray of float32, shape (n, bands)
        The sidecar's ``median_*`` and ``scale_*``.

    Returns
    -------
    stored, median, scale : ndarray
        As those given.
    """
    before = denormalize(stored, spec, median, scale)
    after = before + added
    old_median, old_scale = band_statistics(before, spec)
    new_median, new_scale = band_statistics(after, spec)
    median = median + (new_median - old_median)
    scale = scale * np.divide(
        new_scale, old_scale, out=np.ones_like(new_scale), where=old_scale > 0
    )
    return normalize(after, spec, median, scale), median, scale


def _of_band(values: ArrayLike) -> Floats:
    """One number for each pixel of a band."""
    return np.asarray(values, np.float32)[..., None, None]


def _transform(spec: NormalizationSpec) -> _Transform:
    if spec.mode not in _TRANSFORMS:
        raise ConfigError(
            f"normalisation {spec.mode!r} is unknown to this version, which can neither repeat nor "
            f"undo it; it knows {', '.join(MODES)}. Upgrade lensprep."
        )
    return _TRANSFORMS[spec.mode]

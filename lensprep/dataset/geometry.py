"""What the stamps of a dataset have in common: bands, side, scale, and so the bytes of a record.

    DECALS                                       grz, 64 x 64 pixels of 0.262 arcsec: format 1
    Geometry(survey="hsc", bands=("g", "r"), ...)   any other survey: format 2
    geometry.shape, geometry.stride, geometry.shard_bytes(rows), ...

It stands in the manifest and travels from there: whoever reads, draws or trains on stamps takes it
from the dataset, never from constants. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from reprlib import repr as shortened
from typing import Any, Final

from lensprep.dataset import layout
from lensprep.dataset.strictjson import check_number, check_object, check_whole, get_entry
from lensprep.errors import DatasetError

LEAST_SIDE, MOST_SIDE, MOST_BANDS = 32, 256, 8
"""Sides of a stamp in pixels, and numbers of bands, that a dataset may have."""

_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_BAND: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,7}")


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Bands, side and scale of stamps, and where the bytes of their records lie.

    Raises
    ------
    DatasetError
        If a value is out of range; it may come from a foreign manifest.
    """

    survey: str
    """Name of the survey: letters, digits, ``_`` and ``-``."""
    bands: tuple[str, ...]
    """Names of the bands, from blue to red, in the order of the planes."""
    side: int
    """Pixels along each side."""
    pixel_scale_arcsec: float
    reference_band: str
    """The band in which ``psfsize_r``, ``psfdepth_r`` and fluxes of sources are stated. These
    columns keep their names in every survey."""
    zero_point: float
    """AB magnitude of one unit of flux: 22.5 for nanomaggies."""
    sky_noise: tuple[float, ...]
    """Typical noise of a pixel of sky in each band, in units of flux: what pictures, and
    ``asinh_survey`` unless told otherwise, are scaled by."""

    def __post_init__(self) -> None:
        if not isinstance(self.survey, str) or not _WORD.fullmatch(self.survey):
            raise DatasetError(f"survey: {shortened(self.survey)} is no name")
        known = [b for b in self.bands if isinstance(b, str) and _BAND.fullmatch(b)]
        # Columns are named after bands, and some formats do not tell capitals.
        if not 1 <= len({b.lower() for b in known}) == len(self.bands) <= MOST_BANDS:
            raise DatasetError(
                f"bands: {shortened(self.bands)} are not 1 to {MOST_BANDS} different names"
            )
        check_whole(self.side, "side")
        if not LEAST_SIDE <= self.side <= MOST_SIDE:
            raise DatasetError(
                f"stamps of {self.side} pixels a side are not of {LEAST_SIDE} to {MOST_SIDE}"
            )
        if not 0 < check_number(self.pixel_scale_arcsec, "pixel_scale_arcsec") < 3600:
            raise DatasetError(f"pixel_scale_arcsec: {self.pixel_scale_arcsec} is not positive")
        if self.reference_band not in self.bands:
            raise DatasetError(f"reference_band: {shortened(self.reference_band)} is no band")
        check_number(self.zero_point, "zero_point")
        if len(self.sky_noise) != len(self.bands):
            raise DatasetError("sky_noise: there must be one number for each band")
        for noise in self.sky_noise:
            if not 1e-30 < check_number(noise, "sky_noise") < 1e30:
                raise DatasetError(f"sky_noise: {noise} is not positive")

    @property
    def format_version(self) -> int:
        """Version of the bytes on disk: 1 for the stamps of DECaLS, 2 for all others."""
        # The scale aside, which manifests of version 1 state, these have nothing of it on disk.
        return 1 if replace(self, pixel_scale_arcsec=DECALS.pixel_scale_arcsec) == DECALS else 2

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a stamp: (bands, side, side)."""
        return len(self.bands), self.side, self.side

    @cached_property
    def payload_bytes(self) -> int:
        """Bytes of a stamp's pixels."""
        return len(self.bands) * self.side**2 * layout.STAMP_DTYPE.itemsize

    @cached_property
    def npy_bytes(self) -> int:
        """Bytes of a ``.npy`` member."""
        return layout.NPY_HEADER_BYTES + self.payload_bytes

    @cached_property
    def json_header_offset(self) -> int:
        """Where in a record the header of its JSON member is: the next block after the pixels."""
        return layout.BLOCK + -(-self.npy_bytes // layout.BLOCK) * layout.BLOCK

    @cached_property
    def json_offset(self) -> int:
        """Where in a record the JSON is."""
        return self.json_header_offset + layout.BLOCK

    @cached_property
    def stride(self) -> int:
        """Bytes of a record."""
        return self.json_offset + layout.JSON_BYTES

    @cached_property
    def reference(self) -> int:
        """Number of the reference band."""
        return self.bands.index(self.reference_band)

    @cached_property
    def side_arcsec(self) -> float:
        """Side of a stamp on the sky."""
        return self.side * self.pixel_scale_arcsec

    @cached_property
    def diagonal_arcsec(self) -> float:
        """Diagonal of a stamp: two stamps that are farther apart share no pixel of sky."""
        return self.side_arcsec * 2**0.5

    def shard_bytes(self, rows: int) -> int:
        """Size in bytes of a tar of ``rows`` records."""
        return rows * self.stride + layout.TRAILER_BYTES

    def scaled_rows(self, rows: int) -> int:
        """Rows that take about the memory of so many stamps of DECaLS: less than twice as much.

        Of larger stamps a fraction of two to some power, so that multiples stay multiples; of
        smaller ones not more.
        """
        times = max(1, self.stride // DECALS.stride)
        return max(1, rows >> times.bit_length() - 1)

    def band_columns(self, *measured: str) -> tuple[str, ...]:
        """Columns of what is known of each band: ``median_g``, ``median_r``, ..."""
        return tuple(f"{name}_{band}" for name in measured for band in self.bands)

    @property
    def colour_columns(self) -> tuple[str, ...]:
        """Columns with the colours of a lensed source between adjacent bands, magnitudes."""
        return tuple(f"src_{blue}{red}" for blue, red in pairwise(self.bands))

    def record_dict(self) -> dict[str, Any]:
        """Where the bytes of a record lie, for readers that know nothing of this package."""
        return {
            "stride": self.stride,
            "payload_offset": layout.PAYLOAD_OFFSET,
            "payload_bytes": self.payload_bytes,
            "json_offset": self.json_offset,
            "json_bytes": layout.JSON_BYTES,
            "dtype": layout.STAMP_DTYPE.str,
            "shape": list(self.shape),
        }

    def survey_dict(self) -> dict[str, Any]:
        """What the manifest of format 2 says of the survey."""
        return {
            "name": self.survey,
            "reference_band": self.reference_band,
            "zero_point": self.zero_point,
            "sky_noise": dict(zip(self.bands, self.sky_noise, strict=True)),
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types, as a checkpoint holds it."""
        return {
            "survey": self.survey_dict(),
            "bands": list(self.bands),
            "side": self.side,
            "pixel_scale_arcsec": self.pixel_scale_arcsec,
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "geometry") -> Geometry:
        """Inverse of `to_dict`; DatasetError if it is none."""
        entry = check_object(data, where)
        survey = check_object(get_entry(entry, "survey", where), f"{where}: survey")
        bands = get_entry(entry, "bands", where)
        if not isinstance(bands, list):
            raise DatasetError(f"{where}: bands is {shortened(bands)}, not a list")
        noise = check_object(get_entry(survey, "sky_noise", f"{where}: survey"), "sky_noise")
        return cls(
            survey=get_entry(survey, "name", f"{where}: survey"),
            bands=tuple(bands),
            side=get_entry(entry, "side", where),
            pixel_scale_arcsec=get_entry(entry, "pixel_scale_arcsec", where),
            reference_band=get_entry(survey, "reference_band", f"{where}: survey"),
            zero_point=get_entry(survey, "zero_point", f"{where}: survey"),
            sky_noise=tuple(get_entry(noise, str(band), "sky_noise") for band in bands),
        )

    def __str__(self) -> str:
        scale = f"{self.pixel_scale_arcsec:g} arcsec"
        bands = join_bands(self.bands)
        return f"{self.survey}, {bands}, {self.side} x {self.side} pixels of {scale}"


def join_bands(bands: Sequence[str]) -> str:
    """Names of bands in a row: ``grz``, or ``nir+Y`` if some are of several letters."""
    return ("" if max(map(len, bands)) == 1 else "+").join(bands)


DECALS: Final = Geometry(
    survey="decals",
    bands=layout.BANDS,
    side=layout.STAMP_SIZE,
    pixel_scale_arcsec=layout.PIXEL_SCALE_ARCSEC,
    reference_band="r",
    zero_point=22.5,
    sky_noise=tuple(layout.SKY_NOISE_NMGY[band] for band in layout.BANDS),
)
"""The stamps of DECaLS DR10 that Phase 4c delivers: format 1."""

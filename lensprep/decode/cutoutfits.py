"""Cutouts in FITS: a cube, an image extension for each band, or one image; tile-compressed or not.

    planes = fits_planes(content, wanted)
    position = fits_position(content)

CHECKSUM and DATASUM are compared where they are. The pixel scale (of the WCS), the band (BAND,
FILTER) and the unit of flux (BUNIT, MAGZERO and the like) must not contradict the survey; what a
header does not state is taken to be as the survey has it. Memory depends on what a file holds,
never on what its header claims.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lensprep.decode.cutoutbytes import RefusedError
from lensprep.decode.cutoutplanes import Wanted, band_order, of_array, size
from lensprep.decode.reasons import CutoutReason, RejectReason

_SCALE_TOLERANCE: Final = 0.05
_CARD_BYTES: Final = 80
_COUNTS: Final = tuple(re.compile(word + rb" *= *\+?(\d+)") for word in (b"NAXIS", b"TFIELDS"))
_MOST_COUNTED: Final = 999
"""Astropy makes as many axes and columns as a header states, whatever the file holds; the FITS
standard allows no more."""
_SKY_WORDS: Final = re.compile(
    r"(CTYPE|CUNIT|CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|PV[12]_\d\d?|LONPOLE|LATPOLE"
    r"|RADESYS|RADECSYS|EQUINOX|EPOCH|[AB]P?_(ORDER|\d_\d)"
)
"""Keywords of the WCS; WCSLIB is given no others, since it trusts whatever it is given."""
_MOST_SIP_ORDER: Final = 9
_SOUND_TILES: Final = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "NOCOMPRESS")
"""Compressions whose decoder in astropy never writes past the tile that a header states."""
_MAGNITUDE_TOLERANCE: Final = 0.05
_ZERO_POINTS: Final = ("MAGZERO", "MAGZPT", "MAGZP", "MAGZEROP", "ZEROPNT", "PHOTZP", "ZP")
_UNITS: Final = {
    "jy": 8.9, "mjy": 16.4, "ujy": 23.9, "microjy": 23.9, "microjansky": 23.9, "njy": 31.4,
    "nanojansky": 31.4, "maggy": 0.0, "maggies": 0.0, "nmgy": 22.5, "nanomaggy": 22.5,
    "nanomaggies": 22.5,
}  # fmt: skip
"""AB magnitude of one unit of flux per pixel. ADU, counts and electrons have none of their own."""
_NO_FLUX: Final = re.compile(r"mag\b|/ ?(sr|arcsec|pixel\^?2)|(sr|arcsec)(-|\*\*-|\^-)")
"""Units of magnitudes, and of flux per area of sky."""


def fits_planes(content: bytes, wanted: Wanted) -> list[NDArray[Any]]:
    """Middles of the wanted bands."""
    with _opened_fits(content) as (images, rest):
        cube = next((hdu for hdu in images if len(hdu.shape) >= 3), None)
        if cube is not None:
            # The header lists the bands as "grz", "G, R, Z" or "['g', 'r', 'z']".
            stated = cube.header.get("BANDS")
            order = band_order(str(stated), wanted.geometry.bands) if stated else wanted.bands
            return of_array(_section(cube, len(content), wanted), order, wanted)
        chosen = _by_band(images, wanted) or _alone(images, wanted)
        if not chosen:
            held = ", ".join(f"{hdu.name or 'without name'} {size(hdu.shape)}" for hdu in images)
            raise RefusedError(
                f"no cube, and images: {held or 'none'}{rest}", RejectReason.MISSING_BAND
            )
        return [
            of_array(_section(hdu, len(content), wanted.only(band)), (band,), wanted.only(band))[0]
            for hdu, band in zip(chosen, wanted.bands, strict=True)
        ]


def _by_band(images: list[Any], wanted: Wanted) -> list[Any]:
    """The image of each band by its name, ``G`` or ``IMAGE_G``; none if one is missing."""
    names = [hdu.name.lower().removeprefix("image_").removeprefix("sci_") for hdu in images]
    if not {band.lower() for band in wanted.bands} <= {*names}:
        return []
    for band in wanted.bands:
        if names.count(band.lower()) > 1:
            raise RefusedError(f"it holds {band} more than once", RejectReason.DUPLICATE_MEMBER)
    return [images[names.index(band.lower())] for band in wanted.bands]


def _alone(images: list[Any], wanted: Wanted) -> list[Any]:
    """The only image, or the one called SCI or IMAGE, where one band is wanted."""
    if len(wanted.bands) > 1:
        return []
    named = [hdu for hdu in images if hdu.name.lower() in ("sci", "image")]
    return next((found for found in (images, named) if len(found) == 1), [])


def fits_position(content: bytes) -> tuple[float, float] | None:
    """Right ascension and declination of the middle of the first image with a WCS, degrees."""
    with _opened_fits(content) as (images, _):
        for hdu in images:
            sky = _wcs(hdu.header)
            if sky is not None and sky.has_celestial:
                middle = [(side - 1) / 2 for side in hdu.shape[:-3:-1]]
                position = sky.pixel_to_world(*middle).icrs
                return float(position.ra.deg), float(position.dec.deg)
    return None


@contextmanager
def _opened_fits(content: bytes) -> Iterator[tuple[list[Any], str]]:
    """The images of a FITS file whose checksums, if any, agree; and a note on what follows them."""
    from astropy.io import fits

    _check_counts(content)
    if b"DATASUM =" in content or b"CHECKSUM=" in content:
        # Those of a compressed image are of the table that it is stored as.
        with fits.open(BytesIO(content), memmap=False, disable_image_compression=True) as hdus:
            for number, hdu in enumerate(_forward(hdus)):
                if not (hdu.verify_datasum() and hdu.verify_checksum()):
                    raise RefusedError(
                        f"HDU {number}: CHECKSUM or DATASUM does not agree: altered, or its header "
                        "was copied from another file (then write it again with checksums)",
                        RejectReason.CRC_MISMATCH,
                    )
    with fits.open(BytesIO(content), memmap=False) as hdus:
        found = list(_forward(hdus))
        last = found[-1].fileinfo()
        left = len(content) - last["datLoc"] - last["datSpan"]
        rest = f"; then {left} bytes that are no HDU" if left > 0 else "; cut" if left < 0 else ""
        yield [hdu for hdu in found if hdu.is_image and len(hdu.shape) >= 2], rest


def _forward(hdus: Any) -> Iterator[Any]:
    """HDUs in order; after a negative size Astropy would read the same one for ever."""
    for number, hdu in enumerate(hdus):
        if hdu.fileinfo()["datSpan"] < 0:
            raise RefusedError(f"HDU {number}: its data have a negative size")
        yield hdu


def _check_counts(content: bytes) -> None:
    cards = content.upper()  # as Astropy reads keywords
    for pattern in _COUNTS:
        for found in pattern.finditer(cards):
            start = found.start()
            before = cards[start - start % _CARD_BYTES : start].removeprefix(b"HIERARCH").strip()
            if before in (b"", b"Z") and int(found[1]) > _MOST_COUNTED:
                raise RefusedError(found[0].decode())


def _section(hdu: Any, total: int, wanted: Wanted) -> Any:
    """Pixels of an image in a file of `total` bytes, read when they are indexed."""
    from astropy.io import fits

    _check_scale(hdu.header, wanted)
    _check_unit(hdu.header, wanted)
    _check_band(hdu.header, wanted)
    if not isinstance(hdu, fits.CompImageHDU):
        left = total - hdu.fileinfo()["datLoc"]
        if hdu.size > left:
            raise RefusedError(
                f"cut: {hdu.size} bytes of pixels are stated, the file has {left}",
                RejectReason.TRUNCATED,
            )
    elif hdu.compression_type not in _SOUND_TILES:
        raise RefusedError(
            f"{hdu.compression_type} tiles, whose decoder could write outside its memory if they "
            "are damaged; unpack the file with funpack, or use RICE_1"
        )
    return hdu.section


def _check_scale(header: Any, wanted: Wanted) -> None:
    from astropy.wcs.utils import proj_plane_pixel_scales

    sky = _wcs(header)
    if sky is None:
        return
    scale, ours = proj_plane_pixel_scales(sky) * 3600, wanted.geometry.pixel_scale_arcsec
    if np.any(np.abs(scale / ours - 1) > _SCALE_TOLERANCE):
        stated = " x ".join(f"{side:.4g}" for side in scale)
        raise RefusedError(f"{stated} arcsec per pixel, not {ours}", CutoutReason.WRONG_PIXEL_SCALE)


def _check_unit(header: Any, wanted: Wanted) -> None:
    """Refuse pixels whose header states that one unit of flux is another magnitude."""
    unit = str(header.get("BUNIT", "")).strip()
    if _NO_FLUX.search(unit.lower()):
        raise RefusedError(f"BUNIT is {unit}, not flux per pixel", CutoutReason.WRONG_UNIT)
    plain = re.sub(r"\W|(per)?pix(el)?$", "", unit.lower())
    stated: dict[str, Any] = {f"BUNIT {unit}": _UNITS.get(plain)}
    stated |= {name: header.get(name) for name in _ZERO_POINTS}
    if _is_number(flux := header.get("FLUXMAG0")) and flux > 0:
        stated["FLUXMAG0"] = 2.5 * math.log10(flux)
    for name, magnitude in stated.items():
        unset = magnitude == 0 and name in _ZERO_POINTS
        if unset or not _is_number(magnitude):
            continue
        if abs(magnitude - wanted.geometry.zero_point) > _MAGNITUDE_TOLERANCE:
            raise RefusedError(
                f"{name}: one unit of flux is magnitude {magnitude:g}, not "
                f"{wanted.geometry.zero_point:g}",
                CutoutReason.WRONG_UNIT,
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_band(header: Any, wanted: Wanted) -> None:
    """Refuse the image of one band whose header names another, ``HSC-G`` or ``r DECam ...``."""
    if len(wanted.bands) > 1:
        return
    (band,) = wanted.bands
    others = {other.lower() for other in wanted.geometry.bands} - {band.lower()}
    for name in ("BAND", "FILTER"):
        words = set(re.findall("[a-z0-9]+", str(header.get(name, "")).lower()))
        if band.lower() not in words and words & others:
            raise RefusedError(
                f"{name} is {header[name]}, not band {band}", RejectReason.MISSING_BAND
            )


def _wcs(header: Any) -> Any:
    """The WCS of a header; None if it states none."""
    from astropy.io import fits
    from astropy.wcs import WCS

    if "CRVAL1" not in header:
        return None
    sky = fits.Header([card for card in header.cards if _SKY_WORDS.fullmatch(card.keyword)])
    for name in ("A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER"):
        if not 0 <= int(sky.get(name, 0)) <= _MOST_SIP_ORDER:
            raise RefusedError(f"{name} is {sky[name]}")
    return WCS(sky)

"""A user's FITS or NPZ cutout -> the pixels of its centre, or why there are none.

    refusal = read_cutout(path, out)       None, and pixels in out; or a reason and what was found
    position = read_position(path)         degrees, None if it states none, or a refusal

The content decides what a file is. Any exception of a third-party parser is the file's fault: the
reason is ``unreadable``. Every checksum that exists is compared: that of gzip and bzip2, the CRC-32
of a member of an NPZ, CHECKSUM and DATASUM of FITS. Memory depends on what a file holds, never on
what its header claims, and no file may unpack to more than `MOST_BYTES`.

FITS: three planes (the Legacy Survey's cutouts; their order is that of ``BANDS``, else g, r, z), or
an image extension for each band; tile compression (``.fz``) is undone. NPZ: ``image_g``,
``image_r``, ``image_z`` as in Phase 4c, or ``cutout`` with the bands on the first or the last axis.
"""

from __future__ import annotations

import bz2
import gzip
import re
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, PIXEL_SCALE_ARCSEC, STAMP_SIZE
from lensprep.decode.reasons import CutoutReason, RejectReason
from lensprep.errors import size_text
from lensprep.source.cutouts import Refusal
from lensprep.source.survey import STAMP_MEMBERS
from lensprep.tables.positions import on_sky

MOST_BYTES: Final = 256 * 2**20
"""Largest file, unpacked: a whole brick of the Legacy Surveys in three bands takes 156 MB."""

_SCALE_TOLERANCE: Final = 0.05
_TOO_LARGE: Final = 4e37
_PACKED: Final[dict[bytes, Callable[[Path, Any], Any]]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
}
_CARD_BYTES: Final = 80
_POSITIONS: Final = (("ra", "dec"), ("meta_ra", "meta_dec"))
_DETAIL: Final = 200
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

P = ParamSpec("P")
Found = TypeVar("Found")


class _RefusedError(Exception):
    """Why a file is refused."""

    def __init__(self, detail: str, reason: str = CutoutReason.UNREADABLE) -> None:
        super().__init__(detail)
        self.reason = reason


def _refusing(read: Callable[P, Found]) -> Callable[P, Found | Refusal]:
    """Turn whatever a reader of foreign bytes raises into a refusal."""

    @wraps(read)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Found | Refusal:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about headers that others wrote
                return read(*args, **kwargs)
        except _RefusedError as refused:
            return Refusal(refused.reason, _line(str(refused)))
        except Exception as error:
            kind = type(error)
            home = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
            return Refusal(CutoutReason.UNREADABLE, _line(f"{home}{kind.__name__}: {error}"))

    return guarded


def _line(text: str) -> str:
    """One line about foreign bytes that any terminal or table can show."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return plain if len(plain) <= _DETAIL else f"{plain[:_DETAIL]}..."


@_refusing
def read_cutout(path: Path, out: NDArray[np.float32]) -> None:
    """Read the centre of one cutout; returns a `Refusal` if it cannot be used.

    Parameters
    ----------
    path : Path
    out : ndarray of float32, shape (3, 64, 64)
        Receives the pixels, nanomaggies; undefined where there is a refusal.
    """
    content = _content(path)
    bands = _npz_bands(content) if _is_npz(content) else _fits_bands(content)
    for name, target, band in zip(BANDS, out, bands, strict=True):
        if band.dtype.kind != "f":
            raise _RefusedError(f"band {name} holds {band.dtype}", RejectReason.WRONG_DTYPE)
        target[:] = band
    bad = ~(np.abs(out) < _TOO_LARGE)
    if bad.any():
        counts = ", ".join(f"{bad[i].sum()} in {band}" for i, band in enumerate(BANDS))
        raise _RefusedError(
            f"pixels that are not finite, or too large: {counts}", RejectReason.NONFINITE
        )


@_refusing
def read_position(path: Path) -> tuple[float, float] | None:
    """Right ascension (0 to 360) and declination of the centre of a cutout, degrees.

    None if the file states no position, or NaN; a `Refusal` if it cannot be read.
    """
    content = _content(path)
    position = _npz_position(content) if _is_npz(content) else _fits_position(content)
    if position is None or np.isnan(position).any():
        return None
    ra, dec = position
    if not on_sky(np.array(ra), np.array(dec)):
        raise _RefusedError(f"states a position that is not on the sky: ra {ra:g}, dec {dec:g}")
    return ra % 360, dec


# ----------------------------------------------------------------------------------- bytes


def _content(path: Path) -> bytes:
    """Bytes of a file, unpacked; read to the end, where gzip and bzip2 compare their checksums."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise _RefusedError("not a regular file")
    with path.open("rb") as file:
        head = file.read(3)
    unpack = next((how for magic, how in _PACKED.items() if head.startswith(magic)), Path.open)
    pieces, size = [], 0
    with unpack(path, "rb") as stream:
        while piece := stream.read(2**20):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_BYTES:
                raise _RefusedError(f"holds more than {size_text(MOST_BYTES)}")
    return b"".join(pieces)


def _is_npz(content: bytes) -> bool:
    if content.startswith(b"PK\3\4"):
        return True
    if not content.startswith(b"SIMPLE"):
        found = f"begins with {content[:16]!r}" if content else "no bytes"
        raise _RefusedError(f"neither FITS nor NPZ: {found}")
    return False


# ------------------------------------------------------------------------------------ NPZ


class _Members:
    """Arrays of an NPZ by name, each checked against its CRC-32."""

    def __init__(self, content: bytes) -> None:
        self._archive = zipfile.ZipFile(BytesIO(content))
        self.names = [info.filename.removesuffix(".npy") for info in self._archive.infolist()]

    def __getitem__(self, name: str) -> NDArray[Any]:
        if self.names.count(name) > 1:
            raise _RefusedError(f"it holds {name} more than once", RejectReason.DUPLICATE_MEMBER)
        info = self._archive.infolist()[self.names.index(name)]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _RefusedError(f"{name} is neither stored nor deflated")
        if info.file_size > MOST_BYTES:
            raise _RefusedError(f"{name} claims {size_text(info.file_size)}")
        with self._archive.open(info) as stream:
            data = stream.read(info.file_size)
        array: NDArray[Any] = np.lib.format.read_array(BytesIO(data), allow_pickle=False)
        return array


def _npz_bands(content: bytes) -> list[NDArray[Any]]:
    members = _Members(content)
    if "cutout" in members.names:
        cube = members["cutout"]
        return _of_cube(cube, cube.shape, BANDS)
    if not {*STAMP_MEMBERS} <= {*members.names}:
        held = ", ".join(dict.fromkeys(members.names)) or "nothing"
        raise _RefusedError(f"holds {held}", RejectReason.MISSING_BAND)
    images = [members[name] for name in STAMP_MEMBERS]
    return [_of_image(image, image.shape) for image in images]


def _npz_position(content: bytes) -> tuple[float, float] | None:
    members = _Members(content)
    for ra, dec in _POSITIONS:
        if ra in members.names and dec in members.names:
            return float(members[ra]), float(members[dec])
    return None


# ----------------------------------------------------------------------------------- FITS


def _fits_bands(content: bytes) -> list[NDArray[Any]]:
    with _opened_fits(content) as (images, rest):
        cube = next((hdu for hdu in images if len(hdu.shape) == 3), None)
        if cube is not None:
            # The header lists the bands as "grz", "G, R, Z" or "['g', 'r', 'z']".
            order = re.sub("[^a-z]", "", str(cube.header.get("BANDS", BANDS)).lower())
            return _of_cube(_section(cube, len(content)), cube.shape, tuple(order))
        names = [hdu.name.lower().removeprefix("image_") for hdu in images]
        if not {*BANDS} <= {*names}:
            held = ", ".join(f"{hdu.name or 'without name'} {_size(hdu.shape)}" for hdu in images)
            raise _RefusedError(
                f"no cube, and images: {held or 'none'}{rest}", RejectReason.MISSING_BAND
            )
        for band in BANDS:
            if names.count(band) > 1:
                raise _RefusedError(
                    f"it holds {band} more than once", RejectReason.DUPLICATE_MEMBER
                )
        chosen = [images[names.index(band)] for band in BANDS]
        return [_of_image(_section(hdu, len(content)), hdu.shape) for hdu in chosen]


def _fits_position(content: bytes) -> tuple[float, float] | None:
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
                    raise _RefusedError(
                        f"HDU {number}: CHECKSUM or DATASUM does not agree: altered, or its header "
                        "was copied from another file (then write it again with checksums)"
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
            raise _RefusedError(f"HDU {number}: its data have a negative size")
        yield hdu


def _check_counts(content: bytes) -> None:
    cards = content.upper()  # as Astropy reads keywords
    for pattern in _COUNTS:
        for found in pattern.finditer(cards):
            start = found.start()
            before = cards[start - start % _CARD_BYTES : start].removeprefix(b"HIERARCH").strip()
            if before in (b"", b"Z") and int(found[1]) > _MOST_COUNTED:
                raise _RefusedError(found[0].decode())


def _section(hdu: Any, size: int) -> Any:
    """Pixels of an image in a file of `size` bytes, read when they are indexed."""
    from astropy.io import fits

    _check_scale(hdu)
    if not isinstance(hdu, fits.CompImageHDU):
        left = size - hdu.fileinfo()["datLoc"]
        if hdu.size > left:
            raise _RefusedError(f"cut: {hdu.size} bytes of pixels are stated, the file has {left}")
    elif hdu.compression_type not in _SOUND_TILES:
        raise _RefusedError(
            f"{hdu.compression_type} tiles, whose decoder could write outside its memory if they "
            "are damaged; unpack the file with funpack, or use RICE_1"
        )
    return hdu.section


def _check_scale(hdu: Any) -> None:
    from astropy.wcs.utils import proj_plane_pixel_scales

    sky = _wcs(hdu.header)
    if sky is None:
        return
    scale = proj_plane_pixel_scales(sky) * 3600
    if np.any(np.abs(scale / PIXEL_SCALE_ARCSEC - 1) > _SCALE_TOLERANCE):
        stated = " x ".join(f"{side:.4g}" for side in scale)
        raise _RefusedError(
            f"{stated} arcsec per pixel, not {PIXEL_SCALE_ARCSEC}", CutoutReason.WRONG_PIXEL_SCALE
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
            raise _RefusedError(f"{name} is {sky[name]}")
    return WCS(sky)


# --------------------------------------------------------------------------------- middles


def _of_image(image: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """The middle of an image, or of a section that reads from a file."""
    if len(shape) != 2 or min(shape) < STAMP_SIZE:
        raise _RefusedError(f"a band is {_size(shape)}", RejectReason.WRONG_SHAPE)
    middle: NDArray[Any] = image[_middle(shape[0]), :][:, _middle(shape[1])]
    return middle


def _of_cube(cube: Any, shape: tuple[int, ...], order: tuple[str, ...]) -> list[NDArray[Any]]:
    """Middles g, r, z of a cube whose bands are on its first or its last axis."""
    if len(shape) != 3:
        raise _RefusedError(f"the cube is {_size(shape)}", RejectReason.WRONG_SHAPE)
    last = shape[0] != len(order) and shape[2] == len(order)
    bands, sides = (shape[2], shape[:2]) if last else (shape[0], shape[1:])
    if bands != len(order) or len(set(order)) != bands or not set(BANDS) <= set(order):
        raise _RefusedError(
            f"the cube is {_size(shape)}, its bands {''.join(order)!r:.40}",
            RejectReason.MISSING_BAND,
        )
    if min(sides) < STAMP_SIZE:
        raise _RefusedError(f"a band is {_size(sides)}", RejectReason.WRONG_SHAPE)
    y, x = (_middle(side) for side in sides)
    # Whole rows first, since a section reads contiguous stretches of the file.
    stamps = np.moveaxis(cube[y, :, :][:, x], 2, 0) if last else cube[:, y, :][:, :, x]
    return [stamps[order.index(band)] for band in BANDS]


def _middle(side: int) -> slice:
    start = (side - STAMP_SIZE) // 2
    return slice(start, start + STAMP_SIZE)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"

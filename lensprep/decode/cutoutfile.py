"""One FITS or NPZ cutout of somebody else -> its middle pixels, or why there are none.

    refusal = read_cutout(path, out)       None, and pixels in out; or a reason and what was found
    place = read_position(path)            degrees, None if it states none, or a refusal

The content says what a file is. Around every foreign parser any exception is the fault of the file:
it becomes the reason ``unreadable``. Where a checksum exists it is compared: that of gzip and
bzip2, the CRC-32 of a member of an NPZ, CHECKSUM and DATASUM of FITS. Memory follows what a file
holds, never what its header claims, and no file may unpack to more than `MOST_BYTES`.

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
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, PIXEL_SCALE_ARCSEC, STAMP_SIZE
from lensprep.decode.reasons import CutoutReason, RejectReason
from lensprep.errors import size_text
from lensprep.source.cutouts import Refusal
from lensprep.source.survey import STAMP_MEMBERS
from lensprep.tables.positions import on_sky

MOST_BYTES: Final = 256 * 2**20
"""Of a file, unpacked: a whole brick of the Legacy Surveys in three bands has 156 MB."""

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
"""What says where pixels lie; WCSLIB is told nothing else, since it believes what it is told."""
_MOST_SIP_ORDER: Final = 9
_SOUND_TILES: Final = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "NOCOMPRESS")
"""Compressions whose decoder in astropy never writes past the tile that a header states."""

Found = TypeVar("Found")


class _RefusedError(Exception):
    """A refusal on its way out."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _UnreadableError(_RefusedError):
    """What is there is no cutout that can be read."""

    def __init__(self, detail: str) -> None:
        super().__init__(CutoutReason.UNREADABLE, detail)


def read_cutout(path: Path, out: NDArray[np.float32]) -> Refusal | None:
    """Read the middle of one cutout.

    Parameters
    ----------
    path : Path
    out : ndarray of float32, shape (3, 64, 64)
        Receives the pixels, nanomaggies; undefined where there is a refusal.

    Returns
    -------
    Refusal or None
    """
    return _guarded(lambda: _read_pixels(path, out))


def read_position(path: Path) -> tuple[float, float] | Refusal | None:
    """Right ascension (0 to 360) and declination of the middle of a cutout, degrees.

    Parameters
    ----------
    path : Path

    Returns
    -------
    tuple of float, Refusal or None
        None if the file states no position, or NaN.
    """
    return _guarded(lambda: _read_position(path))


def _guarded(read: Callable[[], Found]) -> Found | Refusal:
    """What foreign parsers make of a file, or what they stumbled over."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that others write; they end nothing
            return read()
    except _RefusedError as refused:
        return Refusal(refused.reason, _line(str(refused)))
    except Exception as error:
        kind = type(error)
        home = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        return Refusal(CutoutReason.UNREADABLE, _line(f"{home}{kind.__name__}: {error}"))


def _line(text: str) -> str:
    """Words about foreign bytes, without those that a terminal or a table would stumble over."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return plain if len(plain) <= _DETAIL else f"{plain[:_DETAIL]}..."


def _read_pixels(path: Path, out: NDArray[np.float32]) -> None:
    content = _content(path)
    bands = _npz_bands(content) if _is_npz(content) else _fits_bands(content)
    for name, target, band in zip(BANDS, out, bands, strict=True):
        if band.dtype.kind != "f":
            raise _RefusedError(RejectReason.WRONG_DTYPE, f"band {name} holds {band.dtype}")
        target[:] = band
    bad = ~(np.abs(out) < _TOO_LARGE)
    if bad.any():
        told = ", ".join(
            f"{count} in {band}" for band, count in zip(BANDS, bad.sum((1, 2)), strict=True)
        )
        raise _RefusedError(
            RejectReason.NONFINITE, f"pixels that are not finite, or too large: {told}"
        )


def _read_position(path: Path) -> tuple[float, float] | None:
    content = _content(path)
    place = _npz_position(content) if _is_npz(content) else _fits_position(content)
    if place is None or np.isnan(place).any():
        return None
    ra, dec = place
    if not on_sky(np.array(ra), np.array(dec)):
        raise _UnreadableError(f"states a position that is not on the sky: ra {ra:g}, dec {dec:g}")
    return ra % 360, dec


# ----------------------------------------------------------------------------------- bytes


def _content(path: Path) -> bytes:
    """Bytes of a file, unpacked; read to the end, where gzip and bzip2 compare their checksums."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise _UnreadableError("no regular file")
    with path.open("rb") as file:
        head = file.read(3)
    unpack = next((how for magic, how in _PACKED.items() if head.startswith(magic)), Path.open)
    pieces, size = [], 0
    with unpack(path, "rb") as stream:
        while piece := stream.read(2**20):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_BYTES:
                raise _UnreadableError(f"holds more than {size_text(MOST_BYTES)}")
    return b"".join(pieces)


def _is_npz(content: bytes) -> bool:
    if content.startswith(b"PK\3\4"):
        return True
    if not content.startswith(b"SIMPLE"):
        found = f"begins with {content[:16]!r}" if content else "no bytes"
        raise _UnreadableError(f"neither FITS nor NPZ: {found}")
    return False


# ------------------------------------------------------------------------------------ NPZ


class _Members:
    """Arrays of an NPZ by name, each read to its CRC-32."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._infos: dict[str, list[zipfile.ZipInfo]] = {}
        for info in archive.infolist():
            self._infos.setdefault(info.filename.removesuffix(".npy"), []).append(info)

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __getitem__(self, name: str) -> NDArray[Any]:
        info, *others = self._infos[name]
        if others:
            raise _RefusedError(RejectReason.DUPLICATE_MEMBER, f"{name} is in it more than once")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _UnreadableError(f"{name} is neither stored nor deflated")
        if info.file_size > MOST_BYTES:
            raise _UnreadableError(f"{name} claims {size_text(info.file_size)}")
        with self._archive.open(info) as stream:
            data = stream.read(info.file_size)
        array: NDArray[Any] = np.lib.format.read_array(BytesIO(data), allow_pickle=False)
        return array

    def names(self) -> str:
        return ", ".join(self._infos) or "nothing"


@contextmanager
def _opened_npz(content: bytes) -> Iterator[_Members]:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        yield _Members(archive)


def _npz_bands(content: bytes) -> list[NDArray[Any]]:
    with _opened_npz(content) as members:
        if "cutout" in members:
            cube = members["cutout"]
            return _of_cube(cube, cube.shape, BANDS)
        if any(name not in members for name in STAMP_MEMBERS):
            raise _RefusedError(RejectReason.MISSING_BAND, f"holds {members.names()}")
        images = [members[name] for name in STAMP_MEMBERS]
        return [_of_image(image, image.shape) for image in images]


def _npz_position(content: bytes) -> tuple[float, float] | None:
    with _opened_npz(content) as members:
        for ra, dec in _POSITIONS:
            if ra in members and dec in members:
                return float(members[ra]), float(members[dec])
    return None


# ----------------------------------------------------------------------------------- FITS


def _fits_bands(content: bytes) -> list[NDArray[Any]]:
    with _opened_fits(content) as (images, rest):
        cube = next((hdu for hdu in images if len(hdu.shape) == 3), None)
        if cube is not None:
            return _of_cube(
                _section(cube, len(content)),
                cube.shape,
                _band_order(cube.header.get("BANDS", BANDS)),
            )
        named: dict[str, list[Any]] = {}
        for hdu in images:
            named.setdefault(hdu.name.lower().removeprefix("image_"), []).append(hdu)
        if any(band not in named for band in BANDS):
            told = ", ".join(f"{hdu.name or 'without name'} {_size(hdu.shape)}" for hdu in images)
            raise _RefusedError(
                RejectReason.MISSING_BAND, f"no cube, and images: {told or 'none'}{rest}"
            )
        chosen = []
        for band in BANDS:
            hdu, *others = named[band]
            if others:
                raise _RefusedError(
                    RejectReason.DUPLICATE_MEMBER, f"{band} is in it more than once"
                )
            chosen.append(_of_image(_section(hdu, len(content)), hdu.shape))
        return chosen


def _fits_position(content: bytes) -> tuple[float, float] | None:
    with _opened_fits(content) as (images, _):
        for hdu in images:
            sky = _wcs(hdu.header)
            if sky is not None and sky.has_celestial:
                middle = [(side - 1) / 2 for side in hdu.shape[:-3:-1]]
                place = sky.pixel_to_world(*middle).icrs
                return float(place.ra.deg), float(place.dec.deg)
    return None


@contextmanager
def _opened_fits(content: bytes) -> Iterator[tuple[list[Any], str]]:
    """The images of a FITS file whose checksums, if it has any, agree; and what is behind them."""
    from astropy.io import fits

    _check_counts(content)
    if b"DATASUM =" in content or b"CHECKSUM=" in content:
        # Those of a compressed image are of the table that it is stored as.
        with fits.open(BytesIO(content), memmap=False, disable_image_compression=True) as hdus:
            for number, hdu in enumerate(_forward(hdus)):
                if not (hdu.verify_datasum() and hdu.verify_checksum()):
                    raise _UnreadableError(
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
    """HDUs one after the other; after a negative size Astropy would read the same for ever."""
    for number, hdu in enumerate(hdus):
        if hdu.fileinfo()["datSpan"] < 0:
            raise _UnreadableError(f"HDU {number}: its data have a negative size")
        yield hdu


def _check_counts(content: bytes) -> None:
    cards = content.upper()  # as Astropy reads keywords
    for pattern in _COUNTS:
        for found in pattern.finditer(cards):
            start = found.start()
            before = cards[start - start % _CARD_BYTES : start].removeprefix(b"HIERARCH").strip()
            if before in (b"", b"Z") and int(found[1]) > _MOST_COUNTED:
                raise _UnreadableError(found[0].decode())


def _band_order(text: object) -> tuple[str, ...]:
    """Bands of a cube as a header lists them: "grz", "G, R, Z", "['g', 'r', 'z']"."""
    return tuple(re.sub("[^a-z]", "", str(text).lower()))


def _section(hdu: Any, size: int) -> Any:
    """Pixels of an image in a file of some bytes, read when they are asked for."""
    from astropy.io import fits

    _check_scale(hdu)
    if not isinstance(hdu, fits.CompImageHDU):
        left = size - hdu.fileinfo()["datLoc"]
        if hdu.size > left:
            raise _UnreadableError(
                f"cut: {hdu.size} bytes of pixels are stated, the file has {left}"
            )
    elif hdu.compression_type not in _SOUND_TILES:
        raise _UnreadableError(
            f"{hdu.compression_type} tiles, which damage would let write outside their memory; "
            "unpack the file with funpack, or use RICE_1"
        )
    return hdu.section


def _check_scale(hdu: Any) -> None:
    from astropy.wcs.utils import proj_plane_pixel_scales

    sky = _wcs(hdu.header)
    if sky is None:
        return
    scale = proj_plane_pixel_scales(sky) * 3600
    if np.any(np.abs(scale / PIXEL_SCALE_ARCSEC - 1) > _SCALE_TOLERANCE):
        told = " x ".join(f"{side:.4g}" for side in scale)
        raise _RefusedError(
            CutoutReason.WRONG_PIXEL_SCALE, f"{told} arcsec a pixel, not {PIXEL_SCALE_ARCSEC}"
        )


def _wcs(header: Any) -> Any:
    """Where a header says that the pixels lie; None if it does not."""
    from astropy.io import fits
    from astropy.wcs import WCS

    if "CRVAL1" not in header:
        return None
    told = fits.Header([card for card in header.cards if _SKY_WORDS.fullmatch(card.keyword)])
    for name in ("A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER"):
        if not 0 <= int(told.get(name, 0)) <= _MOST_SIP_ORDER:
            raise _UnreadableError(f"{name} is {told[name]}")
    return WCS(told)


# --------------------------------------------------------------------------------- middles


def _of_image(image: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """The middle of an image, or of a section that reads from a file."""
    if len(shape) != 2 or min(shape) < STAMP_SIZE:
        raise _RefusedError(RejectReason.WRONG_SHAPE, f"a band is {_size(shape)}")
    middle: NDArray[Any] = image[_middle(shape[0]), :][:, _middle(shape[1])]
    return middle


def _of_cube(cube: Any, shape: tuple[int, ...], order: tuple[str, ...]) -> list[NDArray[Any]]:
    """Middles g, r, z of a cube whose bands are on its first or its last axis."""
    if len(shape) != 3:
        raise _RefusedError(RejectReason.WRONG_SHAPE, f"the cube is {_size(shape)}")
    last = shape[0] != len(order) and shape[2] == len(order)
    bands, sides = (shape[2], shape[:2]) if last else (shape[0], shape[1:])
    if bands != len(order) or len(set(order)) != bands or not set(BANDS) <= set(order):
        raise _RefusedError(
            RejectReason.MISSING_BAND,
            f"the cube is {_size(shape)}, its bands {''.join(order)!r:.40}",
        )
    if min(sides) < STAMP_SIZE:
        raise _RefusedError(RejectReason.WRONG_SHAPE, f"a band is {_size(sides)}")
    y, x = (_middle(side) for side in sides)
    # Whole rows first: a section of a file is read stretch by stretch.
    stamps = np.moveaxis(cube[y, :, :][:, x], 2, 0) if last else cube[:, y, :][:, :, x]
    return [stamps[order.index(band)] for band in BANDS]


def _middle(side: int) -> slice:
    start = (side - STAMP_SIZE) // 2
    return slice(start, start + STAMP_SIZE)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"

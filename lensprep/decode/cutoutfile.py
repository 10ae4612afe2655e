"""A user's cutout of any survey -> the pixels of its middle, or why there are none.

    refusal = read_cutout(path, out, geometry)      None, and pixels in out; or a reason and detail
    refusal = read_cutout_bytes(content, out, geometry)
    position = read_position(path)                  degrees, None if it states none, or a refusal

The content decides what a file is: FITS and HDF5, NPZ and NPY, also in gzip or bzip2. A name may
stand for one file a band, or for one stamp of many in a file (`lensprep.source.cutouts`). Every
checksum that exists is compared: that of gzip and bzip2, the CRC-32 of a member of an NPZ, CHECKSUM
and DATASUM of FITS, the Fletcher-32 of HDF5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.decode.cutoutarrays import (
    named_planes,
    named_position,
    npy_array,
    opened_hdf5,
    opened_npz,
)
from lensprep.decode.cutoutbytes import RefusedError, first_bytes, refusing, unpacked
from lensprep.decode.cutoutfits import fits_planes, fits_position
from lensprep.decode.cutoutplanes import Wanted, of_array
from lensprep.decode.reasons import CutoutReason, RejectReason
from lensprep.source.catalog import local_cutout
from lensprep.source.cutouts import Refusal, split_name
from lensprep.tables.positions import on_sky, unit_vectors

_TOO_LARGE: Final = 4e37
_ZIP, _NPY, _HDF5, _FITS = b"PK\3\4", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n", b"SIMPLE"


def read_catalog_cutout(
    folder: str,
    file: str,
    out: NDArray[np.float32],
    geometry: Geometry = DECALS,
    options: Any = None,
    position: tuple[float, float] | None = None,
) -> Refusal | None:
    """`read_cutout` of a file that a catalogue names, in a folder that may be ``s3://``.

    ``options`` (`S3Options`) say how to reach its store. A file of one stamp that states a position
    farther than half a stamp's diagonal from ``position`` (degrees) is refused: it does not show
    what the row is about, or the row's position is wrong, and with it its region and split.

    Raises
    ------
    StorageError
        If the store fails, which says nothing about the file.
    """
    with local_cutout(folder, file, geometry.bands, options) as path:
        refusal = read_cutout(path, out, geometry)
        one = split_name(file, geometry.bands) == ((file,), None)
        if refusal or position is None or not one:
            return refusal
        stated = read_position(path)
    if stated is None or isinstance(stated, Refusal):
        return None
    here, there = (unit_vectors(np.array([ra]), np.array([dec])) for ra, dec in (position, stated))
    chord = float(np.linalg.norm(here - there))
    apart = 3600 * np.degrees(2 * np.arcsin(chord / 2))
    if apart <= geometry.diagonal_arcsec / 2:
        return None
    return Refusal(
        CutoutReason.WRONG_POSITION,
        f"its own position is ra {stated[0]:.5f}, dec {stated[1]:.5f}, {apart:.4g} arcsec from the "
        "row's",
    )


@refusing
def read_cutout(path: Path, out: NDArray[np.float32], geometry: Geometry = DECALS) -> None:
    """Read the middle of one cutout; returns a `Refusal` if it cannot be used.

    Parameters
    ----------
    path : Path
        Of one file; or as `lensprep.source.cutouts` names several, one for each band
        (``x_{band}.fits``), or a stamp of a stack (``stack.h5[12]``).
    out : ndarray of float32, shape geometry.shape
        Receives the pixels, in the survey's unit of flux; undefined where there is a refusal.
    geometry : Geometry
        What the survey's stamps are.

    Raises
    ------
    ModuleNotFoundError
        If it is HDF5 and h5py is not installed.
    """
    names, stamp = split_name(str(path), geometry.bands)
    wanted = Wanted(geometry, geometry.bands, stamp)
    if len(names) == 1:
        _store(_planes(Path(names[0]), wanted), out, geometry)
        return
    planes = []
    for name, band in zip(names, geometry.bands, strict=True):
        try:
            planes += _planes(Path(name), wanted.only(band))
        except RefusedError as refused:
            raise RefusedError(f"band {band}: {refused}", refused.reason) from refused
    _store(planes, out, geometry)


@refusing
def read_cutout_bytes(
    content: bytes,
    out: NDArray[np.float32],
    geometry: Geometry = DECALS,
    stamp: int | None = None,
) -> None:
    """Read the middle of a cutout from the bytes of its file, as `read_cutout` does from a path.

    `stamp` is its number in a stack, from 0.
    """
    _store(_planes(content, Wanted(geometry, geometry.bands, stamp)), out, geometry)


@refusing
def read_position(path: Path) -> tuple[float, float] | None:
    """Right ascension (0 to 360) and declination of the centre of a cutout, degrees.

    None if the file states no position, or NaN; a `Refusal` if it cannot be read.
    """
    position = _position(path)
    if position is None or np.isnan(position).any():
        return None
    ra, dec = position
    if not on_sky(np.array(ra), np.array(dec)):
        raise RefusedError(f"states a position that is not on the sky: ra {ra:g}, dec {dec:g}")
    return ra % 360, dec


def _planes(source: Path | bytes, wanted: Wanted) -> list[NDArray[Any]]:
    """Middles of the wanted bands of one file."""
    source, head = _opened(source)
    if head.startswith(_HDF5):
        with opened_hdf5(source) as arrays:
            return named_planes(arrays, wanted)
    if head.startswith(_NPY):
        return of_array(npy_array(source), wanted.bands, wanted)
    content = unpacked(source, head)
    if head.startswith(_ZIP):
        with opened_npz(content) as arrays:
            return named_planes(arrays, wanted)
    return fits_planes(content, wanted)


def _position(path: Path) -> tuple[float, float] | None:
    source, head = _opened(path)
    if head.startswith(_HDF5):
        with opened_hdf5(source) as arrays:
            return named_position(arrays)
    if head.startswith(_NPY):
        return None
    content = unpacked(source, head)
    if head.startswith(_ZIP):
        with opened_npz(content) as arrays:
            return named_position(arrays)
    return fits_position(content)


def _opened(source: Path | bytes) -> tuple[Path | bytes, bytes]:
    """A file and its first bytes; what was packed is bytes then."""
    head = first_bytes(source)
    if not head.startswith((_FITS, _ZIP, _NPY, _HDF5)):
        source = unpacked(source, head)
        head = first_bytes(source)
    if not head:
        raise RefusedError("no bytes", CutoutReason.EMPTY_FILE)
    if not head.startswith((_FITS, _ZIP, _NPY, _HDF5)):
        raise RefusedError(
            f"neither FITS, NPZ, NPY nor HDF5: begins with {head!r}", CutoutReason.WRONG_FORMAT
        )
    return source, head


def _store(planes: list[NDArray[Any]], out: NDArray[np.float32], geometry: Geometry) -> None:
    for name, target, plane in zip(geometry.bands, out, planes, strict=True):
        if plane.dtype.kind != "f":
            raise RefusedError(f"band {name} holds {plane.dtype.name}", RejectReason.WRONG_DTYPE)
        target[:] = plane
    bad = ~(np.abs(out) < _TOO_LARGE)
    if bad.any():
        counts = ", ".join(f"{bad[i].sum()} in {band}" for i, band in enumerate(geometry.bands))
        raise RefusedError(
            f"pixels that are not finite, or too large: {counts}", RejectReason.NONFINITE
        )

"""Cutouts as arrays: NPZ, NPY, HDF5. Nothing is unpickled, and no link leaves an HDF5 file.

    with opened_npz(content) as arrays: named_planes(arrays, wanted)
    with opened_hdf5(path_or_bytes) as arrays: ...
    npy_array(path_or_bytes)

Arrays are ``image_g``, ``image_r``, ... or ``g``, ``r``, ... of single bands, or ``cutout`` (also
``cutouts``, ``image``, ``images``, ``stamps``, ``data``) with the bands on the first or the last
axis, in the survey's order unless an array or attribute ``bands`` states another. Each may have an
axis of stamps before all others.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lensprep.decode import cutoutbytes
from lensprep.decode.cutoutbytes import RefusedError
from lensprep.decode.cutoutplanes import Wanted, band_order, of_array
from lensprep.decode.reasons import CutoutReason, RejectReason
from lensprep.errors import size_text

_CUBES: Final = ("cutout", "cutouts", "image", "images", "stamps", "data")
_POSITIONS: Final = (("ra", "dec"), ("meta_ra", "meta_dec"))


def named_planes(arrays: Mapping[str, Any], wanted: Wanted) -> list[NDArray[Any]]:
    """Middles of the wanted bands from the arrays of a file."""
    cube = next((name for name in _CUBES if name in arrays), None)
    for prefix in () if cube == _CUBES[0] else ("image_", ""):
        names = [f"{prefix}{band}" for band in wanted.bands]
        if {*names} <= {*arrays}:
            return [
                of_array(arrays[name], (band,), wanted.only(band))[0]
                for name, band in zip(names, wanted.bands, strict=True)
            ]
    if cube is None:
        held = ", ".join(dict.fromkeys(arrays)) or "nothing"
        raise RefusedError(
            f"holds {held}; known are image_{wanted.bands[0]}, ... and {_CUBES[0]}",
            RejectReason.MISSING_BAND,
        )
    order = wanted.bands
    if "bands" in arrays:
        order = band_order(_text(arrays["bands"][()]), wanted.geometry.bands)
    return of_array(arrays[cube], order, wanted)


def _text(said: Any) -> str:
    """What an array or an attribute says, whether text or bytes."""
    cells = np.atleast_1d(np.asarray(said)).tolist()
    return " ".join(c.decode("utf-8", "replace") if isinstance(c, bytes) else str(c) for c in cells)


def named_position(arrays: Mapping[str, Any]) -> tuple[float, float] | None:
    """The position that a file states beside its pixels."""
    for ra, dec in _POSITIONS:
        if ra in arrays and dec in arrays:
            return float(arrays[ra][()]), float(arrays[dec][()])
    return None


# ------------------------------------------------------------------------------------ NPZ


class _Members(Mapping[str, NDArray[Any]]):
    """Arrays of an NPZ by name, each checked against its CRC-32."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = [info.filename.removesuffix(".npy") for info in archive.infolist()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> NDArray[Any]:
        if self._names.count(name) > 1:
            raise RefusedError(f"it holds {name} more than once", RejectReason.DUPLICATE_MEMBER)
        info = self._archive.infolist()[self._names.index(name)]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RefusedError(f"{name} is neither stored nor deflated")
        if info.file_size > cutoutbytes.MOST_BYTES:
            raise RefusedError(f"{name} claims {size_text(info.file_size)}", RejectReason.OVERSIZED)
        with self._archive.open(info) as stream:
            data = stream.read(info.file_size)
        return npy_array(data, name)


@contextmanager
def opened_npz(content: bytes) -> Iterator[Mapping[str, Any]]:
    """Arrays of an NPZ by name."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        yield _Members(archive)


# ------------------------------------------------------------------------------------ NPY


def npy_array(source: Path | bytes, name: str = "it") -> NDArray[Any]:
    """The array of an ``.npy`` file; that of a path is mapped."""
    if isinstance(source, bytes):
        file: Any = BytesIO(source)
        total = len(source)
    else:
        file, total = source.open("rb"), source.stat().st_size
    with file:
        version = np.lib.format.read_magic(file)
        # Version 3 differs in the encoding of names of fields, which no image has.
        read = np.lib.format.read_array_header_2_0 if version > (1, 0) else (
            np.lib.format.read_array_header_1_0
        )  # fmt: skip
        shape, fortran, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        raise RefusedError(
            f"{name} is a pickled object array, which is never loaded", RejectReason.OBJECT_ARRAY
        )
    stated, held = prod(shape) * dtype.itemsize, total - start
    if stated != held:
        raise RefusedError(
            f"{name} has {held} bytes of pixels, its header states {stated}",
            RejectReason.TRUNCATED if held < stated else CutoutReason.UNREADABLE,
        )
    order: Any = "F" if fortran else "C"
    if isinstance(source, bytes):
        return np.ndarray(shape, dtype, source, start, order=order)
    return np.memmap(source, dtype, "r", start, shape, order)


# ----------------------------------------------------------------------------------- HDF5


class _Datasets(Mapping[str, Any]):
    """Datasets of an HDF5 file by name, and attributes of the file, none from another file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._links = dict.fromkeys(file)  # their names alone: `in` would follow them
        self._names = [*self._links, *(name for name in file.attrs if name not in self._links)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Any:
        import h5py

        if name not in self._links:
            return np.asarray(self._file.attrs[name])
        if self._file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise RefusedError(
                f"{name} is a link, which is never followed", CutoutReason.LINK_TO_FILE
            )
        found = self._file[name]
        if not isinstance(found, h5py.Dataset):
            raise RefusedError(f"{name} is a group, not a dataset", RejectReason.MISSING_BAND)
        if found.is_virtual or found.external:
            raise RefusedError(
                f"the pixels of {name} lie in another file, which is never read",
                CutoutReason.LINK_TO_FILE,
            )
        if found.shape is None or (found.size and not found.id.get_storage_size()):
            raise RefusedError(f"nothing was written to {name}", RejectReason.TRUNCATED)
        piece = prod(found.chunks or ()) * found.dtype.itemsize
        if piece > cutoutbytes.MOST_BYTES:
            raise RefusedError(f"{name} has chunks of {size_text(piece)}", RejectReason.OVERSIZED)
        return found


@contextmanager
def opened_hdf5(source: Path | bytes) -> Iterator[Mapping[str, Any]]:
    """Datasets of an HDF5 file by name."""
    import h5py

    place = BytesIO(source) if isinstance(source, bytes) else source
    with h5py.File(place, "r", locking=False) as file:
        yield _Datasets(file)

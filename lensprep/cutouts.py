"""A folder of FITS or NPZ cutouts and a table of positions -> raw stamps, or why there is none.

    catalog = open_cutouts(folder, "positions.csv")     any table with ra, dec (and key)
    catalog.table                                       its rows, with key and file
    read_cutout(path, out) -> str                       pixels into out, or the reason why not

A file belongs to a row by the column ``file``, else by ``key`` (``<key>.fits``, ``<key>.npz``),
else by position: the file whose own centre (the FITS header's, or ``ra`` and ``dec`` in the NPZ) is
nearest, within 2 arcsec. Nothing is guessed from file names.

FITS: three planes (the Legacy Survey's cutouts; their order is that of ``BANDS``, else g, r, z), or
an image extension for each band. NPZ: ``image_g``, ``image_r``, ``image_z`` as in Phase 4c, or
``cutout`` with the bands on the first or the last axis. Larger images are cut down to their middle
64 x 64 pixels; a smaller one, another pixel scale or a band that is missing is a reason.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, PIXEL_SCALE_ARCSEC, STAMP_SIZE
from lensprep.dataset.sky import on_sky, position_columns, read_positions
from lensprep.errors import InputError, NotFoundError
from lensprep.stampnpz import RejectReason
from lensprep.tables import check_ids, read_table

SUFFIXES: Final = (".fits", ".fits.gz", ".fit", ".npz")
NO_CUTOUT: Final = "no_cutout"
"""No file belongs to the row."""
WRONG_PIXEL_SCALE: Final = "wrong_pixel_scale"
"""The header states another pixel scale than 0.262 arcsec."""
UNREADABLE: Final = "unreadable"
"""The file is neither FITS nor NPZ that can be read."""

MATCH_ARCSEC: Final = 2.0
_SCALE_TOLERANCE: Final = 0.05
_TOO_LARGE: Final = 4e37


@dataclass(frozen=True)
class Cutouts:
    """The rows of a catalogue with the file of each."""

    folder: Path
    table: pa.Table
    """``key`` (string), ``ra``, ``dec`` (float64, degrees), ``file`` (string, null if there is
    none), then the catalogue's other columns."""
    unused: int
    """Files in the folder that belong to no row."""


def open_cutouts(
    folder: str | os.PathLike[str],
    catalog: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
) -> Cutouts:
    """Read a catalogue and find the file of each row.

    Parameters
    ----------
    folder : path
        Folder of cutouts; subfolders are searched too.
    catalog : path
        Any table that `lensprep.tables` reads, with ``ra`` and ``dec``, or under a name that
        `lensprep.dataset.sky` knows; ``key`` or ``file`` (relative to the folder) say which file is
        whose.
    columns : mapping, optional
        What the catalogue calls ``ra``, ``dec``, ``key``, ``file`` or any other column.

    Raises
    ------
    InputError
        If folder or catalogue cannot be read, a position is missing or off the sky, a key comes
        twice, a file lies outside the folder, or no row has a file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder of cutouts.")
    files = _list_files(root)
    if not files:
        raise InputError(f"{root} has no cutouts: no file ends in {', '.join(SUFFIXES)}.")
    table = _positions(_read_table(catalog, columns or {}), str(catalog), columns)
    matched = _match(table, root, files, str(catalog))
    if matched.null_count == len(matched):
        raise InputError(
            f"No row of {catalog} has a cutout in {root}. Name the files in a column file, or call "
            "them <key>.fits or <key>.npz."
        )
    keys = table["key"] if "key" in table.column_names else _stems(matched)
    if pc.count_distinct(keys, mode="all").as_py() < len(keys):
        counts = keys.value_counts()
        worst = counts[int(np.argmax(counts.field("counts")))]
        raise InputError(
            f"{catalog}: key {worst['values']} comes {worst['counts']} times; every stamp needs a "
            "key of its own."
        )
    rest = [name for name in table.column_names if name not in ("key", "ra", "dec", "file")]
    head = {"key": keys, "ra": table["ra"], "dec": table["dec"], "file": matched}
    used = len(set(matched.drop_null().to_pylist()))
    return Cutouts(root, pa.table(head | {name: table[name] for name in rest}), len(files) - used)


def _list_files(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")
    )


def _read_table(path: str | os.PathLike[str], given: Mapping[str, str]) -> pa.Table:
    own = {ours: name for ours, name in given.items() if ours not in ("ra", "dec")}
    try:
        return read_table(path, text=("key", "file"), rename=own, error=InputError).table
    except NotFoundError:
        raise InputError(f"{path}: no such catalogue.") from None


def _positions(table: pa.Table, name: str, given: Mapping[str, str] | None) -> pa.Table:
    """The table with float64 positions that lie on the sky, as ra and dec, and text keys."""
    if not table.num_rows:
        raise InputError(f"{name} has no rows.")
    columns = position_columns(table, name, InputError, given)
    sky = read_positions(table, name, InputError, columns)
    rest = table.drop_columns([c for c in {*columns, "ra", "dec"} if c in table.column_names])
    for column, degrees in zip(("ra", "dec"), sky, strict=True):
        rest = rest.append_column(column, pa.array(degrees))
    table = rest
    for column in ("key", "file"):
        if column in table.column_names:
            if column == "key":
                check_ids(table[column], column, name, InputError)
            text = table[column].cast(pa.string())
            table = table.set_column(table.column_names.index(column), column, text)
    return table


def _match(table: pa.Table, root: Path, files: list[str], name: str) -> pa.ChunkedArray:
    """File of each row, null where there is none."""
    known = set(files)
    if "file" in table.column_names:
        named = table["file"].to_pylist()
        for file in named:
            if file is not None and (os.path.isabs(file) or ".." in Path(file).parts):
                raise InputError(f"{name}: file {file!r} lies outside {root}.")
        return _text(Path(f).as_posix() if f and Path(f).as_posix() in known else None
                     for f in named)  # fmt: skip
    if "key" in table.column_names:
        by_stem: dict[str, str] = {}
        for file in files:
            by_stem.setdefault(_stem(file), file)
        return _text(by_stem.get(key) for key in table["key"].to_pylist())
    return _match_positions(table, root, files)


def _match_positions(table: pa.Table, root: Path, files: list[str]) -> pa.ChunkedArray:
    """The nearest file of each row by the centre that the file itself states."""
    centres = [(file, centre) for file in files if (centre := _centre(root / file)) is not None]
    if not centres:
        raise InputError(
            f"No cutout in {root} states its position. Add a column key or file to the catalogue."
        )
    from astropy import units
    from astropy.coordinates import SkyCoord

    sky = SkyCoord([c[0] for _, c in centres] * units.deg, [c[1] for _, c in centres] * units.deg)
    rows = SkyCoord(table["ra"].to_numpy() * units.deg, table["dec"].to_numpy() * units.deg)
    nearest, separation, _ = rows.match_to_catalog_sky(sky)
    close = separation.arcsec <= MATCH_ARCSEC
    return _text(
        centres[int(index)][0] if near else None
        for index, near in zip(np.atleast_1d(nearest), np.atleast_1d(close), strict=True)
    )


def _centre(path: Path) -> tuple[float, float] | None:
    """Right ascension and declination of the middle of a cutout, degrees, if it states them.

    Raises
    ------
    InputError
        If it states a position that is not on the sky.
    """
    centre = _stated_centre(path)
    if centre is None or np.isnan(centre).any():
        return None
    if not on_sky(np.array(centre[0]), np.array(centre[1])):
        raise InputError(
            f"{path} states a position that is not on the sky: ra {centre[0]:g}, dec "
            f"{centre[1]:g}. Correct it, or add a column key or file to the catalogue."
        )
    return centre[0] % 360, centre[1]


def _stated_centre(path: Path) -> tuple[float, float] | None:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                for ra, dec in (("ra", "dec"), ("meta_ra", "meta_dec")):
                    if ra in archive and dec in archive:
                        return float(archive[ra]), float(archive[dec])
            return None
        from astropy.io import fits

        with fits.open(path, memmap=False) as hdus:
            image = next(hdu for hdu in hdus if hdu.header.get("NAXIS", 0) >= 2)
            return _header_centre(image.header)
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile, EOFError):
        return None


def _header_centre(header: Any) -> tuple[float, float] | None:
    from astropy.wcs import WCS

    if "CRVAL1" not in header:
        return None
    sky = WCS(header, naxis=2)
    middle = (header["NAXIS1"] - 1) / 2, (header["NAXIS2"] - 1) / 2
    ra, dec = sky.wcs_pix2world([middle], 0)[0]
    return float(ra), float(dec)


def _stem(file: str) -> str:
    name = Path(file).name
    return next(name[: -len(end)] for end in SUFFIXES if name.lower().endswith(end))


def _stems(files: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys from file names; a row without a file is called after its number."""
    return _text(
        _stem(file) if file else f"row-{row + 1}" for row, file in enumerate(files.to_pylist())
    )


def _text(values: Iterable[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(list(values), pa.string())])


def read_cutout(path: Path, out: NDArray[np.float32]) -> str:
    """Read one cutout.

    Parameters
    ----------
    path : Path
    out : ndarray of float32, shape (3, 64, 64)
        Receives the pixels, nanomaggies; undefined where a reason is returned.

    Returns
    -------
    str
        "", or the reason why there is no stamp.
    """
    try:
        bands = _read_npz(path) if path.suffix == ".npz" else _read_fits(path)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, EOFError):
        return UNREADABLE
    if isinstance(bands, str):
        return bands
    for target, band in zip(out, bands, strict=True):
        if band.ndim != 2 or band.dtype.kind != "f":
            return RejectReason.WRONG_DTYPE if band.dtype.kind != "f" else RejectReason.WRONG_SHAPE
        if min(band.shape) < STAMP_SIZE:
            return RejectReason.WRONG_SHAPE
        y, x = ((side - STAMP_SIZE) // 2 for side in band.shape)
        target[:] = band[y : y + STAMP_SIZE, x : x + STAMP_SIZE]
    if not (np.abs(out) < _TOO_LARGE).all():
        return RejectReason.NONFINITE
    return ""


def _read_npz(path: Path) -> list[NDArray[Any]] | str:
    with np.load(path, allow_pickle=False) as archive:
        if "cutout" in archive:
            return _planes(archive["cutout"])
        if any(f"image_{band}" not in archive for band in BANDS):
            return RejectReason.MISSING_BAND
        return [archive[f"image_{band}"] for band in BANDS]


def _planes(cube: NDArray[Any], order: str = "".join(BANDS)) -> list[NDArray[Any]] | str:
    """Planes g, r, z of a cube whose bands are on its first or its last axis."""
    if cube.ndim != 3:
        return RejectReason.WRONG_SHAPE
    if cube.shape[0] != len(order) and cube.shape[2] == len(order):
        cube = np.moveaxis(cube, 2, 0)
    if cube.shape[0] != len(order) or any(band not in order for band in BANDS):
        return RejectReason.MISSING_BAND
    return [cube[order.index(band)] for band in BANDS]


def _read_fits(path: Path) -> list[NDArray[Any]] | str:
    from astropy.io import fits

    with fits.open(path, memmap=False) as hdus:
        images = [hdu for hdu in hdus if hdu.is_image and hdu.data is not None]
        if any(_other_scale(hdu.header) for hdu in images):
            return WRONG_PIXEL_SCALE
        cube = next((hdu for hdu in images if hdu.data.ndim == 3), None)
        if cube is not None:
            return _planes(_native(cube.data), str(cube.header.get("BANDS", "grz")).strip())
        named = {hdu.name.lower().removeprefix("image_"): _native(hdu.data) for hdu in images}
        if any(band not in named for band in BANDS):
            return RejectReason.MISSING_BAND
        return [named[band] for band in BANDS]


def _native(data: NDArray[Any]) -> NDArray[Any]:
    """FITS is big-endian; arithmetic wants the machine's order."""
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _other_scale(header: Any) -> bool:
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    if "CRVAL1" not in header:
        return False
    scale = proj_plane_pixel_scales(WCS(header, naxis=2)) * 3600
    return bool(np.any(np.abs(scale / PIXEL_SCALE_ARCSEC - 1) > _SCALE_TOLERANCE))

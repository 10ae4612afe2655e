"""A folder of cutouts and a table of positions: which file belongs to which row.

    catalog = open_cutouts(folder, "positions.csv", read_position)      any table with ra, dec
    catalog.table                                                       its rows, key and file

A file belongs to a row by the column ``file``, else by ``key`` (``<key>.fits``, ``<key>.npz``),
else by position: the file whose own centre (the FITS header's, or ``ra`` and ``dec`` in NPZ or
HDF5) is nearest, within 2 arcsec. Nothing else is guessed from file names, and where two files may
be meant, none is chosen.

One file a band: ``file`` holds ``x_{band}.fits``, or there are columns ``file_g``, ``file_r``, ...,
or the files are called ``<key>_<band>.fits``. Many stamps in one HDF5, NPY or NPZ: ``file`` names
it in each row, and ``index`` the stamp, from 0.

Files are read by `lensprep.decode.cutoutfile`, whose `read_position` is passed in.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.kinds import CUTOUT_SUFFIXES, cutout_stem
from lensprep.errors import InputError, NotFoundError, ScoresError
from lensprep.store import is_remote
from lensprep.tables.columns import check_ids
from lensprep.tables.positions import position_columns, read_positions
from lensprep.tables.reader import read_table

NO_CUTOUT: Final = "no_cutout"
"""Reason of a row to which no file belongs, and the column that says what was looked for."""

MATCH_ARCSEC: Final = 2.0
_TIE_ARCSEC: Final = 0.1
"""Two files whose distances from a row differ by less are too close to choose between."""


class Refusal(NamedTuple):
    """Why a file is not used."""

    reason: str
    detail: str
    """What was found, for people; one line."""


ReadPosition = Callable[[Path], tuple[float, float] | Refusal | None]
"""Gives the right ascension and declination that a file states for its middle, if it does."""


_STACKS: Final = (".h5", ".hdf5", ".npy", ".npz")
_STAMP: Final = re.compile(r"(.+)\[(\d{1,15})\]")
_BRACES: Final = re.compile(r"([^{}]*)\{([^{}]*)\}([^{}]*)")


def split_name(name: str, bands: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """Files that a name stands for, and the stamp that it means in them.

    ``x_{band}.fits`` and ``{a_g,b_r,c_z}.fits`` are one file for each of three bands,
    ``stack.h5[12]`` is the stamp 12, counted from 0, of a stack.

    Returns
    -------
    tuple of str
        One name, or one for each of `bands`.
    int or None
    """
    stack = _STAMP.fullmatch(name)
    name, stamp = (stack[1], int(stack[2])) if stack else (name, None)
    if "{band}" in name:
        return tuple(name.replace("{band}", band) for band in bands), stamp
    found = _BRACES.fullmatch(name)
    parts = found[2].split(",") if found else []
    if found is None or len(parts) == 1 or len(parts) != len(bands):
        return (name,), stamp
    return tuple(f"{found[1]}{part}{found[3]}" for part in parts), stamp


def _join_names(names: Sequence[str], bands: Sequence[str]) -> str:
    """Inverse of `split_name`, without a stamp."""
    if len(names) == 1:
        return names[0]
    for found in re.finditer(re.escape(bands[0]), names[0]):
        start, end = names[0][: found.start()], names[0][found.end() :]
        if list(names) == [f"{start}{band}{end}" for band in bands]:
            return f"{start}{{band}}{end}"
    return f"{{{','.join(names)}}}"


@dataclass(frozen=True)
class Cutouts:
    """The rows of a catalogue with the file of each."""

    folder: Path
    table: pa.Table
    """``key`` (string), ``ra``, ``dec`` (float64, degrees), ``file`` (string as `split_name` reads
    it, relative to the folder, null if there is none), ``no_cutout`` (string: why there is none,
    else null), then the catalogue's other columns."""
    unused: int
    """Files in the folder that belong to no row."""


def open_cutouts(
    folder: str | os.PathLike[str],
    catalog: str | os.PathLike[str],
    read_position: ReadPosition,
    columns: Mapping[str, str] | None = None,
    called: str | None = None,
    geometry: Geometry = DECALS,
) -> Cutouts:
    """Read a catalogue and find the file of each row.

    Parameters
    ----------
    folder : path
        Folder of cutouts; subfolders are searched too, also those that are links.
    catalog : path
        Any table that `lensprep.tables.reader` reads, with ``ra`` and ``dec``, or under a name that
        `lensprep.tables.positions` knows; ``key`` or ``file`` (relative to the folder, or with the
        folder's path before it) say which file is whose; ``file_g``, ... and ``index`` as above.
    read_position : callable
        Used where the table has neither.
    columns : mapping, optional
        What the catalogue calls ``ra``, ``dec``, ``key``, ``file`` or any other column.
    called : str, optional
        What the user calls the folder, if it is a local copy of one in a store.
    geometry : Geometry
        Its bands are those of one file a band.

    Raises
    ------
    InputError
        If folder or catalogue cannot be read, a position is missing or off the sky, a key occurs
        twice, a file lies outside the folder, several files may be meant, or no row has a file.
    """
    root = Path(folder)
    called = (called or str(folder)).replace("s3a://", "s3://")
    if not root.is_dir():
        raise InputError(f"{called}: no such folder of cutouts.")
    files = _list_files(root)
    if not files:
        raise InputError(f"{called} has no cutouts: no file ends in {', '.join(CUTOUT_SUFFIXES)}.")
    bands, given = geometry.bands, columns or {}
    try:
        table = _read_catalog(catalog, given, bands)
    except ScoresError as error:
        raise InputError(str(error)) from error
    if "file" in table.column_names:
        matches = _match_files(table["file"].to_pylist(), root, called, files, str(catalog), bands)
        if "index" in table.column_names:
            matches = _match_stamps(matches, table["index"], str(catalog), "index" in given)
    elif "key" in table.column_names:
        matches = _match_keys(table["key"].to_pylist(), root, called, files, bands)
    else:
        matches = _match_positions(table, root, called, files, read_position)
    matched, why = zip(*matches, strict=True)
    if not any(matched):
        raise InputError(
            f"No row of {catalog} has a cutout in {called}. Row 1: {why[0]}; the folder has "
            f"{files[0]}. Name the files in a column file, or call them <key>.fits or <key>.npz."
        )
    if has_keys := "key" in table.column_names:
        keys = table["key"]
    else:
        stems = (
            _stem(file, bands) if file else f"row-{row}" for row, file in enumerate(matched, 1)
        )
        keys = _text(stems)
    key, times = Counter(keys.to_pylist()).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{catalog}: key {key} occurs {times} times"
            f"{'' if has_keys else ' among the file names'}; every stamp needs a unique key, in a "
            "column key."
        )
    head = {
        "key": keys,
        "ra": table["ra"],
        "dec": table["dec"],
        "file": _text(matched),
        NO_CUTOUT: _text(why),
    }
    rest = {name: table[name] for name in table.column_names if name not in head}
    names = {name for file in {*matched} if file for name in split_name(file, bands)[0]}
    used = {os.path.realpath(root / name) for name in names}
    unused = sum(os.path.realpath(root / file) not in used for file in files)
    return Cutouts(root, pa.table(head | rest), unused)


_Match = tuple[str | None, str | None]
"""The file of a row; or None, and what was looked for."""


def _list_files(root: Path) -> list[str]:
    """Cutouts below the folder; links are followed, and every folder is listed once."""
    seen, found = {os.path.realpath(root)}, []
    for folder, below, names in os.walk(root, followlinks=True, onerror=_raise_unlisted):
        here = Path(folder).relative_to(root)
        found += [(here / name).as_posix() for name in names if cutout_stem(name) is not None]
        new = {name: os.path.realpath(Path(folder, name)) for name in sorted(below)}
        below.clear()
        for name, real in new.items():
            if real not in seen and not name.startswith("."):
                seen.add(real)
                below.append(name)
    return sorted(found)


def _raise_unlisted(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be listed: {error.strerror}.") from error


def _read_catalog(
    path: str | os.PathLike[str], given: Mapping[str, str], bands: Sequence[str]
) -> pa.Table:
    """The table with float64 positions on the sky as ra and dec, and text as key and file."""
    name = str(path)
    own = {ours: theirs for ours, theirs in given.items() if ours not in ("ra", "dec")}
    by_band = [f"file_{band}" for band in bands]
    try:
        table = read_table(path, text=("key", "file", *by_band), rename=own).table
    except NotFoundError:
        raise InputError(f"{path}: no such catalogue.") from None
    if not table.num_rows:
        raise InputError(f"{path} has no rows.")
    if "key" in table.column_names:
        check_ids(table["key"], "key", name)
    positions = position_columns(table, name, given)
    ra, dec = read_positions(table, name, positions)
    found = {c: table[c] for c in table.column_names if c not in positions} | {"ra": ra, "dec": dec}
    texts = {c: found[c].cast(pa.string()) for c in ("key", "file", *by_band) if c in found}
    if "file" not in texts and any(column in texts for column in by_band):
        for column in by_band:
            if column not in texts:
                raise InputError(f"{path} has a file for some bands, and no column {column}.")
        rows = zip(*(texts.pop(column).to_pylist() for column in by_band), strict=True)
        texts["file"] = _text(_join_names(row, bands) if all(row) else None for row in rows)
        found = {c: values for c, values in found.items() if c not in by_band}
    return pa.table(found | texts)


def _match_files(
    named: list[str | None],
    root: Path,
    called: str,
    files: list[str],
    catalog: str,
    bands: Sequence[str],
) -> list[_Match]:
    known = set(files)
    # As the user wrote the folder, and where it is.
    starts = [
        f"{start.rstrip('/')}/" for start in (called, os.path.abspath(root), os.path.realpath(root))
    ]
    starts = [start for start in starts if start.startswith(("/", "s3://"))]

    def find(file: str) -> tuple[str, bool]:
        """Its name in the folder, and whether it is there."""
        plain = file.removeprefix("file://").replace("s3a://", "s3://")
        start = next((start for start in starts if plain.startswith(start)), "")
        below = Path(plain[len(start) :])
        if below.is_absolute() or ".." in below.parts or is_remote(plain[len(start) :]):
            raise InputError(
                f"{catalog}: file {file!r} lies outside {called}. Give the folder above all "
                "cutouts, and paths below it."
            )
        # A folder that is linked more than once is listed under one of its names.
        name = below.as_posix()
        return name, name in known or (cutout_stem(name) is not None and (root / below).is_file())

    def match(file: str | None) -> _Match:
        if not file:
            return None, "the row names no file"
        names, stamp = split_name(file, bands)
        found = [find(name) for name in names]
        missing = [name for name, there in found if not there]
        if missing:
            return None, f"there is no cutout {missing[0]}"
        joined = _join_names([name for name, _ in found], bands)
        return joined if stamp is None else f"{joined}[{stamp}]", None

    return [match(file) for file in named]


def _match_stamps(
    matches: list[_Match], index: pa.ChunkedArray, catalog: str, named: bool
) -> list[_Match]:
    """The stamp of each row in a file that several rows name.

    Other rows have a file each, and ``index`` may be any number, unless it was `named` by the user.
    """
    times = Counter(file for file, _ in matches)

    def match(found: _Match, stamp: Any) -> _Match:
        file = found[0]
        if file is None or not file.lower().rstrip("}").endswith(_STACKS):
            return found
        if times[file] == 1 and not named:
            return found
        if stamp is None or stamp != stamp:
            return None, "the row has no index"
        if not isinstance(stamp, (int, float)) or stamp < 0 or stamp != int(stamp):
            raise InputError(f"{catalog}: index {stamp!r} does not count stamps from 0.")
        return f"{file}[{int(stamp)}]", None

    return [match(found, stamp) for found, stamp in zip(matches, index.to_pylist(), strict=True)]


def _match_keys(
    keys: list[str], root: Path, called: str, files: list[str], bands: Sequence[str]
) -> list[_Match]:
    by_stem: dict[str | None, list[str]] = defaultdict(list)
    for file in files:
        by_stem[cutout_stem(file)].append(file)

    def match(key: str) -> _Match:
        for stems in ([key], *([f"{key}{mark}{band}" for band in bands] for mark in "_-")):
            found = [by_stem.get(stem, []) for stem in stems]
            for some in found:
                _require_one(some, root, called, f"key {key}")
            if all(found):
                return _join_names([some[0] for some in found], bands), None
        return None, f"no file is called {key}.fits, {key}.npz, ..."

    return [match(key) for key in keys]


def _stem(name: str, bands: Sequence[str]) -> str:
    """What the file or files of a row are called, for want of a key."""
    names, stamp = split_name(name, bands)
    stem = cutout_stem(names[0]) or names[0]
    if len(names) > 1:
        stem = stem.removesuffix(bands[0]).rstrip("_-. ") or stem
    return stem if stamp is None else f"{stem}-{stamp}"


def _require_one(files: list[str], root: Path, called: str, what: str) -> None:
    """Refuse to choose between files; several names of one file are no choice."""
    if len({os.path.realpath(root / file) for file in files}) > 1:
        raise InputError(
            f"{called}: {' and '.join(files[:3])} may be meant by {what}. Say which in a column "
            "file of the catalogue."
        )


def _match_positions(
    table: pa.Table, root: Path, called: str, files: list[str], read_position: ReadPosition
) -> list[_Match]:
    """The nearest file of each row by the centre that the file itself states."""
    bad: dict[str, str] = {}
    centres: dict[str, tuple[float, float]] = {}
    for file in files:
        said = (
            read_position(root / file)
            if _is_text(file)
            else Refusal("unreadable", "name not UTF-8")
        )
        if isinstance(said, Refusal):
            bad[file] = said.detail
        elif said is not None:
            centres[file] = said
    unread = ""
    if bad:
        first, detail = next(iter(bad.items()))
        unread = f"; {len(bad)} files state no readable position (first: {first!r:.80}, {detail})"
    if not centres:
        raise InputError(
            f"No cutout in {called} states its position{unread}. Add a column key or file to the "
            "catalogue."
        )
    from astropy import units
    from astropy.coordinates import SkyCoord, search_around_sky

    names = list(centres)
    sky = SkyCoord(*np.array(list(centres.values())).T * units.deg)
    rows = SkyCoord(table["ra"].to_numpy() * units.deg, table["dec"].to_numpy() * units.deg)
    nearest, distance, _ = rows.match_to_catalog_sky(sky)
    arcsec = distance.arcsec
    within = search_around_sky(rows, sky, MATCH_ARCSEC * units.arcsec)
    tied: dict[int, list[str]] = defaultdict(list)
    for row, index, apart in zip(*within[:2], within[2].arcsec, strict=True):
        if apart - arcsec[row] < _TIE_ARCSEC:
            tied[row].append(names[index])
    for row, pair in sorted(tied.items()):
        _require_one(pair, root, called, f"row {row + 1} of the catalogue, by position")
    return [
        (names[index], None)
        if apart <= MATCH_ARCSEC
        else (None, f"the nearest, {names[index]}, is {apart:.3g} arcsec away{unread}")
        for index, apart in zip(nearest, arcsec, strict=True)
    ]


def _is_text(name: str) -> bool:
    """Whether a table can hold a name; a disk's may be any bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _text(values: Iterable[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(list(values), pa.string())])

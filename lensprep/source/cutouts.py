"""A folder of FITS or NPZ cutouts and a table of positions: which file belongs to which row.

    catalog = open_cutouts(folder, "positions.csv", read_position)      any table with ra, dec
    catalog.table                                                       its rows, key and file

A file belongs to a row by the column ``file``, else by ``key`` (``<key>.fits``, ``<key>.npz``),
else by position: the file whose own centre (the FITS header's, or ``ra`` and ``dec`` in the NPZ) is
nearest, within 2 arcsec. Nothing is guessed from file names, and where two files may be meant, none
is chosen. Files are read by `lensprep.decode.cutoutfile`, whose `read_position` is passed in.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

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


@dataclass(frozen=True)
class Cutouts:
    """The rows of a catalogue with the file of each."""

    folder: Path
    table: pa.Table
    """``key`` (string), ``ra``, ``dec`` (float64, degrees), ``file`` (string, null if there is
    none), ``no_cutout`` (string: why there is none, else null), then the catalogue's other
    columns."""
    unused: int
    """Files in the folder that belong to no row."""


def open_cutouts(
    folder: str | os.PathLike[str],
    catalog: str | os.PathLike[str],
    read_position: ReadPosition,
    columns: Mapping[str, str] | None = None,
    called: str | None = None,
) -> Cutouts:
    """Read a catalogue and find the file of each row.

    Parameters
    ----------
    folder : path
        Folder of cutouts; subfolders are searched too, also those that are links.
    catalog : path
        Any table that `lensprep.tables.reader` reads, with ``ra`` and ``dec``, or under a name that
        `lensprep.tables.positions` knows; ``key`` or ``file`` (relative to the folder, or with the
        folder's path before it) say which file is whose.
    read_position : callable
        Used where the table has neither.
    columns : mapping, optional
        What the catalogue calls ``ra``, ``dec``, ``key``, ``file`` or any other column.
    called : str, optional
        What the user calls the folder, if it is a local copy of one in a store.

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
    try:
        table = _read_catalog(catalog, columns or {})
    except ScoresError as error:
        raise InputError(str(error)) from error
    if "file" in table.column_names:
        matches = _match_files(table["file"].to_pylist(), root, called, files, str(catalog))
    elif "key" in table.column_names:
        matches = _match_keys(table["key"].to_pylist(), root, called, files)
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
        stems = (cutout_stem(file) if file else f"row-{row}" for row, file in enumerate(matched, 1))
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
    used = {os.path.realpath(root / file) for file in matched if file}
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


def _read_catalog(path: str | os.PathLike[str], given: Mapping[str, str]) -> pa.Table:
    """The table with float64 positions on the sky as ra and dec, and text as key and file."""
    name = str(path)
    own = {ours: theirs for ours, theirs in given.items() if ours not in ("ra", "dec")}
    try:
        table = read_table(path, text=("key", "file"), rename=own).table
    except NotFoundError:
        raise InputError(f"{path}: no such catalogue.") from None
    if not table.num_rows:
        raise InputError(f"{path} has no rows.")
    if "key" in table.column_names:
        check_ids(table["key"], "key", name)
    positions = position_columns(table, name, given)
    ra, dec = read_positions(table, name, positions)
    found = {c: table[c] for c in table.column_names if c not in positions} | {"ra": ra, "dec": dec}
    texts = {c: found[c].cast(pa.string()) for c in ("key", "file") if c in found}
    return pa.table(found | texts)


def _match_files(
    named: list[str | None], root: Path, called: str, files: list[str], catalog: str
) -> list[_Match]:
    known = set(files)
    # As the user wrote the folder, and where it is.
    starts = [
        f"{start.rstrip('/')}/" for start in (called, os.path.abspath(root), os.path.realpath(root))
    ]
    starts = [start for start in starts if start.startswith(("/", "s3://"))]

    def find(file: str | None) -> _Match:
        if not file:
            return None, "the row names no file"
        plain = file.removeprefix("file://").replace("s3a://", "s3://")
        start = next((start for start in starts if plain.startswith(start)), "")
        below = Path(plain[len(start) :])
        if below.is_absolute() or ".." in below.parts or is_remote(plain[len(start) :]):
            raise InputError(f"{catalog}: file {file!r} lies outside {called}.")
        # A folder that is linked more than once is listed under one of its names.
        name = below.as_posix()
        if name in known or (cutout_stem(name) is not None and (root / below).is_file()):
            return name, None
        return None, f"there is no cutout {name}"

    return [find(file) for file in named]


def _match_keys(keys: list[str], root: Path, called: str, files: list[str]) -> list[_Match]:
    by_stem: dict[str | None, list[str]] = defaultdict(list)
    for file in files:
        by_stem[cutout_stem(file)].append(file)
    for key in keys:
        _require_one(by_stem.get(key, []), root, called, f"key {key}")
    return [
        (by_stem[key][0], None)
        if key in by_stem
        else (None, f"no file is called {key}.fits, {key}.npz, ...")
        for key in keys
    ]


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

"""A folder of FITS or NPZ cutouts and a table of positions: which file belongs to which row.

    catalog = open_cutouts(folder, "positions.csv", read_position)      any table with ra, dec
    catalog.table                                                       its rows, key and file

A file belongs to a row by the column ``file``, else by ``key`` (``<key>.fits``, ``<key>.npz``),
else by position: the file whose own centre (the FITS header's, or ``ra`` and ``dec`` in the NPZ) is
nearest, within 2 arcsec. Nothing is guessed from file names, and nothing is chosen where two files
may be meant. What is in a file is `lensprep.decode.cutoutfile`'s matter, whose `read_position` is
handed in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lensprep.dataset.kinds import CUTOUT_SUFFIXES, cutout_stem
from lensprep.errors import InputError, NotFoundError, ScoresError
from lensprep.store import is_remote
from lensprep.tables.positions import position_columns, read_positions
from lensprep.tables.reader import check_ids, read_table

NO_CUTOUT: Final = "no_cutout"
"""Reason of a row to which no file belongs, and the column that says what was looked for."""

MATCH_ARCSEC: Final = 2.0
_TIE_ARCSEC: Final = 0.1
"""Two files whose distances from a row differ by less cannot be told apart by position."""


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
        folder's own place before it) say which file is whose.
    read_position : callable
        Called where neither says so.
    columns : mapping, optional
        What the catalogue calls ``ra``, ``dec``, ``key``, ``file`` or any other column.
    called : str, optional
        What the user calls the folder, if it is a copy of one in a store.

    Raises
    ------
    InputError
        If folder or catalogue cannot be read, a position is missing or off the sky, a key comes
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
        table = _positions(_read_table(catalog, columns or {}), str(catalog), columns)
    except ScoresError as error:
        raise InputError(str(error)) from error
    matched = _match(table, root, called, files, str(catalog), read_position)
    misses = [file.why for file in matched if isinstance(file, _Miss)]
    if len(misses) == len(matched):
        raise InputError(
            f"No row of {catalog} has a cutout in {called}. Row 1: {misses[0]}; the folder has "
            f"{files[0]}. Name the files in a column file, or call them <key>.fits or <key>.npz."
        )
    keys = table["key"] if "key" in table.column_names else _stems(matched)
    if pc.count_distinct(keys, mode="all").as_py() < len(keys):
        counts = keys.value_counts()
        worst = counts[int(np.argmax(counts.field("counts")))]
        raise InputError(
            f"{catalog}: key {worst['values']} comes {worst['counts']} times"
            f"{'' if 'key' in table.column_names else ' among the names of the files'}; every "
            "stamp needs a key of its own, in a column key."
        )
    head = {
        "key": keys,
        "ra": table["ra"],
        "dec": table["dec"],
        "file": _text(None if isinstance(file, _Miss) else file for file in matched),
        NO_CUTOUT: _text(file.why if isinstance(file, _Miss) else None for file in matched),
    }
    rest = [name for name in table.column_names if name not in head]
    used = {os.path.realpath(root / file) for file in matched if not isinstance(file, _Miss)}
    unused = sum(os.path.realpath(root / file) not in used for file in files)
    return Cutouts(root, pa.table(head | {name: table[name] for name in rest}), unused)


class _Miss(NamedTuple):
    """No file belongs to a row."""

    why: str
    """What was looked for."""


def _list_files(root: Path) -> list[str]:
    """Cutouts below the folder; links are followed, and every folder is listed once."""
    seen, found = {os.path.realpath(root)}, []
    for folder, below, names in os.walk(root, followlinks=True, onerror=_raise_unlisted):
        place = Path(folder).relative_to(root)
        found += [(place / name).as_posix() for name in names if cutout_stem(name) is not None]
        new = {name: os.path.realpath(Path(folder, name)) for name in sorted(below)}
        below.clear()
        for name, real in new.items():
            if real not in seen and not name.startswith("."):
                seen.add(real)
                below.append(name)
    return sorted(found)


def _raise_unlisted(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be listed: {error.strerror}.") from error


def _read_table(path: str | os.PathLike[str], given: Mapping[str, str]) -> pa.Table:
    own = {ours: name for ours, name in given.items() if ours not in ("ra", "dec")}
    try:
        return read_table(path, text=("key", "file"), rename=own).table
    except NotFoundError:
        raise InputError(f"{path}: no such catalogue.") from None


def _positions(table: pa.Table, name: str, given: Mapping[str, str] | None) -> pa.Table:
    """The table with float64 positions that lie on the sky, as ra and dec, and text keys."""
    if not table.num_rows:
        raise InputError(f"{name} has no rows.")
    columns = position_columns(table, name, given)
    sky = read_positions(table, name, columns)
    rest = table.drop_columns([c for c in {*columns, "ra", "dec"} if c in table.column_names])
    for column, degrees in zip(("ra", "dec"), sky, strict=True):
        rest = rest.append_column(column, pa.array(degrees))
    table = rest
    for column in ("key", "file"):
        if column in table.column_names:
            if column == "key":
                check_ids(table[column], column, name)
            text = table[column].cast(pa.string())
            table = table.set_column(table.column_names.index(column), column, text)
    return table


def _match(
    table: pa.Table,
    root: Path,
    called: str,
    files: list[str],
    name: str,
    read_position: ReadPosition,
) -> list[str | _Miss]:
    """File of each row, or why it has none."""
    if "file" in table.column_names:
        return _match_files(table["file"].to_pylist(), root, called, files, name)
    if "key" in table.column_names:
        return _match_keys(table["key"].to_pylist(), root, called, files)
    return _match_positions(table, root, called, files, read_position)


def _match_files(
    named: list[str | None], root: Path, called: str, files: list[str], name: str
) -> list[str | _Miss]:
    known = set(files)
    # As the user wrote the folder, and where it is.
    starts = [
        f"{start.rstrip('/')}/" for start in (called, os.path.abspath(root), os.path.realpath(root))
    ]
    starts = [start for start in starts if start.startswith(("/", "s3://"))]

    def find(file: str | None) -> str | _Miss:
        if not file:
            return _Miss("the row names no file")
        plain = file.removeprefix("file://").replace("s3a://", "s3://")
        start = next((start for start in starts if plain.startswith(start)), "")
        below = Path(plain[len(start) :])
        if below.is_absolute() or ".." in below.parts or is_remote(plain[len(start) :]):
            raise InputError(f"{name}: file {file!r} lies outside {called}.")
        # A folder that is linked more than once is listed under one of its names.
        place = below.as_posix()
        if place in known or (cutout_stem(place) is not None and (root / below).is_file()):
            return place
        return _Miss(f"there is no cutout {place}")

    return [find(file) for file in named]


def _match_keys(keys: list[str], root: Path, called: str, files: list[str]) -> list[str | _Miss]:
    by_stem: dict[str, list[str]] = {}
    for file in files:
        by_stem.setdefault(str(cutout_stem(file)), []).append(file)
    for key in keys:
        _require_one(by_stem.get(key, []), root, called, f"key {key}")
    return [
        by_stem[key][0]
        if key in by_stem
        else _Miss(f"no file is called {key}.fits, {key}.npz, ...")
        for key in keys
    ]


def _require_one(files: list[str], root: Path, called: str, what: str) -> None:
    """Refuse to choose; names of one file are no choice."""
    if len(files) > 1 and len({os.path.realpath(root / file) for file in files}) > 1:
        raise InputError(
            f"{called}: {' and '.join(files[:3])} may be meant by {what}. Say which in a column "
            "file of the catalogue."
        )


def _match_positions(
    table: pa.Table, root: Path, called: str, files: list[str], read_position: ReadPosition
) -> list[str | _Miss]:
    """The nearest file of each row by the centre that the file itself states."""
    centres = {
        file: read_position(root / file)
        if _is_text(file)
        else Refusal("unreadable", "name not UTF-8")
        for file in files
    }
    bad = {file: said.detail for file, said in centres.items() if isinstance(said, Refusal)}
    unread = f"; {len(bad)} files cannot be placed (first: {_first(bad)})" if bad else ""
    stated = {file: at for file, at in centres.items() if at and not isinstance(at, Refusal)}
    if not stated:
        raise InputError(
            f"No cutout in {called} states its position{unread}. Add a column key or file to the "
            "catalogue."
        )
    from astropy import units
    from astropy.coordinates import SkyCoord, search_around_sky

    names, places = list(stated), np.array(list(stated.values()))
    sky = SkyCoord(*places.T * units.deg)
    rows = SkyCoord(table["ra"].to_numpy() * units.deg, table["dec"].to_numpy() * units.deg)
    nearest, distance, _ = rows.match_to_catalog_sky(sky)
    arcsec = np.atleast_1d(distance.arcsec)
    within = search_around_sky(rows, sky, MATCH_ARCSEC * units.arcsec)
    tied: dict[int, list[str]] = {}
    for row, index, apart in zip(*within[:2], within[2].arcsec, strict=True):
        if apart - arcsec[row] < _TIE_ARCSEC:
            tied.setdefault(int(row), []).append(names[index])
    for row, pair in sorted(tied.items()):
        _require_one(pair, root, called, f"row {row + 1} of the catalogue, by position")
    return [
        names[index]
        if apart <= MATCH_ARCSEC
        else _Miss(f"the nearest, {names[index]}, is {apart:.3g} arcsec away{unread}")
        for index, apart in zip(np.atleast_1d(nearest), arcsec, strict=True)
    ]


def _is_text(name: str) -> bool:
    """Whether a table can hold a name; a disk's may be any bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _first(bad: Mapping[str, str]) -> str:
    return next(f"{file!r:.80}, {detail}" for file, detail in bad.items())


def _stems(files: Iterable[str | _Miss]) -> pa.ChunkedArray:
    """Keys from file names; a row without a file is called after its number."""
    return _text(
        f"row-{row + 1}" if isinstance(file, _Miss) else cutout_stem(file)
        for row, file in enumerate(files)
    )


def _text(values: Iterable[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(list(values), pa.string())])

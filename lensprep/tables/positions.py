"""Positions in tables that others wrote: which columns hold them, and in which unit.

    names = position_columns(table, "lenses.csv")               headings, or one clear error
    ra, dec = read_positions(table, "lenses.csv", names)        degrees on the sky
    row, arcsec = nearest_on_sky(ra, dec, other_ra, other_dec)  which is nearest, how far
    arcsec = separation_arcsec(ra, dec, ra_0, dec_0)            how far each is from one

A heading is known without its unit (``RA [deg]``, ``DEC(deg)``, ``RA_deg``) and equinox
(``RAJ2000``, ``_DE.icrs``, ``ALPHA_J2000``): the names of lenscat, VizieR, HSC, DES and Gaia.
Sexagesimal text (``01:23:45.6``, ``01h23m45s``, ``01 23 45.6``) is known by its form: hours of
right ascension unless it says ``d``, and degrees of declination; numbers are hours if their heading
or metadata says so. Radians and other equinoxes are refused. Right ascensions from -180 to 0
degrees are moved to 180 to 360.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.errors import ScoresError, names_text

UNIT: Final = b"unit"
"""Key of a column's metadata that states its unit (of FITS: TUNIT)."""

_EQUINOX: Final = r"(?:j2000|2000|icrs|fk5)"
_TAIL: Final = rf"{_EQUINOX}?(?:deg|degrees?)?{_EQUINOX}?"
_FORMS: Final = {
    "ra": re.compile(rf"(?:(?:ra|rightascension){_TAIL}|alpha(?:win)?{_EQUINOX})"),
    "dec": re.compile(rf"(?:(?:dec?|decl|declination){_TAIL}|delta(?:win)?{_EQUINOX})"),
}
_BRACKET: Final = re.compile(r"\s*[\[(]\s*([^\[\]()]*?)\s*[\])]")
_DEGREES: Final = {"", "deg", "degs", "degree", "degrees", "d", "°"}
_HOURS: Final = {"h", "hr", "hrs", "hour", "hours", "hourangle"}
_SEXAGESIMAL: Final = {"ra": {"h:m:s", "hms", "hh:mm:ss"}, "dec": {"d:m:s", "dms", "dd:mm:ss"}}
_UNITS: Final = {"ra": _DEGREES | _HOURS | _SEXAGESIMAL["ra"] | _SEXAGESIMAL["dec"],
                 "dec": _DEGREES | _SEXAGESIMAL["dec"]}  # fmt: skip
_SEXAGESIMAL_CELL: Final = re.compile(
    r"(?P<sign>[+\-−]?)\s*(?P<whole>\d{1,3})\s*(?P<mark>[hd°:]|\s)\s*"
    r"(?P<minutes>\d{1,2}(?:\.\d*)?)"
    r"(?:\s*(?:[m:'′]|\s)\s*(?:(?P<seconds>\d{1,2}(?:\.\d*)?)\s*(?:[s\"″]|'')?)?)?"
)
_EQUINOXES: Final = {"j2000", "2000", "j2000.0", "2000.0", "icrs", "fk5"}

Floats = NDArray[np.float64]


def position_columns(
    table: pa.Table, where: str, given: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Names of the columns that hold right ascension and declination.

    ``ra`` and ``dec``, in capitals or not, come before others; of the others only one may be there.
    Of several, those in degrees; a column whose heading or metadata states a unit that is neither
    degrees nor hours is not taken.

    Parameters
    ----------
    table : pyarrow.Table
    where : str
        What an error calls the table.
    given : mapping, optional
        What the user calls ``ra`` and ``dec``.

    Raises
    ------
    ScoresError
        If a column is not there, is in another unit, or several may be meant.
    """
    ra, dec = ((given or {}).get(ours) or _find(table, ours, where) for ours in _FORMS)
    for ours, name in (("ra", ra), ("dec", dec)):
        _require_unit(table, name, ours, where)
    return ra, dec


def likely_columns(names: Sequence[str], ours: str) -> list[str]:
    """Headings that may be ``ra`` or ``dec``; only that name, in any case, if it is there."""
    bare = {name: re.sub(r"[\s_.\-]", "", _BRACKET.sub("", name)).casefold() for name in names}
    known = [name for name in names if _FORMS[ours].fullmatch(bare[name])]
    return [name for name in known if name.casefold() == ours] or known


def _find(table: pa.Table, ours: str, where: str) -> str:
    known = likely_columns(table.column_names, ours)
    fields = [table.schema.field(name) for name in known]
    likely = [f.name for f in fields if unit_of(f) in _DEGREES and not pa.types.is_string(f.type)]
    likely = likely or known
    if not likely:
        raise ScoresError(f"{where} has no column {ours} by any usual name; {_offer(table, ours)}")
    if len(likely) > 1:
        raise ScoresError(
            f"{where} has several columns that may be {ours}: {', '.join(likely)}. Name one with "
            f"--catalog-column {ours}=COLUMN."
        )
    return likely[0]


def _require_unit(table: pa.Table, name: str, ours: str, where: str) -> str:
    """Unit of a column, which must be there and in a unit of positions."""
    if name not in table.column_names:
        raise ScoresError(f"{where} has no column {name!r}; {_offer(table, ours)}")
    unit = unit_of(table.schema.field(name))
    if unit not in _UNITS[ours]:
        raise ScoresError(
            f"{where}: column {name} is in {unit}, not in degrees"
            f"{' or hours' if ours == 'ra' else ''}. Convert it, or name another with "
            f"--catalog-column {ours}=COLUMN."
        )
    return unit


def _offer(table: pa.Table, ours: str) -> str:
    names = names_text(table.column_names, ours)
    return f"it has: {names}. Name it with --catalog-column {ours}=COLUMN."


def unit_of(field: pa.Field) -> str:
    """Unit that the heading or the metadata of a column states, in small letters; "" if none."""
    brackets = [text.casefold() for text in _BRACKET.findall(field.name)]
    stated = [text for text in brackets if text not in _EQUINOXES]
    unit = (field.metadata or {}).get(UNIT, b"").decode(errors="replace").casefold()
    return stated[0] if stated else unit.strip("\"' ")


def read_positions(
    table: pa.Table,
    where: str,
    columns: tuple[str, str] = ("ra", "dec"),
    *,
    unknown: bool = False,
) -> tuple[Floats, Floats]:
    """Right ascension (0 to 360) and declination in degrees, each of shape (rows,).

    Parameters
    ----------
    table : pyarrow.Table
        An error names the first row in question, by its ``key`` if the table has that column.
    where : str
        What an error calls the table.
    columns : tuple of str
    unknown : bool
        Whether a position may be missing: null or NaN, which become NaN in both.

    Raises
    ------
    ScoresError
        If a column is not there, or holds neither numbers nor sexagesimal text; if a position is
        missing or not on the sky.
    """
    ra, dec = (_degrees(table, *pair, where) for pair in zip(columns, _FORMS, strict=True))
    missing = np.isnan(ra) | np.isnan(dec)
    for bad, what, remedy in (
        (missing & (not unknown), "no position (null or NaN)", "Fill them in"),
        (~missing & ~on_sky(ra, dec), "a position that is not on the sky", "Correct them"),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            key = f", key {table['key'][row]}" if "key" in table.column_names else ""
            raise ScoresError(
                f"{where}: {int(bad.sum()):,} rows have {what} (first: row {row + 1}{key}: "
                f"{columns[0]} {ra[row]:g}, {columns[1]} {dec[row]:g}). Degrees are wanted, -180 "
                f"to 360 and -90 to 90. {remedy}, or leave these rows out."
            )
    return np.where(missing, np.nan, ra % 360), np.where(missing, np.nan, dec)


def on_sky(ra: Floats, dec: Floats) -> NDArray[np.bool_]:
    """Which positions in degrees lie on the sky; NaN does not."""
    return np.asarray((ra >= -180) & (ra <= 360) & (np.abs(dec) <= 90))


def nearest_on_sky(
    ra: Floats, dec: Floats, other_ra: Floats, other_dec: Floats
) -> tuple[NDArray[np.int64], Floats]:
    """The nearest of other positions to each position, and how far it lies.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        Degrees.
    other_ra, other_dec : ndarray, shape (m,)
        Degrees; at least one.

    Returns
    -------
    index : ndarray of int, shape (n,)
        Among the others.
    separation : ndarray, shape (n,)
        Arcsec, on the sphere.
    """
    from scipy.spatial import cKDTree

    chord, index = cKDTree(unit_vectors(other_ra, other_dec)).query(unit_vectors(ra, dec))
    return index, _chord_arcsec(chord)


def separation_arcsec(ra: Floats, dec: Floats, ra_0: float, dec_0: float) -> Floats:
    """Separation of positions from one, all in degrees, on the sphere, shape (n,); NaN of NaN."""
    one = unit_vectors(np.array([ra_0]), np.array([dec_0]))
    return _chord_arcsec(np.linalg.norm(unit_vectors(ra, dec) - one, axis=1))


def _chord_arcsec(chord: Floats) -> Floats:
    """Angles of chords between unit vectors, for which poles and 0h are no edges."""
    return np.asarray(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))) * 3600)


def unit_vectors(ra: Floats, dec: Floats) -> Floats:
    """Positions in degrees as points of the unit sphere, shape (n, 3)."""
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def _degrees(table: pa.Table, name: str, ours: str, where: str) -> Floats:
    """A column in degrees, NaN for null; a sexagesimal cell's own marks overrule the unit."""
    unit = _require_unit(table, name, ours, where)
    column = table[name]
    try:
        values = np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    except pa.ArrowException:
        pass
    else:
        if unit not in _DEGREES | _HOURS:
            raise ScoresError(f"{where}: column {name} is said to be in {unit}, and holds numbers.")
        return values * 15 if unit in _HOURS else values
    cells = column.to_pylist()
    degrees = [math.nan if cell is None else _cell_degrees(str(cell), ours, unit) for cell in cells]
    bad = [row for row, value in enumerate(degrees) if value is None]
    if bad:
        among = f" in {len(bad):,} of {len(cells):,} rows" if len(bad) < len(cells) else ""
        raise ScoresError(
            f"{where}: column {name} holds {column.type!s:.60} ({cells[bad[0]]!r:.40}){among}, not "
            "degrees. Write decimal degrees, or sexagesimal text: hours (01:23:45.6) of right "
            "ascension, degrees of declination."
        )
    return np.array(degrees, np.float64)


def _cell_degrees(cell: str, ours: str, unit: str) -> float | None:
    """Degrees of sexagesimal text; NaN if it is empty, None if it is no position."""
    text = " ".join(cell.lower().replace(",", ".").split())
    if text in ("", "nan", "null", "none"):
        return math.nan
    found = _SEXAGESIMAL_CELL.fullmatch(text)
    if found is None:
        return None
    whole, minutes, seconds = (float(found[i] or 0) for i in ("whole", "minutes", "seconds"))
    value = whole + minutes / 60 + seconds / 3600
    is_named = found["mark"] in ("h", "d", "°")
    is_hours = found["mark"] == "h" or (
        ours == "ra" and not is_named and unit not in _SEXAGESIMAL["dec"]
    )
    if minutes >= 60 or seconds > 60 or (is_hours and (ours == "dec" or value > 24)):
        return None
    if ours == "ra" and unit and unit in _DEGREES and not is_named:
        return None  # the unit says degrees, but such cells are hours
    return (-value if found["sign"] in ("-", "−") else value) * (15 if is_hours else 1)

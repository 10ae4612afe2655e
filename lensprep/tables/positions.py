"""Positions of a table, as others write them: which columns hold them, and whether they are any.

    names = position_columns(table, "lenses.csv", ScoresError)         headings, or one clear error
    ra, dec = read_positions(table, "lenses.csv", ScoresError, names)  degrees on the sky
    row, arcsec = nearest_on_sky(ra, dec, other_ra, other_dec)         which is nearest, how far

A heading is known without its unit (``RA [deg]``, ``DEC(deg)``, ``RA_deg``) and equinox
(``RAJ2000``, ``_DE.icrs``, ``ALPHA_J2000``): the names of lenscat, VizieR, HSC, DES and Gaia.
Sexagesimal text (``01:23:45.6``, ``01h23m45s``, ``01 23 45.6``) is known by its form: hours of
right ascension unless it says ``d``, and degrees of declination; numbers are hours if their heading
or metadata says so. Radians and another equinox are refused. Right ascensions of -180 ... 0 degrees
become those of 180 ... 360.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.errors import ProjectError, names_text

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
_PARTS: Final = (
    r"^(?P<sign>[+\-−]?)\s*(?P<whole>\d{1,3})\s*(?P<mark>[hd°:]|\s)\s*"
    r"(?P<minutes>\d{1,2}(?:[.,]\d*)?)"
    r"(?:\s*(?:[m:'′]|\s)\s*(?:(?P<seconds>\d{1,2}(?:[.,]\d*)?)\s*(?:[s\"″]|'')?)?)?$"
)
_EQUINOXES: Final = {"j2000", "2000", "j2000.0", "2000.0", "icrs", "fk5"}

Floats = NDArray[np.float64]


def position_columns(
    table: pa.Table,
    where: str,
    error: type[ProjectError],
    given: Mapping[str, str] | None = None,
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
    error : type
        What is raised.
    given : mapping, optional
        What the user calls ``ra`` and ``dec``.

    Raises
    ------
    ProjectError
        Of the given type: if a column is not there, is in another unit, or several may be meant.
    """
    found = [(given or {}).get(ours) or _find(table, ours, where, error) for ours in _FORMS]
    for ours, name in zip(_FORMS, found, strict=True):
        if name not in table.column_names:
            raise error(f"{where} has no column {name!r}; {_offer(table, ours)}")
        unit = unit_of(table.schema.field(name))
        if unit not in _UNITS[ours]:
            raise error(
                f"{where}: column {name} is in {unit}, not in degrees"
                f"{' or hours' if ours == 'ra' else ''}. Convert it, or name another with "
                f"--catalog-column {ours}=COLUMN."
            )
    return found[0], found[1]


def likely_columns(names: Sequence[str], ours: str) -> list[str]:
    """Headings that may be ``ra`` or ``dec``; only that name, in any case, if it is there."""
    known = [name for name in names if _FORMS[ours].fullmatch(_bare(name))]
    return [name for name in known if name.casefold() == ours] or known


def _find(table: pa.Table, ours: str, where: str, error: type[ProjectError]) -> str:
    known = likely_columns(table.column_names, ours)
    units = {name: unit_of(table.schema.field(name)) for name in known}
    likely = [name for name in known if units[name] in _DEGREES and not _is_text(table, name)]
    likely = likely or known
    if not likely:
        raise error(f"{where} has no column {ours} by any usual name; {_offer(table, ours)}")
    if len(likely) > 1:
        raise error(
            f"{where} has several columns that may be {ours}: {', '.join(likely)}. Name one with "
            f"--catalog-column {ours}=COLUMN."
        )
    return likely[0]


def _is_text(table: pa.Table, name: str) -> bool:
    return bool(pa.types.is_string(table.schema.field(name).type))


def _offer(table: pa.Table, ours: str) -> str:
    names = names_text(table.column_names, ours)
    return f"it has: {names}. Name it with --catalog-column {ours}=COLUMN."


def _bare(heading: str) -> str:
    """A heading without case, brackets of units or equinoxes, and signs between words."""
    return re.sub(r"[\s_.\-]", "", _BRACKET.sub("", heading)).casefold()


def unit_of(field: pa.Field) -> str:
    """Unit that the heading or the metadata of a column states, in small letters; "" if none."""
    brackets = [text.casefold() for text in _BRACKET.findall(field.name)]
    stated = [text for text in brackets if text not in _EQUINOXES]
    unit = (field.metadata or {}).get(UNIT, b"").decode(errors="replace").casefold()
    return stated[0] if stated else unit.strip("\"' ")


def read_positions(
    table: pa.Table,
    where: str,
    error: type[ProjectError],
    columns: tuple[str, str] = ("ra", "dec"),
    *,
    unknown: bool = False,
) -> tuple[Floats, Floats]:
    """Right ascension (0 to 360) and declination in degrees.

    Parameters
    ----------
    table : pyarrow.Table
        An error names the first row in question, by its ``key`` if the table has that column.
    where : str
        What an error calls the table.
    error : type
        What is raised.
    columns : tuple of str
    unknown : bool
        Whether a position may be missing: null or NaN, which become NaN in both.

    Raises
    ------
    ProjectError
        Of the given type: if a column is not there or holds neither numbers nor sexagesimal text,
        a position is missing, or one is not on the sky.
    """
    ra, dec = (
        _degrees(table, name, ours, where, error)
        for name, ours in zip(columns, _FORMS, strict=True)
    )
    missing = np.isnan(ra) | np.isnan(dec)
    for bad, what, remedy in (
        (missing & (not unknown), "no position (null or NaN)", "Fill them in"),
        (~missing & ~on_sky(ra, dec), "a position that is not on the sky", "Correct them"),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            key = f", key {table['key'][row]}" if "key" in table.column_names else ""
            raise error(
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

    # Chords between unit vectors turned into angles, so that poles and 0h are no edges.
    chord, index = cKDTree(_unit_vectors(other_ra, other_dec)).query(_unit_vectors(ra, dec))
    return index, np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))) * 3600


def _unit_vectors(ra: Floats, dec: Floats) -> Floats:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def _degrees(
    table: pa.Table, name: str, ours: str, where: str, error: type[ProjectError]
) -> Floats:
    """A column in degrees, NaN for null."""
    if name not in table.column_names:
        raise error(f"{where} has no column {name!r}; {_offer(table, ours)}")
    column, unit = table[name], unit_of(table.schema.field(name))
    try:
        values = np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    except pa.ArrowException:
        return _sexagesimal(column, name, ours, unit, where, error)
    if unit not in _DEGREES | _HOURS:
        raise error(f"{where}: column {name} is said to be in {unit}, and holds numbers.")
    return values * 15 if unit in _HOURS else values


def _sexagesimal(
    column: pa.ChunkedArray,
    name: str,
    ours: str,
    unit: str,
    where: str,
    error: type[ProjectError],
) -> Floats:
    """Hours or degrees, minutes and seconds as degrees; what its cells say goes before the unit."""
    text = column.combine_chunks() if pa.types.is_string(column.type) else pa.nulls(len(column))
    text = pc.utf8_lower(pc.utf8_trim_whitespace(text.cast(pa.string())))
    parts = pc.extract_regex(text, _PARTS)
    sizes = {}
    for part in ("whole", "minutes", "seconds"):
        digits = pc.replace_substring(pc.struct_field(parts, part), ",", ".")
        digits = pc.if_else(pc.equal(digits, ""), "0", digits).cast(pa.float64())
        sizes[part] = np.asarray(digits.to_numpy(zero_copy_only=False), np.float64)
    mark = pc.struct_field(parts, "mark")
    named = np.asarray(pc.is_in(mark, pa.array(["h", "d", "°"])))
    hours = np.asarray(pc.equal(mark, "h").fill_null(False))
    if ours == "ra" and unit not in _SEXAGESIMAL["dec"]:
        hours |= ~named
    value = sizes["whole"] + sizes["minutes"] / 60 + sizes["seconds"] / 3600
    good = (sizes["minutes"] < 60) & (sizes["seconds"] <= 60) & ~(hours & (value > 24))
    if ours == "dec":
        good &= ~hours
    elif unit and unit in _DEGREES:
        good &= named  # degrees are stated and hours are what such cells are
    minus = np.asarray(pc.is_in(pc.struct_field(parts, "sign"), pa.array(["-", "−"])))
    missing = pc.is_in(text, pa.array(["", "nan", "null", "none"]))
    bad = ~good & np.asarray(pc.is_valid(column.combine_chunks())) & ~np.asarray(missing)
    if bad.any():
        first = f" ({column[int(np.argmax(bad))].as_py()!r:.40})"
        among = f" in {int(bad.sum()):,} of {len(bad):,} rows" if good.any() else ""
        raise error(
            f"{where}: column {name} holds {column.type!s:.60}{first}{among}, not degrees. Write "
            "decimal degrees, or sexagesimal text: hours (01:23:45.6) of right ascension, degrees "
            "of declination."
        )
    return np.where(good, np.where(minus, -value, value) * np.where(hours, 15.0, 1.0), np.nan)

"""Positions of a table, as others write them: which columns hold them, and whether they are any.

    names = position_columns(table, "lenses.csv", ScoresError)         headings, or one clear error
    ra, dec = read_positions(table, "lenses.csv", ScoresError, names)  degrees on the sky

A heading is known without its unit (``RA [deg]``, ``DEC(deg)``, ``RA_deg``) and equinox
(``RAJ2000``, ``_DE.icrs``, ``ALPHA_J2000``): the names of lenscat, VizieR, HSC, DES and Gaia.
Nothing is converted: hours, radians, sexagesimal text and another equinox are refused. Only right
ascensions of -180 ... 0 degrees become those of 180 ... 360.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.errors import ProjectError

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
    A column whose heading or metadata states another unit than degrees is not taken.

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
        unit = _unit(table, name)
        if unit not in _DEGREES:
            raise error(
                f"{where}: column {name} is in {unit}, not in degrees. Convert it, or name another "
                f"with --catalog-column {ours}=COLUMN."
            )
    return found[0], found[1]


def _find(table: pa.Table, ours: str, where: str, error: type[ProjectError]) -> str:
    known = [name for name in table.column_names if _FORMS[ours].fullmatch(_bare(name))]
    plain = [name for name in known if name.casefold() == ours]
    likely = plain or [name for name in known if _unit(table, name) in _DEGREES] or known
    if not likely:
        raise error(f"{where} has no column {ours} by any usual name; {_offer(table, ours)}")
    if len(likely) > 1:
        raise error(
            f"{where} has several columns that may be {ours}: {', '.join(likely)}. Name one with "
            f"--catalog-column {ours}=COLUMN."
        )
    return likely[0]


def _offer(table: pa.Table, ours: str) -> str:
    names = ", ".join(table.column_names)
    return f"it has: {names}. Name it with --catalog-column {ours}=COLUMN."


def _bare(heading: str) -> str:
    """A heading without case, brackets of units or equinoxes, and signs between words."""
    return re.sub(r"[\s_.\-]", "", _BRACKET.sub("", heading)).casefold()


def _unit(table: pa.Table, name: str) -> str:
    """Unit that the heading or the metadata of a column states; "" if none."""
    brackets = [text.casefold() for text in _BRACKET.findall(name)]
    stated = [text for text in brackets if text not in _EQUINOXES]
    metadata = table.schema.field(name).metadata or {}
    return stated[0] if stated else metadata.get(UNIT, b"").decode(errors="replace").casefold()


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
        Of the given type: if a column is not there or holds no numbers, or a position is not on the
        sky.
    """
    ra, dec = (_numbers(table, name, where, error) for name in columns)
    missing = np.isnan(ra) | np.isnan(dec)
    bad = ~on_sky(ra, dec) & ~(missing & unknown)
    if bad.any():
        row = int(np.argmax(bad))
        key = f", key {table['key'][row]}" if "key" in table.column_names else ""
        raise error(
            f"{where}: {int(bad.sum())} rows have no position on the sky (first: row "
            f"{row + 1}{key}: {columns[0]} {ra[row]:g}, {columns[1]} {dec[row]:g}). Degrees are "
            "wanted, -180 to 360 and -90 to 90. Correct the rows, or leave them out."
        )
    return np.where(missing, np.nan, ra % 360), np.where(missing, np.nan, dec)


def on_sky(ra: Floats, dec: Floats) -> NDArray[np.bool_]:
    """Which positions in degrees lie on the sky; NaN does not."""
    return np.asarray((ra >= -180) & (ra <= 360) & (np.abs(dec) <= 90))


def _numbers(table: pa.Table, name: str, where: str, error: type[ProjectError]) -> Floats:
    if name not in table.column_names:
        raise error(f"{where} has no column {name!r}.")
    column = table[name]
    try:
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        first = next((f" ({str(v)!r:.40})" for v in column.to_pylist() if v is not None), "")
        raise error(
            f"{where}: column {name} holds {column.type!s:.60}{first}, not degrees. Write degrees "
            "as decimal numbers."
        ) from None
    return np.asarray(values, np.float64)

"""Catalogues of known lenses, in lenscat's columns or others: one row each, with its position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.errors import NotFoundError, ScoresError, names_text
from lensprep.tables.positions import position_columns, read_positions
from lensprep.tables.reader import Uri, read_table

LENSCAT = {"name": "name", "ra": "RA", "dec": "DEC", "grade": "grading"}
"""What the columns are called in lenscat (Vujeva et al. 2025, arXiv:2406.04398)."""

_OTHER_NAMES = {"name": ("Name", "NAME", "id"), "grade": ("grade", "Grade")}
UNGRADED = "ungraded"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Catalog:
    """Known lenses: one row each."""

    path: Uri
    sha256: str
    """Digest of the file."""
    name: list[str]
    ra: Floats
    """Degrees."""
    dec: Floats
    grade: list[str]


def read_catalog(path: Uri, columns: Mapping[str, str] | None = None) -> Catalog:
    """Read a catalogue of known lenses.

    Parameters
    ----------
    path : str or path
        Any table that `lensprep.tables.reader` reads; local or s3://.
    columns : mapping, optional
        What the catalogue calls ``name``, ``ra``, ``dec``, ``grade``; lenscat's names are known,
        and of positions those that `lensprep.tables.positions` knows. Without a grade all lenses
        are ``ungraded``.

    Raises
    ------
    ScoresError
        If it cannot be read, lacks a position, or has a position off the sky.
    """
    given = columns or {}
    texts = [name for ours in ("name", "grade") for name in _names(ours, given)]
    try:
        found = read_table(path, text=texts)
    except NotFoundError:
        raise ScoresError(f"{path}: no such catalogue.") from None
    table = found.table
    places = position_columns(table, str(path), ScoresError, given)
    ra, dec = read_positions(table, str(path), ScoresError, places)
    names = {ours: _column(table, ours, given, path) for ours in _OTHER_NAMES}
    if not ra.size:
        raise ScoresError(f"{path} has no lenses.")
    rows = [str(row + 1) for row in range(ra.size)]
    return Catalog(
        path,
        found.sha256,
        _texts(table, names["name"], rows, path),
        ra,
        dec,
        _texts(table, names["grade"], [UNGRADED] * ra.size, path),
    )


def _names(ours: str, given: Mapping[str, str]) -> tuple[str, ...]:
    """What a catalogue may call a column."""
    return (given[ours],) if ours in given else (LENSCAT[ours], *_OTHER_NAMES[ours])


def _column(table: pa.Table, ours: str, given: Mapping[str, str], path: Uri) -> str | None:
    """Name of a column in the catalogue; None for an optional one that is not there."""
    known = _names(ours, given)
    found = next((name for name in known if name in table.column_names), None)
    if found is None and ours in given:
        raise ScoresError(
            f"{path} has no column {known[0]!r}; it has: "
            f"{names_text(table.column_names, known[0])}. Name it with --catalog-column "
            f"{ours}=COLUMN."
        )
    return found


def _texts(table: pa.Table, name: str | None, default: list[str], path: Uri) -> list[str]:
    if name is None:
        return default
    column = table[name]
    try:
        values = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        raise ScoresError(f"{path}: column {name} holds {column.type!s:.60}, not text.") from None
    return [value or other for value, other in zip(values, default, strict=True)]

"""Catalogues of known lenses, in lenscat's columns or others: one row each, with its position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.errors import NotFoundError, ScoresError, names_text
from lensprep.store import Uri
from lensprep.tables.positions import position_columns, read_positions
from lensprep.tables.reader import read_table

LENSCAT = {"name": "name", "ra": "RA", "dec": "DEC", "grade": "grading"}
"""What the columns are called in lenscat (Vujeva et al. 2025, arXiv:2406.04398)."""

_TEXTS = {
    "name": (LENSCAT["name"], "Name", "NAME", "id"),
    "grade": (LENSCAT["grade"], "grade", "Grade"),
}
"""Columns that need not be there, and what a catalogue may call them."""

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
    known = {ours: (given[ours],) if ours in given else names for ours, names in _TEXTS.items()}
    try:
        found = read_table(path, text=[*known["name"], *known["grade"]])
    except NotFoundError:
        raise ScoresError(f"{path}: no such catalogue.") from None
    table = found.table
    ra, dec = read_positions(table, str(path), position_columns(table, str(path), given))
    if not ra.size:
        raise ScoresError(f"{path} has no lenses.")
    defaults = {
        "name": [str(row + 1) for row in range(ra.size)],
        "grade": ["ungraded"] * ra.size,
    }
    texts = {}
    for ours, default in defaults.items():
        column = next((name for name in known[ours] if name in table.column_names), None)
        if column is None and ours in given:
            raise ScoresError(
                f"{path} has no column {given[ours]!r}; it has: "
                f"{names_text(table.column_names, given[ours])}. Name it with --catalog-column "
                f"{ours}=COLUMN."
            )
        texts[ours] = default if column is None else _texts(table[column], column, default, path)
    return Catalog(path, found.sha256, texts["name"], ra, dec, texts["grade"])


def _texts(column: pa.ChunkedArray, name: str, default: list[str], path: Uri) -> list[str]:
    try:
        values = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        raise ScoresError(f"{path}: column {name} holds {column.type!s:.60}, not text.") from None
    return [value or other for value, other in zip(values, default, strict=True)]

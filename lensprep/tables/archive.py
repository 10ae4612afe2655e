"""Tables for archives, FITS and VOTable: they say what their columns are and whose they are.

    write_archive(path, ".vot", table, facts, origin)    as `lensprep.tables.writer` does

Columns have the unit, UCD and description that `lensprep.tables.known` knows: attributes of a
VOTable's fields, and ``TUNITn``, ``TUCDn`` and ``TCOMMn`` of FITS. What made the table is an INFO
``lenstrain`` of a VOTable, and JSON in a second extension of FITS. The Data Origin (IVOA note of
2024) is one INFO for each term, and one card of the table's header: the first eight letters of the
term, which is the card's comment. FITS holds ASCII: text is written with Python's escapes
(backslash-u00e9), which `lensprep.tables.reader` undoes in columns. The same table and facts give
the same bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep import __version__
from lensprep.errors import error_line
from lensprep.tables.formats import METADATA_KEY
from lensprep.tables.known import known_column

QUERY_TERMS: Final = (
    "service_ivoid", "publisher", "server_software", "service_protocol", "request", "query",
    "request_date", "contact",
)  # fmt: skip
"""Terms of Data Origin about who gave out the table; each has one value."""
ORIGIN_TERMS: Final = (
    "data_ivoid", "citation", "reference_url", "resource_version", "rights_uri", "rights",
    "creator", "journal", "article", "cites", "is_derived_from", "original_date",
    "publication_date", "last_update_date",
)  # fmt: skip
"""Terms of Data Origin about the data; each may have several values."""

_CODES: Final = {"int8": "I", "uint8": "I", "int16": "I", "uint16": "J", "int32": "J",
                 "uint32": "K", "int64": "K", "halffloat": "E", "float": "E",
                 "double": "D", "bool": "L"}  # fmt: skip
"""Codes of FITS for Arrow's types; A is text, and all else is written as text."""
_VOTABLE_TYPES: Final = {"I": ("short", ">i2"), "J": ("int", ">i4"), "K": ("long", ">i8"),
                         "E": ("float", ">f4"), "D": ("double", ">f8"),
                         "L": ("boolean", "S1")}  # fmt: skip
_NULLS: Final = {"I": -(2**15), "J": -(2**31), "K": -(2**63)}
"""What stands for null in FITS."""
_DATA: Final = (b'<DATA><BINARY2><STREAM encoding="base64">\n', b"</STREAM></BINARY2></DATA>\n")

Origin = Mapping[str, str | Sequence[str]]


def write_archive(
    path: Path, suffix: str, table: pa.Table, facts: str, origin: Mapping[str, Sequence[str]]
) -> None:
    """Write a table as FITS or VOTable.

    Parameters
    ----------
    path : Path
    suffix : str
        ``.fits``, or else it is a VOTable.
    table : pyarrow.Table
    facts : str
        JSON in ASCII.
    origin : mapping
        Of `data_origin`.

    Raises
    ------
    ValueError
        If the format cannot hold the table.
    """
    columns = {name: _as_column(name, table[name]) for name in table.column_names}
    (_write_fits if suffix == ".fits" else _write_votable)(path, columns, facts, origin)


def data_origin(facts: Mapping[str, Any], given: Origin | None = None) -> dict[str, list[str]]:
    """Values by the terms of Data Origin: what is given, and what is known of any table.

    That is the software that writes it, and the dataset and checkpoint of the facts, which are
    added to ``is_derived_from``. Empty values are left out.

    Raises
    ------
    ValueError
        If a term is not of Data Origin.
    """
    found: dict[str, list[str]] = {"server_software": [f"lenstrain {__version__}"]}
    for term, values in (given or {}).items():
        if term not in QUERY_TERMS + ORIGIN_TERMS:
            raise ValueError(f"{term!r} is no term of Data Origin.")
        found[term] = [values] if isinstance(values, str) else list(values)
    known = {"dataset_id": "dataset", "checkpoint_sha256": "checkpoint sha256"}
    derived = [f"{what}:{facts[key]}" for key, what in known.items() if facts.get(key)]
    found["is_derived_from"] = [*found.get("is_derived_from", ()), *derived]
    kept = {term: [value for value in values if value] for term, values in found.items()}
    return {term: values for term, values in kept.items() if values}


_FRAME: Final = "ICRS"
"""Of positions, as in every survey since Gaia."""
_CARD_TEXT: Final = 68
"""Most characters of a text in one card of a header without a comment."""


def _is_position(name: str) -> bool:
    return known_column(name).ucd.startswith("pos.eq.")


class _Column(NamedTuple):
    """A column as NumPy has it."""

    code: str
    """Of FITS."""
    values: Any
    """Shape (rows,) or (rows, width); text is a list."""
    nulls: NDArray[np.bool_]
    """Shape (rows,)."""
    width: int = 0
    """Of vectors; else 0."""


def _as_column(name: str, column: pa.ChunkedArray) -> _Column:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, nulls = column.type, column.is_null().to_numpy()
    if pa.types.is_nested(kind):
        code = _CODES.get(str(kind.value_type)) if pa.types.is_fixed_size_list(kind) else None
        flat = column.combine_chunks().flatten()
        if code is None or column.null_count or flat.null_count:
            raise ValueError(f"column {name} holds {kind}, or nulls.")
        vectors = flat.to_numpy(zero_copy_only=False).reshape(len(column), kind.list_size)
        return _Column(code, vectors, nulls, kind.list_size)
    code = _CODES.get(str(kind))
    if code is None:
        return _Column("A", [text or "" for text in column.cast(pa.string()).to_pylist()], nulls)
    if column.null_count and not pa.types.is_floating(kind):
        column = column.fill_null(False if code == "L" else 0)
    return _Column(code, column.to_numpy(), nulls)


# ------------------------------------------------------------------------------------ FITS


def _write_fits(
    path: Path, columns: Mapping[str, _Column], facts: str, origin: Mapping[str, Sequence[str]]
) -> None:
    from astropy.io import fits

    hdu = fits.BinTableHDU.from_columns(
        [
            fits.Column(name, unit=known_column(name).unit or None, **_fits_column(name, column))
            for name, column in columns.items()
        ],
        name="TABLE",
    )
    for number, name in enumerate(columns, 1):
        known = known_column(name)
        for keyword, text in ((f"TUCD{number}", known.ucd), (f"TCOMM{number}", known.description)):
            if text:
                hdu.header[keyword] = text
    if any(map(_is_position, columns)):
        hdu.header["RADESYS"] = _FRAME
    for term, values in origin.items():
        text = _escape("; ".join(values)).decode()
        # Blanks at the end mean nothing: a text over two cards leaves room for the comment.
        if len(text.replace("'", "''")) > _CARD_TEXT - len(f" / {term}"):
            text = text.ljust(_CARD_TEXT + 1)
        hdu.header[term.replace("_", "")[:8].upper()] = text, term
    said = fits.Column("json", f"{len(facts)}A", array=np.array([facts.encode("ascii")]))
    ours = fits.BinTableHDU.from_columns([said], name=METADATA_KEY.decode().upper())
    try:
        fits.HDUList([fits.PrimaryHDU(), hdu, ours]).writeto(path)
    except fits.VerifyError as error:
        raise ValueError(error_line(error)) from error


def _fits_column(name: str, column: _Column) -> dict[str, Any]:
    """Arguments of a `fits.Column`. Text is ASCII, and null text is empty."""
    code, values, nulls = column.code, column.values, column.nulls
    if code == "A":
        cells = [_escape(text) for text in values]
        width = max(map(len, cells), default=0) or 1
        return {"format": f"{width}A", "array": np.array(cells, f"S{width}")}
    if column.width:
        return {"format": f"{column.width}{code}", "array": values}
    if code == "L" and nulls.any():
        code, values = "I", values.astype(np.int16)
    null = _NULLS.get(code) if nulls.any() else None
    if null is not None:
        if (values[~nulls] == null).any():
            raise ValueError(f"column {name} has nulls, and {null}, which stands for them.")
        values = np.where(nulls, null, values.astype(np.int64))
    return {"format": code, "array": values, "null": null}


def _escape(text: str) -> bytes:
    """Text in ASCII; trailing blanks, which FITS does not keep, are escaped too."""
    cell = text.encode("unicode_escape")
    bare = cell.rstrip(b" ")
    return bare + rb"\x20" * (len(cell) - len(bare))


# --------------------------------------------------------------------------------- VOTable


def _write_votable(
    path: Path, columns: Mapping[str, _Column], facts: str, origin: Mapping[str, Sequence[str]]
) -> None:
    """Header by astropy, and rows by NumPy: astropy needs a millisecond for each row."""
    from astropy.io.votable import tree

    file, resource = tree.VOTableFile(version="1.4"), tree.Resource(type="results")
    table = tree.TableElement(file, name="TABLE")
    cells = {name: _votable_cells(name, column) for name, column in columns.items()}
    for name, (kind, size, _) in cells.items():
        known = known_column(name)
        given = {"unit": known.unit, "ucd": known.ucd, "arraysize": size}
        kept = {key: value for key, value in given.items() if value}
        field = tree.Field(file, ID="none", name=name, datatype=kind, **kept)
        del field.ID  # astropy would make one of the name, and two may be the same
        field.description = known.description or None
        if _is_position(name):
            field.ref = _FRAME
        table.fields.append(field)
    if any(map(_is_position, columns)):
        resource.coordinate_systems.append(tree.CooSys(ID=_FRAME, system=_FRAME))
    file.resources.append(resource)
    resource.tables.append(table)
    said = [(file, METADATA_KEY.decode(), facts)]
    for term, values in origin.items():
        said += [(file if term in QUERY_TERMS else resource, term, value) for value in values]
    for place, name, value in said:
        info = tree.Info(name=name, value=value)
        del info.ID
        place.infos.append(info)
    text = io.BytesIO()
    file.to_xml(text)
    header, end, rest = text.getvalue().partition(b"</TABLE>")
    with path.open("wb") as out:
        out.write(header)
        if rows := _rows(columns, cells):
            out.writelines((_DATA[0], base64.encodebytes(rows), _DATA[1]))
        out.write(end + rest)


def _votable_cells(name: str, column: _Column) -> tuple[str, str | None, NDArray[Any]]:
    """Type and size of a field, and its values as BINARY2 has them, big-endian."""
    if column.code == "A":
        if any("\0" in text for text in column.values):
            raise ValueError(f"column {name} has text with the character NUL.")
        is_ascii = all(map(str.isascii, column.values))
        kind, encoding = ("char", "ascii") if is_ascii else ("unicodeChar", "utf-16-be")
        encoded = [text.encode(encoding) for text in column.values]
        unit = 1 if is_ascii else 2
        # A single character would be no text to readers in Java.
        width = max(2, max(map(len, encoded), default=0) // unit)
        return kind, str(width), np.array(encoded, f"S{width * unit}")
    kind, dtype = _VOTABLE_TYPES[column.code]
    if column.code == "L":
        return kind, None, np.where(column.values, b"T", b"F")
    return kind, str(column.width) if column.width else None, column.values.astype(dtype)


def _rows(
    columns: Mapping[str, _Column], cells: Mapping[str, tuple[str, str | None, NDArray[Any]]]
) -> bytes:
    """Rows as BINARY2 has them: a bit for each null, then the values."""
    nulls = np.packbits(np.stack([column.nulls for column in columns.values()], axis=1), axis=1)
    arrays = [nulls, *(array for *_, array in cells.values())]
    rows = np.empty(len(nulls), [(str(i), a.dtype, a.shape[1:]) for i, a in enumerate(arrays)])
    for number, array in enumerate(arrays):
        rows[str(number)] = array
    return rows.tobytes()

"""Write tables: parquet, CSV or FITS, by the suffix, on a disk or in a store.

    check_table("s3://bucket/scores.fits")             before the work
    with table_writer(uri, schema, facts) as write:    write(table), piece by piece

`lensprep.tables.reader` reads them. FITS holds ASCII: text is written with Python's escapes
(backslash-u00e9), which the reader undoes. What made a table is recorded as JSON in the metadata of
parquet and in a second extension of FITS; CSV has no room for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from lensprep.errors import StorageError
from lensprep.store import S3Options, Uri, check_file, uri_suffix, written_file
from lensprep.tables.csvtext import guard_table
from lensprep.tables.formats import METADATA_KEY

TABLE_SUFFIXES: Final = (".parquet", ".csv", ".csv.gz", ".fits")

_CSV: Final = (".csv", ".csv.gz")
_FITS_NUMBERS: Final = {"int8": "I", "uint8": "I", "int16": "I", "uint16": "J", "int32": "J",
                        "uint32": "K", "int64": "K", "halffloat": "E", "float": "E",
                        "double": "D", "bool": "L"}  # fmt: skip
_NULLS: Final = {"I": -(2**15), "J": -(2**31), "K": -(2**63)}
"""What stands for null."""


def check_table(uri: Uri, *, vectors: bool = False) -> None:
    """Refuse an output that cannot be written, before the work.

    Parameters
    ----------
    uri : str or path
    vectors : bool
        The table will have columns of vectors.

    Raises
    ------
    StorageError
        If the suffix names no format, the format cannot hold vectors, or nothing can be written
        there.
    """
    if _written_suffix(uri) in _CSV and vectors:
        raise StorageError(f"{uri}: CSV has no vectors (embeddings). Write .parquet or .fits.")
    check_file(uri)


def _written_suffix(uri: Uri) -> str:
    suffix = uri_suffix(uri)
    if suffix not in TABLE_SUFFIXES:
        raise StorageError(
            f"{uri}: the suffix says how a table is written; it is one of "
            f"{', '.join(TABLE_SUFFIXES)}."
        )
    return suffix


@contextmanager
def table_writer(
    uri: Uri,
    schema: pa.Schema,
    metadata: Mapping[str, Any],
    options: S3Options | None = None,
) -> Iterator[Callable[[pa.Table], None]]:
    """Write a table piece by piece; it appears whole or not at all, in place of an older one.

    For FITS all pieces are held in memory until the end.

    Parameters
    ----------
    uri : str or path
    schema : pyarrow.Schema
        Every piece is cast to it.
    metadata : mapping
        What made the table, in plain types.
    options : S3Options, optional
        How to reach an object store.

    Raises
    ------
    StorageError
        If the location or format cannot be written, or the format cannot hold the schema.
    """
    suffix, facts = _written_suffix(uri), json.dumps(metadata)
    with written_file(uri, options) as path:
        if suffix == ".parquet":
            full = schema.with_metadata({METADATA_KEY: facts})
            with pq.ParquetWriter(path, full, compression="zstd") as parquet:
                yield lambda table: parquet.write_table(table.cast(full))
        elif suffix in _CSV:
            guarded = guard_table(schema.empty_table()).schema
            for field in guarded:
                if pa.types.is_nested(field.type):
                    raise StorageError(
                        f"{uri}: CSV cannot hold column {field.name} ({field.type})."
                    )
            compression = "gzip" if suffix == ".csv.gz" else None
            with (
                pa.output_stream(path, compression=compression) as sink,
                pcsv.CSVWriter(sink, guarded) as csv,
            ):
                yield lambda table: csv.write_table(guard_table(table.cast(schema)))
        else:
            pieces = [schema.empty_table()]
            yield lambda table: pieces.append(table.cast(schema))
            _write_fits(path, pa.concat_tables(pieces), facts, uri)


# ------------------------------------------------------------------------------------ FITS


def _write_fits(path: Path, table: pa.Table, facts: str, uri: Uri) -> None:
    from astropy.io import fits

    try:
        columns = [
            fits.Column(name, **_fits_values(name, table[name])) for name in table.column_names
        ]
        said = fits.Column("json", f"{len(facts)}A", array=np.array([facts.encode("ascii")]))
        name = METADATA_KEY.decode().upper()
        fits.HDUList([
            fits.PrimaryHDU(),
            fits.BinTableHDU.from_columns(columns, name="TABLE"),
            fits.BinTableHDU.from_columns([said], name=name),
        ]).writeto(path)  # fmt: skip
    except (ValueError, fits.VerifyError, pa.ArrowException) as error:
        first = str(error).splitlines()[0]
        raise StorageError(f"{uri}: FITS cannot hold this table: {first} Write parquet.") from error


def _fits_values(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    """Arguments of a `fits.Column`. Text is ASCII, and null text is empty."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_boolean(kind) and column.null_count:
        column, kind = column.cast(pa.int8()), pa.int8()
    if pa.types.is_fixed_size_list(kind):
        code = _FITS_NUMBERS.get(str(kind.value_type))
        if code is None or column.null_count:
            raise ValueError(f"column {name} holds {kind}, or nulls.")
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = flat.reshape(len(column), kind.list_size)
        return {"format": f"{kind.list_size}{code}", "array": vectors}
    code = _FITS_NUMBERS.get(str(kind))
    if code is None:
        cells = [_escape(text or "") for text in column.cast(pa.string()).to_pylist()]
        width = max((len(cell) for cell in cells), default=0) or 1
        return {"format": f"{width}A", "array": np.array(cells, f"S{width}")}
    null = _NULLS.get(code) if column.null_count else None
    if null is not None:
        column = column.cast(pa.int64())
        if pc.any(pc.equal(column, null)).as_py():
            raise ValueError(f"column {name} has nulls, and {null}, which stands for them.")
        column = column.fill_null(null)
    return {"format": code, "array": column.to_numpy(), "null": null}


def _escape(text: str) -> bytes:
    """Text in ASCII; trailing blanks, which FITS does not keep, are escaped too."""
    cell = text.encode("unicode_escape")
    bare = cell.rstrip(b" ")
    return bare + rb"\x20" * (len(cell) - len(bare))

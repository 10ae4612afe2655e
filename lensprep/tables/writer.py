"""Write tables: parquet, CSV, FITS or VOTable, by the suffix, on a disk or in a store.

    check_table("s3://bucket/scores.fits")             before the work
    with table_writer(uri, schema, facts) as write:    write(table), piece by piece
    write_table(uri, table, facts, origin)             at once

`lensprep.tables.reader` reads them. What made a table is recorded as JSON in the metadata of
parquet, in FITS and in VOTables; CSV has no room for it. FITS and VOTables
(`lensprep.tables.archive`) also say what each column is, and whose the table is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from lensprep.errors import StorageError, error_line
from lensprep.store import S3Options, Uri, check_file, uri_suffix, written_file
from lensprep.tables.archive import Origin, data_origin, write_archive
from lensprep.tables.csvtext import guard_table
from lensprep.tables.formats import METADATA_KEY

TABLE_SUFFIXES: Final = (
    ".parquet", ".csv", ".csv.gz", ".fits", ".vot", ".votable", ".xml",
)  # fmt: skip

_CSV: Final = (".csv", ".csv.gz")


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
        raise StorageError(
            f"{uri}: CSV has no vectors (embeddings). Write .parquet, .fits or .vot."
        )
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
    origin: Origin | None = None,
) -> Iterator[Callable[[pa.Table], None]]:
    """Write a table piece by piece; it appears whole or not at all, in place of an older one.

    For FITS and VOTables all pieces are held in memory until the end.

    Parameters
    ----------
    uri : str or path
    schema : pyarrow.Schema
        Every piece is cast to it.
    metadata : mapping
        What made the table, in plain types.
    options : S3Options, optional
        How to reach an object store.
    origin : mapping, optional
        Whose the table is, for FITS and VOTables: text, or several, by terms of Data Origin such
        as ``publisher``, ``creator``, ``rights``, ``citation``. Software, dataset and checkpoint
        are known from the metadata (`lensprep.tables.archive.data_origin`).

    Raises
    ------
    StorageError
        If the location or format cannot be written, or the format cannot hold the schema.
    """
    suffix, facts = _written_suffix(uri), json.dumps(metadata)
    said = data_origin(metadata, origin)
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
            try:
                write_archive(path, suffix, pa.concat_tables(pieces), facts, said)
            except (ValueError, pa.ArrowException) as error:
                kind = "FITS" if suffix == ".fits" else "VOTable"
                raise StorageError(
                    f"{uri}: {kind} cannot hold this table: {error_line(error)}. Write parquet."
                ) from error


def write_table(
    uri: Uri, table: pa.Table, metadata: Mapping[str, Any], origin: Origin | None = None
) -> None:
    """Write a whole table at once, as `table_writer` does.

    Parameters
    ----------
    uri : str or path
    table : pyarrow.Table
    metadata : mapping
        What made the table, in plain types.
    origin : mapping, optional
        Whose it is.

    Raises
    ------
    StorageError
        If the location or format cannot be written, or the format cannot hold the table.
    """
    with table_writer(uri, table.schema.remove_metadata(), metadata, origin=origin) as write:
        write(table)

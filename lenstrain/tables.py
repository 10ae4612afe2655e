"""Tables that a user names: parquet, CSV or FITS, on a disk or in a store; the suffix decides.

    check_table("s3://bucket/scores.fits")             before the work
    with table_writer(uri, schema, facts) as write:    write(table), piece by piece
    found = read_table(uri, ["key", "logit"])          found.table, .metadata, .sha256

FITS holds ASCII: text is written with Python's escapes (backslash-u00e9), and undone. What made a
table is JSON in the metadata of parquet, and in a second extension of FITS; CSV says nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset.csvtext import guard_table, read_csv
from lensprep.dataset.files import check_file, local_file, uri_suffix, written_file
from lensprep.dataset.sky import UNIT
from lensprep.errors import ScoresError, StorageError

METADATA_KEY: Final = b"lenstrain"
"""Key of parquet's metadata, and name of FITS's extension, that say what made a table."""
TABLE_SUFFIXES: Final = (".parquet", ".csv", ".csv.gz", ".fits")

Uri = str | PathLike[str]
_CSV: Final = (".csv", ".csv.gz")
_FITS: Final = (".fits", ".fits.gz", ".fit")
_FITS_NUMBERS: Final = {"int8": "I", "uint8": "I", "int16": "I", "uint16": "J", "int32": "J",
                        "uint32": "K", "int64": "K", "halffloat": "E", "float": "E",
                        "double": "D", "bool": "L"}  # fmt: skip
_NULLS: Final = {"I": -(2**15), "J": -(2**31), "K": -(2**63)}
"""What stands for null."""


class TableFile(NamedTuple):
    """A table as it was read."""

    table: pa.Table
    metadata: dict[str, Any]
    """What `table_writer` was told; {} of CSV and of foreign tables."""
    sha256: str
    """Digest of the file."""


def check_table(uri: Uri, *, vectors: bool = False) -> None:
    """Refuse a place or a format before the work.

    Parameters
    ----------
    uri : str or path
    vectors : bool
        The table will have columns of vectors.

    Raises
    ------
    StorageError
        If the suffix names no format, the format has no vectors, or nothing can be written there.
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
    uri: Uri, schema: pa.Schema, metadata: Mapping[str, Any]
) -> Iterator[Callable[[pa.Table], None]]:
    """Write a table piece by piece; it appears whole or not at all, in place of an older one.

    Of FITS all pieces are held in memory until the end.

    Parameters
    ----------
    uri : str or path
    schema : pyarrow.Schema
        Every piece is cast to it.
    metadata : mapping
        What made the table, in plain types.

    Raises
    ------
    StorageError
        If the place, the format or the schema will not do.
    """
    suffix, facts = _written_suffix(uri), json.dumps(metadata)
    with written_file(uri) as path:
        if suffix == ".parquet":
            full = schema.with_metadata({METADATA_KEY: facts})
            with pq.ParquetWriter(path, full, compression="zstd") as parquet:
                yield lambda table: parquet.write_table(table.cast(full))
        elif suffix in _CSV:
            guarded = guard_table(schema.empty_table()).schema
            _require_flat(guarded, uri)
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


def read_table(
    uri: Uri, columns: Sequence[str] | None = None, text: Sequence[str] = ()
) -> TableFile:
    """Read a table, parquet unless its suffix says CSV or FITS.

    Parameters
    ----------
    uri : str or path
    columns : sequence of str, optional
        Those of these that are there, which must hold plain values; by default all, as they are.
    text : sequence of str
        Columns of CSV that are text, whatever they look like.

    Raises
    ------
    NotFoundError
        If there is no such file.
    ScoresError
        If it cannot be read, or a column that was asked for holds lists and the like.
    """
    suffix = uri_suffix(uri)
    with local_file(uri) as path:
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if suffix in _FITS:
                table, raw = _read_fits(path, columns)
            elif suffix in _CSV:
                table, raw = read_csv(path, text), b"{}"
                table = table.select(_present(table.column_names, columns))
            else:
                parquet = pq.ParquetFile(path)
                schema = parquet.schema_arrow
                table = parquet.read(columns=_present(schema.names, columns))
                table.validate(full=True)  # or text that is not UTF-8 would end whoever shows it
                raw = (schema.metadata or {}).get(METADATA_KEY, b"{}")
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ScoresError(
                f"{uri} is no table that can be read (parquet, or by its suffix CSV or FITS): "
                f"{first}"
            ) from error
    if columns is not None:
        table = _plain(table, uri)
    return TableFile(table, _facts(raw), sha256)


def read_vectors(uri: Uri, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Some rows of a column of vectors, without holding the others of parquet.

    Parameters
    ----------
    uri : str or path
    name : str
    rows : ndarray of int, shape (n,)
        Ascending.

    Returns
    -------
    ndarray of float64, shape (n, width), or None
        None if the table has no such column; CSV has none.

    Raises
    ------
    ScoresError
        If the table cannot be read, is shorter, or the column holds something else.
    """
    suffix = uri_suffix(uri)
    if suffix in _CSV:
        return None
    with local_file(uri) as path:
        try:
            if suffix in _FITS:
                whole = _read_fits(path, [name])[0]
                pieces: Iterable[pa.RecordBatch] = whole.to_batches()
            else:
                parquet = pq.ParquetFile(path)
                known = name in parquet.schema_arrow.names
                pieces = parquet.iter_batches(columns=[name]) if known else ()
            parts, start = [], 0
            for piece in pieces:
                first, last = np.searchsorted(rows, [start, start + piece.num_rows])
                if last > first:
                    parts.append(_matrix(piece.column(0).take(pa.array(rows[first:last] - start))))
                start += piece.num_rows
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ScoresError(f"{uri}: vectors of {name} cannot be read: {first_line}") from error
    found = np.concatenate(parts) if parts else None
    if found is not None and len(found) != len(rows):
        raise ScoresError(f"{uri} has {len(found)} of {len(rows)} rows of {name}.")
    return found


def _matrix(vectors: pa.Array) -> NDArray[np.float64]:
    """Vectors of one width as rows."""
    if vectors.null_count:
        raise ValueError("a vector is null.")
    lengths = np.unique(pc.list_value_length(vectors).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError("they differ in width.")
    flat = vectors.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(vectors), -1))


def to_floats(column: pa.ChunkedArray, name: str, uri: Uri) -> NDArray[np.float64]:
    """Numbers as float64, NaN for null.

    Raises
    ------
    ScoresError
        If the column holds something else.
    """
    kind = column.type
    try:
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())
        floats = column.cast(pa.float64())
    except pa.ArrowException:
        raise ScoresError(f"{uri}: column {name} holds {kind!s:.60}, not numbers.") from None
    return np.asarray(floats.to_numpy(), dtype=np.float64)


_RANKED: Final = (
    pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating,
    pa.types.is_decimal128, pa.types.is_decimal256, pa.types.is_date, pa.types.is_timestamp,
    pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary,
)  # fmt: skip
"""Types of values that Arrow counts and ranks; of float16 it does neither."""


def _plain(table: pa.Table, uri: Uri) -> pa.Table:
    """Columns of types that Arrow counts and ranks, and no dictionaries."""
    for place, (name, kind) in enumerate(zip(table.column_names, table.schema.types, strict=True)):
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        plain = pa.float32() if pa.types.is_float16(value) else value
        if not any(is_kind(plain) for is_kind in _RANKED):
            raise ScoresError(f"{uri}: column {name} holds {kind!s:.60}, not plain values.")
        if plain != kind:
            table = table.set_column(place, name, table[name].cast(value).cast(plain))
    return table


def _present(names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    wanted = list(names) if columns is None else [name for name in columns if name in names]
    for name in wanted:
        if names.count(name) > 1:
            raise ValueError(f"it has the column {name!r} more than once. Remove the others.")
    return wanted


def _facts(raw: bytes | str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _require_flat(schema: pa.Schema, uri: Uri) -> None:
    for field in schema:
        if pa.types.is_nested(field.type):
            raise StorageError(f"{uri}: CSV cannot hold column {field.name} ({field.type}).")


# ------------------------------------------------------------------------------------ FITS


def _write_fits(path: Path, table: pa.Table, facts: str, uri: Uri) -> None:
    from astropy.io import fits

    try:
        columns = [_fits_column(name, table[name]) for name in table.column_names]
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


def _fits_column(name: str, column: pa.ChunkedArray) -> Any:
    from astropy.io import fits

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
        return fits.Column(name, f"{kind.list_size}{code}", array=vectors)
    code = _FITS_NUMBERS.get(str(kind))
    if code is None:
        return _fits_text(name, column.cast(pa.string()))
    null = _NULLS.get(code) if column.null_count else None
    if null is not None:
        column = column.cast(pa.int64())
        if pc.any(pc.equal(column, null)).as_py():
            raise ValueError(f"column {name} has nulls, and {null}, which stands for them.")
        column = column.fill_null(null)
    return fits.Column(name, code, array=column.to_numpy(), null=null)


def _fits_text(name: str, column: pa.ChunkedArray) -> Any:
    """Text in ASCII; trailing blanks, which FITS does not keep, are escaped too. Null is empty."""
    from astropy.io import fits

    cells = [_escape(text or "") for text in column.to_pylist()]
    width = max((len(cell) for cell in cells), default=0) or 1
    return fits.Column(name, f"{width}A", array=np.array(cells, f"S{width}"))


def _escape(text: str) -> bytes:
    cell = text.encode("unicode_escape")
    bare = cell.rstrip(b" ")
    return bare + rb"\x20" * (len(cell) - len(bare))


def _read_fits(path: Path, columns: Sequence[str] | None) -> tuple[pa.Table, bytes]:
    """The first table of a file, and what is said of it; text of others than ours is no escapes."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of units and names that others write
        with fits.open(path, memmap=False, character_as_bytes=True) as hdus:
            name = METADATA_KEY.decode().upper()
            ours = name in hdus
            raw = bytes(hdus[name].data["json"][0]) if ours else b"{}"
            tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
            if not tables:
                raise ValueError("it holds no table.")
            found = tables[0]
            names = _present(found.columns.names, columns)
            arrays = [_from_fits(found, each, ours) for each in names]
            units = [{UNIT: str(found.columns[each].unit or "")} for each in names]
    fields = [pa.field(name, array.type, metadata=unit)
              for name, array, unit in zip(names, arrays, units, strict=True)]  # fmt: skip
    return pa.table(arrays, schema=pa.schema(fields)), raw


def _from_fits(hdu: Any, name: str, ours: bool) -> pa.Array:
    values: NDArray[Any] = np.asarray(hdu.data[name])
    if values.dtype.kind == "S":
        code = "unicode_escape" if ours else "ascii"
        texts = [cell.rstrip().decode(code, "strict" if ours else "replace") for cell in values]
        return pa.array([text or None for text in texts], pa.string())
    values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim > 1:
        flat = pa.array(values.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    null = hdu.columns[name].null
    mask = None if null is None else values == null
    return pa.array(values, mask=mask, from_pandas=values.dtype.kind == "f")  # NaN is its null

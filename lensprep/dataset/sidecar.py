"""The sidecar's schema and rows: what every reader may rely on, checked when one is opened.

A sidecar may come from anybody. Before a row is read, its footer is compared with the manifest and
its unpacked size with the size of its tar; types and values are checked before they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset import layout
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.errors import DatasetError, ShardError, error_line, names_text, passing_fault

REQUIRED: Final = ("key", "label", "region_id", "payload_crc32")
"""Columns that every sidecar has, without nulls."""

_RANGES: Final = {"label": (0, 1), "payload_crc32": (0, 2**32 - 1)}
_SLACK_BYTES: Final = 1 << 20
"""By how much the unpacked sidecar of a few rows may exceed their tar."""
_MOST_ENTRIES: Final = 10_000
"""Columns, or row groups, of a footer; this also bounds how deeply a schema can be nested."""
_TOO_LARGE: Final = "would unpack to more bytes than the tar that it describes"


def open_sidecar(
    source: Any, rows: int, where: str, geometry: Geometry = DECALS, **options: Any
) -> pq.ParquetFile:
    """Open a sidecar; only its footer is read.

    Parameters
    ----------
    source : path or file object
    rows : int
        What the manifest states.
    where : str
        Path or URI for messages.
    geometry : Geometry
        Of the stamps that it describes.
    **options
        Of `pyarrow.parquet.ParquetFile`.

    Raises
    ------
    ShardError
        If it cannot be read, has another number of rows, lacks a column, or has one twice or of
        the wrong type.
    """
    try:
        file = pq.ParquetFile(source, thrift_container_size_limit=_MOST_ENTRIES, **options)
        names, types = file.schema_arrow.names, _types(file)
        problem = _footer_problem(file.metadata, rows, geometry)
        if not problem and len(types) < len(names):
            twice = next(name for name in types if names.count(name) > 1)
            problem = f"has the column {twice!r:.60} twice"
        problem = problem or _types_problem(types, rows, geometry)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(where, error) from error
    if problem:
        raise ShardError(f"{where} {problem}. Copy it again, or convert again.")
    return file


def _types(file: pq.ParquetFile) -> dict[str, pa.DataType]:
    return dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))


def read_table(
    source: Any,
    rows: int,
    columns: Sequence[str] | None,
    where: str,
    geometry: Geometry = DECALS,
    **options: Any,
) -> pa.Table:
    """Rows of a sidecar, in tar order.

    Parameters
    ----------
    source, rows, where, geometry, **options
        As of `open_sidecar`.
    columns : sequence of str, optional
        All that are not nested, if not given.

    Raises
    ------
    ShardError
        As `open_sidecar`; if it would unpack to more than its tar; if text is not UTF-8; or if a
        required column holds a null or a value out of range.
    DatasetError
        If a requested column is not there.
    """
    file = open_sidecar(source, rows, where, geometry, **options)
    types = _types(file)
    if columns is None:
        names = [name for name, kind in types.items() if not pa.types.is_nested(kind)]
    else:
        names = list(columns)
        for name in names:
            if name not in types:
                raise DatasetError(
                    f"{where} has no column {name!r}; it has: {names_text(types, name)}."
                )
    texts = [name for name in names if _is_text(types[name]) or _is_bytes(types[name])]
    try:
        if texts:
            # A file may hold a value once for all of its rows: read as a dictionary it stays one.
            file = pq.ParquetFile(
                source,
                metadata=file.metadata,
                read_dictionary=texts,
                thrift_container_size_limit=_MOST_ENTRIES,
                **options,
            )
        # Reading a few columns costs less than starting threads: half the time for one.
        table = file.read(columns=names, use_threads=columns is None).select(names)
        if sum(_text_bytes(table[name]) for name in texts) > _most_bytes(rows, geometry):
            raise ShardError(f"{where} {_TOO_LARGE}. Copy it again, or convert again.")
        for name in texts:
            position = table.schema.get_field_index(name)
            table = table.set_column(position, name, table[name].cast(_plain(types[name])))
        table.validate(full=bool(texts))
        problem = _values_problem(table)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(where, error) from error
    if problem or table.num_rows != rows:
        problem = problem or f"gives {table.num_rows} rows where its footer states {rows}"
        raise ShardError(f"{where} {problem}. Copy it again, or convert again.")
    return table


def is_counterfactual(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows are counterfactuals, shape (rows,); none where no column says so.

    Parameters
    ----------
    table : pyarrow.Table
        Of a sidecar or of scores. In CSV and FITS empty text stands for null.
    """
    if layout.COUNTERFACTUAL not in table.column_names:
        return np.zeros(table.num_rows, np.bool_)
    kind = table[layout.COUNTERFACTUAL].cast(pa.string())
    return np.asarray(pc.fill_null(pc.not_equal(kind, ""), False).to_numpy(), np.bool_)


def read_origins(table: pa.Table) -> pa.ChunkedArray:
    """Where each row comes from, text; `SIMULATED` where no column says so.

    Parameters
    ----------
    table : pyarrow.Table
        As of `is_counterfactual`.
    """
    if layout.ORIGIN not in table.column_names:
        return pa.chunked_array([pa.repeat(layout.SIMULATED, table.num_rows)])
    stated = table[layout.ORIGIN].cast(pa.string())
    known = pc.fill_null(pc.not_equal(stated, ""), False)
    return pc.if_else(known, stated, layout.SIMULATED)


def read_statistics(
    table: pa.Table, geometry: Geometry = DECALS
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Median and scale of each band, in units of flux, shapes (rows, bands); NaN for null.

    Raises
    ------
    DatasetError
        If the rows lack them.
    """
    names = geometry.band_columns("median", "scale")
    if not {*names} <= {*table.column_names}:
        raise DatasetError(
            "the sidecar has no median_* and scale_*: flux cannot be restored. Convert again."
        )
    columns = [table[name].cast(pa.float64(), safe=False).to_numpy() for name in names]
    values = np.stack(columns, axis=1).astype(np.float32)
    return values[:, : len(geometry.bands)], values[:, len(geometry.bands) :]


def count_kinds(table: pa.Table, column: str = layout.COUNTERFACTUAL) -> dict[str, int]:
    """Rows by kind, in alphabetical order, of those that have one; empty without any."""
    if column not in table.column_names:
        return {}
    counts = pc.value_counts(table[column].cast(pa.string()).drop_null()).to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counts, key=lambda c: str(c["values"]))}


def join_tables(tables: Iterable[pa.Table], where: str, **options: Any) -> pa.Table:
    """Rows of several sidecars; DatasetError if their columns or types differ.

    Parameters
    ----------
    tables : iterable of pyarrow.Table
        At least one.
    where : str
        What they are, for messages.
    **options
        Of `pyarrow.concat_tables`.
    """
    found = list(tables)
    try:
        return pa.concat_tables(found, **options)
    except pa.ArrowException as error:
        first = dict(zip(found[0].column_names, found[0].schema.types, strict=True))
        for table in found[1:]:
            other = dict(zip(table.column_names, table.schema.types, strict=True))
            for name in [*first, *other]:
                if (one := first.get(name)) != (two := other.get(name)):
                    raise DatasetError(
                        f"{where} do not agree: column {name!r:.60} is {one!s:.60} in one and "
                        f"{two!s:.60} in another. Convert again."
                    ) from error
        raise DatasetError(
            f"{where} have their columns in another order. Convert again."
        ) from error


def unreadable(where: str, error: BaseException) -> ShardError:
    """The error of a file of a dataset that cannot be read, in one line."""
    if fault := passing_fault(where, error):
        return ShardError(str(fault))
    text = error_line(error)
    return ShardError(f"{where} cannot be read: {text}. Copy it again, or convert again.")


def _most_bytes(rows: int, geometry: Geometry) -> int:
    return rows * geometry.stride + _SLACK_BYTES


def _footer_problem(footer: pq.FileMetaData, rows: int, geometry: Geometry) -> str:
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    for found in (footer.num_rows, sum(group.num_rows for group in groups)):
        if found != rows:
            return f"has {found} rows where the manifest states {rows}"
    if sum(group.total_byte_size for group in groups) > _most_bytes(rows, geometry):
        return _TOO_LARGE
    return ""


def _types_problem(types: Mapping[str, pa.DataType], rows: int, geometry: Geometry) -> str:
    for name in REQUIRED:
        if name not in types:
            return f"has no column {name!r}"
    numbers = (*geometry.band_columns(*layout.BAND_NUMBERS), *geometry.colour_columns)
    for kind, columns, holds in (
        ("text", layout.TEXTS, _is_text),
        ("whole numbers", layout.WHOLE_NUMBERS, pa.types.is_integer),
        ("numbers", (*layout.NUMBERS, *numbers), _is_number),
    ):
        for name in columns:
            found = types.get(name)
            if found is None or holds(found) or (pa.types.is_null(found) and name not in REQUIRED):
                continue
            return f"has {found!s:.60} in column {name!r}, not {kind}"
    wide = sum(kind.byte_width for kind in types.values() if pa.types.is_fixed_size_binary(kind))
    return _TOO_LARGE if wide * rows > _most_bytes(rows, geometry) else ""


def _plain(found: pa.DataType) -> pa.DataType:
    """The type of the values; Arrow can neither count nor take those of a view."""
    if pa.types.is_dictionary(found):
        return _plain(found.value_type)
    if pa.types.is_string_view(found):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(found) else found


def _is_text(found: pa.DataType) -> bool:
    kind = _plain(found)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(found: pa.DataType) -> bool:
    kind = _plain(found)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_number(found: pa.DataType) -> bool:
    return bool(pa.types.is_floating(found) or pa.types.is_integer(found))


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of dictionary-encoded text once every row has its own copy."""
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(part.cast(pa.int64())).as_py() or 0 for part in lengths)


def _values_problem(table: pa.Table) -> str:
    for name in {*REQUIRED} & {*table.column_names}:
        if table[name].null_count:
            return f"has nulls in column {name!r}"
    for name, (low, high) in _RANGES.items():
        if name in table.column_names and table.num_rows:
            found = pc.min_max(table[name]).as_py()
            if found["min"] < low or found["max"] > high:
                return (
                    f"has {found['min']} to {found['max']} in column {name!r}, not {low} to {high}"
                )
    return ""

"""A Phase 4c source: a tree of parquet files -> row groups of one schema, with their split.

    source = Source.open(uri, skip_bad_files=False, progress=None)
    source.files        SourceFile(path, bytes, rows, row_groups, split, columns), sorted by path
    source.schema       one schema for all files: contract columns first, then extra ones
    source.rows         rows of all files;  source.bad_files, source.digest()
    source.read_row_group(file, i, columns=None)      -> pyarrow.Table in that schema
    source.iter_row_group(file, i, batch_rows=1024)   -> the same in pieces of bounded memory
    source.iter_file(file, columns, batch_rows=8192)  -> a whole file in such pieces

Opening reads footers only (in threads, for thousands of files) and checks every one of them
against the contract. Hidden files and ``_SUCCESS`` are passed over. The split comes from the folder
(``region_split=train``), from the column, or from both if they agree. Columns that a file lacks are
null, types are those of the contract whatever the file stores, and the order of files depends on
their names alone. A Source can be pickled; workers need no second look at the tree.

Everything goes through a `pyarrow.fs.FileSystem`, so that another store is another file system.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lensprep.contract import (
    COLUMN_BY_NAME,
    COLUMNS,
    SPLIT_COLUMN,
    STAMP_COLUMN,
    schema_faults,
)
from lensprep.dataset.layout import MEASURED_COLUMNS, SOURCE_COLUMNS, SPLITS
from lensprep.errors import InputError, SchemaError
from lensprep.listing import list_parquet, locate, open_parquet, relative

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""

_log = logging.getLogger("lensprep.source")

_THREADS: Final = 16
_TAKEN: Final = frozenset((*MEASURED_COLUMNS, *SOURCE_COLUMNS, "place"))
"""Names that conversion gives to columns of its own."""
_PREFIX: Final = "phase4c_"
"""Put before an extra column's name if conversion has a column of that name itself."""
_LEAVE_OUT: Final = "Copy the file again, or leave it out with --skip-bad-files."
_UNREADABLE: Final = (OSError, pa.ArrowException, ValueError)
"""What pyarrow raises for files that are cut, altered or not parquet at all."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group of a file."""

    rows: int
    bytes: int
    """Uncompressed size; blobs hardly compress, so about the size in the file too."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One parquet file that can be read."""

    path: str
    """Relative to the source, with ``/``."""
    bytes: int
    rows: int
    row_groups: tuple[RowGroup, ...]
    split: str | None
    """The split of all its rows, from folder or column; None if its rows differ."""
    columns: tuple[str, ...]
    """Columns in the file itself, under the names of `Source.schema`."""
    hive_split: str | None = None
    """The split that the folder states, if it does."""
    version: str | None = None
    """ETag of an object when its footer was read: it is read again only as that version."""

    @property
    def filled(self) -> list[tuple[int, RowGroup]]:
        """Row groups that have rows, with their numbers: the others are no work for anybody."""
        return [(number, group) for number, group in enumerate(self.row_groups) if group.rows]


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that was skipped: its footer cannot be read, so its number of rows is unknown."""

    path: str
    bytes: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An opened source; make one with `Source.open`."""

    uri: str
    """As the user gave it."""
    files: tuple[SourceFile, ...]
    schema: pa.Schema
    bad_files: tuple[BadFile, ...] = ()
    filesystem: pafs.FileSystem = field(repr=False)
    root: str = field(repr=False)
    """Path of the folder that `SourceFile.path` is relative to, in ``filesystem``."""

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        skip_bad_files: bool = False,
        progress: Progress | None = None,
        filesystem: pafs.FileSystem | None = None,
    ) -> Source:
        """List a tree (or take one file), read every footer and check it.

        Parameters
        ----------
        uri : str or path
            Folder or parquet file.
        skip_bad_files : bool
            List files whose footer cannot be read in ``bad_files`` instead of stopping. A file
            that can be read but breaks the contract is an error all the same.
        progress : callable, optional
            Called with (footers read, files).
        filesystem : pyarrow.fs.FileSystem, optional
            Where ``uri`` lies; the local disk if not given.

        Raises
        ------
        InputError
            No such path, no parquet in it, or a file that cannot be read.
        SchemaError
            A required column is missing or has another type; the split is unknown or given twice
            and not the same. The message names column and file.
        StorageError
            The location has a scheme that needs a file system that was not given.
        """
        filesystem, path = locate(uri, filesystem)
        root, infos = list_parquet(filesystem, path, str(uri))
        results = _read_footers(filesystem, root, infos, progress)
        bad = tuple(result for result in results if isinstance(result, BadFile))
        good = [result for result in results if isinstance(result, _Footer)]
        if bad and (not skip_bad_files or not good):
            raise _bad_file_error(bad, len(results))
        _check_schemas(good)
        return cls(
            uri=str(uri),
            files=tuple(footer.file for footer in good),
            schema=_unified_schema(good),
            bad_files=bad,
            filesystem=filesystem,
            root=root,
        )

    @property
    def is_remote(self) -> bool:
        """Whether what is read comes over a network, which may alter it."""
        return not isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def rows(self) -> int:
        """Rows of all files that can be read."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Size of all files that can be read."""
        return sum(file.bytes for file in self.files)

    def digest(self) -> str:
        """SHA-256 over the listing: paths, sizes and rows of each row group, and skipped files."""
        listing = hashlib.sha256()
        for file in self.files:
            groups = ",".join(str(group.rows) for group in file.row_groups)
            listing.update(f"{file.path}\t{file.bytes}\t{groups}\n".encode())
        for bad in self.bad_files:
            listing.update(f"{bad.path}\t{bad.bytes}\tbad\n".encode())
        return listing.hexdigest()

    def read_row_group(
        self, file: SourceFile, index: int, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Rows of one row group.

        Parameters
        ----------
        file : SourceFile
            One of ``files``.
        index : int
            Number of the row group in the file.
        columns : sequence of str, optional
            Columns to read; all of ``schema`` if not given.

        Returns
        -------
        pyarrow.Table
            Columns in the order of ``schema`` and with its types; ``region_split`` is filled in,
            columns that the file lacks are null.

        Raises
        ------
        InputError
            If the row group is corrupt; the message names file and row group.
        SchemaError
            If ``columns`` has an unknown name, or a value does not fit the contract's type.
        """
        return pa.concat_tables(
            self.iter_row_group(file, index, columns, batch_rows=max(1, file.rows))
        )

    def iter_row_group(
        self,
        file: SourceFile,
        index: int,
        columns: Sequence[str] | None = None,
        *,
        batch_rows: int = 1024,
        careful: bool = False,
        on_again: Callable[[], object] | None = None,
    ) -> Iterator[pa.Table]:
        """Rows of one row group in pieces of at most ``batch_rows`` rows; see `read_row_group`.

        At least one table comes, an empty one if the row group has no rows. What cannot be read
        over a network is read again, carefully, before it is an error.

        Parameters
        ----------
        file : SourceFile
        index : int
        columns : sequence of str, optional
        batch_rows : int
        careful : bool
            Leave nothing that comes over plain HTTP to the stamps' own checksums.
        on_again : callable, optional
            Called when the row group is read again.
        """
        where = f"{file.path}, row group {index}"
        yield from self._pieces(file, (index,), columns, batch_rows, where, careful, on_again)

    def iter_file(
        self,
        file: SourceFile,
        columns: Sequence[str] | None = None,
        *,
        batch_rows: int = 8192,
    ) -> Iterator[pa.Table]:
        """Rows of a whole file, across its row groups, in pieces; see `iter_row_group`.

        Faster than one row group after the other where these are small; an error names only the
        file.
        """
        groups = tuple(range(len(file.row_groups)))
        yield from self._pieces(file, groups, columns, batch_rows, file.path)

    def _pieces(
        self,
        file: SourceFile,
        groups: tuple[int, ...],
        columns: Sequence[str] | None,
        batch_rows: int,
        where: str,
        careful: bool = False,
        on_again: Callable[[], object] | None = None,
    ) -> Iterator[pa.Table]:
        read = partial(self._read, file, groups, columns, batch_rows, where)
        given = seen = 0
        if self.is_remote and not careful:
            try:
                for table in read(careful=False):
                    given += table.num_rows
                    yield table
                return
            except InputError as error:
                _log.warning("%s Reading it again.", str(error).removesuffix(_LEAVE_OUT).strip())
            if on_again is not None:
                on_again()
        for table in read(careful=True):
            seen += table.num_rows
            if seen > given or not table.num_rows:
                yield table.slice(max(0, table.num_rows - (seen - given)))

    def _read(
        self,
        file: SourceFile,
        groups: tuple[int, ...],
        columns: Sequence[str] | None,
        batch_rows: int,
        where: str,
        *,
        careful: bool,
    ) -> Iterator[pa.Table]:
        schema = self._selected(columns)
        stored = [name for name in schema.names if name in file.columns]
        rows, stated = 0, sum(file.row_groups[index].rows for index in groups)
        try:
            # Stamps have checksums inside: they need not be read twice over plain HTTP.
            checked = stored == [STAMP_COLUMN] and not careful
            with self._open(file, STAMP_COLUMN in stored, checked) as parquet:
                have = set(parquet.schema_arrow.names)
                batches = parquet.iter_batches(
                    batch_rows,
                    row_groups=list(groups),
                    # A narrow column gives the number of rows where nothing else is read.
                    columns=[_stored_name(name, have) for name in stored] or ["region_id"],
                    use_threads=False,
                )
                for batch in batches:
                    rows += batch.num_rows
                    yield _conform(pa.Table.from_batches([batch]), schema, file, where)
        except _UNREADABLE as error:
            raise InputError(
                f"{where} cannot be read: {_first_line(error)}. {_LEAVE_OUT}"
            ) from error
        if rows != stated:
            raise InputError(
                f"{where} has {rows} rows where its footer states {stated}. {_LEAVE_OUT}"
            )
        if not rows:
            yield schema.empty_table()

    def _selected(self, columns: Sequence[str] | None) -> pa.Schema:
        if columns is None:
            return self.schema
        wanted, known = set(columns), self.schema.names
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise SchemaError(
                f"{self.uri} has no column {unknown[0]!r}; it has: {', '.join(known)}."
            )
        return pa.schema([f for f in self.schema if f.name in wanted])

    def _open(self, file: SourceFile, stream: bool, checked: bool) -> pq.ParquetFile:
        path = f"{self.root}/{file.path}"
        return open_parquet(
            self.filesystem, path, stream=stream, version=file.version, checked=checked
        )[0]


@dataclass(frozen=True, slots=True)
class _Footer:
    """What the footer of one file says."""

    file: SourceFile
    schema: pa.Schema
    split_problem: str | None
    """Why the split of the rows is in doubt."""


def _read_footers(
    filesystem: pafs.FileSystem,
    root: str,
    infos: Sequence[pafs.FileInfo],
    progress: Progress | None,
) -> list[_Footer | BadFile]:
    """Read all footers in threads; the answers come in the order of the files."""
    results: list[_Footer | BadFile] = []
    with ThreadPoolExecutor(min(_THREADS, len(infos))) as pool:
        for result in pool.map(lambda info: _read_footer(filesystem, root, info), infos):
            results.append(result)
            if progress is not None:
                progress(len(results), len(infos))
    return results


def _read_footer(
    filesystem: pafs.FileSystem, root: str, info: pafs.FileInfo, again: bool = False
) -> _Footer | BadFile:
    name = relative(info.path, root)
    try:
        parquet, version = open_parquet(filesystem, info.path, stream=False)
        with parquet:
            metadata, schema = parquet.metadata, parquet.schema_arrow
            groups = tuple(
                RowGroup(group.num_rows, group.total_byte_size)
                for group in map(metadata.row_group, range(metadata.num_row_groups))
            )
            hive = _hive_split(info.path)
            split, problem = _split_of(parquet, hive)
    except _UNREADABLE as error:
        if not (again or isinstance(filesystem, pafs.LocalFileSystem)):
            return _read_footer(filesystem, root, info, again=True)
        return BadFile(name, info.size, _first_line(error))
    columns = tuple(_public_name(column) for column in schema.names)
    rows = sum(group.rows for group in groups)
    file = SourceFile(name, info.size, rows, groups, split, columns, hive, version)
    return _Footer(file, schema, problem)


def _hive_split(path: str) -> str | None:
    """Split that a folder states as ``region_split=train``; the innermost one counts."""
    for part in reversed(PurePosixPath(path).parts[:-1]):
        name, equals, value = part.partition("=")
        if equals and name == SPLIT_COLUMN:
            return unquote(value)
    return None


def _split_of(parquet: pq.ParquetFile, hive: str | None) -> tuple[str | None, str | None]:
    """Split of a file's rows if they have one, and what is wrong with it if something is."""
    if hive is not None and hive not in SPLITS:
        return None, f"the folder states region_split={hive}; known are {', '.join(SPLITS)}"
    if SPLIT_COLUMN not in parquet.schema_arrow.names:
        return hive, None
    if not pa.types.is_nested(parquet.schema_arrow.field(SPLIT_COLUMN).type):
        values = _split_values(parquet)
        if hive is None:
            return (values.pop() if len(values) == 1 else None), None
        if values - {hive, None}:
            other = sorted(str(value) for value in values - {hive, None})[0]
            return hive, (
                f"the folder states region_split={hive} but the column holds {other!r}; "
                "one of them is wrong"
            )
    return hive, None


def _split_values(parquet: pq.ParquetFile) -> set[str | None]:
    """Distinct values of the split's column, from statistics where these are enough."""
    index = parquet.metadata.schema.names.index(SPLIT_COLUMN)
    values: set[str | None] = set()
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        if not group.num_rows:
            continue
        stats = group.column(index).statistics
        no_null = stats is not None and stats.has_null_count and stats.null_count == 0
        if stats is not None and no_null and stats.has_min_max and stats.min == stats.max:
            values.add(str(stats.min))
        else:
            column = parquet.read_row_group(number, [SPLIT_COLUMN], use_threads=False)
            values.update(pc.unique(column.column(0).cast(pa.string())).to_pylist())
    return values


def _bad_file_error(bad: Sequence[BadFile], files: int) -> InputError:
    first = bad[0]
    more = f" ({len(bad)} of {files} files are like that)" if len(bad) > 1 else ""
    return InputError(
        f"{first.path} ({first.bytes} bytes) is not a readable parquet file{more}: {first.reason}. "
        "Copy it again, or leave such files out with --skip-bad-files."
    )


def _check_schemas(footers: Sequence[_Footer]) -> None:
    """Refuse files that break the contract, naming the first and how many there are."""
    faults = []
    for footer in footers:
        path = footer.file.path
        if footer.split_problem is not None:
            faults.append(f"{path}: {footer.split_problem}.")
            continue
        for column, problem in schema_faults(
            footer.schema, has_split=footer.file.hive_split is not None
        ):
            if column == SPLIT_COLUMN and problem == "is missing":
                problem = "is missing and no folder region_split=... states the split"
            faults.append(f"{path}: column {column} {problem}.")
    if faults:
        more = f" (and {len(faults) - 1} more such faults)" if len(faults) > 1 else ""
        raise SchemaError(
            f"{faults[0]}{more} Phase 4c data must have it; `lensprep check --help` says what is "
            "read."
        )


def _unified_schema(footers: Sequence[_Footer]) -> pa.Schema:
    """Contract columns that any file has, in the contract's order, then extra ones by name."""
    present = {name for footer in footers for name in footer.file.columns} | {SPLIT_COLUMN}
    known = [pa.field(c.name, c.type) for c in COLUMNS if c.name in present]
    extra = pa.schema([])
    seen: set[pa.Schema] = set()
    for footer in footers:
        fields = pa.schema([_extra_field(f) for f in footer.schema if f.name not in COLUMN_BY_NAME])
        if fields in seen:
            continue
        seen.add(fields)
        try:
            extra = pa.unify_schemas([extra, fields], promote_options="permissive")
        except pa.ArrowException as error:
            raise SchemaError(
                f"{footer.file.path}: an extra column has a type that does not go with that of the "
                f"files before it: {_first_line(error)}."
            ) from error
    return pa.schema([*known, *sorted(extra, key=lambda extra_field: extra_field.name)])


def _extra_field(stored: pa.Field) -> pa.Field:
    encoded = pa.types.is_dictionary(stored.type)
    return pa.field(_public_name(stored.name), stored.type.value_type if encoded else stored.type)


def _public_name(stored: str) -> str:
    """Name of a stored column in the unified schema."""
    return _PREFIX + stored if stored in _TAKEN else stored


def _stored_name(name: str, have: Container[str]) -> str:
    """Name in the file of a column of the unified schema."""
    bare = name.removeprefix(_PREFIX)
    return bare if bare in _TAKEN and bare in have else name


def _conform(table: pa.Table, schema: pa.Schema, file: SourceFile, where: str) -> pa.Table:
    """Bring rows to the unified schema: names, types, missing columns, the split."""
    columns = dict(zip(map(_public_name, table.column_names), table.columns, strict=True))
    if file.hive_split is not None and SPLIT_COLUMN in schema.names:
        split = pa.repeat(pa.scalar(file.hive_split, pa.string()), table.num_rows)
        columns[SPLIT_COLUMN] = pa.chunked_array([split])
    arrays = []
    for wanted in schema:
        column = columns.get(wanted.name)
        if column is None:
            column = pa.chunked_array([pa.nulls(table.num_rows, wanted.type)])
        arrays.append(_cast(column, wanted, where))
    return pa.Table.from_arrays(arrays, schema=schema)


def _cast(column: pa.ChunkedArray, wanted: pa.Field, where: str) -> pa.ChunkedArray:
    """Cast to the contract's type without loss; text must be UTF-8."""
    if column.type != wanted.type:
        try:
            column = column.cast(wanted.type)
        except pa.ArrowException as error:
            raise SchemaError(
                f"{where}: column {wanted.name} is {column.type} and holds a value that does not "
                f"fit {wanted.type}: {_first_line(error)}."
            ) from error
    if pa.types.is_string(wanted.type):
        column.validate(full=True)
    return column


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")

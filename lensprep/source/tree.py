"""A Phase 4c source: a tree of parquet files -> row groups of one schema, with their split.

    source = Source.open(uri, skip_bad_files=False, progress=None)
    source.files        SourceFile(path, bytes, rows, row_groups, split, columns), sorted by path
    source.schema       one schema for all files: contract columns first, then extra ones
    source.rows         rows of all files;  source.bad_files, source.digest()
    source.read_row_group(file, i, columns=None)      -> pyarrow.Table in that schema
    source.iter_row_group(file, i, batch_rows=1024)   -> the same in pieces of bounded memory
    source.iter_file(file, columns, batch_rows=8192)  -> a whole file in such pieces

Opening reads footers only (in threads, for thousands of files) and checks every one of them
against the contract. Hidden files and ``_SUCCESS`` are passed over; what a job has left that did
not finish is an error. A column comes from the file, from folders (``region_split=train``, by the
rules of Hive), or from both if they agree. Columns that a file lacks are null, types are those of
the contract whatever the file stores, extra columns have one that holds what every file has, and
the order of files depends on their names alone. A Source can be pickled; workers need no second
look at the tree.

Everything goes through a `pyarrow.fs.FileSystem`, so that another store is another file system.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lensprep.dataset.kinds import DATASET, table_kind
from lensprep.dataset.layout import MANIFEST_NAME, MEASURED_COLUMNS, SOURCE_COLUMNS, SPLITS
from lensprep.errors import (
    ConfigError,
    InputError,
    SchemaError,
    error_line,
    names_text,
    passing_fault,
)
from lensprep.source.contract import (
    COLUMN_BY_NAME,
    COLUMNS,
    REQUIRED_COLUMNS,
    SPLIT_COLUMN,
    STAMP_COLUMN,
    plain_type,
    schema_faults,
)
from lensprep.source.listing import (
    UNFINISHED,
    Listing,
    list_parquet,
    locate,
    open_parquet,
    relative,
    unfinished_job,
)

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""

_log = logging.getLogger("lensprep.source")

_THREADS: Final = 16
_TAKEN: Final = frozenset((*MEASURED_COLUMNS, *SOURCE_COLUMNS, "place"))
"""Names that conversion gives to columns of its own."""
_PREFIX: Final = "phase4c_"
"""Put before an extra column's name if conversion has a column of that name itself."""
LEAVE_OUT: Final = "Copy the file again, or leave it out with `lensprep convert --skip-bad-files`."
_MAGIC: Final = b"PAR1"
_NOT_PARQUET: Final = "it does not begin as parquet does"
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_WHOLE: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_REAL: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_UNREADABLE: Final = (OSError, pa.ArrowException, ValueError)
"""What pyarrow raises for files that are cut, altered or not parquet at all; `passing_fault` tells
what is none of that."""


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
    """Columns to be read from the file itself, under the names of `Source.schema`."""
    stated: tuple[tuple[str, str | None], ...] = ()
    """Columns that folders state (``region_split=train``) under such names, each with its text, or
    None for null."""
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
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Extra columns that are not in ``schema``, since no one type holds what the files have, each
    with what was found: "is double in a.parquet and string in b.parquet"."""
    unfinished: str | None = None
    """File or folder that a job has left that did not finish, if there is one."""
    is_marked: bool = False
    """Whether the job that wrote the files has left its ``_SUCCESS``."""
    filesystem: pafs.FileSystem = field(repr=False)
    root: str = field(repr=False)
    """Path of the folder that `SourceFile.path` is relative to, in ``filesystem``."""

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        skip_bad_files: bool = False,
        drop_columns: Collection[str] = (),
        progress: Progress | None = None,
        filesystem: pafs.FileSystem | None = None,
    ) -> Source:
        """List a tree (or take one file), read every footer and check it.

        Parameters
        ----------
        uri : str or path
            Folder or parquet file.
        skip_bad_files : bool
            List files whose footer cannot be read in ``bad_files`` instead of stopping, and take
            what a job that did not finish has written. A file that can be read but breaks the
            contract is an error all the same.
        drop_columns : collection of str
            Columns to pass over, none of them required.
        progress : callable, optional
            Called with (footers read, files).
        filesystem : pyarrow.fs.FileSystem, optional
            Where ``uri`` lies; the local disk if not given.

        Raises
        ------
        InputError
            No such path, no parquet in it, no rows in that, a file that cannot be read, or a job
            that did not finish.
        SchemaError
            A required column is missing or has another type; the split is unknown; or a column is
            stated by a folder and holds something else. The message names column and file.
        ConfigError
            A column to be dropped is required, or not there.
        StorageError
            The location has a scheme that needs a file system that was not given.
        """
        if required := {*drop_columns} & {*REQUIRED_COLUMNS}:
            raise ConfigError(f"Phase 4c data must have the column {min(required)}: keep it.")
        filesystem, path = locate(uri, filesystem)
        listing = list_parquet(filesystem, path, str(uri))
        unfinished = unfinished_job(listing.others)
        if unfinished and not skip_bad_files:
            raise InputError(
                f"{uri} holds {unfinished}: {UNFINISHED}. Run the job again; if nothing is "
                "missing, remove that, or pass over it with `lensprep convert --skip-bad-files`."
            )
        results = _read_footers(filesystem, listing, frozenset(drop_columns), progress)
        bad = tuple(result for result in results if isinstance(result, BadFile))
        good = [result for result in results if isinstance(result, _Footer)]
        if bad and (not skip_bad_files or not good):
            raise _bad_file_error(bad, len(results), str(uri))
        _check_schemas(good, str(uri), listing.others)
        _check_dropped(drop_columns, good, str(uri))
        schema, left_out = _unified_schema(good)
        source = cls(
            uri=str(uri),
            files=tuple(footer.file for footer in good),
            schema=schema,
            bad_files=bad,
            left_out=left_out,
            unfinished=unfinished,
            is_marked=any(PurePosixPath(name).name == "_SUCCESS" for name in listing.others),
            filesystem=filesystem,
            root=listing.root,
        )
        if not source.rows:
            raise InputError(f"{uri} has no rows: none of its {len(good)} parquet files has any.")
        return source

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
                _log.warning("%s Reading it again.", str(error).removesuffix(LEAVE_OUT).strip())
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
                # A narrow column gives the number of rows where nothing else is read.
                narrow = [name for name in file.columns if name != STAMP_COLUMN][:1]
                batches = parquet.iter_batches(
                    batch_rows,
                    row_groups=list(groups),
                    columns=[_stored_name(name, have) for name in stored or narrow],
                    use_threads=False,
                )
                for batch in batches:
                    rows += batch.num_rows
                    yield _conform(pa.Table.from_batches([batch]), schema, file, where)
        except _UNREADABLE as error:
            if fault := passing_fault(f"{self.root}/{where}", error):
                raise fault from error
            raise InputError(
                f"{where} cannot be read: {error_line(error).rstrip('.')}. {LEAVE_OUT}"
            ) from error
        if rows != stated:
            raise InputError(
                f"{where} has {rows} rows where its footer states {stated}. {LEAVE_OUT}"
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
                f"{self.uri} has no column {unknown[0]!r}; it has: {names_text(known, unknown[0])}."
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
    """Columns in the file itself, under their own names, without those that are dropped."""
    dropped: frozenset[str]
    """Columns of the file or its folders that are dropped."""
    problem: str | None
    """What a folder states that cannot be."""


def _read_footers(
    filesystem: pafs.FileSystem,
    listing: Listing,
    drop: frozenset[str],
    progress: Progress | None,
) -> list[_Footer | BadFile]:
    """Read all footers in threads; the answers come in the order of the files."""
    results: list[_Footer | BadFile] = []
    read = partial(_read_footer, filesystem, listing.root, drop)
    with ThreadPoolExecutor(min(_THREADS, len(listing.files))) as pool:
        for result in pool.map(read, listing.files):
            results.append(result)
            if progress is not None:
                progress(len(results), len(listing.files))
    return results


def _read_footer(
    filesystem: pafs.FileSystem,
    root: str,
    drop: frozenset[str],
    info: pafs.FileInfo,
    again: bool = False,
) -> _Footer | BadFile:
    name = relative(info.path, root)
    try:
        parquet, version = open_parquet(filesystem, info.path, stream=False)
        with parquet:
            metadata, whole = parquet.metadata, parquet.schema_arrow
            groups = tuple(
                RowGroup(group.num_rows, group.total_byte_size)
                for group in map(metadata.row_group, range(metadata.num_row_groups))
            )
            stated = _stated(info.path, root)
            dropped = {n for n in (*whole.names, *stated) if {n, _public_name(n)} & drop}
            stated = {n: text for n, text in stated.items() if n not in dropped}
            schema = pa.schema([column for column in whole if column.name not in dropped])
            problem = _problem_of(parquet, schema, stated)
            split = None if problem else _split_of(parquet, schema, stated)
    except _UNREADABLE as error:
        if not (again or isinstance(filesystem, pafs.LocalFileSystem)):
            return _read_footer(filesystem, root, drop, info, again=True)
        if fault := passing_fault(info.path, error):
            raise fault from error
        return BadFile(name, info.size, _what_is_wrong(filesystem, info, error))
    file = SourceFile(
        name,
        info.size,
        sum(group.rows for group in groups),
        groups,
        split,
        tuple(_public_name(column) for column in schema.names if column not in stated),
        tuple((_public_name(column), text) for column, text in stated.items()),
        version,
    )
    return _Footer(file, schema, frozenset(dropped), problem)


def _what_is_wrong(filesystem: pafs.FileSystem, info: pafs.FileInfo, error: Exception) -> str:
    """Whether a file is parquet at all, and if it is, what could not be read of it."""
    if not info.size:
        return "it is empty"
    with filesystem.open_input_file(info.path) as file:
        begins = file.read(len(_MAGIC)) == _MAGIC
        file.seek(max(0, info.size - len(_MAGIC)))
        ends = file.read() == _MAGIC
    if not begins:
        return _NOT_PARQUET
    return (
        error_line(error).rstrip(".")
        if ends
        else "it begins as parquet does but does not end so: it is cut"
    )


def _stated(path: str, root: str) -> dict[str, str | None]:
    """Columns that folders state as ``name=value``, by the rules of Hive; the innermost counts.

    Above the folder that was given only columns of the contract are meant.
    """
    above = len(PurePosixPath(root).parts)
    stated: dict[str, str | None] = {}
    for depth, folder in enumerate(PurePosixPath(path).parts[:-1]):
        name, equals, value = folder.partition("=")
        name = unquote(name)
        if name and equals and (depth >= above or name in COLUMN_BY_NAME):
            stated[name] = None if value == _HIVE_NULL else unquote(value)
    return stated


def _split_of(
    parquet: pq.ParquetFile, schema: pa.Schema, stated: Mapping[str, str | None]
) -> str | None:
    """Split of a file's rows, from folder or column; None if they differ."""
    if SPLIT_COLUMN in stated or SPLIT_COLUMN not in schema.names:
        return stated.get(SPLIT_COLUMN)
    if pa.types.is_nested(schema.field(SPLIT_COLUMN).type):
        return None
    values = _values(parquet, SPLIT_COLUMN)
    return values.pop() if len(values) == 1 else None


def _problem_of(
    parquet: pq.ParquetFile, schema: pa.Schema, stated: Mapping[str, str | None]
) -> str | None:
    """What a folder states that cannot be, or that the file contradicts."""
    for name, text in stated.items():
        if name == SPLIT_COLUMN and text is not None and text not in SPLITS:
            return f"the folder states {name}={text}; known are {', '.join(SPLITS)}"
        if name in COLUMN_BY_NAME and not _is_of(text, COLUMN_BY_NAME[name].type):
            return f"the folder states {name}={text}, which is no {COLUMN_BY_NAME[name].type}"
        if schema.names.count(name) != 1 or pa.types.is_nested(schema.field(name).type):
            continue
        kind = plain_type(schema.field(name).type)
        same = _scalar(text, kind).as_py() if _is_of(text, kind) else text
        if other := sorted(map(str, _values(parquet, name) - {same, None})):
            return (
                f"the folder states {name}={text} but the column holds {other[0]!r}; one of them "
                "is wrong"
            )
    return None


def _is_of(text: str | None, kind: pa.DataType) -> bool:
    try:
        _scalar(text, kind)
    except pa.ArrowException:
        return False
    return True


def _scalar(text: str | None, kind: pa.DataType) -> pa.Scalar:
    """What a folder states, in a column's type."""
    return pa.scalar(text, pa.string()).cast(kind)


def _values(parquet: pq.ParquetFile, column: str) -> set[Any]:
    """Distinct values of a column, from statistics where these are enough."""
    columns = parquet.metadata.schema
    index = next(i for i in range(len(columns)) if columns.column(i).path == column)
    kind = plain_type(parquet.schema_arrow.field(column).type)
    values: set[Any] = set()
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        if not group.num_rows:
            continue
        stats = group.column(index).statistics
        no_null = stats is not None and stats.has_null_count and stats.null_count == 0
        if stats is not None and no_null and stats.has_min_max and stats.min == stats.max:
            values.add(stats.min)
        else:
            read = parquet.read_row_group(number, [column], use_threads=False)
            values.update(pc.unique(read.column(0).cast(kind)).to_pylist())
    return values


def _bad_file_error(bad: Sequence[BadFile], files: int, uri: str) -> InputError:
    first = bad[0]
    if files == 1 and uri.endswith(first.path) and first.reason == _NOT_PARQUET:
        return InputError(
            f"{uri} is no parquet file: {first.reason}. Give the folder of a Phase 4c tree, or a "
            ".parquet file of one."
        )
    more = f" ({len(bad)} of {files} files are like that)" if len(bad) > 1 else ""
    return InputError(
        f"{first.path} ({first.bytes} bytes) cannot be read{more}: {first.reason}. "
        "Copy or write it again, or leave such files out with `lensprep convert --skip-bad-files`."
    )


def _check_schemas(footers: Sequence[_Footer], uri: str, others: Collection[str]) -> None:
    """Refuse files that break the contract, naming the first fault and how many there are."""
    faults = []
    for footer in footers:
        path, stated = footer.file.path, dict(footer.file.stated)
        kind = None if STAMP_COLUMN in footer.schema.names else table_kind(footer.schema.names)
        if kind is not None:
            what = f"{uri} is {DATASET}" if MANIFEST_NAME in others else f"{path} is {kind}"
            raise SchemaError(f"{what}.")
        if footer.problem is not None:
            faults.append(f"{path}: {footer.problem}.")
            continue
        found = schema_faults(footer.schema, stated)
        missing = [column for column, problem in found if problem == "is missing"]
        if missing:
            faults.append(f"{path}: {_lacking(missing)}.")
        faults += [f"{path}: column {name} {what}." for name, what in found if name not in missing]
    if faults:
        more = f" (and {len(faults) - 1} more such faults)" if len(faults) > 1 else ""
        raise SchemaError(f"{faults[0]}{more}")


def _lacking(columns: Sequence[str]) -> str:
    if [*columns] == [SPLIT_COLUMN]:
        return f"column {SPLIT_COLUMN} is missing and no folder {SPLIT_COLUMN}=... states the split"
    if len(columns) == 1:
        return f"column {columns[0]} is missing, which Phase 4c data must have"
    return f"{len(columns)} columns are missing that Phase 4c data must have: {names_text(columns)}"


def _check_dropped(columns: Collection[str], footers: Sequence[_Footer], uri: str) -> None:
    """Refuse to drop what is not there."""
    dropped = {
        n for footer in footers for name in footer.dropped for n in (name, _public_name(name))
    }
    for name in columns:
        if name not in dropped:
            names = {name for footer in footers for name in footer.file.columns}
            raise ConfigError(
                f"{uri} has no column {name!r} to leave out; it has: "
                f"{names_text(sorted(names - {*REQUIRED_COLUMNS}), name)}."
            )


def _unified_schema(footers: Sequence[_Footer]) -> tuple[pa.Schema, dict[str, str]]:
    """Contract columns that any file has, in the contract's order, then extra ones by name.

    Extra columns get a type that holds what every file has; those for which there is none are left
    out, and come with what was found.
    """
    stated = _stated_types(footers)
    present = {name for footer in footers for name in footer.file.columns}
    present |= {*stated, SPLIT_COLUMN}
    known = [pa.field(c.name, c.type) for c in COLUMNS if c.name in present]
    found: dict[str, tuple[pa.DataType, str]] = {}
    left_out: dict[str, str] = {}
    seen: set[tuple[pa.Schema, frozenset[str]]] = set()
    for footer in footers:
        path = footer.file.path
        folders = frozenset(name for name, _ in footer.file.stated)
        if (footer.schema, folders) in seen:
            continue
        seen.add((footer.schema, folders))
        fields = [(_public_name(f.name), plain_type(f.type)) for f in footer.schema]
        names = [name for name, _ in fields]
        fields += [(name, stated[name]) for name in folders - {*names}]
        for name, kind in fields:
            if name in COLUMN_BY_NAME or name in left_out:
                continue
            if names.count(name) > 1:
                left_out[name] = f"is there {names.count(name)} times in {path}"
                continue
            before, first = found.setdefault(name, (kind, path))
            common = _common_type(before, kind)
            if common is None:
                left_out[name] = f"is {before} in {first} and {kind} in {path}"
            elif common != before:
                found[name] = common, path
    extra = [pa.field(n, kind) for n, (kind, _) in sorted(found.items()) if n not in left_out]
    return pa.schema([*known, *extra]), left_out


def _common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """A type that holds the values of both."""
    if first == second:
        return first
    schemas = [pa.schema([("column", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _stated_types(footers: Sequence[_Footer]) -> dict[str, pa.DataType]:
    """Types of the columns that folders state: the contract's, or those that all texts have."""
    texts: dict[str, set[str]] = {}
    for footer in footers:
        for name, text in footer.file.stated:
            texts.setdefault(name, set()).update([] if text is None else [text])
    return {
        name: COLUMN_BY_NAME[name].type if name in COLUMN_BY_NAME else _type_of_texts(values)
        for name, values in texts.items()
    }


def _type_of_texts(texts: Collection[str]) -> pa.DataType:
    """Whole numbers, numbers or text; what would not be written so again (``007``) is text."""
    for kind, form in ((pa.int64(), _WHOLE), (pa.float64(), _REAL)):
        if texts and all(form.fullmatch(text) and _is_of(text, kind) for text in texts):
            return kind
    return pa.string()


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
    for name, text in file.stated:
        if name in schema.names:
            value = _scalar(text, schema.field(name).type)
            columns[name] = pa.chunked_array([pa.repeat(value, table.num_rows)])
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
            remedy = ""
            if wanted.name not in REQUIRED_COLUMNS:
                remedy = f" Leave it out with `lensprep convert --drop-column {wanted.name}`."
            raise SchemaError(
                f"{where}: column {wanted.name} is {column.type} and holds a value that does not "
                f"fit {wanted.type}: {error_line(error).rstrip('.')}.{remedy}"
            ) from error
    if pa.types.is_string(wanted.type):
        column.validate(full=True)
    return column

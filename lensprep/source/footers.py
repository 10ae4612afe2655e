"""Footers of parquet files: what each says of its rows, with the columns that its folders state.

All footers are read in threads. A column comes from the file, from folders (``region_split=train``,
by the rules of Hive), or from both if they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lensprep.dataset.layout import SPLITS
from lensprep.errors import InputError, error_line, passing_fault
from lensprep.source.contract import plain_type
from lensprep.source.listing import Listing, open_parquet, relative
from lensprep.source.survey import SPLIT_COLUMN, Survey

Progress = Callable[[int, int], None]
"""Called with (done, total) as work proceeds."""

_THREADS: Final = 16
_MAGIC: Final = b"PAR1"
_NOT_PARQUET: Final = "it does not begin as parquet does"
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
READ_ERRORS: Final = (OSError, pa.ArrowException, ValueError)
"""What pyarrow raises for files that are cut, altered or not parquet at all; but also for passing
faults of disk or network, which `passing_fault` recognises."""


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
    """Relative to the source, with ``/``; of several locations, below the name of its own."""
    bytes: int
    rows: int
    row_groups: tuple[RowGroup, ...]
    split: str | None
    """The split of all its rows, from folder or column; None if its rows differ."""
    columns: tuple[str, ...]
    """Columns to be read from the file itself, under the names of `Source.schema`."""
    stated: tuple[tuple[str, str | None], ...] = ()
    """Columns that folders state (``region_split=train``), under the same names: text, or None for
    null."""
    version: str | None = None
    """ETag of an object when its footer was read: it is read again only as that version."""
    place: int = 0
    """Which of the `Source.places` it is in."""

    def label(self, group: int) -> str:
        """Name of a row group for messages."""
        return f"{self.path}, row group {group}"

    @property
    def filled(self) -> list[tuple[int, RowGroup]]:
        """Row groups that have rows, with their numbers."""
        return [(number, group) for number, group in enumerate(self.row_groups) if group.rows]


def neighbours(
    files: Iterable[SourceFile], most_rows: int
) -> Iterator[tuple[tuple[SourceFile, int], ...]]:
    """Neighbouring row groups in batches of at most `most_rows` rows, or of one row group."""
    batch: list[tuple[SourceFile, int]] = []
    rows = 0
    for file in files:
        for number, group in file.filled:
            if batch and rows + group.rows > most_rows:
                yield tuple(batch)
                batch, rows = [], 0
            batch.append((file, number))
            rows += group.rows
    if batch:
        yield tuple(batch)


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file whose footer cannot be read, so its number of rows is unknown."""

    path: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Footer:
    """What the footer of one file says."""

    file: SourceFile
    schema: pa.Schema
    """Columns in the file itself, under the file's names, without those that are dropped."""
    dropped: frozenset[str]
    """Columns of the file or its folders that are dropped."""
    problem: str | None
    """What a folder states that is impossible, or that the file contradicts."""


def read_footers(
    filesystem: pafs.FileSystem,
    listing: Listing,
    drop: frozenset[str],
    survey: Survey,
    progress: Progress | None,
) -> list[Footer | BadFile]:
    """Read all footers in threads; the results are in the order of the files."""
    results: list[Footer | BadFile] = []
    read = partial(_read_footer, filesystem, listing.root, drop, survey)
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
    survey: Survey,
    info: pafs.FileInfo,
    again: bool = False,
) -> Footer | BadFile:
    name = relative(info.path, root)
    try:
        parquet, version = open_parquet(filesystem, info.path, stream=False)
        with parquet:
            metadata, whole = parquet.metadata, parquet.schema_arrow
            groups = tuple(
                RowGroup(group.num_rows, group.total_byte_size)
                for group in map(metadata.row_group, range(metadata.num_row_groups))
            )
            stated = _stated(info.path, root, survey)
            dropped = {n for n in (*whole.names, *stated) if {n, survey.public_name(n)} & drop}
            stated = {n: text for n, text in stated.items() if n not in dropped}
            schema = pa.schema([column for column in whole if column.name not in dropped])
            problem = _problem_of(parquet, schema, stated, survey)
            split = None if problem else _split_of(parquet, schema, stated, survey)
    except READ_ERRORS as error:
        if not (again or isinstance(filesystem, pafs.LocalFileSystem)):
            return _read_footer(filesystem, root, drop, survey, info, again=True)
        if fault := passing_fault(info.path, error):
            raise fault from error
        return BadFile(name, info.size, _what_is_wrong(filesystem, info, error))
    file = SourceFile(
        name,
        info.size,
        sum(group.rows for group in groups),
        groups,
        split,
        tuple(survey.public_name(column) for column in schema.names if column not in stated),
        tuple((survey.public_name(column), text) for column, text in stated.items()),
        version,
    )
    return Footer(file, schema, frozenset(dropped), problem)


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
    return error_line(error) if ends else "it begins as parquet does but does not end so: it is cut"


def _stated(path: str, root: str, survey: Survey) -> dict[str, str | None]:
    """Columns that folders state as ``name=value``, by the rules of Hive; the innermost counts.

    Above the source's root only names of the contract count.
    """
    above = len(PurePosixPath(root).parts)
    stated: dict[str, str | None] = {}
    for depth, folder in enumerate(PurePosixPath(path).parts[:-1]):
        name, equals, value = folder.partition("=")
        name = unquote(name)
        if (
            name
            and equals
            and (depth >= above or survey.public_name(name) in survey.column_by_name)
        ):
            stated[name] = None if value == _HIVE_NULL else unquote(value)
    return stated


def _split_of(
    parquet: pq.ParquetFile,
    schema: pa.Schema,
    stated: Mapping[str, str | None],
    survey: Survey,
) -> str | None:
    """Split of a file's rows, from folder or column; None if they differ."""
    stored = survey.stored_name(SPLIT_COLUMN, schema.names)
    if stored in stated or stored not in schema.names:
        return survey.public_split(stated.get(stored))
    if pa.types.is_nested(schema.field(stored).type):
        return None
    splits = {survey.public_split(_as_text(value)) for value in _values(parquet, stored)}
    return splits.pop() if len(splits) == 1 else None


def _as_text(value: Any) -> str | None:
    """A value as Arrow casts it to text."""
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _problem_of(
    parquet: pq.ParquetFile,
    schema: pa.Schema,
    stated: Mapping[str, str | None],
    survey: Survey,
) -> str | None:
    """What a folder states that is impossible, or that the file contradicts."""
    for name, text in stated.items():
        ours = survey.public_name(name)
        if ours == SPLIT_COLUMN and text is not None and survey.public_split(text) not in SPLITS:
            known = ", ".join((*survey.splits, *SPLITS))
            return f"the folder states {name}={text}; known are {known}"
        column = survey.column_by_name.get(ours)
        if column is not None and not is_of(text, column.type):
            return f"the folder states {name}={text}, which is no {column.type}"
        if schema.names.count(name) != 1 or pa.types.is_nested(schema.field(name).type):
            continue
        kind = plain_type(schema.field(name).type)
        same = scalar(text, kind).as_py() if is_of(text, kind) else text
        if other := sorted(map(str, _values(parquet, name) - {same, None})):
            return (
                f"the folder states {name}={text} but the column holds {other[0]!r}; one of them "
                "is wrong"
            )
    return None


def is_of(text: str | None, kind: pa.DataType) -> bool:
    """Whether what a folder states can be a value of a type."""
    try:
        scalar(text, kind)
    except pa.ArrowException:
        return False
    return True


def scalar(text: str | None, kind: pa.DataType) -> pa.Scalar:
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


def bad_file_error(bad: Sequence[BadFile], files: int, uri: str) -> InputError:
    """The error for files whose footers cannot be read, out of `files` in all."""
    first = bad[0]
    if files == 1 and uri.endswith(first.path) and first.reason == _NOT_PARQUET:
        return InputError(
            f"{uri} is no parquet file: {first.reason}. Give the folder of a Phase 4c tree, or a "
            ".parquet file of one. Catalogues of cutouts are checked by `lensprep convert`."
        )
    more = f" ({len(bad)} of {files} files have such faults)" if len(bad) > 1 else ""
    return InputError(
        f"{first.path} ({first.bytes} bytes) cannot be read{more}: {first.reason}. "
        "Copy or write it again, or leave such files out with `lensprep convert --skip-bad-files`."
    )

"""A source: trees of parquet files -> row groups of one schema, with their split.

    source = Source.open(uri, skip_bad_files=False, progress=None)     one location, or several
    source.files        SourceFile(path, bytes, rows, row_groups, split, columns), sorted by path
    source.schema       one schema for all files: contract columns first, then extra ones
    source.rows         rows of all files;  source.bad_files, source.digest()
    source.read_row_group(file, i, columns=None)      -> pyarrow.Table in that schema
    source.iter_row_group(file, i, batch_rows=1024)   -> the same in pieces of bounded memory
    source.iter_file(file, columns, batch_rows=8192)  -> a whole file in such pieces

Opening reads footers only (in threads, for thousands of files) and checks every one of them
against the contract. Hidden files and ``_SUCCESS`` are ignored; leftovers of an unfinished job are
an error. A column comes from the file, from folders (``region_split=train``, by the rules of Hive),
or from both if they agree. Columns that a file lacks are null, types are those of the contract
whatever the file stores, extra columns get a type that holds the values of every file, and the
order of files depends on their names alone. A Source can be pickled: workers need not list the
tree again.

Several locations, on a disk or in a store, are one source. The paths of their files then begin with
the last folders of their location, as many as tell all of them apart (`tell_apart`); so nothing
depends on the order in which they are named.

All reading goes through a `pyarrow.fs.FileSystem`, so supporting another store means passing
another file system.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from lensprep.errors import (
    ConfigError,
    InputError,
    SchemaError,
    error_line,
    names_text,
    passing_fault,
)
from lensprep.source.footers import (
    READ_ERRORS,
    BadFile,
    Footer,
    Progress,
    SourceFile,
    bad_file_error,
    read_footers,
)
from lensprep.source.listing import (
    UNFINISHED,
    Location,
    as_locations,
    list_parquet,
    locate,
    open_parquet,
    tell_apart,
    unfinished_job,
)
from lensprep.source.schema import (
    check_dropped,
    check_regions,
    check_schemas,
    conform,
    made_from,
    unified_schema,
)
from lensprep.source.survey import DECALS_SURVEY, FAMILY_COLUMNS, STAMP_COLUMN, Survey
from lensprep.store import S3Options

_log = logging.getLogger("lensprep.source")

LEAVE_OUT: Final = "Copy the file again, or leave it out with `lensprep convert --skip-bad-files`."


class Place(NamedTuple):
    """Where the files of one location are."""

    filesystem: pafs.FileSystem
    root: str
    """What the path of a file begins with in the file system..."""
    name: str
    """... where `SourceFile.path` begins with this."""

    def path(self, name: str) -> str:
        """Path in the file system."""
        return self.root + name.removeprefix(self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An opened source; make one with `Source.open`."""

    uri: str
    """As the user gave it; several locations with spaces between them."""
    files: tuple[SourceFile, ...]
    schema: pa.Schema
    bad_files: tuple[BadFile, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Extra columns that are not in ``schema``, since no one type holds the values of all files,
    each with what was found: "is double in a.parquet and string in b.parquet"."""
    unfinished: str | None = None
    """File or folder left by an unfinished job, if there is one."""
    is_marked: bool = False
    """Whether the job that wrote the files has left its ``_SUCCESS``."""
    places: tuple[Place, ...] = field(repr=False)
    """One for each location, sorted by name."""
    survey: Survey = field(default=DECALS_SURVEY, repr=False)
    """What its columns are called and mean."""

    @classmethod
    def open(
        cls,
        uri: Location | Sequence[Location],
        *,
        skip_bad_files: bool = False,
        drop_columns: Collection[str] = (),
        progress: Progress | None = None,
        filesystem: pafs.FileSystem | None = None,
        options: S3Options | None = None,
        survey: Survey = DECALS_SURVEY,
    ) -> Source:
        """List a tree (or take one file), read every footer and check it.

        Parameters
        ----------
        uri : str or path, or a sequence of them
            Folder or parquet file; of several, none may lie in another one.
        skip_bad_files : bool
            List files whose footer cannot be read in ``bad_files`` instead of stopping, and accept
            the files of an unfinished job. A file that can be read but breaks the contract is
            still an error.
        drop_columns : collection of str
            Columns to ignore, none of them required.
        progress : callable, optional
            Called with (footers read, files), for one location after the other.
        filesystem : pyarrow.fs.FileSystem, optional
            Where ``uri`` lies; the local disk or the store that it names if not given.
        options : S3Options, optional
            How to reach an object store.
        survey : Survey
            What its columns are called and mean; Phase 4c if not given.

        Raises
        ------
        InputError
            No such path, no parquet in it, no rows in that, a file that cannot be read, or
            leftovers of an unfinished job.
        SchemaError
            A required column is missing or has another type; the split is unknown; or a column is
            stated by a folder and holds something else. The message names column and file.
        ConfigError
            A column to be dropped is required, or not there; or a location lies in another one.
        StorageError
            The location has a scheme that needs a file system that was not given.
        """
        ours = {survey.public_name(name) for name in drop_columns}
        if required := ours & {*survey.required_columns}:
            name = survey.called(min(required))
            raise ConfigError(f"{survey.title} data must have the column {name}: keep it.")
        if family := ours & {column.name for column in FAMILY_COLUMNS}:
            raise ConfigError(
                f"The column {min(family)} tells counterfactuals from other rows: keep it."
            )
        locations = as_locations(uri)
        named = dict(zip(tell_apart(locations), locations, strict=True))
        # In the order of the files' paths, which the name with its "/" gives.
        trees = [
            _Tree.read(
                named[name],
                name,
                number,
                locate(named[name], filesystem, options),
                skip_bad_files=skip_bad_files,
                drop=frozenset(drop_columns),
                survey=survey,
                progress=progress,
            )
            for number, name in enumerate(sorted(named, key="{}/".format))
        ]
        good = [footer for tree in trees for footer in tree.footers]
        called = " ".join(map(str, locations))
        check_dropped(drop_columns, good, called, survey)
        check_regions(good, survey)
        schema, left_out = unified_schema(good, survey)
        return cls(
            uri=called,
            files=tuple(footer.file for footer in good),
            schema=schema,
            bad_files=tuple(bad for tree in trees for bad in tree.bad),
            left_out=left_out,
            unfinished=next((tree.unfinished for tree in trees if tree.unfinished), None),
            is_marked=all(tree.is_marked for tree in trees),
            places=tuple(tree.place for tree in trees),
            survey=survey,
        )

    @property
    def bare(self) -> Source:
        """Without its files, for a task, which carries only those that it reads."""
        return replace(self, files=(), bad_files=())

    def is_remote(self, file: SourceFile) -> bool:
        """Whether a file is read over a network, which may alter it."""
        return not isinstance(self.places[file.place].filesystem, pafs.LocalFileSystem)

    @property
    def rows(self) -> int:
        """Rows of all files that can be read."""
        return sum(file.rows for file in self.files)

    @property
    def row_groups(self) -> int:
        """Row groups of all files that can be read."""
        return sum(len(file.row_groups) for file in self.files)

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
        over a network is read a second time, carefully, before it is an error: ``on_again`` is
        called then. With ``careful`` the first reading already is: what comes over plain HTTP is
        read twice although stamps have checksums inside.
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

        Faster than one row group after the other where they are small, but an error names only the
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
        if self.is_remote(file) and not careful:
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
        needed = {*schema.names, *made_from(schema.names, file)[0]}
        stored = [name for name in self.schema.names if name in needed and name in file.columns]
        rows, stated = 0, sum(file.row_groups[index].rows for index in groups)
        place = self.places[file.place]
        try:
            parquet, _ = open_parquet(
                place.filesystem,
                place.path(file.path),
                stream=STAMP_COLUMN in stored,
                version=file.version,
                # Stamps have checksums inside: they need not be read twice over plain HTTP.
                checked=stored == [STAMP_COLUMN] and not careful,
            )
            with parquet:
                have = set(parquet.schema_arrow.names)
                # Where nothing is wanted from the file, a narrow column gives the number of rows.
                narrow = [name for name in file.columns if name != STAMP_COLUMN][:1]
                batches = parquet.iter_batches(
                    batch_rows,
                    row_groups=list(groups),
                    columns=[self.survey.stored_name(name, have) for name in stored or narrow],
                    use_threads=False,
                )
                for batch in batches:
                    rows += batch.num_rows
                    yield conform(pa.Table.from_batches([batch]), schema, file, where, self.survey)
        except READ_ERRORS as error:
            if fault := passing_fault(place.path(where), error):
                raise fault from error
            raise InputError(f"{where} cannot be read: {error_line(error)}. {LEAVE_OUT}") from error
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


class _Tree(NamedTuple):
    """What was found at one location of a source."""

    place: Place
    footers: list[Footer]
    bad: list[BadFile]
    unfinished: str | None
    is_marked: bool

    @classmethod
    def read(
        cls,
        uri: Location,
        name: str,
        number: int,
        where: tuple[pafs.FileSystem, str],
        *,
        skip_bad_files: bool,
        drop: frozenset[str],
        survey: Survey,
        progress: Progress | None,
    ) -> _Tree:
        """List it, read every footer and check it; see `Source.open`.

        ``name`` is put before the paths of its files, ``number`` is that of its place.
        """
        filesystem, path = where
        listing = list_parquet(filesystem, path, str(uri))
        unfinished = unfinished_job(listing.others)
        if unfinished and not skip_bad_files:
            raise InputError(
                f"{uri} holds {unfinished}: {UNFINISHED}. Run the job again; if nothing is "
                "missing, remove it, or ignore it with `lensprep convert --skip-bad-files`."
            )
        root = f"{listing.root.rstrip('/')}/"
        place = Place(filesystem, path if name else root, name)
        results = read_footers(filesystem, listing, drop, survey, progress)

        def renamed(found: str) -> str:
            return name + (root + found).removeprefix(place.root)

        bad = [replace(r, path=renamed(r.path)) for r in results if isinstance(r, BadFile)]
        good = [
            replace(r, file=replace(r.file, path=renamed(r.file.path), place=number))
            for r in results
            if isinstance(r, Footer)
        ]
        if bad and (not skip_bad_files or not good):
            raise bad_file_error(bad, len(results), str(uri))
        check_schemas(good, str(uri), listing.others, survey)
        if not any(footer.file.rows for footer in good):
            raise InputError(f"{uri} has no rows: none of its {len(good)} parquet files has any.")
        marked = any(PurePosixPath(other).name == "_SUCCESS" for other in listing.others)
        return cls(place, good, bad, unfinished and renamed(unfinished), marked)

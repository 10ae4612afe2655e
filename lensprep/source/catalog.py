"""Catalogues of cutouts as sources of a conversion, beside trees or alone.

    is_catalog("lenses.csv")                                 a table without stamps in it
    open_catalogs(["lenses.csv"], [], read_position, ...)    rows, labels, and the file of each
    source = CutoutSource.of(trees, catalogs, ...)           one source, whose row groups are read
                                                             as those of trees, or file by file

A catalogue says of each cutout where it lies and what it is. Its label comes from a closed map: a
text that is not in it is a reject, never a positive. What else a catalogue has is kept.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset.kinds import cutout_stem, table_kind
from lensprep.dataset.layout import (
    CUTOUT_LABELS,
    GRADE,
    KIND,
    ORIGIN,
    REAL,
    SIMULATED,
    SPLITS,
)
from lensprep.errors import ConfigError, InputError, SchemaError, ScoresError, names_text
from lensprep.source.contract import OTHER_GRADE, UNKNOWN_LABEL
from lensprep.source.cutouts import NO_CUTOUT, ReadPosition, open_cutouts, split_name
from lensprep.source.footers import RowGroup, SourceFile
from lensprep.source.listing import Location
from lensprep.source.schema import common_type
from lensprep.source.survey import LABEL_COLUMN, SPLIT_COLUMN, STAMP_COLUMN, Survey
from lensprep.source.tree import Source
from lensprep.store import (
    S3Options,
    exists,
    is_remote,
    local_file,
    local_path,
    member_path,
    open_store,
)
from lensprep.store import uri_suffix as suffix_of
from lensprep.tables.reader import read_table

COLUMNS: Final = (
    "key",
    "file",
    "index",
    "ra",
    "dec",
    "label",
    GRADE,
    ORIGIN,
    KIND,
    "region_id",
    SPLIT_COLUMN,
)
"""What a catalogue may say under names of its own (``--columns``)."""

CHUNK_ROWS: Final = 128
"""Rows of one row group: what is left out whole if reading it kills the process."""

_SUFFIXES: Final = (
    ".csv", ".tsv", ".txt", ".dat", ".ecsv", ".fits", ".fit", ".vot", ".votable", ".xml",
)  # fmt: skip
_TREE_COLUMNS: Final = frozenset(("task_id", LABEL_COLUMN))
"""Columns of a parquet file that is part of a tree, whatever it lacks."""
_LABELS: Final = {
    **dict.fromkeys(("1", "1.0", "lens", "yes", "true", "y", "t"), 1),
    **dict.fromkeys(("0", "0.0", "nonlens", "non-lens", "not a lens", "no", "false", "n", "f"), 0),
}
"""The closed map of labels, in small letters and without blanks around them."""
_GRADES: Final = (GRADE, "Grade", "grading")
_REGION: Final = "region_id"
_OWN: Final = ("task_id", _REGION, SPLIT_COLUMN, "ra", "dec", "lens_model", ORIGIN, KIND, GRADE)
"""Columns that every row of a catalogue has here."""
_RENAMED: Final = "catalog_"
"""Put before the name of a column that conversion adds or fills itself."""


def is_catalog(uri: Location, survey: Survey, options: S3Options | None = None) -> bool:
    """Whether a source is a table of cutouts: no folder, no tree's file and no other table."""
    suffix = suffix_of(uri).removesuffix(".gz").lower()
    if suffix in _SUFFIXES:
        return is_remote(uri) or not local_path(uri).is_dir()  # or it is missing, which is said
    if suffix != ".parquet":
        return False
    there = exists(uri, options) if is_remote(uri) else local_path(uri).is_file()
    if not there:
        return False
    with local_file(uri, options=options) as path:
        try:
            names = pq.read_schema(path).names
        except (OSError, pa.ArrowException, ValueError):
            return False  # what is wrong with it is said when it is opened as a tree
    ours = {survey.public_name(name) for name in names}
    return not (STAMP_COLUMN in ours or ours >= _TREE_COLUMNS or table_kind(names) is not None)


@dataclass(frozen=True, slots=True)
class Catalog:
    """One catalogue: its rows, what is known of them, and their files."""

    uri: str
    name: str
    """What its rows' ids begin with: the file's name without suffix, or more of its path."""
    folder: str
    """Folder of the cutouts, absolute, or ``s3://``."""
    table: pa.Table
    """`_OWN` columns, without nulls in task_id, ra, dec and origin; then all others."""
    facts: pa.Table
    """``label`` (int8, -1 for none), ``reason`` (why a row is left out, or ""), ``detail``,
    ``file`` (relative to the folder) and ``bytes`` of each row."""
    unused: int
    """Files in the folder that belong to no row."""

    @property
    def path(self) -> str:
        """What ``source_file`` says."""
        return f"{self.name}{suffix_of(self.uri)}"


def open_catalogs(
    uris: Sequence[Location],
    folders: Sequence[str],
    read_position: ReadPosition,
    *,
    survey: Survey,
    columns: Mapping[str, str],
    grade_lens: Collection[str],
    drop_columns: Collection[str] = (),
    options: S3Options | None = None,
) -> list[Catalog]:
    """Read catalogues and find the file of each row; sorted by name.

    Parameters
    ----------
    uris : sequence of str or path
    folders : sequence of str
        Folders of their cutouts, in the same order; the folder that a catalogue lies in for those
        that have none.
    read_position : callable
        See `lensprep.source.cutouts.open_cutouts`.
    columns : mapping
        What catalogues call some of `COLUMNS`.
    grade_lens : collection of str
        Grades that mean a lens, for catalogues without labels.
    drop_columns : collection of str
        Columns to leave out.
    options : S3Options, optional

    Raises
    ------
    ConfigError
        More folders than catalogues; a column named that no catalogue has.
    InputError
        What `open_cutouts` raises; a catalogue with neither label nor grade.
    """
    if len(folders) > len(uris):
        raise ConfigError(
            f"{len(folders)} folders of cutouts for {len(uris)} catalogues: give --cutouts once "
            "for each, in the order of the catalogues."
        )
    found = [headings(uri, options) for uri in uris]
    for ours, theirs in columns.items():
        if not any(theirs in names for names in found):
            every = {name for names in found for name in names}
            raise ConfigError(
                f"No catalogue has a column {theirs!r}, which was named for {ours}; there are: "
                f"{names_text(sorted(every), theirs)}."
            )
    catalogs = [
        _open_catalog(
            uri,
            name,
            folders[number] if number < len(folders) else _parent(uri),
            {ours: theirs for ours, theirs in columns.items() if theirs in names},
            read_position,
            grade_lens,
            drop_columns,
            survey,
            options,
        )
        for number, (uri, name, names) in enumerate(
            zip(uris, _catalog_names(uris), found, strict=True)
        )
    ]
    return sorted(catalogs, key=lambda catalog: catalog.name)


def headings(uri: Location, options: S3Options | None = None) -> list[str]:
    """Names of a table's columns; InputError if it cannot be read."""
    try:
        with _copied(uri, options) as path:
            return read_table(path, columns=()).names
    except ScoresError as error:
        raise InputError(str(error)) from error


@contextmanager
def _copied(uri: Location, options: S3Options | None) -> Iterator[Location]:
    """A table that lies on a local disk; of one in a store a copy, which no error names."""
    if not is_remote(uri):
        yield uri
        return
    with local_file(uri, options=options) as path:
        try:
            yield path
        except (ScoresError, InputError) as error:
            raise type(error)(str(error).replace(str(path), str(uri))) from error


def _parent(uri: Location) -> str:
    return str(uri).rsplit("/", 1)[0] if is_remote(uri) else str(local_path(uri).absolute().parent)


def _catalog_names(uris: Sequence[Location]) -> list[str]:
    """Names without suffix, with as many folders as tell all of them apart."""
    paths = [
        PurePosixPath(
            str(u).split("://", 1)[1] if is_remote(u) else local_path(u).resolve().as_posix()
        )
        for u in uris
    ]
    parts = [[*path.parent.parts, path.name[: len(path.name) - len(suffix_of(u))]]
             for path, u in zip(paths, uris, strict=True)]  # fmt: skip
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]).strip("/") for part in parts]
        if len({*names}) == len(names):
            return names
    twice = next(uri for uri, name in zip(uris, names, strict=True) if names.count(name) > 1)
    raise ConfigError(f"{twice} is named twice: its rows would come twice. Name it once.")


def _open_catalog(
    uri: Location,
    name: str,
    folder: str,
    columns: Mapping[str, str],
    read_position: ReadPosition,
    grade_lens: Collection[str],
    drop_columns: Collection[str],
    survey: Survey,
    options: S3Options | None,
) -> Catalog:
    root = folder.rstrip("/") if is_remote(folder) else str(local_path(folder).absolute())
    with (
        _copied(uri, options) as path,
        _listed(root, read_position, options) as (here, position_of, size_of),
    ):
        bands = survey.geometry.bands
        cutouts = open_cutouts(here, path, position_of, columns, folder, survey.geometry)
        files = cutouts.table["file"].to_pylist()
        sizes = [sum(map(size_of, split_name(file, bands)[0])) if file else 0 for file in files]
    found = cutouts.table
    label, reason, detail = _labels(found, str(uri), grade_lens)
    missing = found[NO_CUTOUT].to_pylist()
    nothing = np.array([why is not None for why in missing])
    reason = np.where((reason == "") & nothing, NO_CUTOUT, reason)
    detail = [d or why for d, why in zip(detail, missing, strict=True)]
    facts = pa.table(
        {
            "label": pa.array(label, pa.int8()),
            "reason": pa.array(reason.tolist(), pa.string()),
            "detail": pa.array(detail, pa.string()),
            "file": pa.array(files, pa.string()),
            "bytes": pa.array(sizes, pa.int64()),
        }
    )
    table = _rows(found, name, str(uri), label, drop_columns, survey)
    return Catalog(str(uri), name, root, table, facts, cutouts.unused)


def _labels(
    table: pa.Table, uri: str, grade_lens: Collection[str]
) -> tuple[NDArray[np.int8], NDArray[Any], list[str | None]]:
    """Label of each row, why it has none, and what was found there."""
    if "label" in table.column_names:
        texts = [_word(value) for value in table["label"].to_pylist()]
        label = np.array([_LABELS.get(text, -1) for text in texts], np.int8)
        bad = [f"label {text!r:.60}" if text else "no label" for text in texts]
        reason = UNKNOWN_LABEL
    else:
        column = next((name for name in _GRADES if name in table.column_names), None)
        if column is None:
            theirs = [name for name in table.column_names if name != NO_CUTOUT]
            raise InputError(
                f"{uri} has neither a label nor a grade; it has: {names_text(theirs, 'label')}. "
                "Add a column label (1 for lenses, 0 for others), or name one with "
                "--columns label=COLUMN."
            )
        if not grade_lens:
            raise InputError(
                f"{uri} has no label but a grade. Say which grades are lenses with --grade-lens "
                "A,B (rows of other grades are left out), or add a column label."
            )
        grades = [_text_of(value) for value in table[column].to_pylist()]
        label = np.array([1 if grade in grade_lens else -1 for grade in grades], np.int8)
        bad = [f"grade {grade!r:.60}" if grade else "no grade" for grade in grades]
        reason = OTHER_GRADE
    return (
        label,
        np.where(label < 0, reason, ""),
        [what if one < 0 else None for what, one in zip(bad, label, strict=True)],
    )


def _word(value: Any) -> str:
    """A label as the closed map has it: 1.0 and True are 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip().casefold()


def _text_of(value: Any) -> str | None:
    return None if value is None or not str(value).strip() else str(value).strip()


def _rows(
    found: pa.Table,
    name: str,
    uri: str,
    label: NDArray[np.int8],
    drop: Collection[str],
    survey: Survey,
) -> pa.Table:
    """Columns as the sidecar will have them."""
    count = found.num_rows

    def texts(*columns: str) -> list[str | None]:
        known = next((column for column in columns if column in found.column_names), None)
        return [None] * count if known is None else [_text_of(v) for v in found[known].to_pylist()]

    models = {value: model for model, value in CUTOUT_LABELS.items()}
    kinds = [kind or ("lens" if one == 1 else None)
             for kind, one in zip(texts(KIND), label, strict=True)]  # fmt: skip
    own = {
        "task_id": [f"{name}:{key}" for key in found["key"].to_pylist()],
        SPLIT_COLUMN: _own_splits(texts(SPLIT_COLUMN), uri),
        "lens_model": [models.get(int(one)) for one in label],
        ORIGIN: [origin or REAL for origin in texts(ORIGIN)],
        KIND: kinds,
        GRADE: texts(*_GRADES),
    }
    columns = {column: pa.array(values, pa.string()) for column, values in own.items()}
    columns |= {"ra": found["ra"], "dec": found["dec"], _REGION: _own_regions(found, uri)}
    used = {*columns, "key", "label", NO_CUTOUT}
    for column in found.column_names:
        if column in used or column in drop:
            continue
        taken = column == STAMP_COLUMN or survey.public_name(column) != column
        public = f"{_RENAMED}{column}" if taken else column
        while taken and public in found.column_names:
            public = f"{_RENAMED}{public}"
        columns[public] = found[column]
    return pa.table({column: columns[column] for column in (*_OWN, *columns)})


def _own_splits(splits: list[str | None], uri: str) -> list[str | None]:
    if unknown := sorted({*splits} - {*SPLITS, None}, key=str):
        raise InputError(
            f"{uri}: {SPLIT_COLUMN} is {unknown[0]!r:.60} in some rows; known are "
            f"{', '.join(SPLITS)}. Correct it, or leave it empty for a split to be drawn."
        )
    return splits


def _own_regions(table: pa.Table, uri: str) -> pa.ChunkedArray:
    if _REGION not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.int32())])
    try:
        return table[_REGION].cast(pa.int32())
    except pa.ArrowException:
        raise InputError(
            f"{uri}: column {_REGION} holds {table[_REGION].type!s:.60} that is no whole number of "
            "32 bits. Number the regions, or name another column with --columns region_id=COLUMN."
        ) from None


@contextmanager
def _listed(
    root: str, read_position: ReadPosition, options: S3Options | None
) -> Iterator[tuple[str, ReadPosition, Callable[[str], int]]]:
    """A local folder with the names of the cutouts, how to read a position, and their sizes.

    Of a store only names are needed to match files to rows: the folder holds empty files.
    """
    if not is_remote(root):
        yield root, read_position, lambda file: Path(root, file).stat().st_size
        return
    entries = open_store(root, options).entries()
    sizes = {entry.name: entry.bytes for entry in entries if cutout_stem(entry.name) is not None}

    def refuse(_: Path) -> None:
        raise InputError(
            f"{root}: cutouts in an object store are not matched by position. Add a column file or "
            "key to the catalogue."
        )

    with tempfile.TemporaryDirectory(prefix="lensprep-") as folder:
        for name in sizes:
            path = member_path(Path(folder), name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        yield folder, refuse, sizes.__getitem__


@contextmanager
def local_cutout(
    folder: str, file: str, bands: Sequence[str], options: S3Options | None = None
) -> Iterator[Path]:
    """Path of a cutout; of one in a store a copy, which is removed afterwards.

    Raises
    ------
    StorageError
        If the store fails, which says nothing about the file.
    """
    if not is_remote(folder):
        yield Path(folder, file)
        return
    store = open_store(folder, options)
    with tempfile.TemporaryDirectory(prefix="lensprep-") as here:
        for name in split_name(file, bands)[0]:
            copy = member_path(Path(here), name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(store.read(name))
        yield Path(here, file)


# ------------------------------------------------------------------------------- one source


@dataclass(frozen=True, slots=True)
class CatalogPart(SourceFile):
    """Some rows of a catalogue, which are one row group."""

    first: int = 0
    """Number of the first row in the catalogue."""
    folder: str = ""
    table: pa.Table = field(default=None, compare=False, repr=False)
    """Rows with the columns of `Source.schema`."""
    facts: pa.Table = field(default=None, compare=False, repr=False)
    """See `Catalog.facts`."""
    options: S3Options | None = field(default=None, compare=False, repr=False)

    def label(self, group: int) -> str:
        """Name of its row group for messages."""
        return f"{self.path}, rows {self.first + 1} to {self.first + self.rows}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CutoutSource(Source):
    """Trees and catalogues as one source."""

    names: tuple[str, ...]
    """What each tree, and then each catalogue, is called."""
    catalogs_digest: str
    """Digest over the rows of the catalogues and the sizes of their files."""

    @classmethod
    def of(
        cls,
        trees: Source | None,
        catalogs: Sequence[Catalog],
        uri: str,
        survey: Survey,
        drop_columns: Collection[str] = (),
        options: S3Options | None = None,
    ) -> CutoutSource:
        """Join trees, if there are any, and catalogues whose rows have their regions and splits.

        Raises
        ------
        SchemaError
            If a column has types in them that no one type holds.
        """
        schema = _joined_schema(trees, catalogs, survey, drop_columns)
        parts = [part for one in catalogs for part in _parts(one, schema, options)]
        files = trees.files if trees else ()
        if taken := {file.path for file in files} & {part.path for part in parts}:
            raise ConfigError(f"{min(taken)} is the name of a file in a tree too. Rename one.")
        return cls(
            uri=uri,
            files=(*files, *parts),
            schema=schema,
            bad_files=trees.bad_files if trees else (),
            left_out=trees.left_out if trees else {},
            unfinished=trees.unfinished if trees else None,
            is_marked=trees is not None and trees.is_marked,
            places=trees.places if trees else (),
            survey=survey,
            names=(*_tree_names(trees), *(one.path for one in catalogs)),
            catalogs_digest=_digest(catalogs),
        )

    def digest(self) -> str:
        """SHA-256 over the listing of the trees, the catalogues' rows and their files' sizes."""
        files = tuple(file for file in self.files if not isinstance(file, CatalogPart))
        trees = Source.digest(replace(self, files=files))
        return hashlib.sha256(f"{trees}\n{self.catalogs_digest}\n".encode()).hexdigest()

    def name_of(self, file: SourceFile) -> str:
        """What the tree or catalogue that a file belongs to is called."""
        return file.path if isinstance(file, CatalogPart) else self.names[file.place]


def _tree_names(trees: Source | None) -> list[str]:
    """The names that the paths of files begin with; of one tree, its folder."""
    if trees is None:
        return []
    named = [place.name for place in trees.places]
    return named if all(named) else [PurePosixPath(trees.places[0].root.rstrip("/")).name or "tree"]


def _parts(catalog: Catalog, schema: pa.Schema, options: S3Options | None) -> Iterator[CatalogPart]:
    """A catalogue as files of one row group."""
    light = pa.schema([column for column in schema if column.name != STAMP_COLUMN])
    rows = catalog.table.num_rows
    arrays = [
        _cast(catalog, column)
        if column.name in catalog.table.column_names
        else pa.nulls(rows, column.type)
        for column in light
    ]
    table = pa.table(arrays, schema=light)
    for first in range(0, rows, CHUNK_ROWS):
        # Copied: a slice would be sent to a worker with all that it is a slice of.
        few = pa.array(np.arange(first, min(first + CHUNK_ROWS, rows)))
        facts, some = catalog.facts.take(few), table.take(few)
        size = pc.sum(facts["bytes"]).as_py() or 0
        yield CatalogPart(
            catalog.path, size, len(facts), (RowGroup(len(facts), size),), None, (),
            first=first, folder=catalog.folder, table=some, facts=facts, options=options,
        )  # fmt: skip


def _cast(catalog: Catalog, wanted: pa.Field) -> pa.ChunkedArray:
    column = catalog.table[wanted.name]
    try:
        return column.cast(wanted.type)
    except pa.ArrowException:
        raise SchemaError(
            f"{catalog.uri}: column {wanted.name} holds {column.type!s:.60}, which does not fit "
            f"the {wanted.type} of the other sources. Rename it, or leave it out with "
            f"--drop-column {wanted.name}."
        ) from None


def _joined_schema(
    trees: Source | None, catalogs: Sequence[Catalog], survey: Survey, drop: Collection[str]
) -> pa.Schema:
    """Columns of the contract in its order, then all others by name."""
    known = {f.name: f.type for f in trees.schema} if trees else {
        name: survey.column_by_name[name].type for name in survey.required_columns
        if name not in (STAMP_COLUMN, *drop)
    }  # fmt: skip
    for name in (ORIGIN, KIND, GRADE):
        if known.setdefault(name, pa.string()) != pa.string():
            raise SchemaError(
                f"{trees.uri if trees else ''}: column {name} is {known[name]}; where catalogues "
                f"are among the sources it is text. Leave it out with --drop-column {name}."
            )
    for catalog in catalogs:
        for column in catalog.table.schema:
            name, found = column.name, column.type
            if name in survey.column_by_name:
                known.setdefault(name, survey.column_by_name[name].type)
                continue
            common = common_type(known.setdefault(name, found), found)
            if common is None:
                raise SchemaError(
                    f"{catalog.uri}: column {name} is {found}, and {known[name]} in another "
                    f"source. Rename it, or leave it out with --drop-column {name}."
                )
            known[name] = common
    ordered = [name for name in survey.column_by_name if name in known]
    extra = sorted({*known} - {*ordered})
    return pa.schema([(name, known[name]) for name in (*ordered, *extra)])


def _digest(catalogs: Sequence[Catalog]) -> str:
    """Over rows, with their regions and splits, and the sizes of files."""
    digest = hashlib.sha256()
    for catalog in catalogs:
        digest.update(f"{catalog.path}\n".encode())
        own = catalog.table.append_column("file", catalog.facts["file"]) if (
            "file" not in catalog.table.column_names
        ) else catalog.table  # fmt: skip
        columns = {**own.to_pydict(), **catalog.facts.select(["label", "bytes"]).to_pydict()}
        digest.update(f"{','.join(columns)}\n".encode())
        for row in zip(*columns.values(), strict=True):
            digest.update(f"{row!r}\n".encode())
    return digest.hexdigest()


def fill_origin(table: pa.Table) -> pa.Table:
    """Rows of a tree, with their origin stated."""
    position = table.schema.get_field_index(ORIGIN)
    if position < 0:
        return table
    filled = pc.fill_null(table[ORIGIN], SIMULATED)
    return table.set_column(position, table.schema.field(position), filled)

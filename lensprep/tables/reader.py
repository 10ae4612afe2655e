"""One reader for every table that a user names: scores, catalogues, populations.

    found = read_table(uri, ["key", "logit"])          found.table, .metadata, .sha256, .names
    columns = parse_columns(["ra=RA_DEG,id=objid"], ("key", "ra", "dec"))      what --columns says
    require_columns(found, ("key",), uri, remedy)      else an error that lists what is there
    check_ids(found.table["key"], "key", uri)          else an error that counts the missing ones

Parquet, a folder of parquet parts (Spark's), FITS, VOTable, ECSV, and text
(`lensprep.tables.text`), on a disk or in a store, gzipped or not. The first bytes decide the
format, or the suffix where they do not. Whoever wrote it, a column comes out in one of a few Arrow
types: text is ``string``, without dictionaries.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.errors import (
    ConfigError,
    NotFoundError,
    ProjectError,
    ScoresError,
    error_line,
    names_text,
    passing_fault,
)
from lensprep.store import (
    exists,
    file_sha256,
    is_remote,
    local_file,
    local_folder,
    local_path,
    uri_suffix,
)
from lensprep.tables.positions import UNIT, likely_columns, unit_of
from lensprep.tables.text import infer_type, open_bytes, read_text, with_units

METADATA_KEY: Final = b"lenstrain"
"""Key of parquet's metadata, and name of FITS's extension, that say what made a table."""

Uri = str | PathLike[str]
Plan = dict[str, str]
"""Headings of the columns to read -> what they are called here."""

_SUFFIXES: Final = {
    ".parquet": "parquet", ".fits": "fits", ".fit": "fits", ".vot": "votable",
    ".votable": "votable", ".xml": "votable", ".ecsv": "ecsv",
}  # fmt: skip
_FORMATS: Final = "parquet, FITS, VOTable, ECSV, or text such as CSV"
_NOT_THERE: Final = ("", "nan", "none", "<na>", "null", "nat")
"""What a text holds, in small letters, where there was nothing."""


class TableFile(NamedTuple):
    """A table as it was read."""

    table: pa.Table
    metadata: dict[str, Any]
    """What `lensprep.tables.writer.table_writer` was told; {} of text and of foreign tables."""
    sha256: str
    """Digest of the file; of a folder, over names and digests of its parts."""
    names: list[str]
    """All headings of the file."""


def read_table(
    uri: Uri,
    columns: Sequence[str] | None = None,
    text: Sequence[str] = (),
    *,
    rename: Mapping[str, str] | None = None,
    if_there: bool = False,
) -> TableFile:
    """Read a table of any of the formats.

    Parameters
    ----------
    uri : str or path
    columns : sequence of str, optional
        The columns to read, as far as they are there; they must hold plain values. By default
        all, also those that hold lists and the like. ``ra`` and ``dec`` are found under any usual
        heading.
    text : sequence of str
        Columns of text files that are text, whatever they look like (``0012``).
    rename : mapping, optional
        What the table calls some columns: ``{"key": "objid"}``. A column that has the name itself
        is left out then.
    if_there : bool
        Whether one of these may be missing if the table has the name itself.

    Raises
    ------
    NotFoundError
        If there is no such file or folder.
    ScoresError
        If it cannot be read; if a column is there twice, or one named in `rename` is not there; if
        a requested one holds lists and the like.
    """
    plan = partial(_plan, columns=columns, rename=rename or {}, if_there=if_there, uri=uri)
    with local_table(uri) as path:
        try:
            sha256 = _digest(path)
            table, raw, names = _read(path, uri_suffix(uri), plan, text)
            table = _renamed(table, plan(names))
            table.validate(full=True)  # or text that is not UTF-8 would end whoever shows it
            table = _plain(table, asked=columns is not None)
        except ProjectError:
            raise
        except Exception as problem:  # of foreign parsers on foreign bytes: any
            if fault := passing_fault(uri, problem):
                raise fault from problem
            raise ScoresError(
                f"{uri} is no table that can be read ({_FORMATS}): {error_line(problem)}."
            ) from problem
    return TableFile(table, _facts(raw), sha256, names)


def _plan(
    names: Sequence[str],
    columns: Sequence[str] | None,
    rename: Mapping[str, str],
    if_there: bool,
    uri: Uri,
) -> Plan:
    """Which columns are read, and as what."""
    theirs = {ours: name for ours, name in rename.items() if name in names or not if_there}
    for ours, name in theirs.items():
        if name not in names:
            raise ScoresError(
                f"{uri} has no column {name!r}, which was named for {ours}; it has: "
                f"{names_text(names, name)}."
            )
    if columns is None:
        found = {name: name for name in names if name not in theirs}
    else:
        found = {name: name for name in columns if name in names and name not in theirs}
        for ours in {"ra", "dec"}.intersection(columns).difference(found, theirs):
            likely = likely_columns(names, ours)
            found |= dict.fromkeys(likely, ours) if len(likely) == 1 else {}
    found |= {name: ours for ours, name in theirs.items() if columns is None or ours in columns}
    for name in found:
        if names.count(name) > 1:
            raise ScoresError(f"{uri} has the column {name!r} more than once. Remove the others.")
    return found


@contextmanager
def local_table(uri: Uri) -> Iterator[Path]:
    """Path of a table's file or folder of parts, or of a local copy that is removed afterwards.

    Raises
    ------
    NotFoundError
        If there is neither.
    StorageError
        If it cannot be read.
    """
    if is_remote(uri):
        folder = str(uri).endswith("/") or not exists(uri)
    else:
        folder = local_path(uri).is_dir()
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_folder(uri) if folder else local_file(uri))
        except NotFoundError as error:
            raise NotFoundError(f"{uri}: no such file.") from error
        yield path


def _digest(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    parts = "".join(f"{file.relative_to(path)} {_digest(file)}\n" for file in _parts(path))
    return hashlib.sha256(parts.encode()).hexdigest()


def _facts(raw: bytes | str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# --------------------------------------------------------------------------------- formats


def _read(
    path: Path, suffix: str, plan: Callable[[list[str]], Plan], text: Sequence[str] = ()
) -> tuple[pa.Table, bytes, list[str]]:
    """The columns of a plan under their own headings, what made the table, and all its headings."""
    kind = "parquet" if path.is_dir() else _format(path, suffix)
    if kind == "parquet":
        return _read_parquet(path, plan)
    if kind == "text":
        table, names = read_text(path, plan, text)
        return table, b"{}", names
    with warnings.catch_warnings(), open_bytes(path) as file:
        warnings.simplefilter("ignore")  # of units and names that others write
        data = io.BytesIO(file.read())  # to its end, where gzip keeps its checksum
        if kind == "fits":
            return _read_fits(data, plan)
        from astropy.table import Table
        from astropy.table.serialize import represent_mixins_as_columns

        found = (
            Table.read(data, format="votable")
            if kind == "votable"
            else Table.read(data.getvalue().decode("utf-8-sig").splitlines(), format="ascii.ecsv")
        )
        found = represent_mixins_as_columns(found)
        names = list(found.colnames)
        columns = {name: (_to_arrow(found[name]), found[name].unit) for name in plan(names)}
        return with_units(columns), b"{}", names


def _format(path: Path, suffix: str) -> str:
    with open_bytes(path) as file:
        head = file.read(512)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, kind in ((b"SIMPLE  =", "fits"), (b"# %ECSV", "ecsv"), (b"<?xml", "votable"),
                       (b"<VOTABLE", "votable"), (b"PAR1", "parquet")):  # fmt: skip
        if start.startswith(mark):
            return kind
    if head.startswith(b"PK\x03\x04"):
        raise ValueError("it is a zip archive, as spreadsheets (.xlsx, .ods) are. Save it as CSV.")
    return _SUFFIXES.get(suffix.removesuffix(".gz"), "text")


def _renamed(table: pa.Table, plan: Plan) -> pa.Table:
    """The columns of a plan under our names, with the units that their headings state."""
    fields = []
    for name, ours in plan.items():
        field = table.schema.field(name)
        unit = unit_of(field)
        fields.append(pa.field(ours, field.type, metadata={UNIT: unit} if unit else None))
    return pa.table([table[name] for name in plan], schema=pa.schema(fields))


def _read_parquet(
    path: Path, plan: Callable[[list[str]], Plan]
) -> tuple[pa.Table, bytes, list[str]]:
    """A file, or all parts of a folder; partition columns stand in the names of its subfolders."""
    paths = _parts(path) if path.is_dir() else [path]
    files = [pq.ParquetFile(each) for each in paths]
    inside = [file.schema_arrow.names for file in files]
    keys = [
        _partition(each.relative_to(path), there) for each, there in zip(paths, inside, strict=True)
    ]
    names: list[str] = []
    for there, stated in zip(inside, keys, strict=True):
        names += [name for name in (*there, *stated) if name not in names]
    chosen, tables = plan(names), []
    for file, there, stated in zip(files, inside, keys, strict=True):
        table = file.read(columns=[name for name in chosen if name in there])
        for name in stated.keys() & chosen.keys():
            table = table.append_column(name, pa.array([stated[name]] * len(table), pa.string()))
        tables.append(_plain(table))
    table = pa.concat_tables(tables, promote_options="permissive")
    for name in chosen.keys() & set().union(*keys):
        position = table.column_names.index(name)
        table = table.set_column(position, name, infer_type(table[name]))
    return table, (files[0].schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"), names


def _parts(folder: Path) -> list[Path]:
    """Parquet files of a folder that something finished writing, in the order of their names.

    Raises
    ------
    ValueError
        If a job did not finish, there is none, or not every file is part of the table.
    """
    if (folder / "_temporary").exists():
        raise ValueError("the Spark job that wrote it did not finish: it has a folder _temporary.")
    for mark, what in (("_delta_log", "a Delta"), ("metadata/*.metadata.json", "an Iceberg")):
        if next(folder.glob(mark), None):
            raise ValueError(
                f"it is {what} table, of which old files stay in the folder. Write its rows to "
                "parquet."
            )
    found = sorted(
        path
        for path in folder.rglob("*.parquet")
        if not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ValueError("it is a folder without parquet files.")
    return found


def _partition(part: Path, inside: Sequence[str]) -> dict[str, str | None]:
    """What the subfolders say (``region_id=5/split=test``) of columns that a part file lacks."""
    pairs = (folder.split("=", 1) for folder in part.parts[:-1] if "=" in folder)
    return {name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
            for name, value in pairs if name not in inside}  # fmt: skip


def _read_fits(
    data: io.BytesIO, plan: Callable[[list[str]], Plan]
) -> tuple[pa.Table, bytes, list[str]]:
    """The first table of a file, and what made it; only in our own files is text escaped."""
    from astropy.io import fits

    with fits.open(data, memmap=False, character_as_bytes=True) as hdus:
        name = METADATA_KEY.decode().upper()
        ours = name in hdus
        raw = bytes(hdus[name].data["json"][0]) if ours else b"{}"
        hdu = next((h for h in hdus if isinstance(h, (fits.BinTableHDU, fits.TableHDU))), None)
        if hdu is None:
            raise ValueError("it holds no table.")
        names, columns = list(hdu.columns.names), {}
        for each in plan(names):
            said = hdu.columns[each]
            columns[each] = (_to_arrow(hdu.data[each], said.null, escaped=ours), said.unit)
    return with_units(columns), raw, names


def _to_arrow(column: Any, null: Any = None, *, escaped: bool = False) -> pa.Array:
    """A column of astropy's; what is masked, `null`, NaN or empty text is null."""
    values, mask = np.ma.getdata(column), np.ma.getmaskarray(column)
    values = np.asarray(values)
    if values.dtype.kind in "SUO" and values.ndim == 1:
        cells = [_decode(cell, escaped) for cell in values]
        if all(isinstance(cell, str) for cell in cells):
            return pa.array([c or None for c in cells], pa.string(), mask=mask)
        return pa.array([np.asarray(cell).tolist() for cell in cells])
    values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim > 1:
        flat = pa.array(values.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    if null is not None:
        mask = mask | (values == null)
    if values.dtype.kind == "f":
        mask = mask | np.isnan(values)
    return pa.array(values, mask=mask)


def _decode(cell: Any, escaped: bool) -> Any:
    if isinstance(cell, bytes):
        text = cell.rstrip()
        return text.decode("unicode_escape") if escaped else text.decode("utf-8", "replace")
    return cell.rstrip() if isinstance(cell, str) else cell


# ---------------------------------------------------------------------------------- columns


def _plain(table: pa.Table, asked: bool = False) -> pa.Table:
    """The table in types that Arrow counts and ranks; what is nested is refused if asked for."""
    for position, field in enumerate(table.schema):
        what = f"column {field.name} holds {field.type!s:.60}"
        try:
            column = _plain_column(table.column(position))
        except pa.ArrowException as error:
            raise ValueError(f"{what} that cannot be read: {error_line(error)}") from None
        if asked and (pa.types.is_nested(column.type) or _is_span(column.type)):
            raise ValueError(f"{what}, not plain values.")
        table = table.set_column(position, field.with_type(column.type), column)
    return table


def _plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind, types = column.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_column(column.cast(kind.storage_type))
    if types.is_dictionary(kind):
        return _plain_column(column.cast(kind.value_type))
    if types.is_float16(kind):
        return column.cast(pa.float32())
    if types.is_decimal(kind) and kind.bit_width < 128:
        return column.cast(pa.decimal128(18, kind.scale))
    return column.cast(pa.string()) if any(is_kind(kind) for is_kind in _TEXTS) else column


_TEXTS: Final = (
    pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary,
    pa.types.is_binary_view, pa.types.is_fixed_size_binary, pa.types.is_null,
)  # fmt: skip


def _is_span(kind: pa.DataType) -> bool:
    """Times of day and durations, which Arrow does not rank."""
    return bool(pa.types.is_time(kind) or pa.types.is_duration(kind) or pa.types.is_interval(kind))


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
        raise ScoresError(
            f"{uri}: column {name} holds {kind!s:.60}, not numbers{_first_text(column)}."
        ) from None
    return np.asarray(floats.to_numpy(), dtype=np.float64)


def _first_text(column: pa.ChunkedArray) -> str:
    """The first value that is no number, for messages."""
    if not pa.types.is_string(column.type):
        return ""
    for text in column.drop_null().to_pylist():
        try:
            float(text)
        except ValueError:
            return f" (first: {text!r:.40})"
    return ""


def check_ids(
    column: pa.ChunkedArray,
    name: str,
    uri: Uri,
    *,
    repeated: bool = False,
) -> None:
    """Refuse ids if some are missing or cannot be distinguished.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        As `read_table` gives it.
    name : str
    uri : str or path
    repeated : bool
        Whether rows may share an id. Then ``nan``, ``None`` and the like, which programs write for
        a missing value, count as missing; a unique id may be such a name.

    Raises
    ------
    ScoresError
        With the count. Null, NaN and empty text are no ids; a float from 2^53 (float32: 2^24) on
        stands for several whole numbers.
    """
    kind, missing = column.type, column.null_count
    if pa.types.is_floating(kind):
        values = column.drop_null().to_numpy()
        missing += int(np.isnan(values).sum())
        digits = np.finfo(values.dtype).nmant + 1
        beyond = int((np.abs(values) >= 2.0**digits).sum())
        if beyond:
            raise ScoresError(
                f"{uri}: {beyond:,} values of {name} are floats beyond 2^{digits}, where whole "
                "numbers can no longer be told apart. Write the column as integers or text."
            )
    elif pa.types.is_string(kind):
        folded = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        nothing = pa.array(_NOT_THERE if repeated else _NOT_THERE[:1])
        missing += pc.sum(pc.is_in(folded.drop_null(), nothing)).as_py() or 0
    if missing:
        raise ScoresError(
            f"{uri}: {missing:,} rows have no {name} (null, NaN or empty); every row needs one."
        )


def require_columns(found: TableFile, wanted: Sequence[str], uri: Uri, remedy: str) -> None:
    """Refuse a table that lacks a column.

    Parameters
    ----------
    found : TableFile
    wanted : sequence of str
        ``"logit or probability"`` is either.
    uri : str or path
    remedy : str
        What to do, as a sentence; ``{}`` in it becomes the first name that is missing.

    Raises
    ------
    ScoresError
        With the columns that are there, those of like names first.
    """
    there = set(found.table.column_names)
    missing = [each for each in wanted if not there.intersection(each.split(" or "))]
    if missing:
        first = missing[0].split(" or ")[0]
        raise ScoresError(
            f"{uri} lacks the column {', '.join(missing)}; it has: "
            f"{names_text(found.names, first)}. {remedy.format(first)}"
        )


def parse_columns(
    texts: Sequence[str], known: Sequence[str], option: str = "--columns"
) -> dict[str, str]:
    """Read what a user says a table calls its columns: ``ra=RA_DEG,id=objid``.

    Parameters
    ----------
    texts : sequence of str
        Each one pair or several; a comma that no ``NAME=`` follows belongs to the heading.
    known : sequence of str
        Names that may be given; ``id`` stands for the first.
    option : str
        Where they come from, for messages.

    Raises
    ------
    ConfigError
        If a pair is not of that form, names something unknown, or is repeated.
    """
    found: dict[str, str] = {}
    for text in texts:
        for pair in re.split(r",(?=\s*\w+\s*=)", text):
            name, equals, theirs = pair.partition("=")
            ours = known[0] if name.strip() == "id" and "id" not in known else name.strip()
            if not equals or ours not in known or not theirs.strip() or ours in found:
                raise ConfigError(
                    f"{option} {pair!r}: write it as NAME=COLUMN, each NAME once; NAME is one of "
                    f"{', '.join(known)}."
                )
            found[ours] = theirs.strip()
    return found


# ---------------------------------------------------------------------------------- vectors


def read_vectors(uri: Uri, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Some rows of a column of vectors; of parquet the other rows are not held in memory.

    Parameters
    ----------
    uri : str or path
    name : str
    rows : ndarray of int, shape (n,)
        Ascending.

    Returns
    -------
    ndarray of float64, shape (n, width), or None
        None if the table has no such column; text has none.

    Raises
    ------
    ScoresError
        If the table cannot be read, has too few rows, or the column does not hold vectors.
    """
    with local_table(uri) as path:
        try:
            taken, start = [], 0
            for piece in _vectors(path, uri_suffix(uri), name):
                first, last = np.searchsorted(rows, [start, start + piece.num_rows])
                if last > first:
                    taken.append(_matrix(piece.column(0).take(pa.array(rows[first:last] - start))))
                start += piece.num_rows
        except Exception as error:  # of foreign parsers on foreign bytes: any
            raise ScoresError(
                f"{uri}: vectors of {name} cannot be read: {error_line(error)}."
            ) from error
    found = np.concatenate(taken) if taken else None
    if found is not None and len(found) != len(rows):
        raise ScoresError(f"{uri} has {len(found)} of {len(rows)} rows of {name}.")
    return found


def _vectors(path: Path, suffix: str, name: str) -> Iterator[pa.RecordBatch]:
    """Pieces of one column; none if it is not there, or the format has no vectors."""
    kind = "parquet" if path.is_dir() else _format(path, suffix)
    if kind == "parquet":
        for file in _parts(path) if path.is_dir() else [path]:
            parquet = pq.ParquetFile(file)
            if name in parquet.schema_arrow.names:
                yield from parquet.iter_batches(columns=[name])
    elif kind != "text":
        table, *_ = _read(path, suffix, lambda names: {name: name} if name in names else {})
        yield from table.to_batches()


def _matrix(vectors: pa.Array) -> NDArray[np.float64]:
    """Vectors of one width as rows."""
    if vectors.null_count:
        raise ValueError("a vector is null.")
    lengths = np.unique(pc.list_value_length(vectors).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError("they differ in width.")
    flat = vectors.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(vectors), -1))

"""Tables that a user names, as they have them: one reader for scores, catalogues and populations.

    found = read_table(uri, ["key", "logit"])          found.table, .metadata, .sha256, .names
    columns = parse_columns(["ra=RA_DEG,id=objid"], ("key", "ra", "dec"))      what --columns says
    require_columns(found, ("key",), uri, remedy)      or what is there, the likeliest first
    check_ids(found.table["key"], "key", uri)          or how many rows have none

Parquet, a folder of parquet parts (Spark's), FITS, VOTable, ECSV, and text
(`lensprep.tables.text`), on a disk or in a store, gzipped or not. The first bytes decide, and the
suffix where they say nothing. Whatever the writer, a column is of one of few Arrow types
afterwards: text is ``string``, without dictionaries.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from lensprep.tables.text import infer_type, open_bytes, read_text

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
    error: type[ProjectError] = ScoresError,
) -> TableFile:
    """Read a table of any of the formats.

    Parameters
    ----------
    uri : str or path
    columns : sequence of str, optional
        Those of these that are there, which must hold plain values; by default all, also those
        that hold lists and the like. ``ra`` and ``dec`` are found under any usual heading.
    text : sequence of str
        Columns of text files that are text, whatever they look like (``0012``).
    rename : mapping, optional
        What the table calls some columns: ``{"key": "objid"}``. A column that has the name itself
        is left out then.
    if_there : bool
        Whether one of these may be missing if the table has the name itself.
    error : type
        What is raised.

    Raises
    ------
    NotFoundError
        If there is no such file or folder.
    ProjectError
        Of the given type: if it cannot be read, a column is there twice or, of `rename`, is not
        there, or one that was asked for holds lists and the like.
    """
    known = dict(rename or {})
    plan = partial(_plan, columns=columns, rename=known, if_there=if_there, uri=uri, error=error)
    with local_table(uri) as path:
        try:
            sha256 = _digest(path)
            table, raw, names = _read(path, uri_suffix(uri), plan, text)
            table.validate(full=True)  # or text that is not UTF-8 would end whoever shows it
            table = _plain(table, columns is not None)
        except ProjectError:
            raise
        except Exception as problem:  # of foreign parsers on foreign bytes: any
            if fault := passing_fault(uri, problem):
                raise fault from problem
            raise error(
                f"{uri} is no table that can be read ({_FORMATS}): {error_line(problem)}."
            ) from problem
    return TableFile(table, _facts(raw), sha256, names)


def _plan(
    names: Sequence[str],
    columns: Sequence[str] | None,
    rename: Mapping[str, str],
    if_there: bool,
    uri: Uri,
    error: type[ProjectError],
) -> Plan:
    """Which columns are read, and as what."""
    theirs = {ours: name for ours, name in rename.items() if name in names or not if_there}
    for ours, name in theirs.items():
        if name not in names:
            raise error(
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
            raise error(f"{uri} has the column {name!r} more than once. Remove the others.")
    return found


@contextmanager
def local_table(uri: Uri) -> Iterator[Path]:
    """Path of a table's file, or of its folder of parts, or of a copy which goes with the block.

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
    """The columns of a plan under our names, what made the table, and all its headings."""
    kind = "parquet" if path.is_dir() else _format(path, suffix)
    if kind == "parquet":
        return _read_parquet(path, plan)
    if kind == "text":
        table, names = read_text(path, plan, text)
        return _renamed(table, plan(names)), b"{}", names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of units and names that others write
        with open_bytes(path) as file:
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
        chosen = plan(names)
        arrays = [_to_arrow(found[name], None) for name in chosen]
        units = [str(found[name].unit or "") for name in chosen]
        return _renamed(_table(arrays, list(chosen), units), chosen), b"{}", names


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


def _table(arrays: list[pa.Array], names: list[str], units: list[str]) -> pa.Table:
    fields = [pa.field(name, array.type, metadata={UNIT: unit})
              for name, array, unit in zip(names, arrays, units, strict=True)]  # fmt: skip
    return pa.table(arrays, schema=pa.schema(fields))


def _read_parquet(
    path: Path, plan: Callable[[list[str]], Plan]
) -> tuple[pa.Table, bytes, list[str]]:
    """A file, or all parts of a folder; partition columns stand in the names of its subfolders."""
    tables, raw, names = [], b"{}", []
    for number, file in enumerate(_parts(path) if path.is_dir() else [path]):
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        inside = list(schema.names)
        stated = _partition(file.relative_to(path))
        keys = {name: value for name, value in stated.items() if name not in inside}
        chosen = plan([*inside, *keys])
        table = parquet.read(columns=[name for name in chosen if name in inside])
        for name in keys.keys() & chosen.keys():
            table = table.append_column(name, pa.array([keys[name]] * len(table), pa.string()))
        tables.append(_plain(_renamed(table, chosen), asked=False))
        if number == 0:
            raw = (schema.metadata or {}).get(METADATA_KEY, b"{}")
            names, partitions = [*inside, *keys], [chosen[n] for n in keys.keys() & chosen.keys()]
    table = pa.concat_tables(tables, promote_options="permissive")
    for name in partitions:
        place = table.column_names.index(name)
        table = table.set_column(place, name, infer_type(table[name]))
    return table, raw, names


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


def _partition(part: Path) -> dict[str, str | None]:
    """What the subfolders of a part say: ``region_id=5/split=test``."""
    pairs = (folder.split("=", 1) for folder in part.parts[:-1] if "=" in folder)
    return {name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
            for name, value in pairs}  # fmt: skip


def _read_fits(
    data: io.BytesIO, plan: Callable[[list[str]], Plan]
) -> tuple[pa.Table, bytes, list[str]]:
    """The first table of a file, and what is said of it; text of others than ours is no escapes."""
    from astropy.io import fits

    with fits.open(data, memmap=False, character_as_bytes=True) as hdus:
        name = METADATA_KEY.decode().upper()
        ours = name in hdus
        raw = bytes(hdus[name].data["json"][0]) if ours else b"{}"
        hdu = next((h for h in hdus if isinstance(h, (fits.BinTableHDU, fits.TableHDU))), None)
        if hdu is None:
            raise ValueError("it holds no table.")
        names = list(hdu.columns.names)
        chosen = plan(names)
        arrays = [
            _to_arrow(np.asarray(hdu.data[each]), hdu.columns[each].null, escaped=ours)
            for each in chosen
        ]
        units = [str(hdu.columns[each].unit or "") for each in chosen]
    return _renamed(_table(arrays, list(chosen), units), chosen), raw, names


def _to_arrow(column: Any, null: Any, *, escaped: bool = False) -> pa.Array:
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


def _plain(table: pa.Table, asked: bool) -> pa.Table:
    """The table in types that Arrow counts and ranks; what is nested is refused if asked for."""
    columns, fields = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        try:
            chunks = [_plain_array(chunk) for chunk in column.chunks]
            column = pa.chunked_array(chunks or [_plain_array(pa.nulls(0, column.type))])
        except pa.ArrowException as error:
            kind = f"column {field.name} holds {field.type!s:.60}"
            if pa.types.is_nested(field.type) or _is_span(field.type):
                if asked:
                    raise ValueError(f"{kind}, not plain values.") from None
            else:
                raise ValueError(f"{kind} that cannot be read: {error_line(error)}") from None
        columns.append(column)
        fields.append(field.with_type(column.type))
    return pa.table(columns, schema=pa.schema(fields, table.schema.metadata))


def _plain_array(array: pa.Array) -> pa.Array:
    kind, types = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_array(array.storage)
    if types.is_dictionary(kind):
        return _plain_array(array.dictionary).take(array.indices)
    if types.is_nested(kind) or _is_span(kind):
        raise pa.ArrowInvalid("not plain")
    if types.is_fixed_size_binary(kind):
        array, kind = array.cast(pa.binary()), pa.binary()
    if types.is_float16(kind):
        return array.cast(pa.float32())
    if types.is_decimal(kind) and kind.bit_width < 128:
        return array.cast(pa.decimal128(18, kind.scale))
    if any(is_kind(kind) for is_kind in _TEXTS):
        return array.cast(pa.string())
    return array


_TEXTS: Final = (
    pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary,
    pa.types.is_binary_view, pa.types.is_null,
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
    error: type[ProjectError] = ScoresError,
    *,
    repeated: bool = False,
) -> None:
    """Refuse ids of which some are missing, or cannot be told apart.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        As `read_table` gives it.
    name : str
    uri : str or path
    error : type
        What is raised.
    repeated : bool
        Whether many rows share an id. Then ``nan``, ``None`` and the like, which programs write for
        nothing, are none; an id that comes once may be such a name.

    Raises
    ------
    ProjectError
        Of the given type, with the count: null, NaN and empty text are no ids; floats from 2^53
        (2^24 of float32) on stand for several whole numbers each.
    """
    kind, missing = column.type, column.null_count
    if pa.types.is_floating(kind):
        values = column.drop_null().to_numpy()
        missing += int(np.isnan(values).sum())
        digits = np.finfo(values.dtype).nmant + 1
        beyond = int((np.abs(values) >= 2.0**digits).sum())
        if beyond:
            raise error(
                f"{uri}: {beyond:,} values of {name} are floats beyond 2^{digits}, where whole "
                "numbers can no longer be told apart. Write the column as integers or text."
            )
    elif pa.types.is_string(kind):
        folded = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        nothing = pa.array(_NOT_THERE if repeated else _NOT_THERE[:1])
        missing += pc.sum(pc.is_in(folded.drop_null(), nothing)).as_py() or 0
    if missing:
        raise error(
            f"{uri}: {missing:,} rows have no {name} (null, NaN or empty); every row needs one."
        )


def require_columns(
    found: TableFile,
    wanted: Sequence[str],
    uri: Uri,
    remedy: str,
    error: type[ProjectError] = ScoresError,
) -> None:
    """Refuse a table that lacks a column.

    Parameters
    ----------
    found : TableFile
    wanted : sequence of str
        ``"logit or probability"`` is either.
    uri : str or path
    remedy : str
        What to do, as a sentence; ``{}`` in it becomes the first name that is missing.
    error : type
        What is raised.

    Raises
    ------
    ProjectError
        Of the given type, with the columns that are there, those of like names first.
    """
    there = set(found.table.column_names)
    missing = [each for each in wanted if not there.intersection(each.split(" or "))]
    if missing:
        first = missing[0].split(" or ")[0]
        raise error(
            f"{uri} lacks the column {', '.join(missing)}; it has: "
            f"{names_text(found.names, first)}. {remedy.format(first)}"
        )


def parse_columns(
    texts: Sequence[str], known: Sequence[str], option: str = "--columns"
) -> dict[str, str]:
    """What a table calls its columns: ``ra=RA_DEG,id=objid``.

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
        If a pair is not of that form, names something that is not known, or comes twice.
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
        None if the table has no such column; text has none.

    Raises
    ------
    ScoresError
        If the table cannot be read, is shorter, or the column holds something else.
    """
    with local_table(uri) as path:
        try:
            pieces: Iterable[pa.RecordBatch] = _vectors(path, uri_suffix(uri), name)
            parts, start = [], 0
            for piece in pieces:
                first, last = np.searchsorted(rows, [start, start + piece.num_rows])
                if last > first:
                    parts.append(_matrix(piece.column(0).take(pa.array(rows[first:last] - start))))
                start += piece.num_rows
        except Exception as error:  # of foreign parsers on foreign bytes: any
            raise ScoresError(
                f"{uri}: vectors of {name} cannot be read: {error_line(error)}."
            ) from error
    found = np.concatenate(parts) if parts else None
    if found is not None and len(found) != len(rows):
        raise ScoresError(f"{uri} has {len(found)} of {len(rows)} rows of {name}.")
    return found


def _vectors(path: Path, suffix: str, name: str) -> Iterator[pa.RecordBatch]:
    """Pieces of one column; none if it is not there, or the format has no vectors."""

    def plan(names: list[str]) -> Plan:
        return {name: name} if name in names else {}

    kind = "parquet" if path.is_dir() else _format(path, suffix)
    if kind == "parquet":
        for file in _parts(path) if path.is_dir() else [path]:
            parquet = pq.ParquetFile(file)
            if name in parquet.schema_arrow.names:
                yield from parquet.iter_batches(columns=[name])
    elif kind != "text":
        yield from _read(path, suffix, plan)[0].to_batches()


def _matrix(vectors: pa.Array) -> NDArray[np.float64]:
    """Vectors of one width as rows."""
    if vectors.null_count:
        raise ValueError("a vector is null.")
    lengths = np.unique(pc.list_value_length(vectors).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError("they differ in width.")
    flat = vectors.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(vectors), -1))

"""One reader for every table that a user names: scores, catalogues, populations.

    found = read_table(uri, ["key", "logit"])          found.table, .metadata, .sha256, .names
    require_columns(found, ("key",), uri, remedy)      else an error that lists what is there
    read_vectors(uri, "embedding", rows)               some rows of a column of vectors

Parquet, a folder of parquet parts (Spark's), FITS, VOTable, ECSV (`lensprep.tables.formats`), and
text (`lensprep.tables.text`), on a disk or in a store, gzipped or not. Whoever wrote it, a column
comes out in one of a few Arrow types (`lensprep.tables.columns`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.errors import (
    NotFoundError,
    ProjectError,
    ScoresError,
    error_line,
    names_text,
    passing_fault,
)
from lensprep.store import (
    Uri,
    exists,
    file_sha256,
    is_remote,
    local_file,
    local_folder,
    local_path,
    uri_suffix,
)
from lensprep.tables.columns import plain_types
from lensprep.tables.formats import FORMATS, read_columns, read_pieces, table_parts
from lensprep.tables.positions import UNIT, likely_columns, unit_of


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
        all, also those that hold nested values. ``ra`` and ``dec`` are found under any usual
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
        If it cannot be read; if a column occurs twice, or one named in `rename` is missing; if a
        requested one holds nested values such as lists.
    """
    plan = partial(_plan, columns=columns, rename=rename or {}, if_there=if_there, uri=uri)
    with local_table(uri) as path:
        try:
            sha256 = _digest(path)
            table, raw, names = read_columns(path, uri_suffix(uri), plan, text)
            table = _renamed(table, plan(names))
            table.validate(full=True)  # or text that is not UTF-8 would end whoever shows it
            table = plain_types(table, asked=columns is not None)
        except ProjectError:
            raise
        except Exception as problem:  # of foreign parsers on foreign bytes: any
            if fault := passing_fault(uri, problem):
                raise fault from problem
            raise ScoresError(
                f"{uri} is no table that can be read ({FORMATS}): {error_line(problem)}."
            ) from problem
    return TableFile(table, _facts(raw), sha256, names)


def _plan(
    names: Sequence[str],
    columns: Sequence[str] | None,
    rename: Mapping[str, str],
    if_there: bool,
    uri: Uri,
) -> dict[str, str]:
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
    parts = "".join(f"{file.relative_to(path)} {_digest(file)}\n" for file in table_parts(path))
    return hashlib.sha256(parts.encode()).hexdigest()


def _facts(raw: bytes | str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _renamed(table: pa.Table, plan: dict[str, str]) -> pa.Table:
    """The columns of a plan under our names, with the units that their headings state."""
    fields = []
    for name, ours in plan.items():
        field = table.schema.field(name)
        unit = unit_of(field)
        fields.append(pa.field(ours, field.type, metadata={UNIT: unit} if unit else None))
    return pa.table([table[name] for name in plan], schema=pa.schema(fields))


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
            for piece in read_pieces(path, uri_suffix(uri), name):
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


def _matrix(vectors: pa.Array) -> NDArray[np.float64]:
    """Vectors of one width as rows."""
    if vectors.null_count:
        raise ValueError("a vector is null.")
    lengths = np.unique(pc.list_value_length(vectors).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError("they differ in width.")
    flat = vectors.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(vectors), -1))

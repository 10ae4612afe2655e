"""One schema for all files of a source, and rows brought to it.

Columns that a file lacks are null, types are those of the contract whatever the file stores, and
extra columns get a type that holds the values of every file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

import pyarrow as pa

from lensprep.dataset.kinds import DATASET, table_kind
from lensprep.dataset.layout import MANIFEST_NAME
from lensprep.errors import ConfigError, SchemaError, error_line, names_text
from lensprep.source.contract import MISSING, plain_type, schema_faults
from lensprep.source.footers import Footer, SourceFile, is_of, public_name, scalar
from lensprep.source.survey import (
    COLUMN_BY_NAME,
    REQUIRED_COLUMNS,
    SPLIT_COLUMN,
    STAMP_COLUMN,
)

_WHOLE: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_REAL: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def check_schemas(footers: Sequence[Footer], uri: str, others: Collection[str]) -> None:
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
        if missing := [name for name, what in found.items() if what == MISSING]:
            faults.append(f"{path}: {_lacking(missing)}.")
        faults += [f"{path}: column {n} {what}." for n, what in found.items() if what != MISSING]
    if faults:
        more = f" (and {len(faults) - 1} more such faults)" if len(faults) > 1 else ""
        raise SchemaError(f"{faults[0]}{more}")


def _lacking(columns: Sequence[str]) -> str:
    if [*columns] == [SPLIT_COLUMN]:
        return f"column {SPLIT_COLUMN} is missing and no folder {SPLIT_COLUMN}=... states the split"
    if len(columns) == 1:
        return f"column {columns[0]} is missing, which Phase 4c data must have"
    return f"{len(columns)} columns are missing that Phase 4c data must have: {names_text(columns)}"


def check_dropped(columns: Collection[str], footers: Sequence[Footer], uri: str) -> None:
    """Refuse to drop what is not there."""
    dropped = {
        n for footer in footers for name in footer.dropped for n in (name, public_name(name))
    }
    for name in columns:
        if name not in dropped:
            names = {name for footer in footers for name in footer.file.columns}
            raise ConfigError(
                f"{uri} has no column {name!r} to leave out; it has: "
                f"{names_text(sorted(names - {*REQUIRED_COLUMNS}), name)}."
            )


def unified_schema(footers: Sequence[Footer]) -> tuple[pa.Schema, dict[str, str]]:
    """Contract columns that any file has, in the contract's order, then extra ones by name.

    Extra columns get a type that holds the values of every file. Those for which there is none are
    left out, and returned with what was found.
    """
    stated = _stated_types(footers)
    present = {name for footer in footers for name in footer.file.columns}
    present |= {*stated, SPLIT_COLUMN}
    known = [pa.field(c.name, c.type) for c in COLUMN_BY_NAME.values() if c.name in present]
    found: dict[str, tuple[pa.DataType, str]] = {}
    left_out: dict[str, str] = {}
    seen: set[tuple[pa.Schema, frozenset[str]]] = set()
    for footer in footers:
        path = footer.file.path
        folders = frozenset(name for name, _ in footer.file.stated)
        if (footer.schema, folders) in seen:
            continue
        seen.add((footer.schema, folders))
        fields = [(public_name(f.name), plain_type(f.type)) for f in footer.schema]
        names = [name for name, _ in fields]
        fields += [(name, stated[name]) for name in folders - {*names}]
        for name, kind in fields:
            if name in COLUMN_BY_NAME or name in left_out:
                continue
            if names.count(name) > 1:
                left_out[name] = f"occurs {names.count(name)} times in {path}"
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


def _stated_types(footers: Sequence[Footer]) -> dict[str, pa.DataType]:
    """Types of the columns that folders state: the contract's, or one that fits all their texts."""
    texts: dict[str, set[str]] = {}
    for footer in footers:
        for name, text in footer.file.stated:
            texts.setdefault(name, set()).update([] if text is None else [text])
    return {
        name: COLUMN_BY_NAME[name].type if name in COLUMN_BY_NAME else _type_of_texts(values)
        for name, values in texts.items()
    }


def _type_of_texts(texts: Collection[str]) -> pa.DataType:
    """Whole numbers, numbers or text; what does not survive a round trip (``007``) is text."""
    for kind, form in ((pa.int64(), _WHOLE), (pa.float64(), _REAL)):
        if texts and all(form.fullmatch(text) and is_of(text, kind) for text in texts):
            return kind
    return pa.string()


def conform(table: pa.Table, schema: pa.Schema, file: SourceFile, where: str) -> pa.Table:
    """Bring rows to the unified schema: names, types, missing columns, the split."""
    columns = dict(zip(map(public_name, table.column_names), table.columns, strict=True))
    for name, text in file.stated:
        if name in schema.names:
            value = scalar(text, schema.field(name).type)
            columns[name] = pa.chunked_array([pa.repeat(value, table.num_rows)])
    for wanted in schema:
        if wanted.name not in columns:
            columns[wanted.name] = pa.chunked_array([pa.nulls(table.num_rows, wanted.type)])
    arrays = [_cast(columns[wanted.name], wanted, where) for wanted in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _cast(column: pa.ChunkedArray, wanted: pa.Field, where: str) -> pa.ChunkedArray:
    """Cast to the contract's type without loss; text must be UTF-8."""
    if column.type != wanted.type:
        try:
            column = column.cast(wanted.type)
        except pa.ArrowException as error:
            remedy = f" Leave it out with `lensprep convert --drop-column {wanted.name}`."
            raise SchemaError(
                f"{where}: column {wanted.name} is {column.type} and holds a value that does not "
                f"fit {wanted.type}: {error_line(error)}."
                f"{'' if wanted.name in REQUIRED_COLUMNS else remedy}"
            ) from error
    if pa.types.is_string(wanted.type):
        column.validate(full=True)
    return column

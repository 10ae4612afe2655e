"""One schema for all files of a source, and rows brought to it.

Columns that a file lacks are null, types are those of the contract whatever the file stores, and
extra columns get a type that holds the values of every file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from lensprep.dataset.kinds import DATASET, table_kind
from lensprep.dataset.layout import MANIFEST_NAME
from lensprep.errors import ConfigError, SchemaError, error_line, names_text
from lensprep.source.contract import MISSING, numbers, plain_type, schema_faults
from lensprep.source.footers import Footer, SourceFile, is_of, scalar
from lensprep.source.regions import assign_regions, region_splits
from lensprep.source.survey import REGION_COLUMN, SPLIT_COLUMN, STAMP_COLUMN, Survey
from lensprep.tables.positions import on_sky

_WHOLE: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_REAL: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def check_schemas(
    footers: Sequence[Footer], uri: str, others: Collection[str], survey: Survey
) -> None:
    """Refuse files that break the contract, naming the first fault and how many there are."""
    faults = []
    for footer in footers:
        path, stated = footer.file.path, dict(footer.file.stated)
        names = footer.schema.names
        kind = None if survey.stored_name(STAMP_COLUMN, names) in names else table_kind(names)
        if kind is not None:
            what = f"{uri} is {DATASET}" if MANIFEST_NAME in others else f"{path} is {kind}"
            raise SchemaError(f"{what}.")
        if footer.problem is not None:
            faults.append(f"{path}: {footer.problem}.")
            continue
        found = schema_faults(footer.schema, stated, survey)
        if missing := [name for name, what in found.items() if what == MISSING]:
            faults.append(f"{path}: {_lacking(missing, survey, names)}.")
        faults += [f"{path}: column {n} {what}." for n, what in found.items() if what != MISSING]
    if faults:
        more = f" (and {len(faults) - 1} more such faults)" if len(faults) > 1 else ""
        raise SchemaError(f"{faults[0]}{more}")


def _lacking(columns: Sequence[str], survey: Survey, have: Sequence[str]) -> str:
    if [*columns] == [SPLIT_COLUMN]:
        return f"column {SPLIT_COLUMN} is missing and no folder {SPLIT_COLUMN}=... states the split"
    hint = ""
    if not survey.is_phase4c:
        found = names_text(have, columns[0], most=8)
        hint = f"; say under [columns] of the survey what it is called (there are: {found})"
    if len(columns) == 1:
        return f"column {columns[0]} is missing, which {survey.title} data must have{hint}"
    return (
        f"{len(columns)} columns are missing that {survey.title} data must have: "
        f"{names_text(columns)}{hint}"
    )


def check_dropped(
    columns: Collection[str], footers: Sequence[Footer], uri: str, survey: Survey
) -> None:
    """Refuse to drop what is not there."""
    dropped = {
        n for footer in footers for name in footer.dropped for n in (name, survey.public_name(name))
    }
    for name in columns:
        if name not in dropped:
            names = {name for footer in footers for name in footer.file.columns}
            raise ConfigError(
                f"{uri} has no column {name!r} to leave out; it has: "
                f"{names_text(sorted(names - {*survey.required_columns}), name)}."
            )


def unified_schema(footers: Sequence[Footer], survey: Survey) -> tuple[pa.Schema, dict[str, str]]:
    """Contract columns that any file has, in the contract's order, then extra ones by name.

    Extra columns get a type that holds the values of every file. Those for which there is none are
    left out, and returned with what was found.
    """
    stated = _stated_types(footers, survey)
    present = {name for footer in footers for name in footer.file.columns}
    present |= {*stated, SPLIT_COLUMN, REGION_COLUMN}
    known = [pa.field(c.name, c.type) for c in survey.contract if c.name in present]
    found: dict[str, tuple[pa.DataType, str]] = {}
    left_out: dict[str, str] = {}
    seen: set[tuple[pa.Schema, frozenset[str]]] = set()
    for footer in footers:
        path = footer.file.path
        folders = frozenset(name for name, _ in footer.file.stated)
        if (footer.schema, folders) in seen:
            continue
        seen.add((footer.schema, folders))
        fields = [(survey.public_name(f.name), plain_type(f.type)) for f in footer.schema]
        names = [name for name, _ in fields]
        fields += [(name, stated[name]) for name in folders - {*names}]
        for name, kind in fields:
            if name in survey.column_by_name or name in left_out:
                continue
            if names.count(name) > 1:
                left_out[name] = f"occurs {names.count(name)} times in {path}"
                continue
            before, first = found.setdefault(name, (kind, path))
            common = common_type(before, kind)
            if common is None:
                left_out[name] = f"is {before} in {first} and {kind} in {path}"
            elif common != before:
                found[name] = common, path
    extra = [pa.field(n, kind) for n, (kind, _) in sorted(found.items()) if n not in left_out]
    return pa.schema([*known, *extra]), left_out


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """A type that holds the values of both."""
    if first == second:
        return first
    schemas = [pa.schema([("column", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _stated_types(footers: Sequence[Footer], survey: Survey) -> dict[str, pa.DataType]:
    """Types of the columns that folders state: the contract's, or one that fits all their texts."""
    texts: dict[str, set[str]] = {}
    for footer in footers:
        for name, text in footer.file.stated:
            texts.setdefault(name, set()).update([] if text is None else [text])
    known = survey.type_by_name
    return {
        name: known[name] if name in known else _type_of_texts(values)
        for name, values in texts.items()
    }


def _type_of_texts(texts: Collection[str]) -> pa.DataType:
    """Whole numbers, numbers or text; what does not survive a round trip (``007``) is text."""
    for kind, form in ((pa.int64(), _WHOLE), (pa.float64(), _REAL)):
        if texts and all(form.fullmatch(text) and is_of(text, kind) for text in texts):
            return kind
    return pa.string()


def conform(
    table: pa.Table, schema: pa.Schema, file: SourceFile, where: str, survey: Survey
) -> pa.Table:
    """Bring rows to the unified schema: names, types, missing columns, the split."""
    columns = dict(zip(map(survey.public_name, table.column_names), table.columns, strict=True))
    read, make = made_from(schema.names, file)
    for name, text in file.stated:
        if name in schema.names or name in read:
            kind = schema.field(name).type if name in schema.names else pa.int32()
            value = scalar(text, kind)
            columns[name] = pa.chunked_array([pa.repeat(value, table.num_rows)])
    if survey.splits and SPLIT_COLUMN in columns:
        columns[SPLIT_COLUMN] = _public_splits(columns[SPLIT_COLUMN], survey)
    for name in make:
        columns[name] = _made_column(name, columns, survey)
    for wanted in schema:
        if wanted.name not in columns:
            columns[wanted.name] = pa.chunked_array([pa.nulls(table.num_rows, wanted.type)])
    arrays = [_cast(columns[wanted.name], wanted, where, survey) for wanted in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _public_splits(column: pa.ChunkedArray, survey: Survey) -> pa.ChunkedArray:
    """The splits that a survey means."""
    coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    splits = [survey.public_split(text) for text in coded.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(splits, pa.string()).take(coded.indices)])


def made_from(names: Sequence[str], file: SourceFile) -> tuple[list[str], list[str]]:
    """What must be read for the region and the split of a file that lacks them, and which of both.

    Only surveys other than Phase 4c may lack them; neither is made for a file that has it.
    """
    have = {*file.columns, *dict(file.stated)}
    make = [name for name in (REGION_COLUMN, SPLIT_COLUMN) if name in names and name not in have]
    if make and REGION_COLUMN not in have:
        make = list(dict.fromkeys((REGION_COLUMN, *make)))
        return ["ra", "dec"], make
    return [REGION_COLUMN] if make else [], make


def _made_column(
    name: str, columns: Mapping[str, pa.ChunkedArray], survey: Survey
) -> pa.ChunkedArray:
    """The region of rows from their position, or their split from the region."""
    if name == REGION_COLUMN:
        ra, dec = numbers(columns["ra"]), numbers(columns["dec"])
        known = on_sky(ra, dec)
        made = np.zeros(len(ra), np.int32)
        made[known] = assign_regions(ra[known], dec[known])
        return pa.chunked_array([pa.array(made, mask=~known)])
    regions = columns[REGION_COLUMN]
    splits = region_splits(regions.drop_null().to_numpy(), survey.fractions)
    taken = pa.array(
        np.cumsum(regions.is_valid().to_numpy()) - 1, mask=regions.is_null().to_numpy()
    )
    return pa.chunked_array([pa.array(splits, pa.string()).take(taken)])


def check_regions(footers: Sequence[Footer], survey: Survey) -> None:
    """Refuse files of which some have a region or a split and others do not."""
    for name in (REGION_COLUMN, SPLIT_COLUMN):
        has = {
            name in footer.file.columns or name in dict(footer.file.stated): footer.file.path
            for footer in footers
        }
        if len(has) > 1:
            raise SchemaError(
                f"{has[True]} has a column {survey.called(name)} and {has[False]} has none. Write "
                "it to all files, or to none, and it is made from the position."
            )


def _cast(column: pa.ChunkedArray, wanted: pa.Field, where: str, survey: Survey) -> pa.ChunkedArray:
    """Cast to the contract's type without loss; text must be UTF-8."""
    if column.type != wanted.type:
        try:
            column = column.cast(wanted.type)
        except pa.ArrowException as error:
            remedy = f" Leave it out with `lensprep convert --drop-column {wanted.name}`."
            raise SchemaError(
                f"{where}: column {survey.called(wanted.name)} is {column.type} and holds a value "
                f"that does not fit {wanted.type}: {error_line(error)}."
                f"{'' if wanted.name in survey.required_columns else remedy}"
            ) from error
    if pa.types.is_string(wanted.type):
        column.validate(full=True)
    return column

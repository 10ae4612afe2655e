"""CSV whose text no spreadsheet runs: how it is written and read here.

A cell of text that begins with one of ``= + - @ ' TAB CR LF`` gets an apostrophe before it: a
spreadsheet would take it for a formula. The reader takes one apostrophe away where such a character
follows it, so that any text comes back as it was. Numbers stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

_FIRST: Final = r"[=+\-@'\t\r\n]"
_GUARD: Final = {"pattern": rf"\A({_FIRST})", "replacement": r"'\1"}
_UNGUARD: Final = {"pattern": rf"\A'({_FIRST})", "replacement": r"\1"}


def guard_text(text: str) -> str:
    """A cell of text as it is written."""
    return re.sub(_GUARD["pattern"], _GUARD["replacement"], text)


def unguard_text(text: str) -> str:
    """Inverse of `guard_text`."""
    return re.sub(_UNGUARD["pattern"], _UNGUARD["replacement"], text)


def guard_table(table: pa.Table) -> pa.Table:
    """A table as it is written to CSV.

    Text and names of columns are guarded; float32 is widened, since its own shortest decimals would
    be other numbers when they are read as float64.
    """
    return pa.table([_guarded(column) for column in table.columns],
                    [guard_text(name) for name in table.column_names])  # fmt: skip


def _guarded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_float16(column.type) or pa.types.is_float32(column.type):
        return column.cast(pa.float64())
    return pc.replace_substring_regex(column, **_GUARD) if _is_text(column.type) else column


def read_csv(source: str | PathLike[str] | Any, text: Sequence[str] = ()) -> pa.Table:
    """Read CSV (``.csv.gz`` too), undoing `guard_table`; an empty cell of text is null.

    Parameters
    ----------
    source : path or file object
    text : sequence of str
        Columns that are text, whatever they look like (``0012``).

    Raises
    ------
    OSError, pyarrow.ArrowException
        If it cannot be read.
    """
    types = dict.fromkeys(map(guard_text, text), pa.string())
    table = pcsv.read_csv(
        source,
        parse_options=pcsv.ParseOptions(newlines_in_values=True),
        convert_options=pcsv.ConvertOptions(column_types=types),
    )
    return pa.table([_unguarded(column) for column in table.columns],
                    [unguard_text(name) for name in table.column_names])  # fmt: skip


def _unguarded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not _is_text(column.type):
        return column
    bare = pc.replace_substring_regex(column, **_UNGUARD)
    return pc.if_else(pc.equal(bare, ""), None, bare)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

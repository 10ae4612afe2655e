"""CSV whose text no spreadsheet runs as a formula: guarded on writing, restored on reading.

A cell of text that begins with one of ``= + - @ ' TAB CR LF`` gets an apostrophe before it, or a
spreadsheet would take it for a formula. `lensprep.tables.text` removes one apostrophe where such a
character follows it, so any text comes back as it was. Numbers stay as they are.
"""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

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


def unguard_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as it was before `guard_table`."""
    return pc.replace_substring_regex(column, **_UNGUARD)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

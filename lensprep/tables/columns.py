"""Columns of a table that was read: their types, their ids, and what a user calls them.

plain_types(table)                                           few Arrow types; text is ``string``
to_floats(column, "logit", uri)                              float64, NaN for null
check_ids(column, "key", uri)                                else an error with how many lack one
parse_columns(["ra=RA_DEG,id=objid"], ("key", "ra", "dec"))  what --columns says
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.errors import ConfigError, ScoresError, error_line
from lensprep.store import Uri

_NOT_THERE: Final = ("", "nan", "none", "<na>", "null", "nat")
"""What a text holds, in small letters, where there was nothing."""


def plain_types(table: pa.Table, asked: bool = False) -> pa.Table:
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
        Whether rows may share an id. Then ``nan``, ``None`` and similar texts, which programs write
        for a missing value, count as missing; a unique id may be such a name.

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
                "numbers can no longer be distinguished. Write the column as integers or text."
            )
    elif pa.types.is_string(kind):
        folded = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        nothing = pa.array(_NOT_THERE if repeated else _NOT_THERE[:1])
        missing += pc.sum(pc.is_in(folded.drop_null(), nothing)).as_py() or 0
    if missing:
        raise ScoresError(
            f"{uri}: {missing:,} rows have no {name} (null, NaN or empty); every row needs one."
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

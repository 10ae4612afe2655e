"""Text tables as found in practice: CSV, TSV, with ``;``, ``|`` or blanks between the columns.

    table, headings = read_text(path, plan, ["key"])    a column is numbers if all its cells are

It reads quoted cells and headings, blanks after a separator, a byte order mark, UTF-16, any line
ends, gzip; comments (lines that begin with ``#``), of which the last may be the heading
(``# ra dec``); VizieR's lines of units and dashes under the headings; decimal commas where the
separator is something else. The guard against spreadsheets (`lensprep.tables.csvtext`) is removed.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from lensprep.tables.csvtext import unguard_column, unguard_text
from lensprep.tables.positions import UNIT

GZIP: Final = b"\x1f\x8b"

Plan = Callable[[list[str]], dict[str, str]]

_SEPARATORS: Final = ("\t", ";", "|", ",")
_HEAD_BYTES: Final = 1 << 18
_BLOCK_BYTES: Final = 1 << 24
_QUOTED: Final = re.compile(r'"(?:[^"]|"")*(?:"|\Z)')
_COMMA_DECIMAL: Final = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_POINT_DECIMAL: Final = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
_VALUE: Final = re.compile(r"(?:nan|NaN|[+\-−]?[\d.][\d.,:hmsd°′″'\"eE+\- ]*)")
"""What no heading looks like: a number, or sexagesimal text."""
_NULLS: Final = [
    *("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan"),
    *("-nan", "-NaN", "NULL", "null", "None", "<NA>"),
]
"""What stands for no number in a column of numbers; in a column of text it is text."""


class _Form(NamedTuple):
    """How the text of a table is laid out."""

    encoding: str
    separator: str
    names: list[str]
    units: list[str]
    skip: int
    """Lines before the first row."""
    blanks: bool
    """Blanks around cells belong to none of them."""
    slow: bool
    """Many blanks stand between cells, or some before a quote: pyarrow does not read that."""
    decimal_comma: bool


def open_bytes(path: Path) -> BinaryIO:
    """A file as it was before gzip, whatever its name is."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    return cast("BinaryIO", gzip.open(path)) if packed else path.open("rb")


def read_text(path: Path, plan: Plan, text: Sequence[str] = ()) -> tuple[pa.Table, list[str]]:
    """Read a table of text.

    Parameters
    ----------
    path : Path
    plan : callable
        Given the headings; returns those of the columns to read, and what each is called here.
    text : sequence of str
        Columns, as they are called here, that are text whatever they look like (``0012``).

    Returns
    -------
    pyarrow.Table
        The columns under their headings: int64, uint64, float64, bool or string; an empty cell is
        null. Units given under the headings are in the fields' metadata.
    list of str
        All headings.

    Raises
    ------
    ValueError, OSError, EOFError, csv.Error, pyarrow.ArrowException
        If it cannot be read.
    """
    with open_bytes(path) as file:
        head = file.read(_HEAD_BYTES)
        form = _read_form(head, whole=len(head) < _HEAD_BYTES)
        chosen = plan(form.names)
        file.seek(0)
        try:
            table = (_read_rows if form.slow else _read_arrow)(file, form, list(chosen))
        except UnicodeDecodeError as error:
            raise ValueError("its text is not UTF-8. Save it as CSV in UTF-8.") from error
    units = dict(zip(form.names, form.units, strict=True))
    columns = {}
    for name, ours in chosen.items():
        cells = pc.utf8_trim_whitespace(table[name]) if form.blanks else table[name]
        column = _text(cells) if ours in text else infer_type(cells, form.decimal_comma)
        columns[name] = column, units[name]
    return with_units(columns), form.names


def with_units(columns: Mapping[str, tuple[Any, object]]) -> pa.Table:
    """A table of columns, each with the unit that stands in its field's metadata."""
    fields = [
        pa.field(name, column.type, metadata={UNIT: str(unit or "")})
        for name, (column, unit) in columns.items()
    ]
    return pa.table([column for column, _ in columns.values()], schema=pa.schema(fields))


# --------------------------------------------------------------------------------- its form


def _read_form(head: bytes, whole: bool) -> _Form:
    """The layout, from the first lines; the last of them may be cut if the file is longer."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    shown = head.decode(encoding, "replace")
    lines = list(io.StringIO(shown, newline=""))
    lines = lines if whole or len(lines) == 1 else lines[:-1]
    first = next((n for n, line in enumerate(lines) if not _is_comment(line)), None)
    if first is None:
        raise ValueError("it is empty.")
    separator = _separator(lines[first : first + 2])
    rows = _rows(lines[first:], separator)
    top, read = next(rows)
    if any("\x00" in cell for cell in top):
        raise ValueError("it holds bytes that are no text.")
    names, units, skip = _headings(lines[:first], top, separator), [""] * len(top), first
    if names is None:
        names, skip = top, first + read
        for number, (row, read) in enumerate(islice(rows, 2)):
            if all(re.fullmatch(r"-+", cell) for cell in row) and len(row) == len(names):
                skip = first + read
                break
            units = row if number == 0 and len(row) == len(names) else units
        else:
            units = [""] * len(names)
    bare = _QUOTED.sub('""', "".join(lines[first:]))
    cells = [cell for row, _ in _rows(lines[skip:], separator) for cell in row]
    return _Form(
        encoding,
        separator,
        [unguard_text(name) for name in names],
        units,
        skip,
        blanks=re.search(re.escape(separator) + " ", bare) is not None,
        slow=separator == " " or re.search(re.escape(separator) + ' +"', bare) is not None,
        decimal_comma=separator != ","
        and any(map(_COMMA_DECIMAL.fullmatch, cells))
        and not any(map(_POINT_DECIMAL.fullmatch, cells)),
    )


def _is_comment(line: str) -> bool:
    return not line.strip() or line.startswith("#")


def _separator(lines: Sequence[str]) -> str:
    """The separator that comes equally often in both lines, else one that the first line has."""
    counts = {each: [_QUOTED.sub("", line).count(each) for line in lines] for each in _SEPARATORS}
    alike = [each for each, count in counts.items() if count[0] and len(set(count)) == 1]
    some = [each for each, count in counts.items() if count[0]]
    blank = [" "] if " " in _QUOTED.sub("", lines[0]).strip() else []
    return [*alike, *some, *blank, ","][0]


def _rows(lines: Sequence[str], separator: str) -> Iterator[tuple[list[str], int]]:
    """Cells of each row, without the blanks around them, and how many lines were read by then."""
    if separator == " ":
        lines = [" ".join(line.split()) for line in lines]
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for row in reader:
        yield [cell.strip() for cell in row], reader.line_num


def _headings(comments: Sequence[str], top: list[str], separator: str) -> list[str] | None:
    """Headings that stand in the last comment, if the first line holds numbers; else None."""
    if not any(map(_VALUE.fullmatch, top)):
        return None
    last = next((line.lstrip("# ") for line in reversed(comments) if line.strip("#\r\n ")), "")
    for each in (separator, " "):
        names, _ = next(_rows([last], each), ([], 0))
        if len(names) == len(top) and not any(map(_VALUE.fullmatch, names)):
            return names
    if all(map(_VALUE.fullmatch, top)):
        raise ValueError(
            "its first line holds numbers, not the names of columns. Add a line that names them."
        )
    return None


# --------------------------------------------------------------------------------- its rows


def _read_arrow(file: Any, form: _Form, chosen: list[str]) -> pa.Table:
    """Cells as they are, of the columns that are wanted."""
    first = form.names[0]
    include = list(dict.fromkeys([first, *chosen]))
    table = pcsv.read_csv(
        file,
        pcsv.ReadOptions(
            skip_rows=form.skip,
            column_names=form.names,
            block_size=_BLOCK_BYTES,
            encoding=form.encoding,  # by Python's codec, which is strict
        ),
        pcsv.ParseOptions(
            delimiter=form.separator,
            newlines_in_values=True,
            invalid_row_handler=lambda row: "skip" if row.text.startswith("#") else "error",
        ),
        pcsv.ConvertOptions(
            column_types=dict.fromkeys(form.names, pa.string()), include_columns=include
        ),
    )
    if form.names.count(first) == 1 and pc.any(pc.starts_with(table[first], "#")).as_py():
        _refuse_comments(file, form)
    return table.select(chosen)


def _refuse_comments(file: Any, form: _Form) -> None:
    """Refuse a row that begins with an unquoted ``#``: it may be a comment or a row."""
    file.seek(0)
    text = file.read().decode(form.encoding)
    bare = _QUOTED.sub(lambda quoted: '"' + "\n" * quoted.group().count("\n"), text)
    for number, line in enumerate(io.StringIO(bare, newline="")):
        if number >= form.skip and line.startswith("#"):
            raise ValueError(
                f"its line {number + 1} begins with # and has as many cells as a row. Remove it if "
                "it is a comment, or put its first cell in quotes."
            )


def _read_rows(file: Any, form: _Form, chosen: list[str]) -> pa.Table:
    """The same for layouts that pyarrow does not read."""
    lines = io.StringIO(file.read().decode(form.encoding), newline="")
    kept = [line for line in islice(lines, form.skip, None) if not _is_comment(line)]
    rows = [row for row, _ in _rows(kept, form.separator)]
    for number, row in enumerate(rows):
        if len(row) != len(form.names):
            raise ValueError(
                f"its row {number + 1} has {len(row)} cells and its heading {len(form.names)}."
            )
    positions = [form.names.index(name) for name in chosen]
    return pa.table(
        [pa.array([row[position] for row in rows], pa.string()) for position in positions],
        names=chosen,
    )


# ------------------------------------------------------------------------------- its values


def _text(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    bare = unguard_column(cells)
    return pc.if_else(pc.equal(bare, ""), None, bare)


def infer_type(cells: pa.ChunkedArray, decimal_comma: bool = False) -> pa.ChunkedArray:
    """Numbers, or true and false, if every cell is one; a whole column decides, not its start."""
    bare = pc.utf8_trim_whitespace(cells)
    bare = pc.if_else(pc.is_in(bare, pa.array(_NULLS)), None, bare)
    if decimal_comma:
        bare = pc.replace_substring(bare, ",", ".")
    unsigned = pc.replace_substring_regex(bare, r"\A\+([0-9.])", r"\1")
    for kind in (pa.int64(), pa.uint64(), pa.float64(), pa.bool_()):
        try:
            return unsigned.cast(kind)
        except pa.ArrowInvalid:
            continue
    return _text(cells)

"""The columns that a source may have, as a table for people (pure).

column_records(survey)    one plain object for each column: JSON, and docs/reference/input.md
render_columns(survey)    for a terminal (rich): a table, or a list where the terminal is narrow
"""

from __future__ import annotations

import textwrap
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from lensprep.source.survey import Column, Survey

_LEAST_TABLE: Final = 110
"""Characters a line that the table needs."""


def column_records(survey: Survey) -> list[dict[str, Any]]:
    """Name, type, unit and rules of every column that means something, in plain types."""
    return [
        {
            "name": column.name,
            "stored_name": survey.columns.get(column.name, column.name),
            "type": str(column.type),
            "unit": column.unit,
            "required": column.required,
            "null": column.null_rule,
            "leaks": column.leaks,
            "lenses_only": column.lenses_only,
            "minimum": column.minimum,
            "maximum": column.maximum,
            "meaning": column.meaning,
        }
        for column in survey.known_columns
    ]


def render_columns(survey: Survey) -> RenderableType:
    """The columns for a terminal of any width; nothing is cut."""
    return _Columns(survey)


def rules(column: Column) -> list[str]:
    """What holds for a column, in words; leaks and limits where there are any."""
    told = ["required" if column.required else "optional", column.null_rule]
    told += [f"{column.limits} {column.unit}".strip()] if column.limits else []
    told += ["lenses only"] if column.lenses_only else []
    return told + (["leaks"] if column.leaks else [])


class _Columns:
    def __init__(self, survey: Survey) -> None:
        self._survey = survey

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        survey, known = self._survey, self._survey.known_columns
        labels = ", ".join(f"{value} = {label}" for value, label in survey.label_map.items())
        yield Text(
            f"{survey.title}: {len(known)} columns, of which {len(survey.required_columns)} are "
            f"required. Labels: {labels}. Leaks: reveals the label, by value or by being null, so "
            "that a network must not be given it. Lenses only: 0 or null in non-lenses.\n"
        )
        if options.max_width >= _LEAST_TABLE:
            yield self._table()
            return
        for column in known:
            yield Text(f"{survey.called(column.name)}  {column.type}", "bold")
            unit = f" [{column.unit}]" if column.unit else ""
            for text in ("; ".join(rules(column)), f"{column.meaning}{unit}"):
                lines = textwrap.wrap(text, max(20, options.max_width - 4))
                yield Text(textwrap.indent("\n".join(lines), "    "))

    def _table(self) -> Table:
        table = Table("column", "type", "unit", "rules", "meaning", box=None, pad_edge=False)
        for column in self._survey.known_columns:
            called = self._survey.called(column.name)
            cells = (str(column.type), column.unit, "; ".join(rules(column)), column.meaning)
            table.add_row(called, *map(Text, cells))
        return table

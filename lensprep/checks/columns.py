"""The columns that a source may have, as a table for people (pure).

column_records(survey)    one plain object for each column: JSON, and docs/reference/input.md
render_columns(survey)    for a terminal (rich)
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from lensprep.source.survey import Column, Survey
from lensprep.texttable import TextTable


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
    labels = ", ".join(f"{value} = {label}" for value, label in survey.label_map.items())
    head = Text(
        f"{survey.title}: {len(survey.known_columns)} columns, of which "
        f"{len(survey.required_columns)} are required. Labels: {labels}. Leaks: reveals the label, "
        "by value or by being null, so that a network must not be given it. Lenses only: 0 or null "
        "in non-lenses.\n"
    )
    table = TextTable(
        "column", "type", "unit", "rules", "meaning",
        left=("type", "unit", "rules"), prose="meaning",
    )  # fmt: skip
    for column in survey.known_columns:
        told = "; ".join(rules(column))
        called = survey.called(column.name)
        table.add(called, str(column.type), column.unit, told, column.meaning)
    return Group(head, table)


def rules(column: Column) -> list[str]:
    """What holds for a column, in words; leaks and limits where there are any."""
    told = ["required" if column.required else "optional", column.null_rule]
    told += [f"{column.limits} {column.unit}".strip()] if column.limits else []
    told += ["lenses only"] if column.lenses_only else []
    return told + (["leaks"] if column.leaks else [])

"""The page of a doctor: rows of facts, then findings, which wrap and are never cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

_STYLES = {"ok": "green", "warn": "yellow", "problem": "bold red"}


def doctor_page(
    facts: Iterable[tuple[str, str]], findings: Sequence[Mapping[str, Any]]
) -> RenderableType:
    """The page for a terminal.

    Parameters
    ----------
    facts : iterable of (str, str)
        Name and text of each.
    findings : sequence of dict
        As a report has them.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts:
        table.add_row(Text(name), Text(text))
    table.add_row()
    for finding in findings:
        mark = finding["level"]
        table.add_row(Text(mark, _STYLES[mark]), Text(finding["detail"]))
    return table

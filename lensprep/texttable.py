"""Tables for people, in a terminal of any width: nothing in them is ever cut."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, cast

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

UNLIMITED: Final = 100_000
"""Width where there is no limit: no line is as long."""

_PROSE: Final = 16
"""Width below which prose in a table is hard to read."""


class TextTable:
    """A table of which nothing is cut, however narrow the terminal.

    Where it does not fit, its prose is wrapped; then spare columns are left out, and a line says
    which; then every cell gets its own line.

    Parameters
    ----------
    *columns : str
        Headings, each a different one.
    left : collection of str
        Columns that are flush left; the others hold numbers.
    prose : str, optional
        Column, flush left, that may be wrapped.
    spare : collection of str
        Columns that may be left out, the first first.
    """

    def __init__(
        self,
        *columns: str,
        left: Collection[str] = (),
        prose: str | None = None,
        spare: Collection[str] = (),
    ) -> None:
        self._columns = columns
        self._left = {columns[0], *left, prose}
        self._prose = prose
        self._spare = spare
        self._rows: list[tuple[RenderableType, ...]] = []

    def add(self, *cells: RenderableType) -> None:
        """Add a row; text is shown as it is, never read as markup."""
        self._rows.append(tuple(Text(c) if isinstance(c, str) else c for c in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sizes = dict(zip(self._columns, self._sizes(console, options), strict=True))
        left_out: list[str] = []
        for name in ("", *self._spare):
            left_out += filter(None, [name])
            shown = [name for name in self._columns if name not in left_out]
            if sum(sizes[name] + 2 for name in shown) - 2 <= options.max_width:
                yield self._grid(shown)
                if left_out:
                    yield Text(f"(no room for {', '.join(left_out)})", "dim")
                return
        for row in self._rows:
            yield from self._lines(row, console, options)

    def _sizes(self, console: Console, options: ConsoleOptions) -> Iterator[int]:
        """Columns of the terminal that each column takes at least."""
        free = options.update(max_width=UNLIMITED)
        for name, *cells in zip(self._columns, *self._rows, strict=True):
            widths = [len(name)]
            for cell in cells:
                least, most = Measurement.get(console, free, cell)
                if name != self._prose:
                    least = most
                elif isinstance(cell, Text):
                    least = max(least, min(most, _PROSE))
                widths.append(least)
            yield max(widths)

    def _grid(self, shown: Collection[str]) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in shown:
            justify: Any = "left" if name in self._left else "right"
            table.add_column(
                Text(name), justify=justify, no_wrap=name != self._prose, overflow="fold"
            )
        for row in self._rows:
            cells = zip(self._columns, row, strict=True)
            table.add_row(*(cell for name, cell in cells if name in shown))
        return table

    def _lines(
        self, row: tuple[RenderableType, ...], console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        wide = max(map(len, self._columns)) + 2
        for name, cell in zip(self._columns, row, strict=True):
            if isinstance(cell, Text) and wide + cell.cell_len <= options.max_width:
                if cell.plain:
                    yield Text.assemble((f"{name:<{wide}}", "dim"), cell)
                continue
            yield Text(name, "dim")
            longest = Measurement.get(console, options.update(max_width=UNLIMITED), cell).minimum
            whole = isinstance(cell, Text) and longest > options.max_width
            yield unbroken(cast(Text, cell)) if whole else cell
        yield Text()


def unbroken(text: Text) -> Text:
    """The same text with lines that the terminal wraps, so that what is copied has no breaks."""
    text = text.copy()
    text.no_wrap, text.overflow = True, "ignore"
    return text

"""Figures and tables as files, and as a page shows them."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from lensprep.tables.csvtext import guard_text
from lenstrain.figures import STYLE, Plot
from lenstrain.pages.examples import data_uri

_NO_DATE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {},
}
"""Equal figures are equal files."""


@dataclass(frozen=True)
class PagePlot:
    """A figure as the page shows it."""

    name: str
    title: str
    caption: str
    source: str
    """SVG as a data URI."""


def save_plot(plot: Plot, folder: Path) -> PagePlot:
    """Write a figure as PDF and PNG with its numbers as CSV; return it for the page."""
    with rc_context(STYLE):
        # Laid out once, not once for each format.
        plot.figure.draw_without_rendering()
        plot.figure.set_layout_engine(None)
    for kind in ("pdf", "png"):
        (folder / f"{plot.name}.{kind}").write_bytes(_rendered(plot, kind))
    write_csv(folder / f"{plot.name}.csv", plot.numbers)
    source = data_uri(_rendered(plot, "svg"), "image/svg+xml")
    return PagePlot(plot.name, plot.title, plot.caption, source)


def _rendered(plot: Plot, kind: str) -> bytes:
    buffer = io.BytesIO()
    with rc_context(STYLE):
        plot.figure.savefig(buffer, format=kind, dpi=300, metadata=_NO_DATE[kind])
    return buffer.getvalue()


def write_csv(path: Path, columns: Mapping[str, Sequence[Any] | Any]) -> None:
    """Write columns of one length as CSV; NaN becomes an empty field, and no text a formula."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(_cell, columns))
        for row in zip(*columns.values(), strict=True):
            writer.writerow(map(_cell, row))


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return guard_text(value)
    return "" if isinstance(value, float) and math.isnan(value) else value

"""Put figures, tables and stamps into files and one HTML page that needs nothing beside it."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context

from lensprep.tables.csvtext import guard_text
from lenstrain.evaluation.examples import Gallery, Stamp, data_uri
from lenstrain.pages.figures import STYLE, Plot

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


@dataclass(frozen=True)
class PageGallery:
    """A gallery with its stamps."""

    gallery: Gallery
    stamps: Sequence[Stamp]


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


def render_page(context: Mapping[str, Any]) -> str:
    """Render the page; every value from outside is escaped."""
    return _environment().get_template("report.html").render(context)


def render_card(context: Mapping[str, Any]) -> str:
    """Render the model card in Markdown; what comes from outside can bring no HTML into it."""
    return _environment().get_template("model_card.md").render(context)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lenstrain.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "figure": figure,
        "with_interval": with_interval,
        "bounds": bounds,
        "purity": purity,
        "precision": precision,
        "percent": percent,
        "rate": lambda value: f"{100 * float(value):g}%",
        "count": lambda value: f"{value:,}",
    }
    return environment


def figure(value: float | None, digits: int = 3) -> str:
    """Format a number with some digits after the point, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share in percent; small ones keep two significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    share = 100 * value
    if 0 < abs(share) < 10**-digits:
        return f"{share:.2g}%"
    return f"{share:.{digits}f}%"


def with_interval(entry: Mapping[str, Any] | None, style: str = "figure", digits: int = 3) -> str:
    """Format an entry as ``value [low, high]``; the reason if it has no value."""
    if entry is None or entry["value"] is None:
        return "–" if entry is None else str(entry.get("reason", "–"))
    show = percent if style == "percent" else figure
    value = show(entry["value"], digits)
    return value if entry["low"] is None else f"{value} {bounds(entry, style, digits)}"


def purity(entry: Mapping[str, Any]) -> str:
    """Format a purity: with its interval, as a lower limit where that is all there is, or n/a."""
    if entry["low"] is not None:
        return with_interval(entry, "percent", 1)
    return "n/a" if entry["at_least"] is None else f"≥ {percent(entry['at_least'])}"


def precision(entry: Mapping[str, Any]) -> str:
    """Format an average precision at a prevalence, or its lower limit and the reason for it."""
    if entry["supported"]:
        return with_interval(entry, "figure", 4)
    least = "" if entry["at_least"] is None else f"; at least {figure(entry['at_least'], 4)}"
    return f"n/a: {entry['reason']}{least}"


def bounds(entry: Mapping[str, Any], style: str = "figure", digits: int | None = None) -> str:
    """Format an interval as ``[low, high]``, or say that there is none."""
    if entry["low"] is None or entry["high"] is None:
        return "no interval"
    if style == "percent":
        return f"[{percent(entry['low'], digits or 1)}, {percent(entry['high'], digits or 1)}]"
    return f"[{figure(entry['low'], digits or 3)}, {figure(entry['high'], digits or 3)}]"

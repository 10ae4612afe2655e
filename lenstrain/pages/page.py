"""Fill a template of a page, and write numbers as all pages do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lenstrain.evaluation.names import rate_text, threshold_text

METRICS_NAME = "metrics.json"
"""This file marks a folder as an evaluation."""
REPORT_NAME = "report.html"
CARD_NAME = "model_card.md"
PROBE_NAME = "probe.json"
PROBE_PAGE = "probe.html"
AUDIT_NAME = "audit.json"
AUDIT_PAGE = "audit.html"


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template of ``lenstrain/pages/templates``; every value from outside is escaped."""
    is_text = template.endswith(".md")
    environment = Environment(
        loader=PackageLoader("lenstrain.pages"),
        autoescape=not is_text,
        finalize=markdown if is_text else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "interval": interval,
        "interval_percent": lambda entry, digits=1: interval(entry, digits, percent),
        "bounds": bounds,
        "bounds_percent": lambda entry, digits=1: bounds(entry, digits, percent),
        "purity": purity,
        "precision": precision,
        "rate": lambda value: rate_text(float(value)),
        "threshold": threshold_text,
        "count": lambda value: f"{value:,}",
        "prose": prose,
        "code": lambda value: f"`{str(value).replace('`', chr(39))}`",
    }
    return environment.get_template(template).render(context)


class _Words(Formatter):
    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion == "p":
            return rate_text(value)
        if conversion == "l":
            return listed(value)
        return super().convert_field(value, conversion)


def fill(text: str, **values: Any) -> str:
    """As `str.format`; ``!p`` writes a share in percent, ``!l`` lists several values."""
    return _Words().format(text, **values)


def listed(values: Iterable[Any]) -> str:
    """Values in words: ``g, r and z``."""
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def prose(text: str) -> Markup:
    """A text for a page, where what stands in backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def markdown(value: Any) -> str:
    """A value in Markdown: outside of backticks no HTML begins in it, nor ends a cell or line."""
    marks = {"<": "&lt;", "&": "&amp;", "|": "\\|", "\n": " "}
    return re.sub(r"(`[^`]*`)|[<&|\n]", lambda found: found[1] or marks[found[0]], str(value))


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with some digits after the point, or a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    # Plus 0.0, so that what rounds to zero has no sign.
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share in percent; small ones keep two significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    share = 100 * value
    if 0 < abs(share) < 10**-digits:
        return f"{share:.2g}%"
    return f"{share:.{digits}f}%"


def interval(
    entry: Mapping[str, Any] | None, digits: int = 3, show: Callable[..., str] = number
) -> str:
    """Format an entry as ``value [low, high]``; the reason if it has no value."""
    if entry is None or entry["value"] is None:
        return "–" if entry is None else str(entry.get("reason", "–"))
    value = show(entry["value"], digits)
    return value if entry.get("low") is None else f"{value} {bounds(entry, digits, show)}"


def bounds(entry: Mapping[str, Any], digits: int = 3, show: Callable[..., str] = number) -> str:
    """Format an interval as ``[low, high]``, or say that there is none."""
    if entry["low"] is None or entry["high"] is None:
        return "no interval"
    return f"[{show(entry['low'], digits)}, {show(entry['high'], digits)}]"


def purity(entry: Mapping[str, Any]) -> str:
    """Format a purity: with its interval, as a lower limit where that is all there is, or n/a."""
    if entry["low"] is not None:
        return interval(entry, 1, percent)
    return "n/a" if entry["at_least"] is None else f"≥ {percent(entry['at_least'])}"


def precision(entry: Mapping[str, Any]) -> str:
    """Format an average precision at a prevalence, or its lower limit and the reason for it."""
    if entry["supported"]:
        return interval(entry, 4)
    if entry["at_least"] is None:
        return f"n/a: {entry['reason']}"
    least = np.format_float_positional(entry["at_least"], 2, fractional=False, trim="-")
    return f"n/a: {entry['reason']}; at least {least}"

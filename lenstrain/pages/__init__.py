"""One look for the pages of the audit and the probes: a template to extend, and how to fill it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template of ``lenstrain/pages/templates``; every value from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("lenstrain.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "interval": interval}
    return environment.get_template(template).render(context)


def number(value: Any, digits: int = 3) -> str:
    """Format a number, or a dash for None."""
    # Plus 0.0, so that what rounds to zero has no sign.
    return "–" if value is None else f"{round(float(value), digits) + 0.0:.{digits}f}"


def percent(value: Any, digits: int = 1) -> str:
    """Format a share in percent, or a dash for None."""
    return "–" if value is None else f"{100 * float(value):.{digits}f}%"


def interval(entry: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Format ``value [low, high]``, or a dash."""
    if entry is None or entry.get("value") is None:
        return "–"
    value = number(entry["value"], digits)
    if entry.get("low") is None:
        return value
    return f"{value} [{number(entry['low'], digits)}, {number(entry['high'], digits)}]"

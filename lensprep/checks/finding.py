"""One finding of `lensprep check`, and what is known of a source beside its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from lensprep.checks.tally import Tally

Severity = Literal["blocker", "warn", "info"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    item: str
    severity: Severity
    """How much it weighs if it is not passed."""
    passed: bool | None
    """None: not run, or nothing to pass."""
    measured: Any
    threshold: Any
    detail: str
    """One or two sentences for people: what it means, and what to do."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """What is known of a source beside its rows."""

    schema: pa.Schema
    row_groups: int
    file_columns: tuple[int, int]
    """Fewest and most columns of a file."""
    bad_files: tuple[str, ...] = ()
    """Files without a readable footer."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Extra columns without a type that holds what all files have, each with what was found."""
    unfinished: str | None = None
    """What a job has left that did not finish."""
    is_marked: bool = False
    """Whether there is the ``_SUCCESS`` of a job that did."""
    pixels: bool = False
    declared: Mapping[str, float] | None = None
    """Split fractions that the user believes in."""


Finder = Callable[[Tally, Circumstances], Finding]


def listing(names: Sequence[Any], most: int = 5) -> str:
    """The first few of some names, and how many more there are."""
    text = ", ".join(str(name) for name in names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def counted(counts: Mapping[str, int]) -> list[str]:
    """Names with their counts, to be listed."""
    return [f"{name} {n}" for name, n in counts.items()]


def both_classes(classes: Mapping[str, int]) -> dict[str, int]:
    """Rows of the two classes, without those whose label is unknown."""
    return {label: classes.get(label, 0) for label in ("0", "1")}

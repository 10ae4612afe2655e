"""Strict JSON, read and written: no key twice, finite numbers, valid Unicode (pure)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from reprlib import repr as shortened
from typing import Any, Final

import numpy as np

from lensprep.errors import DatasetError

MAX_DEPTH: Final = 32
"""Levels of objects and lists; deeper ones could exceed the recursion limit when written again."""


def parse_json(text: bytes | str) -> Any:
    """Read JSON, and refuse what other readers might read differently or could not write again.

    Parameters
    ----------
    text : bytes or str
        UTF-8.

    Raises
    ------
    ValueError
        In one line: not JSON, a key twice, a number that is not finite or a whole one beyond 64
        bits, text that is not valid Unicode, or more than `MAX_DEPTH` levels.
    """
    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [value]
    for _ in range(MAX_DEPTH):
        for node in level:
            if isinstance(node, str) and not node.isascii():
                node.encode()  # half of a surrogate pair cannot be printed
        level = [child for node in level for child in _children(node)]
        if not level:
            return value
    raise ValueError(_TOO_DEEP)


_TOO_DEEP: Final = f"it is nested deeper than {MAX_DEPTH} levels"


def _children(node: Any) -> tuple[Any, ...] | list[Any]:
    if isinstance(node, dict):
        return (*node, *node.values())
    return node if isinstance(node, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.60} occurs twice")
    return found


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.20} is too large")
    return value


def _whole(text: str) -> int:
    value = int(text) if len(text) <= 20 else 1 << 64
    if abs(value) >= 1 << 64:
        raise ValueError(f"the number {text:.20} is too large")
    return value


def plain(value: Any) -> Any:
    """Types of JSON, also from NumPy's; NaN and infinity, which JSON lacks, become None."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def get_entry(entry: Mapping[str, Any], name: str, where: str) -> Any:
    """An entry of an object; DatasetError if there is none."""
    if name not in entry:
        raise DatasetError(f"{where} has no entry {name!r}")
    return entry[name]


def check_object(value: Any, what: str) -> dict[str, Any]:
    """An object; DatasetError if it is anything else."""
    if not isinstance(value, dict):
        raise DatasetError(f"{what} is {shortened(value)}, not an object")
    return value


def check_whole(value: Any, what: str, most: int = 1 << 53) -> int:
    """A count: not true, 1.0 or "1", nor above 2**53, where readers of JSON disagree."""
    if type(value) is not int or not 0 <= value <= most:
        raise DatasetError(f"{what} is {shortened(value)}, not a whole number from 0 to {most}")
    return value


def check_number(value: Any, what: str) -> float:
    """A finite number; DatasetError if it is anything else."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise DatasetError(f"{what} is {shortened(value)}, not a finite number")
    return value

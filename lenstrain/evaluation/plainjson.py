"""Plain types for JSON."""

import math
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Plain JSON types; numbers that JSON has no word for (NaN, infinity) become None."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

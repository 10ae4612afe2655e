"""Whose rows headline figures are of, in a validation and in an evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lenstrain.scoretable import ordered_origins


def headline_origin(labels: Mapping[str, NDArray[np.generic]]) -> str | None:
    """The first origin with both classes: simulated, real, then others by name; None if none has.

    `labels` are those of the rows of each origin.
    """
    for name in ordered_origins(labels):
        lens = labels[name] == 1
        if lens.any() and not lens.all():
            return name
    return None

"""Real and simulated rows of a validation: whose the metrics are, and what each origin has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.split import SplitData
from lenstrain.evaluation.headline import headline_origin
from lenstrain.training.counterfactuals import Counterfactuals


@dataclass(frozen=True, slots=True, eq=False)
class Origins:
    """Origins of a split that is validated on, of which there are several."""

    parts: dict[str, NDArray[np.bool_]]
    """Ordinary rows of each, no counterfactuals; masks of shape (rows,)."""
    headline: str | None
    """The origin that the metrics are of, as in `lenstrain evaluate`: the first with both classes,
    simulated before real. None if none has both: then they are of all rows."""


def find_origins(data: SplitData, made: Counterfactuals | None) -> Origins | None:
    """The origins of a split, from its sidecars; None if there is one."""
    names, codes = data.origins
    ordinary = np.ones(codes.size, np.bool_) if made is None else ~made.mask
    masks = {name: ordinary & (codes == number) for number, name in enumerate(names)}
    parts = {name: mask for name, mask in masks.items() if mask.any()}
    if len(parts) < 2:
        return None
    labels = data.all_labels()
    return Origins(parts, headline_origin({name: labels[mask] for name, mask in parts.items()}))

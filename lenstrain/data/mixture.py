"""How often rows of each kind come: rates by origin, or by any expression on the columns.

    mixture = read_mixture(data, {"real": 10, "simulated": 1})
    mixture.weights, mixture.groups        of each row of the split
    mixture.count(rows, labels)            what an epoch holds of each

An epoch keeps its length: rates are relative to each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lensprep.errors import ConfigError
from lenstrain.data.split import SplitData

MOST_RATES: Final = 16
"""Most rates at once: rows are told apart by the set of those that apply to them."""
_NAME: Final = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Which rates apply to which rows of a split."""

    parts: dict[str, NDArray[np.bool_]]
    """Rows that each rate applies to, and those of each origin; masks of shape (rows,)."""
    weights: NDArray[np.float64]
    """Relative rate of each row: the product of those that apply to it, 1 if none does."""
    groups: NDArray[np.int64]
    """Rows with the same set of rates have the same number, from 0 on."""

    def count(
        self, rows: NDArray[np.int64] | None, labels: NDArray[np.int8]
    ) -> dict[str, dict[str, Any]]:
        """What an epoch holds of each part.

        Parameters
        ----------
        rows : ndarray of int64, optional
            Positions of the epoch, repeats counted; None for all rows once.
        labels : ndarray of int8, shape (rows of the split,)

        Returns
        -------
        dict
            By part ``rows``, ``lenses`` among them, ``distinct`` (stamps) and ``share`` (of the
            epoch's rows).
        """
        times = np.ones(labels.size, np.int64)
        if rows is not None:
            times = np.bincount(rows, minlength=labels.size)
        total = int(times.sum())
        found = {}
        for name, mask in self.parts.items():
            here = times * mask
            count = int(here.sum())
            found[name] = {
                "rows": count,
                "lenses": int(here[labels == 1].sum()),
                "distinct": int(np.count_nonzero(here)),
                "share": count / max(total, 1),
            }
        return found


def read_mixture(data: SplitData, rates: Mapping[str, float]) -> Mixture:
    """Find the rows of each rate in the sidecars of a split.

    Parameters
    ----------
    data : SplitData
    rates : mapping of str to float
        By origin (``real``, ``simulated``, or as a catalogue calls it), or by an expression such as
        ``"kind == 'ring'"`` (`lensprep.dataset.where`).

    Raises
    ------
    ConfigError
        If a rate is negative or not finite, applies to no row, or its expression is not valid.
    """
    origins, codes = data.origins
    total = sum(data.shard_rows)
    weights, groups = np.ones(total), np.zeros(total, np.int64)
    parts = {name: codes == number for number, name in enumerate(origins)}
    for bit, (name, rate) in enumerate(check_rates(rates).items()):
        mask = parts.get(name)
        if mask is None:
            if _NAME.fullmatch(name):
                listed = ", ".join(f"{o} {np.count_nonzero(parts[o]):,}" for o in origins)
                raise ConfigError(
                    f"data.rates: {data.title} has no rows of origin {name!r}; it has: {listed}. "
                    "Anything but an origin is written as an expression: \"kind == 'ring'\"."
                )
            mask = np.zeros(total, np.bool_)
            mask[data.matching(name)] = True
        if not mask.any():
            raise ConfigError(f"data.rates: {name!r} keeps no row of {data.title}.")
        parts[name] = mask
        weights[mask] *= rate
        groups |= mask.astype(np.int64) << bit
    return Mixture(parts, weights, np.unique(groups, return_inverse=True)[1])


def check_rates(rates: Mapping[str, float]) -> dict[str, float]:
    """The rates, if they are such; ConfigError otherwise."""
    if len(rates) > MOST_RATES:
        raise ConfigError(f"data.rates has {len(rates)} rates, and may have {MOST_RATES} at most.")
    for name, rate in rates.items():
        if not (math.isfinite(rate) and rate >= 0):
            raise ConfigError(f"data.rates: the rate of {name!r} must be 0 or more, got {rate}.")
    return dict(rates)

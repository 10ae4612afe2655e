"""One finding of `lensprep check` or `lenstrain audit`, and the arithmetic both share (pure)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.errors import names_text
from lensprep.source.survey import DECALS_SURVEY
from lensprep.tables.positions import nearest_on_sky

Severity = Literal["blocker", "warn", "info"]

MAX_CATEGORIES: Final = 50
"""Text with more distinct values is a name, not a property that could reveal the label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The outcome of one check; by default one that only informs."""

    item: str
    group: str | None = None
    """In an audit: data, loader, run, scores or science."""
    severity: Severity = "info"
    """How much it weighs if it is not passed."""
    passed: bool | None = None
    """None: not run, or nothing to pass."""
    measured: Any = None
    threshold: Any = None
    detail: str
    """For people: what was measured, in words; or why it was not run, and how it is run."""
    rule: str = ""
    """In an audit: what passes, in words."""
    remedy: str = ""
    """In an audit: what to do about what failed."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON; without what is only of an audit if there is none."""
        found = {name: getattr(self, name) for name in self.__slots__}
        extra = ("group", "rule", "remedy")
        return {name: value for name, value in found.items() if name not in extra or value}


_LEAKING: Final = {column.name for column in DECALS_SURVEY.known_columns if column.leaks}
_OF_A_BAND: Final = ("psf_fwhm_used_", "psf_source_", "src_")
"""What the names of columns begin with that an injection has for the bands of its survey."""

listing = partial(names_text, most=5)
"""The first few names, and how many more there are."""


def counted(counts: Mapping[str, int], most: int = 5) -> str:
    """The first few names with their counts."""
    return names_text((f"{name} {n}" for name, n in counts.items()), most=most)


def both_classes(classes: Mapping[str, int]) -> dict[str, int]:
    """Rows of the two classes, leaving out those whose label is unknown."""
    return {label: classes.get(label, 0) for label in ("0", "1")}


def leaking(columns: Iterable[str]) -> list[str]:
    """The columns that reveal the label, by value or by being null."""
    return [name for name in columns if name in _LEAKING or name.startswith(_OF_A_BAND)]


def farthest_share(shares: Mapping[str, float], declared: Mapping[str, float]) -> float:
    """Largest difference of a split's share of the rows from the declared one."""
    return max(abs(shares.get(name, 0.0) - share) for name, share in declared.items())


def in_several(groups: Iterable[ArrayLike]) -> NDArray[Any]:
    """Values that occur in more than one of the groups, sorted."""
    values = [np.unique(np.asarray(group)) for group in groups]
    if not values:
        return np.empty(0)
    distinct, counts = np.unique(np.concatenate(values), return_counts=True)
    return distinct[counts > 1]


def positions_in_both(one: NDArray[np.float64], other: NDArray[np.float64]) -> int:
    """How many of the distinct positions, shape (n, 2), are also in the other set, bit for bit."""
    return len(one) + len(other) - len(np.unique(np.concatenate([one, other]), axis=0))


def separations(
    positions: Mapping[str, NDArray[np.float64]], limit: float
) -> tuple[dict[str, float], int]:
    """Smallest separation of every pair of splits, and how many positions lie too close.

    Parameters
    ----------
    positions : mapping of str to ndarray, shape (n, 2)
        Distinct right ascensions and declinations of each split, degrees. Empty splits are
        ignored.
    limit : float
        Arcsec.

    Returns
    -------
    nearest : dict of str to float
        By ``first-second``, arcsec.
    close : int
        Positions, counted in the smaller split of each pair, that lie nearer than `limit` to a
        position of the other.
    """
    nearest: dict[str, float] = {}
    close = 0
    for pair in combinations([name for name, sky in positions.items() if len(sky)], 2):
        few, many = sorted((positions[name] for name in pair), key=len)
        distance = nearest_on_sky(*few.T, *many.T)[1]
        nearest["-".join(pair)] = float(distance.min())
        close += int(np.count_nonzero(distance < limit))
    return nearest, close


def auroc_error(lenses: int, others: int) -> float:
    """Standard error of the AUROC of scores unrelated to the labels (Mann & Whitney)."""
    if not lenses or not others:
        return math.inf
    return math.sqrt((lenses + others + 1) / (12 * lenses * others))


def mid_rank_auroc(score: NDArray[Any], is_lens: NDArray[np.bool_]) -> float:
    """AUROC from mid-ranks, which count ties half; 0.5 if there is one class only."""
    from scipy.stats import rankdata

    lenses, others = int(is_lens.sum()), int((~is_lens).sum())
    if not lenses or not others:
        return 0.5
    ranks = rankdata(score)[is_lens].sum()
    return float((ranks - lenses * (lenses + 1) / 2) / (lenses * others))

"""Which rows of a split make an epoch: filter, limit, balance, weights, rates, counterfactuals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensprep.errors import ConfigError, DatasetError
from lenstrain.data.mixture import Mixture, read_mixture
from lenstrain.data.order import repeat_counts
from lenstrain.data.split import SplitData

Sampling = Literal["uniform", "balanced"]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Rows of a split that take part, and how often each comes in an epoch."""

    total: int
    """Rows of the split."""
    rows: NDArray[np.int64] | None = None
    """Positions that take part, ascending; None for all."""
    rates: NDArray[np.float64] | None = None
    """Mean number of times that each of them comes in an epoch; None for once each."""
    groups: NDArray[np.int64] | None = None
    """Number of the group of each of them, if classes are balanced or there are rates by origin:
    each group comes as often in every epoch as its rates say, to within one row."""
    added: NDArray[np.int64] | None = None
    """Positions of counterfactuals that come besides, ascending, all at the same mean rate."""
    added_rows: int = 0
    """How many rows of an epoch are counterfactuals, repeats counted."""
    mixture: Mixture | None = None
    """Rates by origin or expression, if there are any."""

    @property
    def epoch_rows(self) -> int:
        """Rows of an epoch, repeats counted: the same in every epoch."""
        return self._ordinary_rows + self.added_rows

    @property
    def _ordinary_rows(self) -> int:
        if self.rates is not None:
            return int(np.rint(self.rates.sum()))
        return self.total if self.rows is None else len(self.rows)

    @property
    def positions(self) -> NDArray[np.int64] | None:
        """Every position that may come, ascending; None for all."""
        if self.rows is None or self.added is None:
            return self.rows
        return _merged(self.rows, self.added)

    @property
    def digest(self) -> str:
        """Empty for all rows once each, else a digest of the choice."""
        if self.rows is None and self.rates is None:
            return ""
        digest = hashlib.blake2b(digest_size=8)
        for part in (self.rows, self.rates):
            digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        # Each of these only where it is used, so that runs of earlier versions can be resumed.
        if self.added is not None:
            digest.update(np.append(self.added, self.added_rows).tobytes())
        if self.mixture is not None and self.groups is not None:
            digest.update(self.groups.tobytes())
        return digest.hexdigest()

    def epoch(self, key: int) -> NDArray[np.int64] | None:
        """Positions of one epoch, ascending, each as often as it comes; None for all once.

        Parameters
        ----------
        key : int
            64-bit key of the epoch: it decides which rows of a fractional rate come once more.
        """
        rows = self.rows
        if self.rates is not None:
            counts = repeat_counts(self.rates, key, self.groups)
            rows = np.repeat(np.arange(self.total) if rows is None else rows, counts)
        if rows is None or self.added is None:
            return rows
        counts = repeat_counts(np.full(len(self.added), self.added_rows / len(self.added)), key)
        return _merged(rows, np.repeat(self.added, counts))


def _merged(rows: NDArray[np.int64], more: NDArray[np.int64]) -> NDArray[np.int64]:
    """Both in ascending order, as each of them is: a stable sort does that in one pass."""
    return np.sort(np.concatenate([rows, more]), kind="stable")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selecting:
    """Which rows of a split to choose."""

    where: str | None = None
    """Filter on sidecar columns, in the grammar of `lensprep.dataset.where`."""
    limit: int | None = None
    """Keep the first rows only, after the filter. Shards are shuffled when they are written, so
    the first rows are a random sample."""
    sampling: Sampling = "uniform"
    """``"balanced"`` gives every class the same number of rows in an epoch of unchanged length."""
    weights: ArrayLike | None = None
    """Relative rate of every row of the split, shape (rows,); the epoch keeps its length, and a row
    of rate ``w`` comes ``floor(w)`` or ``ceil(w)`` times. Multiplies with the balance."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Relative rates of rows by origin or expression (`lenstrain.data.mixture`); they multiply with
    ``weights``. What an epoch holds of each is the same in every epoch, to within one row."""
    counterfactual_share: float | None = None
    """Share of an epoch's rows that are counterfactuals, in [0, 1); None takes them for rows like
    any other. They come besides the ordinary rows, which alone are limited, balanced and weighted;
    ``where`` must be true of each and of the lens of its family."""


def select(data: SplitData, wanted: Selecting) -> Selection:
    """Choose rows of a split.

    Parameters
    ----------
    data : SplitData
    wanted : Selecting

    Raises
    ------
    ConfigError
        If nothing is left, or an option does not fit the split.
    """
    where, limit, sampling = wanted.where, wanted.limit, wanted.sampling
    total = sum(data.shard_rows)
    rows = None if where is None else data.matching(where)
    share, added = wanted.counterfactual_share, None
    if share is not None and total:
        rows, added = _without_counterfactuals(data, rows, wanted)
    if limit is not None:
        if limit < 1:
            raise ConfigError(f"limit must be at least 1, got {limit}")
        rows = np.arange(min(limit, total)) if rows is None else rows[:limit]
    if total == 0 or (rows is not None and not len(rows)):
        reason = f"where {where!r} keeps no row of" if total else "there is no row in"
        raise ConfigError(f"{reason} {data.title}.")
    rates = None if wanted.weights is None else _checked_weights(wanted.weights, total, rows)
    mixture, groups = read_mixture(data, wanted.rates) if wanted.rates else None, None
    if mixture is not None:
        mixed, groups = mixture.weights, mixture.groups
        if rows is not None:
            mixed, groups = mixed[rows], groups[rows]
        rates = mixed if rates is None else rates * mixed
        if not rates.any():
            raise ConfigError(f"data.rates leave no row of {data.title}: every rate is 0.")
    if sampling == "balanced":
        labels = data.all_labels()
        classes = labels if rows is None else labels[rows]
        rates = _balanced(classes, rates)
        groups = classes.astype(np.int64) + (0 if groups is None else 2 * groups)
    elif sampling != "uniform":
        raise ConfigError(f"sampling must be 'uniform' or 'balanced', got {sampling!r}")
    if rates is not None:
        rates = rates * (len(rates) / rates.sum())
    more = 0
    if share:
        ordinary = total if rows is None else len(rows)
        more = max(1, round(ordinary * share / (1 - share)))
    return Selection(total, rows, rates, groups, added if share else None, more, mixture)


def _without_counterfactuals(
    data: SplitData, rows: NDArray[np.int64] | None, wanted: Selecting
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """Ordinary rows of a choice (None for all), and its counterfactuals, which must fit a share."""
    share, found = wanted.counterfactual_share or 0.0, data.counterfactuals
    if not 0 <= share < 1:
        raise ConfigError(f"counterfactual_share must lie in [0, 1), got {share:g}")
    if not len(found.rows):
        if share:
            raise ConfigError(
                f"counterfactual_share is {share:g}, but {data.title} has no counterfactuals. Make "
                "them with `lensprep counterfactual` and convert them with the rest, or set it "
                "to 0."
            )
        return rows, found.rows
    made = found.fitting(rows)
    rows = np.arange(sum(data.shard_rows)) if rows is None else rows
    if share and not len(made):
        raise ConfigError(
            f"counterfactual_share is {share:g}, but where {wanted.where!r} keeps none of the "
            f"{len(found.rows):,} counterfactuals of {data.title}."
        )
    return rows[~np.isin(rows, found.rows, assume_unique=True)], made


def _checked_weights(
    weights: ArrayLike, total: int, rows: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    values = np.asarray(weights, np.float64)
    if values.shape != (total,):
        raise ConfigError(
            f"weights have shape {values.shape}; one for each of the split's {total} rows is needed"
        )
    values = values if rows is None else values[rows]
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        row = wrong[0] if rows is None else rows[wrong[0]]
        raise ConfigError(
            f"weights must be finite and not negative; {len(wrong):,} are not, the first that of "
            f"row {row:,}: {values[wrong[0]]:g}"
        )
    if not values.any():
        raise ConfigError(
            f"weights must not all be zero, and those of all {len(values):,} rows are"
        )
    return values


def _balanced(classes: NDArray[np.int8], rates: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Rates that give both classes the same sum, keeping the proportions inside a class."""
    rates = np.ones(len(classes)) if rates is None else rates
    sums = np.bincount(classes, weights=rates, minlength=2)
    if not sums.all():
        missing = 1 if sums[0] else 0
        name, count = ("non-lens", "lens")[missing], np.count_nonzero(classes == missing)
        found = f"all {count:,} {name} rows have weight 0" if count else f"there is no {name} row"
        raise ConfigError(f"sampling 'balanced' needs both classes; {found}.")
    return rates / sums[classes]


def hard_negative_weights(
    labels: ArrayLike, logits: ArrayLike, *, fraction: float = 0.05, factor: float = 4.0
) -> NDArray[np.float64]:
    """Weights that bring back more often the non-lenses which a finder mistakes most for lenses.

    Parameters
    ----------
    labels : array_like of int, shape (n,)
        0 for a non-lens.
    logits : array_like of float, shape (n,)
        Scores of an earlier finder (`lenstrain infer`), in the order of the split.
    fraction : float
        Share of the non-lenses that counts as hard, in (0, 1]; equal logits at the edge all count.
    factor : float
        Weight of a hard one; all other rows weigh 1.

    Returns
    -------
    ndarray of float64, shape (n,)

    Raises
    ------
    DatasetError
        If lengths differ, a logit is not finite, or there is no non-lens.
    """
    truth, scores = np.asarray(labels), np.asarray(logits, np.float64)
    if truth.shape != scores.shape or truth.ndim != 1 or not np.isfinite(scores).all():
        raise DatasetError("labels and logits must be finite and of one length")
    if not 0 < fraction <= 1 or factor <= 0:
        raise ConfigError("fraction must lie in (0, 1] and factor above 0")
    negatives = scores[truth == 0]
    if not negatives.size:
        raise DatasetError("there is no non-lens among the rows")
    hardest = int(np.ceil(fraction * negatives.size))
    edge = np.partition(negatives, -hardest)[-hardest]
    return np.where((truth == 0) & (scores >= edge), factor, 1.0)

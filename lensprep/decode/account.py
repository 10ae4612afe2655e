"""The account of a conversion: input rows = accepted + filtered + rejected, by reason (pure)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset.layout import COUNTERFACTUAL
from lensprep.source.contract import FILTER_REASONS, is_counterfactual

ACCEPTED = ""
"""Outcome of a row that got in; any other outcome is the reason why it did not."""

UNLABELLED = "unknown"
"""Class of rows without a usable label, and split of rows without a known split."""

CLASSES: Final = ("0", "1", UNLABELLED, COUNTERFACTUAL)
"""Names of the classes: non-lens, lens, rows without a usable label; and counterfactuals, whatever
their label, so that what is said of a class does not count them."""


def row_classes(table: pa.Table, label: NDArray[np.int8]) -> NDArray[np.str_]:
    """Class of each row, one of `CLASSES`; a negative label is no usable one."""
    return np.array(CLASSES)[np.select([is_counterfactual(table), label < 0], [3, 2], label)]


@dataclass(slots=True)
class Account:
    """Counts of rows by (split, class, outcome)."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    sources: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """The same rows by (source, origin, kind, outcome), where catalogues are among the sources."""
    read_again: int = 0
    """Rows of row groups that were read twice, because they arrived damaged over a network."""

    def add(self, splits: Iterable[str], classes: Iterable[str], outcomes: Iterable[str]) -> None:
        """Count rows, one split, class and outcome each."""
        self.counts.update(zip(splits, classes, outcomes, strict=True))

    def add_sources(
        self, source: str, origins: Iterable[str], kinds: Iterable[str], outcomes: Iterable[str]
    ) -> None:
        """Count rows of one source, an origin, kind and outcome each."""
        self.sources.update(
            (source, origin, kind, outcome)
            for origin, kind, outcome in zip(origins, kinds, outcomes, strict=True)
        )

    def move(self, split: str, label: str, outcome: str, rows: int = 1) -> None:
        """Turn accepted rows into rejected ones, as when a row proves to be a duplicate."""
        self.counts[split, label, ACCEPTED] -= rows
        self.counts[split, label, outcome] += rows

    def merge(self, other: Account) -> None:
        """Add another account's counts."""
        self.counts.update(other.counts)
        self.sources.update(other.sources)
        self.read_again += other.read_again

    @property
    def input_rows(self) -> int:
        """All rows."""
        return self.counts.total()

    def to_list(self) -> list[list[Any]]:
        """Plain types, for JSON: [split, class, outcome, rows] each."""
        return [[*key, rows] for key, rows in sorted(self.counts.items()) if rows]

    @classmethod
    def from_list(cls, rows: Iterable[Iterable[Any]]) -> Account:
        """Inverse of `to_list`."""
        account = cls()
        for split, label, outcome, count in rows:
            account.counts[split, label, outcome] += count
        return account

    def summary(self) -> dict[str, Any]:
        """The account as the manifest holds it.

        Returns
        -------
        dict
            ``input_rows``, ``accepted``, ``filtered`` and ``rejected`` by reason, ``read_again``,
            and the first four again under ``splits`` for each split and class; where catalogues
            are among the sources also under ``sources`` for each source, origin and kind.
        """
        total = Counter[str]()
        groups: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        for (split, label, outcome), rows in sorted(self.counts.items()):
            total[outcome] += rows
            groups[split][label][outcome] += rows
        splits = {
            split: {label: _by_outcome(counts) for label, counts in of_split.items()}
            for split, of_split in groups.items()
        }
        found = {**_by_outcome(total), "read_again": self.read_again, "splits": splits}
        return found | ({"sources": self._by_source()} if self.sources else {})

    def _by_source(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        places: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
        for (*place, outcome), rows in sorted(self.sources.items()):
            source, origin, kind = place
            places[source, origin, kind][outcome] += rows
        for (source, origin, kind), counts in places.items():
            found.setdefault(source, {}).setdefault(origin, {})[kind] = _by_outcome(counts)
        return found


def _by_outcome(counts: Counter[str]) -> dict[str, Any]:
    reasons = sorted((reason, n) for reason, n in counts.items() if n and reason != ACCEPTED)
    return {
        "input_rows": counts.total(),
        "accepted": counts[ACCEPTED],
        "filtered": {reason: n for reason, n in reasons if reason in FILTER_REASONS},
        "rejected": {reason: n for reason, n in reasons if reason not in FILTER_REASONS},
    }

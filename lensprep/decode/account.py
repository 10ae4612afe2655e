"""The account of a conversion: input rows = accepted + filtered + rejected, by reason (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.source.contract import FILTER_REASONS

ACCEPTED = ""
"""Outcome of a row that got in; any other outcome is the reason why it did not."""

UNLABELLED = "unknown"
"""Class of rows whose label could not be told."""


def class_names(label: NDArray[np.int8]) -> list[str]:
    """Class of each row for the account: "0", "1" or "unknown"."""
    return [str(value) if value >= 0 else UNLABELLED for value in label.tolist()]


@dataclass(slots=True)
class Account:
    """Counts of rows by (split, class, outcome)."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    read_again: int = 0
    """Rows of row groups that were read twice: they came damaged over a network."""

    def add(self, splits: Iterable[str], classes: Iterable[str], outcomes: Iterable[str]) -> None:
        """Count rows, one split, class and outcome each."""
        self.counts.update(zip(splits, classes, outcomes, strict=True))

    def move(self, split: str, label: str, outcome: str, rows: int = 1) -> None:
        """Turn accepted rows into rejected ones, as when a row proves to be there twice."""
        self.counts[split, label, ACCEPTED] -= rows
        self.counts[split, label, outcome] += rows

    def merge(self, other: Account) -> None:
        """Add another account's counts."""
        self.counts.update(other.counts)
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
            and the first four again under ``splits`` for each split and class.
        """
        total = self._by_outcome(self.counts)
        splits: dict[str, dict[str, Any]] = {}
        for split in sorted({key[0] for key in self.counts}):
            labels = sorted({key[1] for key in self.counts if key[0] == split})
            splits[split] = {
                label: self._by_outcome(
                    {k: n for k, n in self.counts.items() if k[0] == split and k[1] == label}
                )
                for label in labels
            }
        return {**total, "read_again": self.read_again, "splits": splits}

    @staticmethod
    def _by_outcome(counts: Mapping[tuple[str, str, str], int]) -> dict[str, Any]:
        accepted, filtered, rejected = 0, Counter[str](), Counter[str]()
        for (_, _, outcome), rows in counts.items():
            if outcome == ACCEPTED:
                accepted += rows
            elif outcome in FILTER_REASONS:
                filtered[outcome] += rows
            else:
                rejected[outcome] += rows
        return {
            "input_rows": accepted + filtered.total() + rejected.total(),
            "accepted": accepted,
            "filtered": dict(sorted((k, n) for k, n in filtered.items() if n)),
            "rejected": dict(sorted((k, n) for k, n in rejected.items() if n)),
        }

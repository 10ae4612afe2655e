"""Where a part of a visit works, and how large it may be."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.gpu_day.table import Table


@dataclass(frozen=True)
class Place:
    work: Path
    table: Table
    dry: bool
    until: float
    """Time of day after which a part of many cases begins no other."""

    @classmethod
    def parse(cls, parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Place]:
        """The place that the command line names, which `Visit` has written."""
        parser.add_argument("--work", type=Path, required=True)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--dry", action="store_true")
        parser.add_argument("--until", type=float, default=float("inf"))
        given = parser.parse_args()
        return given, cls(given.work, Table(given.out), given.dry, given.until)

    @property
    def dataset(self) -> str:
        return str(self.work / "dataset")

    @property
    def batch(self) -> int:
        return 8 if self.dry else 1024

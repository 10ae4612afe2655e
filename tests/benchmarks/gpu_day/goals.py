"""The goals for one H100, and whether the figures of a visit reach them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    what: str
    figure: str
    limit: float
    unit: str
    at_least: bool = False

    def line(self, figures: Mapping[str, float]) -> str:
        bound = f"{'at least' if self.at_least else 'at most'} {self.limit:,g}{self.unit}"
        if self.figure not in figures:
            return f"  not measured  {self.what}, {bound}"
        found = figures[self.figure]
        reached = found >= self.limit if self.at_least else found <= self.limit
        word = "reached" if reached else "missed"
        return f"  {word:12}  {self.what}: {found:,.4g}{self.unit}, {bound}"


GOALS = (
    Goal("training, bf16, compiled", "compiled_stamps_per_s", 27_000, " stamps/s", at_least=True),
    Goal("training, bf16, eager", "eager_stamps_per_s", 18_000, " stamps/s", at_least=True),
    Goal("waiting for data that is in memory", "data_wait_percent", 1, " %"),
    Goal("validation, of an epoch with 1/8 as many rows", "validation_percent", 5, " %"),
    Goal("infer, bf16", "infer_bf16_stamps_per_s", 60_000, " stamps/s", at_least=True),
    Goal("host waiting for the device in an epoch's steps", "waits_in_steps", 0, ""),
    Goal("memory in use, growth over three epochs", "memory_growth_mib", 1, " MiB"),
)


def goal_lines(figures: Mapping[str, float]) -> list[str]:
    return ["goals for one H100:", *(goal.line(figures) for goal in GOALS)]

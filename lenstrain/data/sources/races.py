"""When a cell takes so much longer than others that it is requested a second time."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from typing import Protocol, TypeVar

RACES_AT_ONCE = 2
RACE_RATIO = 5.0
"""A cell is slow if it takes so many times the median of the last ones ..."""
RACE_SECONDS = 0.5
"""... and at least this long."""
_FIRST_RACE_SECONDS = 5.0
"""What counts as slow before there is anything to compare with."""
_FEWEST_SAMPLES, _SAMPLES = 4, 64


class Runner(Protocol):
    """A request under way."""

    race: bool
    """It was made because another one was slow."""
    stopped: bool
    mark: float
    """When it began, or brought its last cell."""

    @property
    def waits_for(self) -> int | None:
        """The cell that it brings next."""


R = TypeVar("R", bound=Runner)


class Races:
    """Decides which request gets a second one; its user holds a lock."""

    def __init__(self) -> None:
        self.begun, self.won = 0, 0
        self._seconds: deque[float] = deque(maxlen=_SAMPLES)

    def took(self, seconds: float) -> None:
        """A cell has come within this time."""
        self._seconds.append(seconds)

    @property
    def can_compare(self) -> bool:
        """Whether enough cells have come to know what is slow."""
        return len(self._seconds) >= _FEWEST_SAMPLES

    def slow_after(self) -> float:
        """Seconds after which a cell is slow."""
        if not self.can_compare:
            return _FIRST_RACE_SECONDS
        return max(RACE_SECONDS, RACE_RATIO * statistics.median(self._seconds))

    def slow(self, cell: int, runs: Iterable[R], now: float, requests: int) -> R | None:
        """The one request under way that a cell waits for, if it is slow and may get a second one.

        Of the `requests` made so far, one in fifty may be such a second one, and two more.
        """
        all_runs = list(runs)
        bringing = [run for run in all_runs if run.waits_for == cell and not run.stopped]
        if len(bringing) != 1 or now - bringing[0].mark < self.slow_after():
            return None
        racing = sum(run.race for run in all_runs)
        bounded = self.begun < 2 + requests // 50
        return bringing[0] if bounded and racing < RACES_AT_ONCE else None

"""When a run is good, and when it has stopped getting better."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from lenstrain.evaluation.metrics import Metric, steering

_STATE = ("best", "best_epoch", "reference", "waited")


@dataclass(kw_only=True, slots=True)
class Stopper:
    """Best value of each metric so far, and the patience left for one of them."""

    monitor: str
    """Metric that decides on stopping."""
    patience: int
    """Epochs without a gain after which to stop; 0 never stops."""
    min_delta: float = 0.0
    """A gain must be larger than this to renew the patience."""
    best: dict[str, float] = field(default_factory=dict)
    """Best value of each metric."""
    best_epoch: dict[str, int] = field(default_factory=dict)
    """Epoch of that value."""
    reference: float | None = None
    """Value of `monitor` that the next one must beat by more than `min_delta`."""
    waited: int = 0
    """Epochs since the last gain."""

    def update(self, epoch: int, metrics: dict[str, float]) -> list[str]:
        """Take in an epoch's metrics; a value that is not finite is never a gain.

        Returns
        -------
        list of str
            Metrics that are better than ever before.
        """
        known = steering()
        improved = [
            name
            for name, metric in known.items()
            if name in metrics and _gains(metric, metrics[name], self.best.get(name))
        ]
        for name in improved:
            self.best[name] = metrics[name]
            self.best_epoch[name] = epoch
        value = metrics[self.monitor]
        gained = _gains(known[self.monitor], value, self.reference, self.min_delta)
        if gained:
            self.reference = value
        self.waited = 0 if gained else self.waited + 1
        return improved

    @property
    def should_stop(self) -> bool:
        """Whether the patience is used up."""
        return 0 < self.patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {name: copy(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name in _STATE:
            setattr(self, name, copy(state[name]))


def _gains(metric: Metric, value: float, before: float | None, least: float = 0.0) -> bool:
    return math.isfinite(value) and (before is None or metric.sign * (value - before) > least)

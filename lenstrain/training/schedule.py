"""Learning rate and averaging as pure functions of the number of updates made so far."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Linear warm-up, then half a cosine.

    Update ``k`` (from 0) is made with ``peak (k + 1) / W`` while ``k < W``, and with
    ``floor + (peak - floor) (1 + cos(pi (k - W) / (T - W))) / 2`` afterwards, so that the first
    update already moves and none is made above the peak.

    References
    ----------
    Goyal et al. 2017, arXiv:1706.02677; Loshchilov & Hutter 2017, arXiv:1608.03983.
    """

    peak: float
    """Learning rate at the end of the warm-up."""
    floor: float
    """Learning rate that the cosine approaches."""
    warmup_steps: int
    """Updates of the warm-up, W."""
    total_steps: int
    """Updates of the whole run, T."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= self.total_steps or self.total_steps < 1:
            raise ValueError(
                f"a schedule of {self.total_steps} updates cannot warm up for {self.warmup_steps}"
            )

    def rate(self, update: int) -> float:
        """Learning rate for update number `update`, from 0; the last one's after the end."""
        k = min(update, self.total_steps - 1)
        if k < self.warmup_steps:
            return self.peak * (k + 1) / self.warmup_steps
        phase = math.pi * (k - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.floor + 0.5 * (self.peak - self.floor) * (1 + math.cos(phase))

    def rates(self) -> list[float]:
        """The learning rates of all updates."""
        return [self.rate(update) for update in range(self.total_steps)]


def plan_schedule(
    *, peak: float, floor: float, warmup_epochs: float, epochs: int, steps_per_epoch: int
) -> Schedule:
    """Turn epochs into updates; the warm-up takes at most half of the run.

    Parameters
    ----------
    peak, floor : float
        Learning rates.
    warmup_epochs : float
        Length of the warm-up.
    epochs, steps_per_epoch : int
        Their product is the number of updates.
    """
    total = epochs * steps_per_epoch
    return Schedule(
        peak=peak,
        floor=floor,
        warmup_steps=min(round(warmup_epochs * steps_per_epoch), total // 2),
        total_steps=total,
    )


def ema_decay(update: int, decay: float) -> float:
    """Decay of a moving average at update number `update` (from 0): it starts short.

    ``min(decay, (1 + t) / (10 + t))``, so that the random start is forgotten soon.
    """
    return min(decay, (1 + update) / (10 + update))

"""Learning rate and averaging as pure functions of the number of updates made so far."""

from __future__ import annotations

import math


def learning_rates(
    *, peak: float, floor: float, warmup_epochs: float, epochs: int, steps_per_epoch: int
) -> list[float]:
    """Learning rate of every update of a run: linear warm-up, then half a cosine.

    Update ``k`` (from 0) of ``T`` is made with ``peak (k + 1) / W`` while ``k < W``, and with
    ``floor + (peak - floor) (1 + cos(pi (k - W) / (T - W))) / 2`` afterwards, so that the first
    update already moves and none is made above the peak.

    Parameters
    ----------
    peak, floor : float
        Learning rates at the end of the warm-up, and that the cosine approaches.
    warmup_epochs : float
        Length of the warm-up; at most half of the run, and rounded to ``W`` updates.
    epochs, steps_per_epoch : int
        Their product is the number of updates, ``T``.

    References
    ----------
    Goyal et al. 2017, arXiv:1706.02677; Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    total = epochs * steps_per_epoch
    warmup = min(round(warmup_epochs * steps_per_epoch), total // 2)
    phases = (math.pi * k / (total - warmup) for k in range(total - warmup))
    return [
        *(peak * (k + 1) / warmup for k in range(warmup)),
        *(floor + 0.5 * (peak - floor) * (1 + math.cos(phase)) for phase in phases),
    ]


def ema_decay(update: int, decay: float) -> float:
    """Decay of a moving average at update number `update` (from 0): it starts short.

    ``min(decay, (1 + t) / (10 + t))``, so that the random start is forgotten soon.
    """
    return min(decay, (1 + update) / (10 + update))

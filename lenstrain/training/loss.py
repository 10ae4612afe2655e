"""Losses on logits, one value a stamp; target smoothing; weighted means."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from lenstrain.config import LossConfig


def smooth(label_B: Tensor, smoothing: float) -> Tensor:
    """Smoothed targets ``y (1 - s) + s / 2`` (Szegedy et al. 2016, arXiv:1512.00567)."""
    return label_B * (1 - smoothing) + 0.5 * smoothing


def loss_per_stamp(logit_B: Tensor, label_B: Tensor, config: LossConfig) -> Tensor:
    """Loss of each stamp.

    Parameters
    ----------
    logit_B : tensor of float32, shape (B,)
    label_B : tensor, shape (B,)
        0 or 1.
    config : LossConfig

    Returns
    -------
    tensor of float32, shape (B,)
        ``y' softplus(-z) + (1 - y') softplus(z)``; the focal form multiplies it by
        ``|y' - sigmoid(z)| ** gamma``, which is Lin et al.'s where nothing is smoothed.
    """
    target_B = smooth(label_B.to(logit_B.dtype), config.label_smoothing)
    loss_B = functional.binary_cross_entropy_with_logits(logit_B, target_B, reduction="none")
    if config.name == "focal":
        loss_B = loss_B * (target_B - logit_B.sigmoid()).abs().pow(config.focal_gamma)
    return loss_B


def weighted_sum(value_B: Tensor, weight_B: Tensor) -> Tensor:
    """Sum of values by weight; a filler (weight 0) adds nothing, even if its value is NaN."""
    return (value_B * weight_B).where(weight_B != 0, 0).sum()

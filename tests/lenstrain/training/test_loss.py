"""Losses against hand-computed values."""

import pytest
import torch

from lenstrain.config import LossConfig
from lenstrain.training.loss import loss_per_stamp, smooth, weighted_sum


def value(logit, label, **config):
    return loss_per_stamp(
        torch.tensor([logit], dtype=torch.float64), torch.tensor([label]), LossConfig(**config)
    ).item()


def test_smoothed_cross_entropy_has_the_known_values():
    assert value(2.0, 1) == pytest.approx(0.1269280, abs=1e-7)
    assert value(2.0, 1, label_smoothing=0.1) == pytest.approx(0.2269280, abs=1e-7)
    # The smallest loss that smoothing allows, at the logit of the smoothed target.
    best = torch.logit(torch.tensor(0.95, dtype=torch.float64)).item()
    assert value(best, 1, label_smoothing=0.1) == pytest.approx(0.1985152, abs=1e-7)


def test_targets_are_smoothed_towards_one_half():
    assert smooth(torch.tensor([0.0, 1.0]), 0.1).tolist() == pytest.approx([0.05, 0.95])


def test_the_focal_form_weighs_by_the_distance_from_the_target():
    p = 1 / (1 + torch.exp(torch.tensor(-2.0, dtype=torch.float64)).item())
    assert value(2.0, 1, name="focal") == pytest.approx(0.1269280 * (1 - p) ** 2, rel=1e-6)
    assert value(2.0, 0, name="focal", focal_gamma=1.0) == pytest.approx(2.1269280 * p, rel=1e-6)
    assert value(2.0, 1, name="focal", focal_gamma=0.0) == pytest.approx(value(2.0, 1))


def test_a_filler_adds_nothing_even_if_its_loss_is_nan():
    loss = torch.tensor([1.0, float("nan"), 3.0])
    assert weighted_sum(loss, torch.tensor([1.0, 0.0, 1.0])).item() == 4


def test_large_logits_do_not_overflow():
    assert value(1e4, 0) == pytest.approx(1e4)
    assert value(1e4, 1) == 0

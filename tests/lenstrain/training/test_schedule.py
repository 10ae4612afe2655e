"""Learning rate and averaging against hand-computed values."""

import math

import pytest

from lenstrain.training.schedule import ema_decay, learning_rates

RATES = learning_rates(peak=3e-4, floor=1e-6, warmup_epochs=1, epochs=3, steps_per_epoch=4)


@pytest.mark.parametrize(
    ("update", "rate"),
    [(0, 7.5e-5), (3, 3e-4), (4, 3e-4), (6, 2.562125e-4), (8, 1.505e-4), (11, 1.238001e-5)],
)
def test_warm_up_and_cosine_give_the_known_rates(update, rate):
    assert RATES[update] == pytest.approx(rate, rel=1e-6)


def test_no_update_is_made_at_rate_zero_or_above_the_peak():
    assert len(RATES) == 12
    assert min(RATES) > 1e-6
    assert max(RATES) == 3e-4
    assert RATES[4:] == sorted(RATES[4:], reverse=True)


def test_without_warm_up_the_first_update_has_the_peak():
    rates = learning_rates(peak=1.0, floor=0.1, warmup_epochs=0, epochs=3, steps_per_epoch=1)
    assert rates[0] == 1.0


@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "steps", "warmup", "total"),
    [(1.0, 10, 7, 7, 70), (0.5, 3, 10, 5, 30), (9.0, 4, 5, 10, 20), (0.0, 2, 5, 0, 10)],
)
def test_epochs_become_optimiser_steps(warmup_epochs, epochs, steps, warmup, total):
    rates = learning_rates(
        peak=1.0, floor=0.1, warmup_epochs=warmup_epochs, epochs=epochs, steps_per_epoch=steps
    )
    assert len(rates) == total
    assert rates[warmup] == max(rates) == 1.0
    assert rates[:warmup] == [(k + 1) / warmup for k in range(warmup)]


def test_the_average_starts_short_and_ends_long():
    assert ema_decay(0, 0.999) == pytest.approx(0.1)
    assert ema_decay(10, 0.999) == pytest.approx(11 / 20)
    assert ema_decay(10**6, 0.999) == 0.999
    assert math.isclose(ema_decay(3, 0.2), 0.2)

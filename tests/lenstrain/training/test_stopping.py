"""Patience, gains, and what is best."""

import pytest

from lensprep.errors import ConfigError
from lenstrain.evaluation.metrics import steering
from lenstrain.training.stopping import Stopper
from lenstrain.training.train import train


def metrics(auroc, nll=1.0, tpr=0.5):
    names = steering(counterfactuals=False)
    return dict.fromkeys(names, 0.5) | {"auroc": auroc, "nll": nll, "tpr_at_fpr": tpr}


def run(values, **options):
    stopper = Stopper(**{"monitor": "auroc", "patience": 2, **options})
    for epoch, value in enumerate(values, 1):
        stopper.update(epoch, metrics(value))
        if stopper.should_stop:
            return epoch
    return None


@pytest.mark.parametrize(
    ("values", "options", "stops_after"),
    [
        ([0.5, 0.6, 0.7, 0.8], {}, None),
        ([0.5, 0.6, 0.6, 0.6, 0.9], {}, 4),  # an equal value is no gain
        ([0.5, 0.4, 0.6, 0.5, 0.5], {}, 5),  # a gain renews the patience
        ([0.5, 0.4, 0.4, 0.4], {"patience": 0}, None),
        ([0.9, float("nan"), float("nan")], {}, 3),
        ([float("nan"), float("nan")], {}, 2),
        ([0.5, 0.505, 0.509, 0.6], {"min_delta": 0.01}, 3),
        ([0.5, 0.506, 0.511, 0.5, 0.5], {"min_delta": 0.01}, 5),  # small gains add up
    ],
)
def test_a_run_stops_when_its_patience_is_used_up(values, options, stops_after):
    assert run(values, **options) == stops_after


def test_less_is_better_for_the_nll():
    stopper = Stopper(monitor="nll", patience=1)
    assert stopper.update(1, metrics(0.9, nll=0.5)) == ["auroc", "nll", "tpr_at_fpr"]
    assert stopper.update(2, metrics(0.8, nll=0.4)) == ["nll"]
    assert not stopper.should_stop
    assert stopper.update(3, metrics(0.95, nll=0.45)) == ["auroc"]
    assert stopper.should_stop
    assert stopper.best == {"auroc": 0.95, "nll": 0.4, "tpr_at_fpr": 0.5}
    assert stopper.best_epoch == {"auroc": 3, "nll": 2, "tpr_at_fpr": 1}


def test_the_best_is_kept_even_if_the_gain_is_below_min_delta():
    stopper = Stopper(monitor="auroc", patience=5, min_delta=0.01)
    stopper.update(1, metrics(0.5))
    assert "auroc" in stopper.update(2, metrics(0.505))
    assert stopper.waited == 1


def test_a_resumed_stopper_goes_on_where_it_was():
    straight = Stopper(monitor="auroc", patience=3, min_delta=0.01)
    values = [0.5, 0.6, 0.59, 0.605, 0.6]
    for epoch, value in enumerate(values[:3], 1):
        straight.update(epoch, metrics(value))
    resumed = Stopper(monitor="auroc", patience=3, min_delta=0.01)
    resumed.load_state_dict(straight.state_dict())
    for epoch, value in enumerate(values[3:], 4):
        straight.update(epoch, metrics(value))
        resumed.update(epoch, metrics(value))
    assert resumed == straight
    assert resumed.should_stop


@pytest.mark.parametrize("name", ["accuracy", "average_precision"])
def test_a_monitor_that_may_not_steer_is_refused_before_a_run_is_made(
    dataset, make_config, tmp_path, name
):
    message = f"train.monitor must be one of 'auroc', .*, 'pair_auroc', got '{name}'"
    with pytest.raises(ConfigError, match=message):
        train(dataset, make_config(f"train.monitor={name}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()

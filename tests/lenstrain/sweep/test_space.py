"""Ranges and the sweep's file: what is read, what is refused before a trial runs."""

from pathlib import Path

import optuna
import pytest

from lensprep.errors import ConfigError
from lenstrain.config import Config
from lenstrain.sweep.config import baseline_values, load_plan, trial_config
from lenstrain.sweep.space import draw_all, parse_space

FILE = Path(__file__).parents[3] / "configs" / "sweep.toml"


def test_the_sweep_in_configs_searches_what_it_promises():
    plan = load_plan(FILE)
    assert {d.key for d in plan.space} >= {
        "optim.lr", "optim.weight_decay", "model.dropout", "model.arch", "data.batch_size",
        "optim.warmup_epochs", "loss.label_smoothing", "data.d4", "loss.name",
    }  # fmt: skip
    assert plan.search.pruner_startup >= 5
    assert plan.search.pruner_warmup_epochs >= 2
    assert len(plan.refit.seeds) == 3
    # The defaults lie inside, so that the first trial is the default run.
    assert set(baseline_values(plan)) == {d.key for d in plan.space}


def test_every_draw_of_the_sweep_in_configs_is_a_configuration():
    plan = load_plan(FILE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    archs = set()
    for _ in range(40):
        values = draw_all(plan.space, study.ask())
        config = trial_config(plan, values)
        archs.add(config.model.arch)
        assert config.train.monitor == "tpr_at_fpr"
        assert config.eval.split == "val"
        assert ("loss.focal_gamma" in values) == (config.loss.name == "focal")
    assert len(archs) == 4


@pytest.mark.parametrize(("batch", "rate"), [(256, 1e-3), (1024, 2e-3), (64, 5e-4)])
def test_the_learning_rate_follows_the_batch(write_sweep, batch, rate):
    plan = load_plan(write_sweep("[8, 16]"))
    config = trial_config(plan, {"optim.lr": 1e-3, "data.batch_size": batch})
    assert config.optim.lr == pytest.approx(rate)
    assert trial_config(plan, {}).optim.lr == 2e-3


def test_a_list_may_be_a_choice():
    (dimension,) = parse_space({"model": {"blocks": [[1, 1], [1, 1, 1]]}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert {tuple(dimension.draw(study.ask())) for _ in range(20)} == {(1, 1), (1, 1, 1)}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "empty"),
        ({"optim": {"lr": 1e-3}}, "one value"),
        ({"optim": {"lr": {"low": 1e-3}}}, "must both be numbers"),
        ({"optim": {"lr": {"low": 1e-2, "high": 1e-3}}}, "low < high"),
        ({"optim": {"lr": {"low": 0, "high": 1, "log": True}}}, "above 0 with log"),
        ({"optim": {"lr": {"low": 0, "high": 1, "lag": True}}}, "unknown 'lag'"),
        ({"model": {"arch": {"choices": []}}}, "non-empty"),
        ({"a": [1, 2], "b": {"choices": [1], "when": {"c": 1}}}, "not a range above it"),
        ({"a": [1, 2], "b": {"choices": [1], "when": "a"}}, "when takes keys"),
    ],
)
def test_what_is_no_range_is_refused(space, message):
    with pytest.raises(ConfigError, match=message):
        parse_space(space)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.optim.learning_rate=[1e-3, 1e-2]", "optim.learning_rate"),
        ("space.model.arch=['resnet50']", "no value of it can be used"),
        ("fixed.eval.split=test", "validation split only"),
        ("fixed.train=3", "train is a section"),
        ("fixed.train.epoch=3", "Did you mean 'train.epochs'"),
        ("search.trails=3", "Did you mean 'search.trials'"),
        ("refit.seeds=[1, 1]", "differ"),
        ("search.objective=accuracy", "search.objective must be one of 'auroc', .* got 'accuracy'"),
        ("fixed.train.checkpoint_copy=runs/copy", "is for one run"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_before_a_trial(write_sweep, override, message):
    with pytest.raises(ConfigError, match=message):
        load_plan(write_sweep("[8, 16]"), (override,))


def test_the_best_epoch_by_the_objective_steers_the_trial(write_sweep):
    assert load_plan(write_sweep("[8]")).base.train.monitor == "nll"
    assert Config().train.monitor != "nll"

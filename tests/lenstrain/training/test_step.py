"""One step: what it changes, what it leaves alone, and that it waits for nothing."""

import copy
from dataclasses import replace

import pytest
import torch

from lenstrain.config import Config, LossConfig, ModelConfig, OptimConfig
from lenstrain.networks.finder import build_model
from lenstrain.training.distributed import Context
from lenstrain.training.loss import loss_per_stamp
from lenstrain.training.schedule import learning_rates
from lenstrain.training.step import (
    Average,
    StepBatch,
    Totals,
    choose_amp,
    make_learner,
    split_parameters,
    train_step,
)
from tests.lenstrain.training.waits import HostReads

CPU = Context(device=torch.device("cpu"))
RATES = learning_rates(peak=1e-2, floor=1e-6, warmup_epochs=1, epochs=10, steps_per_epoch=2)


def make_batch(rows=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return StepBatch(
        pixels=torch.randn(rows, 3, 64, 64, generator=g),
        label=(torch.arange(rows) % 2).float(),
        weight=torch.ones(rows),
        index=torch.arange(rows) + 100,
    )


def learner_for(config, seed=0):
    torch.manual_seed(seed)
    optim = replace(config.optim, lr=1e-2, warmup_epochs=1)
    config = replace(config, optim=optim, train=replace(config.train, epochs=10))
    return make_learner(build_model(config.model), config, 2, CPU)


def weights(learner):
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def step(learner, batch, totals=None, **optim):
    config = Config(optim=OptimConfig(**{"clip_norm": 0.0, **optim}))
    totals = totals or Totals(CPU.device, len(batch.index))
    train_step(learner, batch, totals, config, CPU)
    return totals


def test_the_first_step_is_made_at_the_first_rate_of_the_warm_up(make_config):
    learner = learner_for(make_config("optim.weight_decay=0.0"))
    before = weights(learner)
    step(learner, make_batch())
    # Adam's first update moves every weight that has a gradient by the learning rate.
    moved = torch.cat([(before[n] - p).abs().flatten() for n, p in weights(learner).items()])
    assert moved.max().item() == pytest.approx(RATES[0], rel=1e-3)
    assert learner.steps == 1
    assert int(learner.updates) == 1


def test_every_group_follows_the_schedule(make_config):
    learner = learner_for(make_config())
    for k in range(5):
        step(learner, make_batch(seed=k))
        for group in learner.optimizer.param_groups:
            assert group["lr"].item() == pytest.approx(RATES[k], rel=1e-6)


def test_after_the_last_update_the_rate_stays(make_config):
    learner = learner_for(make_config())
    learner.updates.fill_(99)
    step(learner, make_batch())
    assert learner.optimizer.param_groups[0]["lr"].item() == pytest.approx(RATES[-1], rel=1e-6)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_gradient_that_is_not_finite_moves_nothing_and_costs_no_rate(make_config, amp):
    learner = learner_for(make_config(f"train.amp={amp}", "model.norm=group"))
    step(learner, make_batch())
    before, state = weights(learner), copy.deepcopy(learner.optimizer.state_dict()["state"])
    bad = make_batch()
    bad.pixels[3, :, 32, 32] = float("nan")
    totals = step(learner, bad)
    assert_equal_states(before, weights(learner))
    for key, value in learner.optimizer.state_dict()["state"].items():
        assert_equal_states(state[key], value)
    assert int(learner.updates) == 1
    assert learner.steps == 2
    assert totals.read()["updates"] == 0
    assert totals.read()["nonfinite"] == 1
    step(learner, make_batch())
    assert learner.optimizer.param_groups[0]["lr"].item() == pytest.approx(RATES[1])


def test_a_scaled_loss_that_overflows_is_skipped_and_not_called_a_bad_loss(make_config):
    learner = learner_for(make_config("train.amp=fp16", "model.norm=group"))
    learner.scaler._init_scale = 2.0**60
    totals = step(learner, make_batch())
    assert totals.read()["updates"] == 0
    assert totals.read()["nonfinite"] == 0
    assert learner.scaler.get_scale() == 2.0**59


def test_the_rows_of_the_first_bad_batch_are_remembered(make_config):
    learner = learner_for(make_config())
    totals = Totals(CPU.device, 8)
    step(learner, make_batch(), totals)
    assert totals.bad_index.tolist() == [-1] * 8
    for number in (1, 2):
        bad = make_batch()
        bad.pixels[0, 0, 30, 30] = float("inf")
        bad.index.add_(1000 * number)
        step(learner, bad, totals)
    assert totals.bad_index.tolist() == list(range(1100, 1108))
    assert totals.read()["nonfinite"] == 2


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_step_waits_for_nothing(make_config, amp):
    learner = learner_for(make_config("optim.ema_decay=0.9", f"train.amp={amp}"))
    batch, totals = make_batch(), Totals(CPU.device, 8)
    loss = LossConfig(label_smoothing=0.1)
    config = Config(loss=loss, optim=OptimConfig(clip_norm=1.0, accumulate=2))
    step(learner, batch)  # the optimiser's first step makes its state
    with HostReads() as reads:
        train_step(learner, batch, totals, config, CPU)
    assert reads.found == []
    assert learner.steps == 2


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.sum() > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: torch.nonzero(x),
        lambda x: torch.equal(x, x),
    ],
)
def test_the_counter_of_waits_does_count(read):
    with HostReads() as reads:
        read(torch.ones(3))
    assert reads.found


def test_the_norm_before_clipping_is_recorded_and_the_step_is_clipped(make_config):
    config = make_config("optim.weight_decay=0.0")
    free, clipped = learner_for(config), learner_for(config)
    norm = step(free, make_batch()).read()["norm"]
    totals = step(clipped, make_batch(), clip_norm=norm / 4).read()
    assert totals["norm"] == pytest.approx(norm)
    assert totals["clipped"] == 1
    assert step(learner_for(config), make_batch(), clip_norm=norm * 2).read()["clipped"] == 0
    for p, q in zip(free.model.parameters(), clipped.model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad / 4, rtol=1e-3, atol=1e-7)


def test_under_a_scaled_loss_norm_and_clipping_are_those_of_the_gradient_itself(make_config):
    """Clipped before it is unscaled, a gradient scaled by 65,536 would all but vanish."""
    config = ("optim.weight_decay=0.0", "model.norm=group")
    plain = learner_for(make_config(*config))
    scaled = learner_for(make_config(*config, "train.amp=fp16"))
    scaled.scaler._init_scale = 2.0**12  # small enough for fp16 not to overflow
    norm = step(plain, make_batch()).read()["norm"]
    totals = step(scaled, make_batch(), clip_norm=norm / 4).read()
    assert totals["updates"] == totals["clipped"] == 1
    assert totals["norm"] == pytest.approx(norm, rel=0.02)
    for p, q in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad / 4, rtol=0.1, atol=0.02 * norm)


def test_a_skipped_step_does_not_cost_the_next_one_its_rate(make_config):
    learner = learner_for(make_config("train.amp=fp16", "model.norm=group"))
    learner.scaler._init_scale = 2.0**60
    for _ in range(2):
        step(learner, make_batch())
    learner.scaler._scale.fill_(2.0**10)
    step(learner, make_batch())
    assert int(learner.updates) == 1
    assert learner.steps == 3
    assert learner.optimizer.param_groups[0]["lr"].item() == pytest.approx(RATES[0])


def test_a_state_without_a_scaled_loss_goes_on_with_one(make_config):
    """A run that began in bf16 and goes on in fp16, as on an older GPU."""
    before, after = (learner_for(make_config(f"train.amp={amp}")) for amp in ("bf16", "fp16"))
    step(before, make_batch())
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert after.steps == 1
    step(after, make_batch())
    assert after.scaler.get_scale() > 1


def test_parts_of_a_batch_give_the_gradient_of_the_whole(make_config):
    config = make_config("model.norm=group")
    batch = make_batch(rows=10)
    batch.weight[7:] = 0
    whole, parts = learner_for(config), learner_for(config)
    first = step(whole, batch).read()
    second = step(parts, batch, accumulate=3).read()
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_fillers_change_neither_loss_nor_gradient(make_config):
    config = make_config("model.norm=group")
    batch = make_batch(rows=6)
    filled = StepBatch(
        pixels=torch.cat([batch.pixels, torch.randn(2, 3, 64, 64) * 50]),
        label=torch.cat([batch.label, torch.ones(2)]),
        weight=torch.cat([batch.weight, torch.zeros(2)]),
        index=torch.arange(8),
    )
    plain, padded = learner_for(config), learner_for(config)
    first, second = step(plain, batch).read(), step(padded, filled).read()
    assert second["weight"] == first["weight"] == 6
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    for p, q in zip(plain.model.parameters(), padded.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_the_recorded_loss_is_the_sum_over_stamps(make_config):
    learner = learner_for(make_config())
    batch = make_batch()
    copied = copy.deepcopy(learner.model)
    expected = loss_per_stamp(copied(batch.pixels), batch.label, LossConfig()).sum()
    assert step(learner, batch).read()["loss"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("arch", ["resnet18", "convnext_tiny", "efficientnet_b0"])
def test_only_weights_of_convolutions_and_linear_layers_decay(arch):
    model = build_model(ModelConfig(arch=arch))
    decayed, free = split_parameters(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(decayed) + len(free) == len(names)
    assert all(names[id(p)].endswith("weight") and p.ndim in (2, 4) for p in decayed)
    for p in free:
        assert p.ndim == 1 or names[id(p)].endswith("layer_scale"), names[id(p)]


def test_weight_decay_shrinks_weights_and_leaves_norms_alone(make_config):
    learner = learner_for(make_config("optim.weight_decay=0.5"))
    before = weights(learner)
    batch = make_batch()
    batch.weight.zero_()  # no gradient: what moves is moved by the decay
    step(learner, batch)
    rate = RATES[0]
    for name, value in weights(learner).items():
        expected = before[name] * (1 - 0.5 * rate) if before[name].ndim > 1 else before[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def test_the_average_follows_the_known_values():
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.9)
    for number, value in enumerate((2.0, 3.0, 4.0)):
        torch.nn.init.constant_(model.weight, value)
        average.update(model, 1000 + number)  # long after its short start
    assert average.state["weight"].item() == pytest.approx(1.561)


def test_batch_statistics_are_averaged_with_the_weights_and_counters_copied():
    norm = torch.nn.BatchNorm2d(1)
    average = Average(norm, 0.5)
    norm.running_mean.fill_(4.0)
    norm.num_batches_tracked.fill_(7)
    average.update(norm, 1000)
    assert average.state["running_mean"].item() == pytest.approx(2.0)
    assert average.state["num_batches_tracked"].item() == 7
    norm.running_mean.fill_(0.0)
    assert average.state["running_mean"].item() == pytest.approx(2.0)  # memory of its own


def test_a_step_after_loading_a_state_is_the_step_that_would_have_come(make_config):
    config = make_config("optim.ema_decay=0.9")
    straight, other = learner_for(config), learner_for(config, seed=5)
    for k in range(3):
        step(straight, make_batch(seed=k))
    other.load_state_dict(copy.deepcopy(straight.state_dict()))
    for learner in (straight, other):
        step(learner, make_batch(seed=9))
    assert_equal_states(straight.model.state_dict(), other.model.state_dict())
    assert_equal_states(straight.average.state, other.average.state)


def test_precision_follows_the_device():
    assert choose_amp("auto", torch.device("cpu")) is None
    assert choose_amp("off", torch.device("cpu")) is None
    assert choose_amp("bf16", torch.device("cpu")) is torch.bfloat16
    assert choose_amp("fp16", torch.device("cpu")) is torch.float16

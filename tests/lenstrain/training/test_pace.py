"""How long an epoch takes: measured beside the run, without a trace in it."""

import contextlib
import logging
import random
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from lensprep.configfile import load_config
from lensprep.dataset import DECALS, Dataset
from lenstrain.config import Config
from lenstrain.networks.finder import build_model
from lenstrain.training import pace as pace_module
from lenstrain.training.distributed import Context
from lenstrain.training.pace import Pace, announce_pace, measure_pace
from lenstrain.training.run import build_run
from lenstrain.training.signals import StopSignals
from lenstrain.training.train import train_epoch
from tests.lenstrain.training.fakecuda import DEVICE, fake_cuda

CPU = torch.device("cpu")


@pytest.fixture
def run(dataset, make_config, tmp_path):
    """90 rows to train on in 8 steps, of which the log has a line every 3; 40 to validate."""
    run = build_run(Dataset.open(dataset), make_config(), tmp_path, Context(device=CPU), None)
    yield run
    run.close()


def generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_measuring_changes_neither_network_nor_generators(make_config):
    config = make_config("model.dropout=0.5", "optim.ema_decay=0.9")
    model = build_model(config.model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = generators()
    pace = measure_pace(model, config, DECALS, CPU, seconds=0.02)
    assert generators() == before
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert 4 <= pace.batch <= config.data.batch_size
    assert pace.score_stamps_per_s > 0


def test_the_rate_is_that_of_steps_of_the_network(make_config, monkeypatch):
    """With steps that take 2 ms a stamp: 4 to begin with, then as many as fit into the time."""
    sizes = []

    def step(learner, batch, *_):
        sizes.append(len(batch.index))
        time.sleep(0.002 * sizes[-1])

    monkeypatch.setattr(pace_module, "train_step", step)
    config = make_config("data.batch_size=1000")
    model = build_model(config.model)
    pace = measure_pace(model, config, DECALS, CPU, seconds=0.2)
    assert 300 < pace.train_stamps_per_s <= 500
    assert sizes[:2] == [4, 4]
    assert 60 < sizes[2] == pace.batch <= 100
    sizes.clear()
    measure_pace(model, config, DECALS, CPU, seconds=0.2, stamps=1000)  # a run of two seconds
    assert sum(sizes) < 20


def test_the_time_of_an_epoch_is_that_of_training_and_validation():
    pace = Pace(train_stamps_per_s=10.0, score_stamps_per_s=40.0, batch=4, steps=1)
    assert pace.epoch_seconds(100, 80) == 12
    assert pace.epoch_seconds(100, 80, processes=2) == 6


def test_a_gpu_is_measured_in_whole_batches_there(monkeypatch):
    """On a fake GPU: no tensor is on the wrong device, and the host waits only to read the time."""
    waits = []
    config = load_config(Config, None, ["model.arch=resnet_small", "data.batch_size=12"])
    with fake_cuda() as cuda:
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(0))
        monkeypatch.setattr(pace_module.copy, "deepcopy", lambda model: model)  # none of fake ones
        monkeypatch.setattr(pace_module, "seeded", lambda *_: contextlib.nullcontext())
        model = cuda.fake(partial(build_model, config.model))
        with cuda.mode, cuda.watching():
            pace = measure_pace(model, config, DECALS, DEVICE, seconds=0)
    assert pace.batch == 12
    assert pace.steps == 1
    assert cuda.updates == 2 * len(list(model.parameters()))
    assert len(waits) == 4  # each of steps and scoring once before, and once for the time


def test_a_long_run_on_a_cpu_is_told_of_a_shorter_one(run, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "lenstrain.train")
    announce_pace(run)
    (line,) = caplog.messages
    assert line.startswith("About ")
    assert " an epoch on this CPU (" in line
    assert line.endswith(" for 2")
    caplog.clear()
    slow = Pace(train_stamps_per_s=0.01, score_stamps_per_s=1.0, batch=4, steps=1)
    fast = replace(slow, train_stamps_per_s=10.0)
    monkeypatch.setattr(
        pace_module,
        "measure_pace",
        lambda model, *_, **__: slow if model is run.learner.model else fast,
    )
    announce_pace(run)
    assert caplog.messages[0].startswith("About 2.5 h an epoch on this CPU (0 stamps/s")
    assert caplog.messages[1].endswith("about 49 s an epoch with --config demo")


def test_on_a_gpu_the_second_interval_tells_it(run, caplog):
    caplog.set_level(logging.INFO, "lenstrain.train")
    on_gpu = replace(run.context, device=torch.device("cuda", 0))
    run.context, context = on_gpu, run.context
    announce_pace(run)  # measures nothing there
    run.context = context
    seen = []
    run.progress = lambda event: seen.append(len(caplog.messages))
    train_epoch(run, StopSignals())
    assert seen == [0, 0, 0, 0, 0, 1, 1, 1]
    assert caplog.messages[0].startswith("About ")
    assert " for the training of an epoch (" in caplog.messages[0]

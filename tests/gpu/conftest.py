"""A dataset that can be learnt, runs of a second on it, and a torch that each test leaves clean."""

import json
import os
import signal

import pytest
import torch

from lensprep.configfile import load_config
from lensprep.dataset import Dataset
from lenstrain.config import Config
from lenstrain.training.run import build_run
from lenstrain.training.train import train
from lenstrain.training.validate import AMPERE
from tests.datasets import dataset_fixture
from tests.gpu.device import ALONE, CPU, DEVICE, set_sync_debug_mode

TINY = (
    "model.arch=resnet_small",
    "model.width=16",
    "model.blocks=[1,1]",
    "model.crop=16",
    "data.batch_size=12",
    "eval.batch_size=18",
    "optim.lr=5e-3",
    "train.epochs=2",
    "train.log_every=3",
)

# 90 training rows: the last batch of 12 has 6. The test split is large enough for `evaluate`.
root = dataset_fixture({"train": 90, "val": 40, "test": 120}, shard_rows=32, signal=True)


@pytest.fixture(scope="module")
def dataset(root):
    return str(root)


@pytest.fixture(scope="session")
def make_config():
    """Builds the configuration of a run on the GPU that takes a second, with overrides."""

    def make(*overrides):
        if "train.amp=bf16" in overrides and torch.cuda.get_device_capability() < AMPERE:
            pytest.skip("this GPU has no bf16")
        return load_config(Config, None, [*TINY, f"train.device={DEVICE.type}", *overrides])

    return make


@pytest.fixture
def fresh_run(dataset, make_config, tmp_path):
    """Builds runs that have not begun, on the GPU or (``context=CPU``) beside it; closes them."""
    runs = []

    def build(*overrides, context=ALONE):
        config = make_config(*overrides)
        runs.append(build_run(Dataset.open(dataset), config, tmp_path, context, None))
        return runs[-1]

    yield build
    for run in runs:
        run.close()


@pytest.fixture(scope="module")
def finder(dataset, make_config, tmp_path_factory):
    """The checkpoint of a finder that has learnt something, on the CPU."""
    config = make_config(f"train.device={CPU.device.type}", "train.epochs=3", "train.amp=off")
    return train(dataset, config, tmp_path_factory.mktemp("finder") / "run")["best"]


@pytest.fixture
def records():
    """Reads the lines of one kind from a run's log."""

    def read(run, kind):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    return read


@pytest.fixture
def stop_after():
    """Makes a `progress` that stops a run by a signal after so many steps."""

    def make(steps):
        seen = iter(range(1, 1000))

        def stop(event):
            if event.stage == "train" and next(seen) == steps:
                os.kill(os.getpid(), signal.SIGTERM)

        return stop

    return make


@pytest.fixture(autouse=True)
def torch_as_it_was():
    """What runs and tests switch for the whole process."""
    yield
    torch._dynamo.reset()
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = True
    if torch.cuda.is_available():
        set_sync_debug_mode("default")
        torch.cuda.set_per_process_memory_fraction(1.0)

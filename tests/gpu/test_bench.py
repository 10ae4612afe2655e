"""The bench of training on a GPU: events time its parts, apart from the whole."""

import time

import pytest
import torch

from lenstrain.bench.train import run_train_bench
from lenstrain.data import loader
from tests.gpu.device import ON_GPU

pytestmark = ON_GPU

SHARES = ("forward_share", "backward_share", "optimizer_share", "other_share")


@pytest.fixture
def slow_loader(monkeypatch):
    """Every batch comes 50 ms late, many times what a step takes."""
    real = loader._Epoch.__next__

    def late(epoch):
        time.sleep(0.05)
        return real(epoch)

    monkeypatch.setattr(loader._Epoch, "__next__", late)


@pytest.mark.parametrize("slow", [False, True], ids=["loader ahead", "loader behind"])
def test_shares_of_a_step_add_up(dataset, make_config, request, slow):
    if slow:
        request.getfixturevalue("slow_loader")
    config = make_config("model.width=64", "model.crop=64", "data.batch_size=64")
    found = run_train_bench(dataset, config, seconds=2)
    assert all(0 <= found[name] <= 1 for name in SHARES)
    assert sum(found[name] for name in SHARES) == pytest.approx(1, abs=0.05)
    assert not slow or found["data_wait_share"] > 0.5
    assert found["gpu_memory_gib"] > 0
    assert found["device"] == torch.cuda.get_device_name()
    assert 0 < found["of_matmul"] < 1

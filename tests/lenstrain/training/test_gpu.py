"""What only a GPU can show: run by hand there (`pytest -m gpu`), left out elsewhere."""

import itertools

import numpy as np
import pytest
import torch

from lensprep.dataset import Dataset
from lenstrain.bench_train import run_train_bench
from lenstrain.training.distributed import Context
from lenstrain.training.feeding import IntervalClock, device_batches, to_device
from lenstrain.training.run import build_run
from lenstrain.training.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is there"),
]
CUDA = "train.device=cuda"


@pytest.mark.parametrize(
    "overrides",
    [("train.amp=bf16",), ("train.amp=fp16",), ("train.amp=off", "train.compile=true")],
)
def test_a_run_on_a_gpu_learns(dataset, make_config, tmp_path, overrides):
    config = make_config(CUDA, "train.epochs=8", "optim.lr=5e-3", "model.width=16", *overrides)
    result = train(dataset, config, tmp_path / "run")
    assert result["best_value"] > 0.9
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("gpu_memory_gib") > 0


def test_copies_ahead_on_another_stream_are_the_batches(dataset, make_config, tmp_path):
    """Work is queued on the stream of the steps, so that a missing wait would show."""
    context = Context(device=torch.device("cuda", 0))
    run = build_run(Dataset.open(dataset), make_config(CUDA), tmp_path, context, None)
    direct = [to_device(batch, run) for batch in run.train_loader]
    run.train_loader.set_epoch(0)
    torch.cuda.synchronize()
    busy = torch.ones((4096, 4096), device="cuda")
    sums = []
    for batch in device_batches(iter(run.train_loader), run, IntervalClock()):
        for _ in range(20):
            busy = busy @ busy / 4096
        sums.append(batch.pixels.double().sum((1, 2, 3)))
        del batch
    for one, other in itertools.zip_longest(sums, direct):
        assert torch.equal(one, other.pixels.double().sum((1, 2, 3)))
    run.close()


def test_a_step_on_a_gpu_waits_for_nothing(dataset, make_config, tmp_path):
    """Torch itself raises where the host would wait for the device."""
    context = Context(device=torch.device("cuda", 0))
    config = make_config(CUDA, "optim.ema_decay=0.9", "train.amp=bf16")
    run = build_run(Dataset.open(dataset), config, tmp_path, context, None)
    from lenstrain.training.step import train_step

    batches = [to_device(batch, run) for batch in run.train_loader]
    options = {"loss": config.loss, "clip_norm": 1.0}
    train_step(run.learner, batches[0], run.totals, **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            train_step(run.learner, batch, run.totals, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(run.totals.read()["loss"])
    run.close()


def test_the_bench_times_parts_with_events(dataset, make_config):
    found = run_train_bench(dataset, make_config(CUDA), seconds=2)
    assert found["gpu_memory_gib"] > 0
    assert 0 < found["of_matmul"] < 1

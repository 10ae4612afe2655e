"""Memory of a GPU: the same from epoch to epoch, and one clear line where there is too little."""

import gc

import pytest
import torch
from click.testing import CliRunner

from lensprep.configfile import to_toml
from lensprep.errors import ProjectError
from lenstrain.cli import main
from lenstrain.scoring.infer import infer
from lenstrain.training import train as program
from lenstrain.training.signals import StopSignals
from lenstrain.training.train import train, train_epoch, validate
from tests.gpu.device import DEVICE, ON_GPU

pytestmark = ON_GPU

SEGMENT = 20 << 20
"""Bytes that torch takes from the driver at a time for blocks of 1 to 10 MiB."""
HUGE = ("model.width=256", "model.crop=64", "train.amp=off", "train.epochs=1")
"""One map of the first stage takes 4 MiB a stamp."""


def growth(run):
    """Bytes in use, and reserved, by which four epochs exceed the two before them."""
    used, reserved = [], []
    for _ in range(8):
        torch.cuda.reset_peak_memory_stats()
        train_epoch(run, StopSignals())
        validate(run, StopSignals())
        run.epochs_done += 1
        torch.cuda.synchronize()
        gc.collect()
        used.append(torch.cuda.max_memory_allocated())
        reserved.append(torch.cuda.memory_reserved())
    # In the first two epochs memory is taken and kernels are tried.
    return tuple(max(each[4:]) - max(each[2:4]) for each in (used, reserved))


def batch_bytes(run):
    """The pixels of one batch as a step takes them: float32, the central window."""
    return run.config.data.batch_size * 3 * run.config.model.crop**2 * 4


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_memory_does_not_grow_from_epoch_to_epoch(fresh_run, amp):
    run = fresh_run("optim.ema_decay=0.9", f"train.amp={amp}")
    used, reserved = growth(run)
    assert used < batch_bytes(run)
    assert reserved <= SEGMENT


def test_a_batch_that_is_kept_in_every_epoch_would_be_seen(fresh_run, monkeypatch):
    run, kept = fresh_run("optim.ema_decay=0.9", "train.amp=bf16"), {}
    real = program.train_step

    def keeping(learner, batch, *arguments):
        kept[run.epochs_done] = batch
        real(learner, batch, *arguments)

    monkeypatch.setattr(program, "train_step", keeping)
    used, _ = growth(run)
    assert used >= batch_bytes(run)


@pytest.fixture
def little_memory():
    """Takes all but 200 MiB of the GPU from this process, and gives it back at the end.

    A limit within the process: a real shortage would fail whoever else uses the GPU.
    """
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    limit = torch.cuda.memory_reserved() + (200 << 20)
    torch.cuda.set_per_process_memory_fraction(limit / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_is_too_large_is_one_line(little_memory, dataset, make_config, tmp_path):
    (tmp_path / "huge.toml").write_text(to_toml(make_config(*HUGE, "data.batch_size=90")))
    command = ["train", dataset, "--config", tmp_path / "huge.toml", "--out", tmp_path / "huge"]
    done = CliRunner().invoke(main, [str(word) for word in command])
    assert done.exit_code == 1, done.output
    message = done.stderr.splitlines()[-1]
    assert "out of memory" in message.lower()
    assert "data.batch_size" in message
    assert "Traceback" not in done.stderr
    del done  # its traceback holds what the run had taken
    gc.collect()
    # The same process goes on: with a smaller batch, and without the limit with the same one.
    assert train(dataset, make_config(), tmp_path / "small")["status"] == "completed"
    torch.cuda.set_per_process_memory_fraction(1.0)
    config = make_config(*HUGE, "data.batch_size=90")
    assert train(dataset, config, tmp_path / "large")["status"] == "completed"


def test_scoring_a_batch_that_is_too_large_is_one_line(dataset, make_config, tmp_path, request):
    config = make_config(*HUGE)
    best = train(dataset, config, tmp_path / "run")["best"]
    request.getfixturevalue("little_memory")
    scoring = {"split": "test", "device": DEVICE.type}
    with pytest.raises(ProjectError, match=r"(?i)out of memory"):
        infer(best, dataset, out=tmp_path / "scores.parquet", batch_size=120, **scoring)
    gc.collect()
    found = infer(best, dataset, out=tmp_path / "scores.parquet", batch_size=4, **scoring)
    assert found["rows"] == 120

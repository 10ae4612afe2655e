"""What only a GPU can show: `make test-gpu` there, left out elsewhere."""

import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from lensprep.configfile import to_toml
from lensprep.dataset import Dataset
from lenstrain.bench.train import run_train_bench
from lenstrain.data import StampLoader
from lenstrain.networks.finder import build_model
from lenstrain.training.checkpoint import load_checkpoint, load_model
from lenstrain.training.distributed import Context
from lenstrain.training.feeding import IntervalClock, copy_stream, device_batches, to_device
from lenstrain.training.run import build_run
from lenstrain.training.signals import StopSignals
from lenstrain.training.step import choose_amp, train_step
from lenstrain.training.train import train, train_epoch
from lenstrain.training.transfer import send
from lenstrain.training.validate import score_split

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is there"),
]
CUDA = "train.device=cuda"
DEVICE = torch.device("cuda", 0)
ALONE = Context(device=DEVICE)


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def fresh_run(dataset, make_config, folder, *overrides):
    return build_run(Dataset.open(dataset), make_config(CUDA, *overrides), folder, ALONE, None)


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.amp=bf16",),
        ("train.amp=fp16",),
        ("train.amp=off",),
        ("train.amp=off", "train.tf32=false", "train.channels_last=false"),
        ("train.amp=bf16", "optim.accumulate=3", "optim.ema_decay=0.9", "data.shift_px=2"),
    ],
    ids=" ".join,
)
def test_a_run_on_a_gpu_learns(dataset, make_config, tmp_path, overrides):
    config = make_config(CUDA, "train.epochs=8", "optim.lr=5e-3", "model.width=16", *overrides)
    result = train(dataset, config, tmp_path / "run")
    assert result["best_value"] > 0.9
    intervals = records(tmp_path / "run", "interval")
    assert all(r["gpu_memory_gib"] > 0 for r in intervals)
    assert all(0 <= r["data_wait_share"] <= 1 for r in intervals)
    assert all("loss_scale" in r for r in intervals) == ("train.amp=fp16" in overrides)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["gpu"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_compiled_run_learns_and_its_checkpoint_is_a_plain_one(
    dataset, make_config, tmp_path, amp
):
    config = make_config(
        CUDA, "train.epochs=8", "optim.lr=5e-3", "model.width=16", "train.compile=true",
        "optim.ema_decay=0.9", f"train.amp={amp}",
    )  # fmt: skip
    result = train(dataset, config, tmp_path / "run")
    assert result["best_value"] > 0.9
    content = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert content["model"].keys() == build_model(config.model).state_dict().keys()
    assert content["ema"].keys() == content["model"].keys()
    model, _ = load_model(tmp_path / "run" / "checkpoints" / "best.pt", DEVICE)
    assert model(torch.zeros(2, 3, 64, 64, device=DEVICE)).shape == (2,)


def test_precision_follows_the_gpu():
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert choose_amp("auto", DEVICE) is (torch.bfloat16 if native else torch.float16)


def test_a_scaled_loss_that_overflows_on_a_gpu_moves_nothing(dataset, make_config, tmp_path):
    run = fresh_run(dataset, make_config, tmp_path, "train.amp=fp16", "model.norm=group")
    run.learner.scaler._init_scale = 2.0**60
    before = {name: value.clone() for name, value in run.learner.model.state_dict().items()}
    batch = next(device_batches(iter(run.train_loader), run, IntervalClock()))
    train_step(run.learner, batch, run.totals, run.config, run.context)
    sums = run.totals.read()
    assert (sums["steps"], sums["updates"], sums["nonfinite"]) == (1, 0, 0)
    assert int(run.learner.updates) == 0
    for name, value in run.learner.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    run.close()


def test_batches_of_the_loader_are_pinned_and_come_as_float16(dataset):
    loader = StampLoader(dataset, "train", 12, pin_memory=True)
    for batch in loader:
        assert batch.pixels.is_pinned()
        assert batch.pixels.dtype == torch.float16
        there = send(batch.pixels, DEVICE)
        assert there.dtype == torch.float16
        assert torch.equal(there.cpu(), batch.pixels)
        assert torch.equal(send(batch.index, DEVICE).cpu(), batch.index)
    loader.close()


def test_pinned_memory_is_not_filled_again_before_its_copy_has_ended(dataset):
    """Copies queue up behind slow work on their stream while the loader fills the next batches."""
    direct = list(StampLoader(dataset, "train", 12))
    loader = StampLoader(dataset, "train", 12, pin_memory=True)
    busy = torch.ones((4096, 4096), device=DEVICE)
    arrived = []
    torch.cuda.synchronize()
    with torch.cuda.stream(copy_stream(DEVICE)):
        for batch in loader:
            for _ in range(20):
                busy = busy @ busy / 4096
            arrived.append((send(batch.pixels, DEVICE), send(batch.index, DEVICE)))
            del batch
    torch.cuda.synchronize()
    for (pixels, index), expected in itertools.zip_longest(arrived, direct):
        assert torch.equal(pixels.cpu(), expected.pixels)
        assert torch.equal(index.cpu(), expected.index)
    loader.close()


def test_copies_ahead_on_another_stream_are_the_batches(dataset, make_config, tmp_path):
    """Work is queued on the stream of the steps, so that a missing wait would show."""
    run = fresh_run(dataset, make_config, tmp_path, "data.shift_px=2")
    direct = [to_device(batch, run) for batch in run.train_loader]
    run.train_loader.set_epoch(0)
    torch.cuda.synchronize()
    busy = torch.ones((4096, 4096), device=DEVICE)
    sums = []
    for batch in device_batches(iter(run.train_loader), run, IntervalClock()):
        for _ in range(20):
            busy = busy @ busy / 4096
        sums.append((batch.pixels.double().sum((1, 2, 3)), batch.label * 2, batch.index + 0))
        del batch
    for one, other in itertools.zip_longest(sums, direct):
        assert torch.equal(one[0], other.pixels.double().sum((1, 2, 3)))
        assert torch.equal(one[1], other.label * 2)
        assert torch.equal(one[2], other.index)
    run.close()


def test_turned_and_shifted_stamps_are_those_of_a_cpu(dataset, make_config, tmp_path):
    options = ("data.shift_px=2", "train.seed=3")
    on_gpu = fresh_run(dataset, make_config, tmp_path, *options)
    cpu = Context(device=torch.device("cpu"))
    on_cpu = build_run(Dataset.open(dataset), make_config(*options), tmp_path, cpu, None)
    for one, other in zip(on_gpu.train_loader, on_cpu.train_loader, strict=True):
        assert torch.equal(to_device(one, on_gpu).pixels.cpu(), to_device(other, on_cpu).pixels)
    on_gpu.close()
    on_cpu.close()


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.amp=bf16",),
        ("train.amp=fp16",),
        ("train.amp=off",),
        ("train.amp=bf16", "train.compile=true"),
    ],
    ids=" ".join,
)
def test_nothing_on_a_gpu_waits_between_two_lines_of_the_log(
    dataset, make_config, tmp_path, overrides
):
    """Torch itself raises where the host would wait for the device: in a whole epoch."""
    options = ("optim.ema_decay=0.9", "train.log_every=1000", "data.shift_px=2", *overrides)
    run = fresh_run(dataset, make_config, tmp_path, *options)
    assert train_epoch(run, StopSignals())  # memory is taken, kernels are chosen or compiled
    run.epochs_done += 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert train_epoch(run, StopSignals())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.learner.steps == 2 * len(run.train_loader)
    assert np.isfinite(run.totals.read()["loss"])
    run.close()


def test_memory_does_not_grow_from_epoch_to_epoch(dataset, make_config, tmp_path):
    run = fresh_run(dataset, make_config, tmp_path, "optim.ema_decay=0.9")
    reserved = []
    for _ in range(8):
        train_epoch(run, StopSignals())
        run.epochs_done += 1
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] == reserved[2], reserved
    run.close()


def test_scores_are_float32_whatever_the_training_uses(dataset, make_config):
    torch.manual_seed(0)
    model = build_model(make_config("model.width=32").model).eval()
    rows = Dataset.open(dataset).split("val").rows
    cpu = Context(device=torch.device("cpu"))
    expected, _ = score_split(model, StampLoader(dataset, "val", 18, shuffle=None), rows, cpu)
    torch.backends.cudnn.allow_tf32 = True
    loader = StampLoader(dataset, "val", 18, shuffle=None, pin_memory=True)
    found, _ = score_split(model.to(DEVICE), loader, rows, ALONE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # TF32 is off by 1e-3


def test_a_run_on_a_gpu_that_is_cut_off_goes_on(dataset, make_config, tmp_path):
    """Same steps, same rows and close losses; the same bits are promised on a CPU only."""
    config = make_config(CUDA, "train.amp=off", "train.log_every=1", "optim.ema_decay=0.9")
    train(dataset, config, tmp_path / "straight")
    seen = iter(range(100))

    def stop(event):
        if event.stage == "train" and next(seen) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(dataset, config, tmp_path / "cut", progress=stop)["status"] == "interrupted"
    state = load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt")
    assert state["rng"][0]["cuda"] is not None
    assert train(dataset, config, tmp_path / "cut", resume=True)["status"] == "completed"
    one, two = (records(tmp_path / run, "interval") for run in ("straight", "cut"))
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)


def torchrun(processes, dataset, config, out, *agent):
    path = out.with_suffix(".toml")
    path.write_text(to_toml(config))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), *agent, "-m", "lenstrain", "train", dataset, "--config", str(path),
        "--out", str(out), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_one_process_under_torchrun_exchanges_over_nccl(dataset, make_config, tmp_path, compiled):
    options = ("train.amp=off", "train.log_every=1", f"train.compile={compiled}")
    config = make_config(CUDA, *options)
    train(dataset, make_config(CUDA, *options), tmp_path / "alone")
    status, out, err = torchrun(1, dataset, config, tmp_path / "nccl")
    assert status == 0, err
    assert json.loads(out)["status"] == "completed"
    one, two = (records(tmp_path / run, "interval") for run in ("alone", "nccl"))
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are not there")
@pytest.mark.parametrize(
    "overrides", [("model.norm=group",), ("train.sync_batchnorm=true",)], ids=" ".join
)
def test_two_gpus_take_the_course_of_one(dataset, make_config, tmp_path, overrides):
    config = make_config(CUDA, "train.amp=off", "train.log_every=1", *overrides)
    train(dataset, config, tmp_path / "alone")
    status, _, err = torchrun(2, dataset, config, tmp_path / "pair")
    assert status == 0, err
    one, two = (records(tmp_path / run, "interval") for run in ("alone", "pair"))
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)


def test_more_processes_than_gpus_are_refused(dataset, make_config, tmp_path):
    many = torch.cuda.device_count() + 1
    config = make_config(CUDA, f"data.batch_size={12 * many}", f"eval.batch_size={12 * many}")
    status, _, err = torchrun(many, dataset, config, tmp_path / "run")
    assert status != 0
    assert "has no GPU of its own" in err


def test_the_bench_times_parts_with_events(dataset, make_config):
    found = run_train_bench(dataset, make_config(CUDA), seconds=2)
    assert found["gpu_memory_gib"] > 0
    assert found["device"] == torch.cuda.get_device_name()
    assert 0 < found["of_matmul"] < 1
    parts = ("forward_share", "backward_share", "optimizer_share", "other_share")
    assert sum(found[name] for name in parts) == pytest.approx(1, abs=0.05)

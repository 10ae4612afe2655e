"""Runs on a GPU: every precision learns, compiled or not, and a run that is cut off goes on."""

import functools
import json

import pytest
import torch
from torch._dynamo.utils import counters

from lenstrain.networks.finder import build_model
from lenstrain.training.checkpoint import load_checkpoint, load_model
from lenstrain.training.feeding import IntervalClock, device_batches
from lenstrain.training.signals import StopSignals
from lenstrain.training.step import choose_amp, train_step
from lenstrain.training.train import train, train_epoch, validate
from tests.gpu.device import DEVICE, ON_GPU

pytestmark = ON_GPU


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
def test_a_run_learns(dataset, make_config, tmp_path, records, overrides):
    result = train(dataset, make_config("train.epochs=8", *overrides), tmp_path / "run")
    assert result["best_value"] > 0.9
    intervals = records(tmp_path / "run", "interval")
    assert all(r["gpu_memory_gib"] > 0 for r in intervals)
    assert all(0 <= r["data_wait_share"] <= 1 for r in intervals)
    assert all(("loss_scale" in r) == ("train.amp=fp16" in overrides) for r in intervals)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["gpu"] == torch.cuda.get_device_name()


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.amp=off",),
        ("train.amp=bf16",),
        ("train.amp=fp16",),
        ("train.amp=bf16", "optim.accumulate=3"),
    ],
    ids=" ".join,
)
def test_a_compiled_run_learns_and_its_checkpoint_is_a_plain_one(
    dataset, make_config, tmp_path, overrides
):
    config = make_config("train.epochs=8", "train.compile=true", "optim.ema_decay=0.9", *overrides)
    result = train(dataset, config, tmp_path / "run")
    assert result["best_value"] > 0.9
    content = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert content["model"].keys() == build_model(config.model).state_dict().keys()
    assert content["ema"].keys() == content["model"].keys()
    model, _ = load_model(tmp_path / "run" / "checkpoints" / "best.pt", DEVICE)
    assert model(torch.zeros(2, 3, 64, 64, device=DEVICE)).shape == (2,)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_epochs_take_one_graph(fresh_run, accumulate):
    """And their validations one more at most: another graph would be another minute."""
    counters.clear()
    run = fresh_run("train.compile=true", f"optim.accumulate={accumulate}", "train.amp=bf16")
    for _ in range(2):
        train_epoch(run, StopSignals())
        run.epochs_done += 1
    assert counters["stats"]["unique_graphs"] == 1
    for _ in range(2):
        validate(run, StopSignals())
    assert counters["stats"]["unique_graphs"] <= 2
    assert not counters["graph_break"]


def test_a_compiled_step_is_the_eager_one(fresh_run):
    sums = []
    for compiled in ("false", "true"):
        run = fresh_run(f"train.compile={compiled}", "train.amp=off", "train.tf32=false")
        train_epoch(run, StopSignals())
        sums.append(run.totals.read())
    assert sums[1]["loss"] == pytest.approx(sums[0]["loss"], rel=1e-2)
    assert sums[1]["steps"] == sums[0]["steps"]


def test_precision_follows_the_gpu():
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert choose_amp("auto", DEVICE) is (torch.bfloat16 if native else torch.float16)


def test_a_scaled_loss_that_overflows_moves_nothing(fresh_run, monkeypatch):
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**60)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    run = fresh_run("train.amp=fp16", "model.norm=group")
    before = {name: value.clone() for name, value in run.learner.model.state_dict().items()}
    batch = next(device_batches(iter(run.train_loader), run, IntervalClock()))
    train_step(run.learner, batch, run.totals, run.config, run.context)
    sums = run.totals.read()
    assert (sums["steps"], sums["updates"], sums["nonfinite"]) == (1, 0, 0)
    assert int(run.learner.updates) == 0
    for name, value in run.learner.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_run_that_is_cut_off_goes_on(dataset, make_config, tmp_path, records, stop_after):
    """Same steps, same rows and close losses; the same bits are promised on a CPU only."""
    config = make_config("train.amp=off", "train.log_every=1", "optim.ema_decay=0.9")
    train(dataset, config, tmp_path / "straight")
    cut = train(dataset, config, tmp_path / "cut", progress=stop_after(5))
    assert cut["status"] == "interrupted"
    state = load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt")
    assert state["rng"][0]["cuda"] is not None
    assert train(dataset, config, tmp_path / "cut", resume=True)["status"] == "completed"
    one, two = (records(tmp_path / run, "interval") for run in ("straight", "cut"))
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)


def test_a_run_moves_from_a_cpu_to_a_gpu_and_back(
    dataset, make_config, tmp_path, records, stop_after
):
    """The course of a run on the CPU alone, whose every step is compared."""
    options = ("train.amp=off", "train.tf32=false", "train.log_every=1", "optim.ema_decay=0.9")
    cpu = make_config(*options, "train.device=cpu")
    gpu = make_config(*options)
    train(dataset, cpu, tmp_path / "straight")
    for config, steps in ((cpu, 3), (gpu, 7), (cpu, 1000)):
        train(dataset, config, tmp_path / "moved", resume=True, progress=stop_after(steps))
    one, two = (records(tmp_path / run, "interval") for run in ("straight", "moved"))
    assert [r["step"] for r in two] == [r["step"] for r in one] == list(range(1, 17))
    on_gpu = [r["step"] for r in two if "gpu_memory_gib" in r]
    assert on_gpu == list(range(4, 11))
    close = functools.partial(pytest.approx, rel=2e-2, abs=2e-3)
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == close(a["loss"])
        assert b["lr"] == pytest.approx(a["lr"], rel=1e-6)
    first, last = (records(tmp_path / run, "epoch") for run in ("straight", "moved"))
    assert [r["nll"] for r in last] == [close(r["nll"]) for r in first]


def test_loss_scaling_goes_on_through_a_resume(
    dataset, make_config, tmp_path, records, stop_after, monkeypatch
):
    """The scale doubles every third step, so that a lost scale or a lost count would show."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**4, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    config = make_config("train.amp=fp16", "train.log_every=1")
    train(dataset, config, tmp_path / "straight")
    train(dataset, config, tmp_path / "cut", progress=stop_after(5))
    state = load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt")["scaler"]
    assert (state["scale"], state["_growth_tracker"]) == (2.0**5, 2)
    train(dataset, config, tmp_path / "cut", resume=True)
    one, two = (
        [r["loss_scale"] for r in records(tmp_path / run, "interval")]
        for run in ("straight", "cut")
    )
    assert two == one
    assert one[-1] == 2.0**9

"""The bench of training steps: real steps, shares that add up, and the promise they are held to."""

from __future__ import annotations

import json
import time

import pytest
import torch
from click.testing import CliRunner

from lensprep.configfile import load_config
from lensprep.errors import ConfigError
from lenstrain.bench import train as bench
from lenstrain.bench.loader import ROUNDS
from lenstrain.bench.train import StepClock, matmul_rate, run_train_bench, stamp_flops
from lenstrain.cli import main
from lenstrain.config import Config, ModelConfig
from lenstrain.networks.finder import build_model
from lenstrain.training.distributed import Context
from tests.datasets import tiny_dataset

CPU = Context(device=torch.device("cpu"))
SMALL = ("model.arch=resnet_small", "model.width=8", "model.crop=16", "train.device=cpu")
SHARES = ("forward_share", "backward_share", "optimizer_share", "other_share")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return tiny_dataset(folder, {"train": 96, "val": 16}, shard_rows=64, signal=True)


def test_the_bench_reports_rates_shares_and_the_ceiling(root):
    config = load_config(Config, None, [*SMALL, "data.batch_size=16"])
    told = []
    found = run_train_bench(
        root, config, seconds=1.0, progress=lambda what, share: told.append((what, share))
    )
    assert json.loads(json.dumps(found)) == found
    assert len(found["rounds"]) == ROUNDS
    for each in found["rounds"]:
        assert sum(each[name] for name in SHARES) == pytest.approx(1, abs=0.05)
        assert all(each[name] > 0 for name in SHARES)
        assert 0 <= each["data_wait_share"] < 1
        assert each["samples_per_s"] * each["step_seconds"] == pytest.approx(16)
        rate = found["flops_per_stamp"] * each["samples_per_s"]
        assert each["achieved_flops_per_s"] == pytest.approx(rate)
        assert each["of_matmul"] == pytest.approx(rate / each["matmul_flops_per_s"])
    assert found["samples_per_s"] == sorted(r["samples_per_s"] for r in found["rounds"])[2]
    assert found["gpu_memory_gib"] is None
    assert told[-1] == ("Done", 1.0)


def test_operations_of_a_stamp_are_those_of_the_published_count():
    """2,221,670,912 products and sums forward; twice that backward, less the gradient of pixels."""
    forward = 2 * 2_221_670_912
    stem = 2 * 64 * 64 * 64 * 27
    model = build_model(ModelConfig())
    assert stamp_flops(model) == pytest.approx(3 * forward - stem, rel=1e-3)


def test_counting_operations_leaves_the_model_as_it_was():
    model = build_model(ModelConfig(arch="resnet_small", width=8)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stamp_flops(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_shares_are_those_of_steps_however_long_the_loader_takes(root, monkeypatch):
    """Each share is measured: none of them is what the others leave of the time."""

    def slow(run):
        for batch in endless(run):
            time.sleep(0.1)
            yield batch

    endless = bench._endless
    monkeypatch.setattr(bench, "_endless", slow)
    config = load_config(Config, None, [*SMALL, "data.batch_size=16"])
    for each in run_train_bench(root, config, seconds=5.0)["rounds"]:
        assert each["data_wait_share"] * each["step_seconds"] > 0.09
        assert each["idle_share"] == pytest.approx(each["data_wait_share"], abs=0.05)
        assert sum(each[name] for name in SHARES) == pytest.approx(1, abs=0.05)
        assert each["other_share"] < 0.5  # the wait is none of it


@pytest.fixture
def now(monkeypatch):
    """The time, a list of one number that a test moves on, for the host and for events of a GPU."""
    seconds = [0.0]

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            self.at = seconds[0]

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: seconds[0])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return seconds


@pytest.mark.parametrize(("device", "prepared"), [("cpu", "other"), ("cuda", "idle")])
def test_time_goes_to_the_phase_the_step_or_the_gap_in_which_it_passes(now, device, prepared):
    """A CPU prepares a batch within its step, a GPU beside the step before."""
    clock = StepClock(torch.device(device))
    now[0] += 100  # before the round
    clock.begin()
    for _ in clock.each(iter(range(2))):
        now[0] += 1  # prepared on the way to the step
        with clock.step():
            now[0] += 10
            for name, seconds in (("forward", 2), ("backward", 3), ("forward", 2)):
                with clock(name):
                    now[0] += seconds
        now[0] += 20
    expected = {"forward": 8, "backward": 6, "optimizer": 0, "other": 20, "idle": 20, "step": 34}
    expected[prepared] += 2
    if prepared == "other":
        expected["step"] += 2
    assert clock.read() == pytest.approx(expected)
    clock.begin()
    assert set(clock.read().values()) == {0}


def test_the_ceiling_is_above_what_any_small_product_reaches():
    assert matmul_rate(CPU, None, 0.0) > 1e9


def test_the_ceiling_is_measured_on_random_numbers(monkeypatch):
    factors, product = [], torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda a, b, out: factors.extend((a, b)) or product(a, b, out=out)
    )
    matmul_rate(CPU, None, 0.0)
    for factor in factors:
        assert factor.std() == pytest.approx(1, abs=0.1)
    assert not torch.equal(*factors[:2])


def test_fp16_on_a_cpu_is_refused(root):
    config = load_config(Config, None, ["train.amp=fp16", "train.device=cpu"])
    with pytest.raises(ConfigError, match=r"Set train\.amp=auto"):
        run_train_bench(root, config)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_but_network_and_optimiser_take_less_than_two_per_cent_of_a_step(root):
    """ResNet18 on a CPU, the best of three runs: a machine busy with something else slows any."""
    config = load_config(Config, None, ["train.device=cpu", "data.batch_size=16"])
    shares = []
    for _ in range(3):
        shares.append(run_train_bench(root, config, seconds=5)["other_share"])
        if shares[-1] < 0.02:
            break
    assert min(shares) < 0.02, shares


def test_both_benches_answer_on_the_command_line(root):
    options = [word for each in (*SMALL, "data.batch_size=16") for word in ("--set", each)]
    done = CliRunner().invoke(
        main, ["bench", "train", str(root), "--seconds", "0.5", "--json", *options]
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["arch"] == "resnet_small"
    done = CliRunner().invoke(main, ["bench", "train", str(root), "--seconds", "0.5", *options])
    assert "of a matrix product" in done.stdout
    done = CliRunner().invoke(main, ["bench", "train", str(root), "--set", "optim.lrr=1"])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "Did you mean 'optim.lr'" in done.stderr
    assert "--consumer-rate" in CliRunner().invoke(main, ["bench", "loader", "--help"]).stdout

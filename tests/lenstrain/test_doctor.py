"""`lenstrain doctor`: devices, the pace of a configuration, and what is said without PyTorch."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from lensprep.machine import report as report_module
from lenstrain import doctor
from lenstrain.cli import main
from lenstrain.config import Config
from tests.datasets import tiny_dataset

SETTINGS = (
    "model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=16",
    "data.batch_size=12", "train.device=cpu",
)  # fmt: skip
SETS = [part for setting in SETTINGS for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name in ("STEPS_S", "_LOADER_S", "_READS_S"):
        monkeypatch.setattr(doctor, name, 0.05)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rows = {"train": 48, "val": 30, "test": 30}
    return tiny_dataset(tmp_path_factory.mktemp("doctor"), rows, shard_rows=32, signal=True)


def run(*arguments, columns=80):
    texts = [str(argument) for argument in arguments]
    return CliRunner().invoke(main, texts, env={"COLUMNS": str(columns)}, catch_exceptions=False)


def test_an_epoch_of_a_configuration_is_measured(dataset, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    done = run("doctor", dataset, *SETS, "--disk", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {*report} == {
        "versions", "extras", "machine", "disks", "store", "gpus", "device", "dataset", "epoch",
        "findings", "ok",
    }  # fmt: skip
    assert report["dataset"]["splits"] == {"train": 48, "val": 30, "test": 30}
    epoch, device = report["epoch"], report["device"]
    assert (epoch["train_rows"], epoch["validation_rows"], epoch["epochs"]) == (48, 30, 10)
    assert epoch["stamps_per_s"]["device"] == device["train_stamps_per_s"]
    assert epoch["bottleneck"] == min(epoch["stamps_per_s"], key=epoch["stamps_per_s"].get)
    assert epoch["seconds"] > 48 / min(epoch["stamps_per_s"].values())
    assert device["precision"] == "float32"
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_what_training_would_refuse_is_a_problem_on_a_page_that_is_not_cut(dataset, tmp_path):
    where = ("--disk", tmp_path, "--set", "data.limit=1")
    done = run("doctor", dataset, *SETS, *where, columns=60)
    assert done.exit_code == 1
    assert "data.limit = 1" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 60
    assert "…" not in done.stdout


def test_a_dataset_in_a_store_is_read_and_not_written(s3, dataset, tmp_path):
    from lensprep.transfer import upload

    upload(dataset, s3.uri, s3.options())
    names = [entry.name for entry in s3.store().entries()]
    where = ("--endpoint-url", s3.server.http, "--disk", tmp_path)
    cache = ("--set", f"data.cache_dir={tmp_path / 'cache'}")
    report = json.loads(run("doctor", s3.uri, *SETS, *cache, *where, "--json").stdout)
    assert report["ok"], report["findings"]
    assert [trial["name"] for trial in report["store"]["trials"]] == ["list", "read"]
    assert {*report["epoch"]["stamps_per_s"]} == {"device", "loader", "network"}
    assert [entry.name for entry in s3.store().entries()] == names
    assert list(tmp_path.iterdir()) == []  # no cache either


def test_a_split_larger_than_the_memory_is_read_from_its_disk(dataset):
    from lensprep.configfile import load_config
    from lensprep.dataset import Dataset
    from lenstrain.training.distributed import Context
    from lenstrain.training.run import build_run

    run = build_run(
        Dataset.open(dataset), load_config(Config, None, SETTINGS), dataset,
        Context(device=torch.device("cpu")), None,
    )  # fmt: skip
    try:
        rates = doctor.supply_rates(run, {"machine": {"memory_available_bytes": 1000}})
    finally:
        run.close()
    assert {*rates} == {"loader", "disk"}
    assert rates["disk"] > 0


def test_without_pytorch_the_rest_is_told_and_how_to_install_it(monkeypatch, tmp_path):
    versions, extras = report_module.find_versions()
    del versions["torch"]
    monkeypatch.setattr(
        report_module, "find_versions", lambda: (versions, {**extras, "train": False})
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    report = doctor.run_doctor(None, Config(), disks=[tmp_path])
    (problem,) = [each for each in report["findings"] if each["level"] == "problem"]
    assert problem["detail"].startswith("torch is not installed; the extra `train` brings it")
    assert "\n" not in problem["detail"]
    assert not report["ok"]
    assert report["disks"]


@pytest.mark.parametrize(
    ("capability", "built_for", "bf16", "precisions", "amp"),
    [
        ((9, 0), "sm_90", True, ["float32", "tf32", "bf16", "fp16"], "bfloat16"),
        ((7, 5), "sm_75", False, ["float32", "fp16"], "float16"),
        ((7, 0), "sm_75 sm_90", False, None, None),  # PyTorch has no code for it
    ],
)
def test_a_gpu_is_told_with_what_it_can_run(
    monkeypatch, capability, built_for, bf16, precisions, amp
):
    """PyTorch's answers about a GPU are given; what follows is real."""
    known = SimpleNamespace(
        name="GPU", total_memory=80_000_000_000, major=capability[0], minor=capability[1]
    )
    for name, answer in {
        "is_available": lambda: True,
        "device": lambda device: nullcontext(),
        "device_count": lambda: 1,
        "get_arch_list": built_for.split,
        "get_device_capability": lambda device: capability,
        "get_device_name": lambda device: "GPU",
        "get_device_properties": lambda device: known,
        "is_bf16_supported": lambda including_emulation: bf16,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    report = {"gpus": []}
    findings = list(doctor.look_at_gpus(report))
    if precisions is None:
        assert not report["gpus"]
        assert "has no code for GPU 0" in findings[0].detail
        assert findings[0].severity == "blocker"
        return
    assert findings == []
    (gpu,) = report["gpus"]
    assert (gpu["precisions"], gpu["amp"]) == (precisions, amp)


@pytest.mark.parametrize(
    ("slowest", "words"),
    [
        ("loader", "could do 4.0 times as many stamps. Compare it"),
        ("network", "Keep the shards on a local disk"),
        ("disk", "A faster disk"),
    ],
)
def test_what_keeps_a_device_waiting_is_said_with_a_remedy(slowest, words):
    rates = {"device": 1000.0, "loader": 900.0, slowest: 250.0}
    epoch = {"bottleneck": slowest, "stamps_per_s": rates, "seconds": 1.0}
    finding = doctor.judge_pace(epoch, "cuda")
    assert finding.passed is False
    assert f"The {slowest} is the bottleneck" in finding.detail
    assert words in finding.detail


def test_a_long_run_is_advised_against_on_a_cpu_alone():
    epoch = {"bottleneck": "device", "stamps_per_s": {"device": 1.0}}
    epoch |= {"seconds": 720.0, "epochs": 10}
    assert "A run of 10 epochs takes 2.0 h on this CPU" in doctor.judge_pace(epoch, "cpu").detail
    assert doctor.judge_pace(epoch, "cuda").passed
    assert doctor.judge_pace({**epoch, "seconds": 60.0}, "cpu").passed


def test_a_store_is_read_without_the_cache():
    config = Config()
    cached = replace(config, data=replace(config.data, cache_dir="/nvme"))
    assert doctor.uncached(cached, "/data/ds") is cached
    assert doctor.uncached(config, "s3://b/ds") is config
    assert doctor.uncached(cached, "s3://b/ds").data.cache_dir is None

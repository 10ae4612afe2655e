"""Processes that torchrun starts, on one GPU or two: NCCL, and who has which GPU."""

import json
import subprocess
import sys

import pytest
import torch

from lensprep.configfile import to_toml
from lenstrain.training.train import train
from tests.gpu.device import ON_GPU

pytestmark = ON_GPU

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are not there")


def torchrun(processes, dataset, config, out, *, gpu_each=False):
    """Train under torchrun; gives (status, standard output, standard error)."""
    path = out.with_suffix(".toml")
    path.write_text(to_toml(config))
    program = [sys.executable, "-m", "lenstrain", "train", dataset, "--config", str(path)]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), "--no-python",
    ]  # fmt: skip
    if gpu_each:  # as a batch system does that hides the other processes' GPUs
        command += ["sh", "-c", 'CUDA_VISIBLE_DEVICES=$LOCAL_RANK exec "$@"', "sh"]
    command += [*program, "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout, done.stderr


def losses(records, run):
    return [r["loss"] for r in records(run, "interval")]


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_one_process_exchanges_over_nccl(dataset, make_config, tmp_path, records, compiled):
    config = make_config("train.amp=off", "train.log_every=1", f"train.compile={compiled}")
    train(dataset, config, tmp_path / "alone")
    status, out, err = torchrun(1, dataset, config, tmp_path / "nccl")
    assert status == 0, err
    assert json.loads(out)["status"] == "completed"
    expected = losses(records, tmp_path / "alone")
    assert losses(records, tmp_path / "nccl") == pytest.approx(expected, rel=1e-2)


@two_gpus
@pytest.mark.parametrize("gpu_each", [False, True], ids=["all visible", "one visible each"])
@pytest.mark.parametrize("override", ["model.norm=group", "train.sync_batchnorm=true"])
def test_two_gpus_take_the_course_of_one(
    dataset, make_config, tmp_path, records, override, gpu_each
):
    config = make_config("train.amp=off", "train.log_every=1", override)
    train(dataset, config, tmp_path / "alone")
    status, _, err = torchrun(2, dataset, config, tmp_path / "pair", gpu_each=gpu_each)
    assert status == 0, err
    expected = losses(records, tmp_path / "alone")
    assert losses(records, tmp_path / "pair") == pytest.approx(expected, rel=1e-2)


def test_more_processes_than_gpus_are_refused(dataset, make_config, tmp_path):
    many = torch.cuda.device_count() + 1
    config = make_config(f"data.batch_size={12 * many}", f"eval.batch_size={12 * many}")
    status, _, err = torchrun(many, dataset, config, tmp_path / "run")
    assert status != 0
    assert "has no GPU of its own" in err

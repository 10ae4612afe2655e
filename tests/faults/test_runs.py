"""Runs in a store under fire: machines killed at any moment, a network that lies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext, suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from lensprep.configfile import load_config, to_toml
from lensprep.errors import ProjectError
from lensprep.store.s3 import S3Store
from lenstrain.config import Config
from lenstrain.evaluation.metrics import steering
from lenstrain.training import mirror
from lenstrain.training.checkpoint import load_checkpoint
from lenstrain.training.train import train
from tests.datasets import tiny_dataset
from tests.faultproxy import ALWAYS, DRAWN, Fault, FaultProxy
from tests.lenstrain.training.conftest import TINY

FILES = ("last", "best", *(f"best-{name}" for name in steering(counterfactuals=False)))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def dataset(tmp_path):
    rows = {"train": 90, "val": 40, "test": 30}
    return str(tiny_dataset(tmp_path / "data", rows, shard_rows=32, signal=True))


def assert_same_end(uri, straight, folder):
    """The same weights, bit for bit, under every name."""
    for name in FILES:
        (folder / "found.pt").write_bytes(bytes(S3Store(uri).read(f"checkpoints/{name}.pt")))
        found = load_checkpoint(folder / "found.pt")
        expected = load_checkpoint(straight / "checkpoints" / f"{name}.pt")
        assert found["step"] == expected["step"], name
        for key, value in expected["model"].items():
            assert torch.equal(found["model"][key], value), (name, key)


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_killed_at_any_moment_a_run_goes_on_on_the_next_machine(s3, dataset, tmp_path, monkeypatch):
    """SIGKILL, and then another HOME and an empty TMPDIR each time."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.http)
    config = load_config(Config, None, [
        *TINY, "train.epochs=12", "train.checkpoint_minutes=1e-9", "model.dropout=0.2",
    ])  # fmt: skip
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    train(dataset, config, tmp_path / "straight")
    generator, kills, machine = np.random.default_rng(2), 0, 0
    while True:
        machine += 1
        home, scratch = tmp_path / f"home{machine}", tmp_path / f"tmp{machine}"
        home.mkdir()
        scratch.mkdir()
        places = {"HOME": str(home), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
        environment = {n: v for n, v in os.environ.items() if n != "XDG_CACHE_HOME"} | places
        process = subprocess.Popen(
            [sys.executable, "-m", "lenstrain", "train", dataset, "--config", str(path),
             "--out", s3.uri, "--resume"],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        begun = time.monotonic()
        while process.poll() is None and time.monotonic() - begun < 300:
            if any((home / ".cache/lenstrain/runs").glob("*/checkpoints/last.pt")):
                break
            time.sleep(0.02)
        time.sleep(float(generator.uniform(0, 1.5)))
        if process.poll() is None and kills < 8:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        break
    assert kills >= 3
    assert not list(home.rglob("*.pt"))
    assert_same_end(s3.uri, tmp_path / "straight", tmp_path)


LIES = {
    "altered": [Fault("alter", b"GET ", times=ALWAYS, share=0.2, seed=1, after=DRAWN)],
    "altered on the way there": [
        Fault("alter-request", b"PUT ", times=ALWAYS, share=0.2, seed=2, after=DRAWN)
    ],
    "cut": [Fault("cut", b"GET ", times=ALWAYS, share=0.2, seed=3, after=DRAWN)],
    "misdirected": [Fault("misdirect", b"GET ", times=ALWAYS, share=0.2, seed=4)],
    "a page for an answer": [Fault("html", times=ALWAYS, share=0.1, seed=5)],
    "connections that break": [Fault("reset-request", b"PUT ", times=ALWAYS, share=0.2, seed=6)],
}


@pytest.mark.parametrize(
    "lie", [pytest.param(name, marks=pytest.mark.faults) if i else name
            for i, name in enumerate(LIES)],
)  # fmt: skip
def test_a_network_that_lies_leaves_a_right_run_or_an_error(
    s3, dataset, tmp_path, monkeypatch, lie
):
    config = load_config(Config, None, [*TINY])
    train(dataset, config, tmp_path / "straight")
    monkeypatch.setattr(mirror, "PAUSES", (0.1,) * 5)
    with FaultProxy(s3.server.ports["s3"]) as proxy, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was not right at once is told
        for number in range(4):
            # The second machine goes on from what the first has left there, the last one in peace.
            monkeypatch.setenv("LENSTRAIN_RUNS", str(tmp_path / f"machine{number}"))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url if number < 3 else s3.server.http)
            proxy.clear()
            proxy.add(*[replace(fault) for fault in LIES[lie]])
            with nullcontext() if number == 3 else suppress(ProjectError):
                train(dataset, config, s3.uri, resume=True)
        assert sum(proxy.happened.values()) > 0
    assert_same_end(s3.uri, tmp_path / "straight", tmp_path)

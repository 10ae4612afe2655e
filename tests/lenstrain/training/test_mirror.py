"""Copies of a run: they arrive, a run goes on from them, and their failure stops nothing."""

import os
import shutil
import signal
import threading
import warnings

import pytest

from lensprep.errors import StorageError
from lenstrain.training.checkpoint import load_checkpoint
from lenstrain.training.train import train


@pytest.fixture
def config_for(make_config):
    def make(uri, *overrides):
        return make_config(f"train.checkpoint_copy={uri}", "train.epochs=1", *overrides)

    return make


def test_a_run_lost_with_its_disk_goes_on_from_its_copy(dataset, make_config, tmp_path):
    """The second machine has nothing; it ends in the bits of a run that was never cut off."""
    copy = tmp_path / "elsewhere"
    config = make_config(f"train.checkpoint_copy={copy}")
    whole = train(dataset, make_config(), tmp_path / "whole")
    seen = iter(range(100))

    def stop(event):
        if event.stage == "train" and next(seen) == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(dataset, config, tmp_path / "first", progress=stop)
    assert first["status"] == "interrupted"
    shutil.rmtree(tmp_path / "first")
    with pytest.warns(UserWarning, match="was fetched from"):
        second = train(dataset, config, tmp_path / "second", resume=True)
    assert second["step"] == whole["step"] > first["step"]
    one, two = (load_checkpoint(tmp_path / r / "checkpoints/last.pt") for r in ("whole", "second"))
    for name, value in one["model"].items():
        assert (two["model"][name] == value).all(), name
    lines = (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
    for name in ("config.toml", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/best.pt"):
        assert (copy / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_copy_in_an_object_store_is_fetched_whole(dataset, config_for, tmp_path, s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.http)
    result = train(dataset, config_for(s3.uri), tmp_path / "run")
    assert fetch_run(s3.uri, tmp_path / "back")
    for name in ("config.toml", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/best.pt"):
        there, here = tmp_path / "back" / name, tmp_path / "run" / name
        assert there.read_bytes() == here.read_bytes(), name
    assert load_checkpoint(tmp_path / "back/checkpoints/last.pt")["step"] == result["step"]


def test_a_copy_that_fails_warns_and_the_run_ends_well(dataset, config_for, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="could not be copied to .*The training goes on"):
        result = train(dataset, config_for(blocked), tmp_path / "run")
    assert result["status"] == "completed"
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"] == result["step"]


def test_a_new_run_is_not_copied_over_another(dataset, config_for, tmp_path):
    config = config_for(tmp_path / "copy")
    train(dataset, config, tmp_path / "one")
    before = (tmp_path / "copy/checkpoints/last.pt").read_bytes()
    with pytest.raises(StorageError, match="holds the checkpoints of another run"):
        train(dataset, config, tmp_path / "two")
    assert not (tmp_path / "two").exists()
    assert (tmp_path / "copy/checkpoints/last.pt").read_bytes() == before


def test_without_a_copy_a_resumed_start_is_a_start(dataset, config_for, tmp_path):
    config = config_for(tmp_path / "copy")
    assert train(dataset, config, tmp_path / "run", resume=True)["status"] == "completed"


def test_the_trainer_does_not_wait_for_a_slow_store(tmp_path, monkeypatch):
    """Submitting returns while the store hangs; the end waits as long as it was told to."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.pt").write_bytes(b"x")
    hang = threading.Event()

    def slow(self, name):
        hang.wait(20)

    monkeypatch.setattr(Copier, "_copy", slow)
    copier = Copier(tmp_path / "run", str(tmp_path / "copy"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            copier.submit(["checkpoints/best.pt"])
    with pytest.warns(UserWarning, match="had not taken all"):
        copier.close(longest=0.1)
    hang.set()

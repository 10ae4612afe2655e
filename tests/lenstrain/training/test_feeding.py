"""Batches fetched ahead: none lost, none done twice, whoever is cut off in between."""

import os
import signal
import time

import torch

from lenstrain.training import train as program
from lenstrain.training.checkpoint import load_checkpoint
from lenstrain.training.feeding import IntervalClock, device_batches, one_ahead


def test_each_item_comes_when_the_next_has_been_begun():
    begun = []

    def items():
        for number in range(3):
            begun.append(number)
            yield number

    seen = [(number, len(begun)) for number in one_ahead(items())]
    assert seen == [(0, 2), (1, 3), (2, 3)]
    assert list(one_ahead(iter([]))) == []
    assert list(one_ahead(iter([7]))) == [7]


def test_waiting_is_what_the_next_batch_takes_to_come():
    clock = IntervalClock()

    def slow():
        for _ in range(2):
            time.sleep(0.02)
            yield 0

    for _ in clock.each(slow()):
        time.sleep(0.05)  # the consumer's own time does not count
    seconds, waited, _ = clock.restart()
    assert 0.04 <= waited < seconds - 0.09


def test_a_batch_that_was_only_fetched_ahead_is_trained_on_after_a_resume(
    dataset, make_config, tmp_path, monkeypatch
):
    """As on a GPU, where the loader is a batch ahead of the steps when a checkpoint is written."""
    config = make_config("optim.ema_decay=0.9")
    program.train(dataset, config, tmp_path / "straight")
    monkeypatch.setattr(program, "device_batches", lambda *args: one_ahead(device_batches(*args)))
    seen = iter(range(100))

    def stop(event):
        if event.stage == "train" and next(seen) in (3, 6, 7):
            os.kill(os.getpid(), signal.SIGTERM)

    statuses = [
        program.train(dataset, config, tmp_path / "cut", resume=True, progress=stop)["status"]
        for _ in range(4)
    ]
    assert statuses == ["interrupted"] * 3 + ["completed"]
    one, two = (load_checkpoint(tmp_path / r / "checkpoints/last.pt") for r in ("straight", "cut"))
    assert one["loader"] == two["loader"]
    for part in ("model", "ema"):
        for name, value in one[part].items():
            assert torch.equal(two[part][name], value), name

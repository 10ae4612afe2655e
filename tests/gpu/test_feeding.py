"""On the way to a GPU: batches arrive as they left, and nothing waits; planted faults are seen."""

import itertools

import numpy as np
import pytest
import torch

from lenstrain.data import StampLoader
from lenstrain.training import feeding
from lenstrain.training import train as program
from lenstrain.training.feeding import IntervalClock, copy_stream, device_batches, to_device
from lenstrain.training.signals import StopSignals
from lenstrain.training.train import train_epoch, validate
from lenstrain.training.transfer import send
from tests.gpu.device import CPU, DEVICE, ON_GPU, no_waits, queue_slow_work, waits_counted

pytestmark = ON_GPU


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
    direct = list(StampLoader(dataset, "train", 6))
    loader = StampLoader(dataset, "train", 6, pin_memory=True)
    arrived = []
    torch.cuda.synchronize()
    with torch.cuda.stream(copy_stream(DEVICE)):
        for batch in loader:
            queue_slow_work()
            arrived.append((send(batch.pixels, DEVICE), send(batch.index, DEVICE)))
            del batch
    torch.cuda.synchronize()
    for (pixels, index), expected in itertools.zip_longest(arrived, direct):
        assert torch.equal(pixels.cpu(), expected.pixels)
        assert torch.equal(index.cpu(), expected.index)
    loader.close()


def batches_seen_by_a_step(run, *, slow_copies=False, slow_steps=False):
    """What the stream of the steps reads of each batch of an epoch, and what it should read.

    Parameters
    ----------
    run : Run
    slow_copies : bool
        Each copy comes late: a step that does not wait for it reads memory not written yet.
    slow_steps : bool
        Each step comes late: memory that is lent again too early has been written by then.
    """

    def numbers(batch):
        return torch.stack([batch.pixels.double().sum((1, 2, 3)), batch.label, batch.index])

    expected = [numbers(to_device(batch, run)).cpu() for batch in run.train_loader]
    run.train_loader.set_epoch(0)

    def late(batch, run):
        if slow_copies:
            queue_slow_work()
        return to_device(batch, run)

    seen = []
    torch.cuda.synchronize()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeding, "to_device", late)
        for batch in device_batches(iter(run.train_loader), run, IntervalClock()):
            if slow_steps:
                queue_slow_work()
            seen.append(numbers(batch))
            del batch
    torch.cuda.synchronize()  # also the copies that nobody waited for
    return [found.cpu() for found in seen], expected


OPTIONS = ("data.batch_size=6", "data.shift_px=2")
"""Fifteen batches: enough for memory to be lent again while its step has not come."""


@pytest.mark.parametrize("slow", ["slow_copies", "slow_steps"])
def test_a_step_sees_the_batches_however_late_copies_or_steps_are(fresh_run, slow):
    seen, expected = batches_seen_by_a_step(fresh_run(*OPTIONS), **{slow: True})
    for found, wanted in itertools.zip_longest(seen, expected):
        assert torch.equal(found, wanted)


def test_a_step_that_does_not_wait_for_its_copy_would_be_seen(fresh_run, monkeypatch):
    monkeypatch.setattr(torch.cuda.Stream, "wait_event", lambda stream, event: None)
    seen, expected = batches_seen_by_a_step(fresh_run(*OPTIONS), slow_copies=True)
    assert any(not torch.equal(*both) for both in zip(seen, expected, strict=True))


def test_memory_that_is_lent_again_too_early_would_be_seen(fresh_run, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    seen, expected = batches_seen_by_a_step(fresh_run(*OPTIONS), slow_steps=True)
    assert any(not torch.equal(*both) for both in zip(seen, expected, strict=True))


@pytest.mark.parametrize("options", [(), ("data.shift_px=2",)], ids=["turned", "shifted"])
def test_augmented_stamps_are_those_of_a_cpu(fresh_run, options):
    on_gpu = fresh_run("train.seed=3", *options)
    on_cpu = fresh_run("train.seed=3", *options, context=CPU)
    for one, other in zip(on_gpu.train_loader, on_cpu.train_loader, strict=True):
        assert torch.equal(to_device(one, on_gpu).pixels.cpu(), to_device(other, on_cpu).pixels)


WARM = ("optim.ema_decay=0.9", "train.log_every=1000")


def warm_run(fresh_run, *overrides):
    """A run after its first epoch, in which memory is taken and kernels are chosen or compiled."""
    run = fresh_run(*WARM, *overrides)
    train_epoch(run, StopSignals())
    validate(run, StopSignals())
    run.epochs_done += 1
    return run


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.amp=bf16",),
        ("train.amp=fp16", "data.shift_px=2"),
        ("train.amp=off", "optim.accumulate=3"),
        ("train.amp=bf16", "train.compile=true"),
    ],
    ids=" ".join,
)
def test_nothing_waits_between_two_lines_of_the_log(fresh_run, overrides):
    """In a whole epoch torch itself raises where the host would wait for the device."""
    run = warm_run(fresh_run, *overrides)
    with no_waits():
        train_epoch(run, StopSignals())
    assert run.learner.steps == 2 * len(run.train_loader)
    assert np.isfinite(run.totals.read()["loss"])


def test_a_step_that_reads_its_loss_would_be_seen(fresh_run, monkeypatch):
    run = warm_run(fresh_run)

    def reading(*arguments):
        real(*arguments)
        float(run.totals.sums[0])

    real = program.train_step
    monkeypatch.setattr(program, "train_step", reading)
    with no_waits(), pytest.raises(RuntimeError, match="synchronizing"):
        train_epoch(run, StopSignals())


def test_validation_waits_at_its_end_alone(fresh_run):
    """Its logits, its labels and a count of both: whatever the number of batches."""
    run = warm_run(fresh_run, "eval.batch_size=2")
    assert len(run.val_loader) == 20
    with waits_counted() as waits:
        validate(run, StopSignals())
    assert 1 <= len(waits) <= 5, [str(wait.message) for wait in waits]

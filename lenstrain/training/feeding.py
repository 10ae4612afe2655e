"""Batches on their way into a step: fetched, copied to the device one ahead, turned, widened."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from lenstrain.data import Batch
from lenstrain.training.augment import augment
from lenstrain.training.run import Run
from lenstrain.training.step import StepBatch
from lenstrain.training.transfer import send, widen

T = TypeVar("T")


@dataclass(slots=True)
class IntervalClock:
    """Time of an interval, and how much of it went into waiting for data."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0

    def each(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Give the batches on, and count the time until each comes as waiting."""
        while True:
            with self.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    def restart(self) -> tuple[float, float, int]:
        """Seconds, seconds waited and steps since the last restart."""
        now = time.perf_counter()
        result = now - self.started, self.waited, self.steps
        self.started, self.waited, self.steps = now, 0.0, 0
        return result


def device_batches(batches: Iterator[Batch], run: Run, clock: IntervalClock) -> Iterator[StepBatch]:
    """Batches as a step takes them, on the device; on a GPU the next one is copied meanwhile.

    The end of the epoch is the end of `batches`. What is waited for data is told to the clock.
    """
    fetched = clock.each(batches)
    if run.context.device.type != "cuda":
        for batch in fetched:
            yield to_device(batch, run)
        return
    for coming, copied in one_ahead(_on_side_stream(fetched, run)):
        yield _arrived(coming, copied)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; each is given out when the one after it has been begun, or there is none."""
    kept: list[T] = []
    for item in items:
        kept.append(item)
        if len(kept) == 2:
            yield kept.pop(0)
    yield from kept


def _on_side_stream(
    batches: Iterator[Batch], run: Run
) -> Iterator[tuple[StepBatch, torch.cuda.Event]]:
    """Copy and prepare each batch on a stream of its own, beside the step that runs.

    The preparation reads nothing that a step writes, so that it waits for none.
    """
    side = copy_stream(run.context.device)
    for batch in batches:
        with torch.cuda.stream(side):
            coming = to_device(batch, run)
            copied = side.record_event()
        yield coming, copied


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of copies to a device.

    The allocator keeps memory apart by stream: a new stream each epoch would take new memory each.
    """
    make_stream: Any = torch.cuda.Stream
    return make_stream(device)


def _arrived(batch: StepBatch, copied: torch.cuda.Event) -> StepBatch:
    """Let the device, not the host, wait for a batch before the step that takes it.

    Its memory is marked as used by the stream of the steps, so that the allocator does not lend it
    to the next copy too early; torch's pinned memory does the same for the source.
    """
    steps = torch.cuda.current_stream()
    steps.wait_event(copied)
    for tensor in (batch.pixels, batch.label, batch.weight, batch.index):
        tensor.record_stream(steps)
    return batch


def to_device(batch: Batch, run: Run) -> StepBatch:
    """Copy a batch to the device, turn and flip it there, and widen it to float32."""
    device, config = run.context.device, run.config
    pixels, index = send(batch.pixels, device), send(batch.index, device)
    pixels = augment(
        pixels,
        index,
        config.data,
        seed=config.train.seed,
        epoch=run.epochs_done,
        window=config.model.crop,
    )
    return StepBatch(
        pixels=widen(pixels, channels_last=config.train.channels_last),
        label=send(batch.labels, device).float(),
        weight=send(batch.weight, device),
        index=index,
    )

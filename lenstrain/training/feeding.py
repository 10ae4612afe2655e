"""Batches on their way into a step: fetched, copied to the device one ahead, turned, widened."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
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
    """Time of an interval, and how much of it was spent waiting for data."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0

    def each(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time until each comes counts as waiting."""
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def restart(self) -> tuple[float, float, int]:
        """Seconds, seconds waited and steps since the last restart."""
        now = time.perf_counter()
        result = now - self.started, self.waited, self.steps
        self.started, self.waited, self.steps = now, 0.0, 0
        return result


def device_batches(batches: Iterator[Batch], run: Run, clock: IntervalClock) -> Iterator[StepBatch]:
    """Batches as a step takes them, on the device; on a GPU the next one is copied meanwhile.

    The clock counts the time spent waiting for `batches`.
    """
    fetched = clock.each(batches)
    if run.context.device.type != "cuda":
        for batch in fetched:
            yield to_device(batch, run)
        return
    for coming, copied in one_ahead(_on_side_stream(fetched, run)):
        # The device, not the host, waits for a batch before the step that takes it. Its memory is
        # marked as used by the stream of the steps, so that the allocator does not lend it to the
        # next copy too early; torch's pinned memory does the same for the host's side.
        steps = torch.cuda.current_stream()
        steps.wait_event(copied)
        for tensor in (coming.pixels, coming.label, coming.weight, coming.index):
            tensor.record_stream(steps)
        yield coming


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; each is yielded when the one after it has been begun, or there is none."""
    pairs: Iterator[tuple[Any, Any]] = pairwise(chain(items, [None]))
    return (item for item, _ in pairs)


def _on_side_stream(
    batches: Iterator[Batch], run: Run
) -> Iterator[tuple[StepBatch, torch.cuda.Event]]:
    """Copy and prepare each batch on a separate stream, during the step that runs.

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

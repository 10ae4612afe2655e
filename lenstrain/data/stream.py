"""The loader's stages, batch by batch, for `webdataset.DataPipeline`.

Stock stages handle one sample at a time in Python; these handle a batch at a time, so that Python
is paid for once a batch. They compose with stock ones in both directions::

    wds.DataPipeline(PlanSteps(order, ...), gather_pixels(...), read_ahead(4), wds.map(my_function))
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from lensprep.errors import ConfigError
from lenstrain.data.batch import Batch, PixelPool
from lenstrain.data.order import EpochOrder
from lenstrain.data.sidecar import Column
from lenstrain.data.sources.base import ShardSource

T = TypeVar("T")

_EXIT_SECONDS = 5.0
"""How long the end of a program may wait for a reading thread: one may be waiting for a network."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One rank's share of one step: which rows, and which of them count."""

    index: NDArray[np.int64]
    """Positions in the split."""
    weight: NDArray[np.float32]


class OneProcess:
    """Base of classes that give every row of an epoch once, and so belong to one process.

    Each worker process of a `torch.utils.data.DataLoader` would give every row again; and after a
    fork the reading threads are missing, so that a batch would be waited for without end.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self.require_own_process()

    def require_own_process(self) -> None:
        """Refuse to run in any process but the one that made this.

        Raises
        ------
        ConfigError
            In a worker process of a DataLoader, or after a fork.
        """
        if get_worker_info() is not None:
            raise ConfigError(f"This is a worker process of a DataLoader. {_ONE_PROCESS}")
        if os.getpid() != self._process:
            raise ConfigError(
                f"This is process {os.getpid()}, forked from {self._process}, which opened the "
                "StampLoader: its reading threads were not forked with it. Open one in each "
                "process, with its rank and world_size, after the fork."
            )

    def __getstate__(self) -> Any:
        raise ConfigError(f"A StampLoader cannot be sent to another process. {_ONE_PROCESS}")


_ONE_PROCESS = (
    "A StampLoader reads ahead in threads and divides an epoch among ranks: every worker would "
    "give every row again. Iterate over it directly, or use num_workers=0."
)


class PlanSteps(OneProcess, wds.PipelineStage):
    """First stage: the steps of an epoch as `StepPlan`, from any step on.

    Parameters
    ----------
    order : EpochOrder
        Order of the epoch.
    rows : ndarray of int64, optional
        Positions in the split of the rows that `order` orders; all rows if not given.
    start : int
        First step: a resumed epoch costs nothing for the steps before.
    rank, world_size : int
        This process's share of each global batch.
    """

    def __init__(
        self,
        order: EpochOrder,
        rows: NDArray[np.int64] | None = None,
        *,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.order, self.rows, self.start = order, rows, start
        self.rank, self.world_size = rank, world_size

    def run(self, *_: Any) -> Iterator[StepPlan]:
        """Yield the plan of each step."""
        self.require_own_process()
        for step in range(self.start, self.order.spec.steps):
            places, weight = self.order.part(step, self.rank, self.world_size)
            yield StepPlan(places if self.rows is None else self.rows[places], weight)


def _announce(plans: Iterable[StepPlan], source: ShardSource, steps: int) -> Iterator[StepPlan]:
    ahead: deque[StepPlan] = deque()
    remaining = iter(plans)
    try:
        while True:
            for plan in islice(remaining, steps + 1 - len(ahead)):
                source.expect(plan.index)
                ahead.append(plan)
            if not ahead:
                return
            yield ahead.popleft()
    finally:
        for plan in ahead:  # the consumer has gone
            source.forget(plan.index)


def _gather_pixels(
    plans: Iterable[StepPlan],
    source: ShardSource,
    labels: Column,
    pool: PixelPool,
) -> Iterator[Batch]:
    for plan in plans:
        pixels = pool.lend()
        source.gather(plan.index, pixels.numpy())
        batch = Batch(
            pixels,
            _owned(labels[plan.index].astype(np.int64)),
            _owned(plan.index),
            _owned(plan.weight),
        )
        del pixels
        yield batch
        del batch  # or this frame would hold the batch while the consumer waits for the next


def _owned(values: NDArray[Any]) -> torch.Tensor:
    """A tensor that owns its memory: the consumer can release it more cheaply."""
    return torch.from_numpy(values).clone()


class _Handover(Generic[T]):
    """A bounded queue between one reading thread and the consumer, which either side can end.

    Two `SimpleQueue`, which are written in C, one of items and one of free slots, cost the consumer
    about a microsecond a batch and no wake-up; conditions in Python cost ten times that.
    """

    def __init__(self, depth: int) -> None:
        self._items: SimpleQueue[list[T] | None] = SimpleQueue()
        self._slots: SimpleQueue[bool] = SimpleQueue()
        self._error: BaseException | None = None
        self._stopped = False
        for _ in range(depth):
            self._slots.put(True)

    def fill(self, source: Iterable[T]) -> None:
        """Read `source` to its end, to an error, or until the consumer has gone (thread body)."""
        items = iter(source)
        try:
            while self._slots.get() and not self._stopped:
                self._items.put([next(items)])
        except StopIteration:
            pass
        except BaseException as error:  # handed to the consumer, whatever it is
            self._error = error
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            self._items.put(None)

    def items(self) -> Iterator[T]:
        """Yield what was read; raise what the reader raised, after the items before it."""
        while (box := self._items.get()) is not None:
            self._slots.put(True)
            yield box.pop()  # without a name here: only the consumer may hold the item
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Tell the reader that nobody will take another item."""
        self._stopped = True
        self._slots.put(True)  # it may be waiting for one


_readers: weakref.WeakKeyDictionary[threading.Thread, _Handover[Any]] = weakref.WeakKeyDictionary()


@atexit.register
def _end_readers() -> None:
    """End the reading threads before Python does.

    A daemon thread that Python ends while it is in C++ (PyTorch, Arrow) aborts the process.
    """
    running = list(_readers.items())
    for _, handover in running:
        handover.stop()
    deadline = time.monotonic() + _EXIT_SECONDS
    for reader, _ in running:
        reader.join(max(0.0, deadline - time.monotonic()))


def _read_ahead(source: Iterable[T], depth: int) -> Iterator[T]:
    handover: _Handover[T] = _Handover(depth)
    reader = threading.Thread(
        target=handover.fill, args=(source,), name="lenstrain-read-ahead", daemon=True
    )
    _readers[reader] = handover
    reader.start()
    try:
        yield from handover.items()
    finally:
        # Not joined: the garbage collector may end us in any thread, also in one that the reader
        # is waiting for. What the reader uses lives until it has finished.
        handover.stop()


announce = wds.pipelinefilter(_announce)
"""Stage ``announce(source, steps)``: announce the rows of a step to the source `steps` before."""

gather_pixels = wds.pipelinefilter(_gather_pixels)
"""Stage ``gather_pixels(source, labels, pool)``: `StepPlan` in, `Batch` out."""

read_ahead = wds.pipelinefilter(_read_ahead)
"""Stage ``read_ahead(depth)``: what stands before it runs in one thread, up to `depth` items ahead.

An error is raised where its item would have come; closing the iterator ends the thread
after the item that it is reading.
"""

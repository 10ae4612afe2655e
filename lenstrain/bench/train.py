"""Measure training on a dataset: its rate, what it waits for, and how much of the machine it uses.

    found = run_train_bench("data/ds", Config(), seconds=30)

The steps are those of `lenstrain train`: the same loader, preparation, step and averages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lensprep.dataset import DECALS, Dataset
from lenstrain.bench.loader import ROUNDS, Progress, Round, medians, run_rounds
from lenstrain.config import Config
from lenstrain.data import Batch
from lenstrain.networks.finder import count_parameters
from lenstrain.training.checkpoint import versions
from lenstrain.training.distributed import Context, process_group
from lenstrain.training.feeding import IntervalClock, device_batches
from lenstrain.training.memory import enough_to_train
from lenstrain.training.run import Run, build_run
from lenstrain.training.step import StepBatch, train_step

PHASES = ("forward", "backward", "optimizer")
WARM_UP = 2
"""Steps that are not counted: memory is taken, kernels are chosen or compiled."""
MATRIX = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices whose product is the ceiling: large enough to reach a device's best."""
CEILING_SHARE = 0.15
"""Share of the time that goes into measuring the ceiling."""


class StepClock:
    """Times steps, their phases, and what lies between: with events on a GPU.

    A GPU works behind the host: its times are those at which it gets to a step, not those at which
    the host has asked for it. ``other`` is what was measured between the phases of a step, ``idle``
    between steps, and ``step`` from begin to end: with ``idle`` they are all of the time.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._laps: list[tuple[str, Any]] = []
        self._steps: list[tuple[Any, Any]] = []
        self._arrived: Any = None
        self.begin()

    def begin(self) -> None:
        """Forget what was timed; what comes until the first step is idle."""
        self._laps, self._steps, self._arrived = [("", self._now())], [], None

    def each(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; on a CPU, which has to prepare it, a step begins as its batch comes."""
        for batch in batches:
            if not self._gpu:
                self._arrived = self._lap("idle")
            yield batch

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step."""
        begun = self._lap("idle") if self._arrived is None else self._arrived
        yield
        self._steps.append((begun, self._lap("other")))
        self._arrived = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a phase of a step."""
        self._lap("other")
        yield
        self._lap(name)

    def _lap(self, name: str) -> Any:
        """End a stretch of time, whose name is given, and begin the next."""
        now = self._now()
        self._laps.append((name, now))
        return now

    def _now(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        make_event: Any = torch.cuda.Event
        event = make_event(enable_timing=True)
        event.record()
        return event

    def read(self) -> dict[str, float]:
        """Seconds of each phase, ``other``, ``idle`` and ``step``; waits for a GPU."""
        if self._gpu:
            torch.cuda.synchronize()
        found = dict.fromkeys((*PHASES, "other", "idle"), 0.0)
        for (_, before), (name, after) in pairwise(self._laps):
            found[name] += self._seconds(before, after)
        found["step"] = sum(self._seconds(*ends) for ends in self._steps)
        return found

    def _seconds(self, before: Any, after: Any) -> float:
        return float(before.elapsed_time(after) / 1e3 if self._gpu else after - before)


def run_train_bench(
    dataset: str | Path,
    config: Config,
    *,
    seconds: float = 30.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time training steps and the machine's best matrix product in interleaved rounds.

    After `WARM_UP` steps come `ROUNDS` rounds, each of a matrix product and of as many steps as
    fit into its share of `seconds` (one at least), so that a busy machine slows both; medians over
    the rounds are reported. Nothing is written. Under torchrun all processes take part.

    Parameters
    ----------
    dataset : str or path
    config : Config
        As for training.
    seconds : float
        Time for all rounds.
    progress : callable, optional

    Returns
    -------
    dict
        Medians over the rounds, ``rounds`` themselves, and the conditions. By the host's clock:
        ``samples_per_s`` (of all processes) and ``step_seconds``, both with every wait, and
        ``data_wait_share``, the share of the time in which the program waited for the loader
        (a GPU with steps still queued works meanwhile). By the clock of the device (see
        `StepClock`): ``idle_share``, the share of the time between steps, in which the device had
        none; and ``forward_share``, ``backward_share``, ``optimizer_share`` and ``other_share``
        (the rest of a step: rate, sums, averages; on a CPU also preparing the batch, which a GPU
        does beside the step before), shares of the time from begin to end of steps, each measured
        between two marks, so that they add up to 1. Also
        ``achieved_flops_per_s`` and ``matmul_flops_per_s`` of one process and their ratio
        ``of_matmul``; ``flops_per_stamp`` (forward and backward, a product and a sum are two); and
        ``gpu_memory_gib``, the most that was allocated (None on a CPU).

    Raises
    ------
    ConfigError, DatasetError
        If the dataset cannot be trained on with this configuration.
    OutOfMemoryError
        If a batch does not fit.
    """
    tell = progress or (lambda what, done: None)
    with (
        process_group(config.train.device, config.train.timeout_minutes) as context,
        enough_to_train(config, context.device),
    ):
        run = build_run(Dataset.open(str(dataset)), config, Path(), context, None)
        try:
            tell("Warming up", 0.0)
            flops = stamp_flops(run.learner.model, run.dataset.geometry.shape)
            rounds = _measure_rounds(run, flops, seconds, tell)
        finally:
            run.close()
    return medians(rounds) | {"flops_per_stamp": flops, "rounds": rounds} | _conditions(run)


def _measure_rounds(run: Run, flops: float, seconds: float, tell: Progress) -> list[Round]:
    clock, timer = IntervalClock(), StepClock(run.context.device)
    batches = device_batches(timer.each(_endless(run)), run, clock)
    for _ in range(WARM_UP):
        started = time.perf_counter()
        _step(run, batches, timer)
        timer.read()
        per_step = time.perf_counter() - started
    share = seconds / ROUNDS
    # One number for all processes, which have to make equal steps.
    fitting = int((1 - CEILING_SHARE) * share / per_step)
    steps = max(1, run.context.from_main(fitting))
    rows = run.config.data.batch_size

    def measure() -> Round:
        ceiling = matmul_rate(run.context, run.learner.amp_dtype, CEILING_SHARE * share)
        clock.restart()
        timer.begin()
        for _ in range(steps):
            _step(run, batches, timer)
        timed = timer.read()
        spent, waited, _ = clock.restart()
        achieved = flops * rows / run.context.world_size * steps / spent
        return {
            "samples_per_s": rows * steps / spent,
            "step_seconds": spent / steps,
            "data_wait_share": waited / spent,
            "idle_share": timed["idle"] / spent,
            **{f"{name}_share": timed[name] / timed["step"] for name in (*PHASES, "other")},
            "achieved_flops_per_s": achieved,
            "matmul_flops_per_s": ceiling,
            "of_matmul": achieved / ceiling,
        }

    return run_rounds(measure, tell)


def _endless(run: Run) -> Iterator[Batch]:
    while True:
        yield from run.train_loader


def _step(run: Run, batches: Iterator[StepBatch], timer: StepClock) -> None:
    batch = next(batches)
    with timer.step():
        train_step(run.learner, batch, run.totals, run.config, run.context, timer)


def stamp_flops(model: nn.Module, shape: tuple[int, int, int] = DECALS.shape) -> float:
    """Floating-point operations of a forward and backward pass of a stamp of this shape.

    Convolutions and products count. Counted by torch on two stamps; gradients, batch statistics
    and mode are left as they were.
    """
    device = next(model.parameters()).device
    state = {name: value.clone() for name, value in model.state_dict().items()}
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros((2, *shape), device=device)).sum().backward()
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)
    return counter.get_total_flops() / 2


def matmul_rate(context: Context, dtype: torch.dtype | None, seconds: float) -> float:
    """Floating-point operations per second of a large product in the precision of the network.

    The factors are random: a GPU multiplies constants with less power, and so faster.

    Parameters
    ----------
    context : Context
    dtype : torch.dtype or None
        None is float32, with TF32 where the run uses it.
    seconds : float
    """
    side = MATRIX[context.device.type]
    a, b, out = (
        torch.randn((side, side), dtype=dtype or torch.float32, device=context.device)
        for _ in range(3)
    )
    torch.mm(a, b, out=out)
    _wait(context)
    turns, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or not turns:
        torch.mm(a, b, out=out)
        _wait(context)
        turns += 1
    return turns * 2 * side**3 / spent


def _wait(context: Context) -> None:
    if context.device.type == "cuda":
        torch.cuda.synchronize()


def _conditions(run: Run) -> dict[str, Any]:
    device, config = run.context.device, run.config
    gpu = device.type == "cuda"
    return {
        "gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "processes": run.context.world_size,
        "torch_threads": torch.get_num_threads(),
        "precision": str(run.learner.amp_dtype or torch.float32).removeprefix("torch."),
        "compile": config.train.compile,
        "channels_last": config.train.channels_last,
        "arch": config.model.arch,
        "parameters": count_parameters(run.learner.model),
        "batch_size": config.data.batch_size,
        "dataset": run.dataset.uri,
        "dataset_id": run.dataset.dataset_id,
        "geometry": run.dataset.geometry.to_dict(),
        "versions": versions(),
    }

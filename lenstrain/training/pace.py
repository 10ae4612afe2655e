"""How long an epoch takes, from steps on made pixels that leave the run and its bits alone.

On a CPU the first step of a large network takes a minute, so that the pace is measured before it,
on a copy of the network and on fewer stamps. On a GPU the first intervals of the run tell it.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

import torch
from torch import nn

from lensprep.configfile import load_config, packaged_files
from lensprep.dataset import Geometry
from lensprep.errors import ConfigError, time_text
from lenstrain.config import Config
from lenstrain.networks.finder import build_model
from lenstrain.training.distributed import Context
from lenstrain.training.run import Run, seeded
from lenstrain.training.step import StepBatch, Totals, make_learner, train_step
from lenstrain.training.transfer import widen
from lenstrain.training.validate import at_precision, validation_precision

SECONDS: Final = 1.0
"""Time for measuring before a run; less before a short one."""
_SHARE: Final = 200
"""A run takes at least so many times longer than measuring its pace."""
_FEW: Final = 4
"""Stamps of the first step on a CPU, from which follows how many fit into the time."""
_LONG_S: Final = 3600
"""A run on a CPU that takes longer is told of a faster configuration."""
_FASTER: Final = "demo"
"""The packaged configuration for CPUs."""

logger = logging.getLogger("lenstrain.train")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What one process does with the stamps that it has, if it need not wait for them."""

    train_stamps_per_s: float
    """Forward, backward and update."""
    score_stamps_per_s: float
    """Forward, as in validation."""
    batch: int
    """Stamps of the steps that were timed."""
    steps: int
    """How many they were."""

    def epoch_seconds(self, train_rows: int, val_rows: int, processes: int = 1) -> float:
        """Time of an epoch with its validation."""
        seconds = train_rows / self.train_stamps_per_s + val_rows / self.score_stamps_per_s
        return seconds / processes


def measure_pace(
    model: nn.Module,
    config: Config,
    geometry: Geometry,
    device: torch.device,
    *,
    seconds: float = SECONDS,
    stamps: int | None = None,
) -> Pace:
    """Time steps of training and scoring on a copy of a network; nothing else is changed.

    A CPU takes as many stamps at a time as fit into the time, at most a batch; a GPU takes batches.
    The network is not compiled.

    Parameters
    ----------
    model : nn.Module
        As `build_model` makes it, on any device.
    config : Config
        Of the run. Batches are those of a single process.
    geometry : Geometry
        Of the stamps.
    device : torch.device
    seconds : float
        Time for the steps that count; those before, and scoring, take about as long.
    stamps : int, optional
        What the run trains on in all: before a short one less time is taken.
    """
    config = replace(config, train=replace(config.train, compile=False))
    with seeded(0, device):
        learner = make_learner(copy.deepcopy(model), config, 1, Context(device=device))
        totals = Totals(device, config.data.batch_size)
        side = config.model.crop or geometry.side

        def make_batch(size: int) -> StepBatch:
            pixels = torch.randn((size, len(geometry.bands), side, side), device=device)
            index = torch.arange(size, device=device)
            return StepBatch(
                pixels=widen(pixels, channels_last=config.train.channels_last),
                label=(index % 2).float(),
                weight=torch.ones(size, device=device),
                index=index,
            )

        def timed(work: Callable[[], object], least: float) -> tuple[int, float]:
            """Turns, and seconds of all of them; one at least."""
            turns, begun = 0, time.perf_counter()
            while True:
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                turns += 1
                spent = time.perf_counter() - begun
                if spent >= least:
                    return turns, spent

        def step() -> None:
            train_step(learner, batch, totals, config, Context(device=device))

        size = config.data.batch_size
        if device.type == "cpu":
            size = min(size, _FEW)
        batch = make_batch(size)
        timed(step, 0)  # memory is taken, kernels are chosen
        steps, spent = timed(step, 0)
        if stamps is not None:
            seconds = min(seconds, stamps / size * spent / _SHARE)
        if spent < seconds:
            more = min(config.data.batch_size, int(size * seconds / spent))
            if more > size:
                batch = make_batch(size := more)
            steps, spent = timed(step, seconds)
        learner.model.eval()
        precision = validation_precision(config, learner.amp_dtype, device)

        def score() -> None:
            learner.model(batch.pixels)

        with torch.inference_mode(), at_precision(precision, device):
            if device.type == "cuda":
                timed(score, 0)
            turns, scoring = timed(score, seconds / 3)
    return Pace(
        train_stamps_per_s=size * steps / spent,
        score_stamps_per_s=size * turns / scoring,
        batch=size,
        steps=steps,
    )


def announce_pace(run: Run) -> None:
    """Log how long an epoch will take on a CPU; if long, that it is shorter with another network.

    In the main process, before the first step, whose bits do not depend on it. A GPU is left to
    `log_pace`, as trying its kernels and compiling take longer than the first steps.
    """
    if run.context.device.type != "cpu":
        run.untold_intervals = 2  # the first one has the warm-up in it
        return
    config, epochs = run.config, run.config.train.epochs - run.epochs_done
    rows = run.train_loader.selection.epoch_rows
    pace = measure_pace(
        run.learner.model, config, run.dataset.geometry, run.context.device, stamps=rows * epochs
    )
    seconds = epoch_seconds(run, pace)
    rate = pace.train_stamps_per_s * run.context.world_size
    logger.info(
        "About %s an epoch on this CPU (%s stamps/s on %d threads, measured with %d at a time), %s "
        "for %d",
        time_text(seconds),
        f"{rate:,.0f}",
        torch.get_num_threads() * run.context.world_size,
        pace.batch,
        time_text(seconds * epochs),
        epochs,
    )
    if seconds * epochs > _LONG_S and (faster := faster_seconds(run)) < seconds / 2:
        logger.info(
            "A GPU is much faster, and so is a small network: about %s an epoch with --config %s",
            time_text(faster),
            _FASTER,
        )


def epoch_seconds(run: Run, pace: Pace) -> float:
    """Time of an epoch of a run with its validation."""
    rows = run.train_loader.selection.epoch_rows
    scored = run.dataset.split(run.config.eval.split).rows
    return pace.epoch_seconds(rows, scored, run.context.world_size)


def faster_seconds(run: Run) -> float:
    """Time of such an epoch with the configuration for CPUs; infinite if it does not fit."""
    config = load_config(Config, packaged_files("lenstrain", "configs")[_FASTER])
    geometry, device = run.dataset.geometry, run.context.device
    try:
        with seeded(0, device):
            model = build_model(config.model, geometry)
    except ConfigError:  # its window does not suit the stamps
        return float("inf")
    pace = measure_pace(model, config, geometry, device, seconds=SECONDS / 4)
    return epoch_seconds(run, pace)


def log_pace(run: Run, samples_per_s: float) -> None:
    """Log how long the training of an epoch takes on a GPU, by an interval without its warm-up."""
    steps, size = len(run.train_loader), run.config.data.batch_size
    logger.info(
        "About %s for the training of an epoch (%s stamps/s)",
        time_text(ceil(steps * size / samples_per_s)),
        f"{samples_per_s:,.0f}",
    )

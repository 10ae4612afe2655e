"""A run: its parts, the checks before it may start, and the records that describe it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lensprep.dataset import Dataset
from lensprep.errors import BudgetError, ConfigError, DatasetError, StorageError
from lenstrain.config import Config, DataConfig
from lenstrain.data import StampLoader
from lenstrain.data.cache.folder import CacheOptions
from lenstrain.data.weights import read_weights
from lenstrain.evaluation import metrics
from lenstrain.networks.finder import build_model, check_crop, count_parameters
from lenstrain.training.counterfactuals import (
    Counterfactuals,
    read_counterfactuals,
    require_pairs,
)
from lenstrain.training.distributed import Context, launch_id
from lenstrain.training.mirror import Mirror
from lenstrain.training.origins import Origins, find_origins
from lenstrain.training.runlog import CHECKPOINTS as CHECKPOINTS
from lenstrain.training.runlog import INTERRUPTED, NONFINITE, RunLog, write_setup
from lenstrain.training.step import Learner, Totals, check_precision, make_learner
from lenstrain.training.stopping import Stopper
from lenstrain.training.validate import require_precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Progress of a run. Making one does not wait for the device."""

    stage: Literal["start", "train", "validate", "epoch"]
    epoch: int
    """From 1."""
    epochs: int
    step: int
    """Step of the stage that was just finished, from 1."""
    steps: int
    """Steps of the stage in this epoch."""
    stamps: int
    """Stamps of one step."""
    record: dict[str, Any] = field(default_factory=dict)
    """The newest line of metrics.jsonl, if the step wrote one."""
    doing: str = ""
    """What a start is busy with: it may take a minute before the first step."""


Progress = Callable[[Event], None]


def tell_start(progress: Progress | None, config: Config, context: Context, doing: str) -> None:
    """Report what a run that has no step yet is doing."""
    if progress is not None and context.is_main:
        epochs = config.train.epochs
        progress(
            Event(stage="start", epoch=1, epochs=epochs, step=0, steps=0, stamps=0, doing=doing)
        )


@dataclass(kw_only=True, slots=True)
class Run:
    """A run in one process: what is fixed, and what moves."""

    config: Config
    context: Context
    dataset: Dataset
    folder: Path
    train_loader: StampLoader
    val_loader: StampLoader
    learner: Learner
    totals: Totals
    """Since the last line of the log."""
    epoch_totals: Totals
    """Since the start of the epoch, up to the last line of the log."""
    stopper: Stopper
    counterfactuals: Counterfactuals | None = None
    """Those of the split that is validated on."""
    origins: Origins | None = None
    """Those of the split that is validated on, if there are several."""
    progress: Progress | None = None
    log: RunLog | None = None
    """In the main process only."""
    mirror: Mirror | None = None
    """Sends the run folder to a store or a second folder; in the main process only."""
    name: str = ""
    """What the user calls it: its folder, or its URI in a store."""
    epochs_done: int = 0
    """Epochs finished, with their validation."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last validation."""
    untold_intervals: int = 0
    """Intervals of the log until the pace of a GPU is told; 0 if it was, or is not to be."""
    saved_at: float = field(default_factory=time.monotonic)
    """When the last checkpoint was written."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    def tell(self, stage: Any, step: int, steps: int, stamps: int, record: dict[str, Any]) -> None:
        """Report progress."""
        if self.progress is not None and self.context.is_main:
            event = Event(
                stage=stage,
                epoch=self.epochs_done + 1,
                epochs=self.config.train.epochs,
                step=step,
                steps=steps,
                stamps=stamps,
                record=record,
            )
            self.progress(event)

    def close(self) -> None:
        """Let go of files and threads."""
        if self.log is not None:
            self.log.close()
        if self.mirror is not None:
            self.mirror.close()
        self.train_loader.close()
        self.val_loader.close()


def build_run(
    dataset: Dataset, config: Config, folder: Path, context: Context, progress: Progress | None
) -> Run:
    """Check the input and build every part of a fresh run; nothing is written.

    Raises
    ------
    DatasetError, ConfigError, CheckpointError
        If the input cannot be used.
    """
    check_input(dataset, config, context)
    set_backends(config, context)
    if config.train.compile:
        # Torch keeps the graphs of all networks of a process, and runs the ninth uncompiled.
        torch.compiler.reset()
    train_loader, val_loader = make_loaders(dataset, config, context)
    seed_generators(config.train.seed)
    model = build_model(config.model, dataset.geometry)
    learner = make_learner(model, config, len(train_loader), context)
    # The weights are equal in all processes; what is drawn from here on (dropout) must not be.
    seed_generators(config.train.seed + 1 + context.rank)
    rows = config.data.batch_size // context.world_size
    made = read_counterfactuals(dataset, config.eval.split)
    return Run(
        config=config,
        context=context,
        dataset=dataset,
        folder=folder,
        train_loader=train_loader,
        val_loader=val_loader,
        learner=learner,
        totals=Totals(context.device, rows),
        epoch_totals=Totals(context.device, rows),
        stopper=Stopper(
            monitor=config.train.monitor,
            patience=config.train.patience,
            min_delta=config.train.min_delta,
        ),
        counterfactuals=made,
        origins=find_origins(val_loader.data, made),
        progress=progress,
    )


def set_backends(config: Config, context: Context) -> None:
    """Let cuDNN and float32 products work as a run wants them to, in this process."""
    if context.device.type == "cuda":
        torch.backends.cudnn.benchmark = config.train.cudnn_benchmark
        torch.backends.cuda.matmul.allow_tf32 = config.train.tf32
        torch.backends.cudnn.allow_tf32 = config.train.tf32


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is meant
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Have torch draw from a seed within the block; its generators are as before afterwards.

    Parameters
    ----------
    seed : int
    device : torch.device
        Whose generator is meant, beside that of the CPU. `torch.manual_seed` would seed every GPU,
        and `torch.random.fork_rng` restores those that are named.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus, device_type="cuda"):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def check_input(dataset: Dataset, config: Config, context: Context) -> None:
    """Refuse a dataset or configuration that cannot be trained with, before anything is built."""
    metrics.steering_metric(config.train.monitor, "train.monitor")
    check_crop(config.model, dataset.geometry)
    check_precision(config.train.amp, context.device.type)
    if config.eval.amp == "bf16":
        require_precision("bf16", context.device, "Set eval.amp to auto or off.")
    if config.train.sync_batchnorm and context.world_size > 1 and context.device.type != "cuda":
        raise ConfigError(
            "train.sync_batchnorm works on GPUs only. Set it to false, or take model.norm=group, "
            "which does not depend on the batch."
        )
    for name in ("train", config.eval.split):
        classes = dataset.split(name).ordinary_classes
        for label, kind in (("0", "non-lenses"), ("1", "lenses")):
            if not classes[label]:
                raise DatasetError(
                    f"{dataset.uri}: split {name!r} has no {kind}. "
                    "Look at it with `lensprep inspect`."
                )
    require_pairs(dataset, config.eval.split, config.train.monitor, "train.monitor")
    for key, size in (("data", config.data.batch_size), ("eval", config.eval.batch_size)):
        if size % context.world_size:
            raise ConfigError(
                f"{key}.batch_size = {size} cannot be divided among {context.world_size} "
                f"processes. Take a multiple of {context.world_size}."
            )


def make_loaders(
    dataset: Dataset, config: Config, context: Context
) -> tuple[StampLoader, StampLoader]:
    """Loaders of one process: shuffled for training, the whole split in order for validation."""
    data = config.data
    budget = int(data.memory_budget_gb * 1e9)
    shared: dict[str, Any] = {
        "rank": context.rank,
        "world_size": context.world_size,
        "cache_dir": data.cache_dir,
        "cache": CacheOptions(
            limit_bytes=int(data.cache_limit_gb * 1e9),
            reserve_bytes=int(data.cache_reserve_gb * 1e9),
        ),
        "pin_memory": context.device.type == "cuda",
    }
    training = StampLoader(
        dataset.uri,
        "train",
        data.batch_size // context.world_size,
        config.train.seed,
        data.shuffle,
        drop_last=data.drop_last,
        where=data.where,
        limit=data.limit,
        sampling=data.sampling,
        weights=sample_weights(dataset, data),
        rates=data.rates,
        counterfactual_share=data.counterfactual_share,
        memory_budget=budget - budget // 4,
        **shared,
    )
    try:
        require_both_classes(training, data)
        validation = StampLoader(
            dataset.uri,
            config.eval.split,
            config.eval.batch_size // context.world_size,
            shuffle=None,
            memory_budget=budget // 4,
            **shared,
        )
    except BudgetError as error:
        training.close()
        raise BudgetError(
            f"Validation has a quarter of data.memory_budget_gb = {data.memory_budget_gb:g}, which "
            f"is too little. Raise it. ({error})"
        ) from error
    except ConfigError:
        training.close()
        raise
    return training, validation


def require_both_classes(loader: StampLoader, data: DataConfig) -> None:
    """Refuse a filter, a limit or rates that leave nothing of one class to train on."""
    chosen = {name: getattr(data, name) for name in ("where", "limit", "rates")}
    given = [f"data.{name} = {value!r}" for name, value in chosen.items() if value]
    if not given:
        return
    labels, selection = loader.data.all_labels(), loader.selection
    labels = labels if selection.rows is None else labels[selection.rows]
    labels = labels if selection.rates is None else labels[selection.rates > 0]
    for label, kind in ((0, "non-lens"), (1, "lens")):
        if label not in labels:
            raise ConfigError(
                f"{loader.data.title} has no {kind} left with {' and '.join(given)}. "
                "`lensprep inspect` shows which values its columns have."
            )


def sample_weights(dataset: Dataset, data: DataConfig) -> NDArray[np.float64] | None:
    """Weight of every training row, if ``data.sample_weights`` names a file of them."""
    if data.sample_weights is None:
        return None
    keys = dataset.read_sidecar("train", ["key"])["key"]
    return read_weights(data.sample_weights, keys)


def start_records(run: Run) -> None:
    """Make the run folder and what describes the run; in the main process only."""
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{run.folder} cannot be created: {error.strerror}.") from error
    facts = {
        "dataset": run.dataset.uri,
        "dataset_id": run.dataset.dataset_id,
        "geometry": run.dataset.geometry.to_dict(),
        "device": str(run.context.device),
        "processes": run.context.world_size,
        "launch": launch_id(),
        "precision": str(run.learner.amp_dtype or torch.float32).removeprefix("torch."),
        "parameters": count_parameters(run.learner.model),
        "steps_per_epoch": len(run.train_loader),
    }
    for name in (NONFINITE, INTERRUPTED):  # how an earlier start of a resumed run ended
        (run.folder / name).unlink(missing_ok=True)
    write_setup(run.folder, run.config, facts)
    run.log = RunLog(run.folder, run.learner.steps, run.epochs_done)
    if not run.learner.steps:
        names = metrics.steering(counterfactuals=run.counterfactuals is not None)
        run.log.write_settings(run.config, names)

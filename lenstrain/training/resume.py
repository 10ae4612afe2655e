"""Save a run and resume it: the state of everything, and what it may be loaded into."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from lensprep.configfile import to_mapping
from lensprep.dataset import Dataset, Geometry
from lensprep.errors import CheckpointError, StorageError
from lenstrain.config import Config, DataConfig, completed
from lenstrain.networks.weights import require_geometry
from lenstrain.training.checkpoint import (
    BEST,
    LAST,
    Found,
    git_commit,
    keep_as_last,
    link,
    load_latest,
    rng_state,
    save_last,
    set_rng_state,
    versions,
)
from lenstrain.training.distributed import launch_id
from lenstrain.training.home import Home, check_free, fetch_newer
from lenstrain.training.run import Run
from lenstrain.training.runlog import CHECKPOINTS, CONFIG, ENVIRONMENT
from lenstrain.training.step import Totals

_READING = {"memory_budget_gb", "cache_dir", "cache", "cache_limit_gb", "cache_reserve_gb",
            "disk_mb_per_s", "store_mb_per_s"}  # fmt: skip
"""Keys of ``data`` that say how rows are read, not which, nor how they are used."""
_FIXED = {
    "data": tuple(field.name for field in fields(DataConfig) if field.name not in _READING),
    "model": None,
    "optim": None,
    "loss": None,
    "train": ("epochs", "seed", "monitor"),
    "eval": ("split", "fpr"),
}
"""Keys of the configuration that must not change on a resume; None is all of them."""

SHARED_TOTALS = ("norm", "steps", "updates", "clipped")
"""Totals that are equal in all processes; the others add up."""


def is_own_restart(out: Path) -> bool:
    """Whether torchrun restarted this program after it made the run folder `out` itself.

    Only then may the run continue without --resume: a folder that existed before belongs to another
    run.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return False
    try:
        made_by = json.loads((out / ENVIRONMENT).read_text(encoding="utf-8")).get("launch")
    except (OSError, ValueError):
        return False
    return made_by is not None and made_by == launch_id()


def find_start(home: Home, resume: bool) -> tuple[bool, Found | None]:
    """Whether the run may have begun before, and its state; in the main process only.

    The run folder is updated from the store if that is further.

    Raises
    ------
    StorageError
        If the store does not answer, or a location is not empty, or holds no run.
    CheckpointError
        If there are checkpoints and none can be read.
    """
    resume = resume or is_own_restart(home.folder)
    if home.uri is not None and resume:
        fetch_newer(home)
    elif home.uri is not None:
        check_free(home)
        if home.is_output and home.folder.exists() and any(home.folder.iterdir()):
            raise StorageError(
                f"{home.uri} is free, but its working folder {home.folder} holds a run that was "
                "not sent completely. Send it with --resume, or remove that folder."
            )
    return resume, find_state(home.folder, resume)


def find_state(out: Path, resume: bool) -> Found | None:
    """Checkpoint to resume from, or None for a fresh start.

    Raises
    ------
    StorageError
        If `out` is a file, is not a run, or is not empty and `resume` is not set.
    CheckpointError
        If there are checkpoints and none can be read.
    """
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file. Name a folder for the run.")
    if not out.exists() or not any(out.iterdir()):
        return None
    if not resume:
        raise StorageError(
            f"{out} exists and is not empty. Name another folder, or continue with --resume."
        )
    if not (out / CONFIG).exists():
        raise StorageError(f"{out} is not the folder of a run (it has no {CONFIG}).")
    if not any((out / CHECKPOINTS).glob("*.pt")):
        return None  # interrupted before its first checkpoint
    return load_latest(out / CHECKPOINTS)


def check_same_run(state: dict[str, Any], dataset: Dataset, config: Config, out: str) -> None:
    """Refuse to resume with other data, or with a configuration that makes it another run."""
    trained = Geometry.from_dict(state["geometry"])
    require_geometry(trained, dataset.geometry, out, dataset.uri)
    if state["dataset_id"] != dataset.dataset_id:
        raise CheckpointError(
            f"{out} was trained on dataset {state['dataset_id'][:12]}, and {dataset.uri} is "
            f"{dataset.dataset_id[:12]}. Resume with the same dataset, or start another run."
        )
    for key, old, new in differing(state["config"], to_mapping(config)):
        raise CheckpointError(
            f"{out} was started with {key} = {old!r}, and now it is {new!r}. Resume with "
            f"{out}/{CONFIG}, or start another run."
        )


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Keys that define a run (not paths, not threads) and differ, with both values."""
    before = completed(before)
    for section, keys in _FIXED.items():
        old, new = before.get(section, {}), now.get(section, {})
        for key in keys or sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                yield f"{section}.{key}", old.get(key), new.get(key)


def restore(run: Run, state: dict[str, Any]) -> None:
    """Set a fresh run to the state of a checkpoint."""
    run.learner.load_state_dict(state)
    run.stopper.load_state_dict(state["stopper"])
    run.train_loader.load_state_dict(state["loader"])
    run.epochs_done = state["epoch"]
    run.metrics = dict(state["metrics"])
    for totals, sums in zip((run.totals, run.epoch_totals), state["totals"], strict=True):
        # So that merging them, over any number of processes, gives the same sums again.
        mine = [sums[n] if run.context.is_main or n in SHARED_TOTALS else 0.0 for n in Totals.NAMES]
        totals.sums.copy_(torch.tensor(mine, dtype=totals.sums.dtype))
    if run.context.rank < len(state["rng"]):
        set_rng_state(state["rng"][run.context.rank])


def best_names(metrics: Iterable[str], monitor: str) -> list[str]:
    """Further names of a checkpoint in which these metrics are better than ever before."""
    return [f"best-{name}.pt" for name in metrics] + ([BEST] if monitor in metrics else [])


def mend_names(run: Run, found: Found) -> None:
    """Give the checkpoint that a run resumes from all its names.

    A run may have been killed after it wrote ``last.pt``, and before that was ``best.pt`` too.
    """
    keep_as_last(found.path)
    state = found.content
    if state["loader"]["step"] == 0:  # at the end of an epoch
        epochs = state["stopper"]["best_epoch"]
        own = [name for name, epoch in epochs.items() if epoch == state["epoch"]]
        for name in best_names(own, run.stopper.monitor):
            link(run.checkpoints / LAST, run.checkpoints / name)


def save(run: Run, names: list[str]) -> None:
    """Write ``last.pt`` and give it further names; every process of the run must come here."""
    generators = run.context.gather_objects(rng_state())
    totals = [merged_totals(run, part) for part in (run.totals, run.epoch_totals)]
    if run.context.is_main:
        save_last(run.checkpoints, contents(run, generators, totals), names)
        if run.mirror is not None and run.log is not None:
            run.log.flush()
            run.mirror.submit([*names, LAST], run.learner.steps)
    run.saved_at = time.monotonic()
    run.context.barrier()


def contents(run: Run, generators: list[Any], totals: list[dict[str, float]]) -> dict[str, Any]:
    """Everything that a checkpoint holds, in tensors and plain types."""
    manifest = run.dataset.manifest
    # Batches that were fetched ahead are not done yet.
    step = run.learner.steps - run.epochs_done * len(run.train_loader)
    return {
        **run.learner.state_dict(),
        "stopper": run.stopper.state_dict(),
        "loader": run.train_loader.state_dict() | {"epoch": run.epochs_done, "step": step},
        "rng": generators,
        "totals": totals,
        "epoch": run.epochs_done,
        "metrics": dict(run.metrics),
        "config": to_mapping(run.config),
        "normalization": manifest.normalization.to_dict(),
        "geometry": manifest.geometry.to_dict(),
        "label_map": dict(manifest.label_map),
        "dataset": run.dataset.uri,
        "dataset_id": run.dataset.dataset_id,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def merged_totals(run: Run, totals: Totals) -> dict[str, float]:
    """Totals over all processes, as numbers; this waits for the device."""
    parts = run.context.gather(totals.sums).view(run.context.world_size, -1).cpu()
    merged = dict(zip(Totals.NAMES, parts.sum(0).tolist(), strict=True))
    for name in SHARED_TOTALS:
        merged[name] = float(parts[0, Totals.NAMES.index(name)])
    return merged

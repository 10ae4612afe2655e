"""A worker: trials, then refits, one after the other, on the device that it was given."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, Trial, TrialState

from lensprep.configfile import from_mapping, load_config, to_mapping
from lensprep.dataset import Dataset
from lensprep.errors import ProjectError
from lensprep.store import write_atomic
from lenstrain.config import Config
from lenstrain.sweep.config import Plan, trial_config
from lenstrain.sweep.space import draw_all
from lenstrain.sweep.study import Claim, StudyFiles, best_trials, claim, open_study, quiet, try_lock
from lenstrain.training.run import CHECKPOINTS, Event, Progress
from lenstrain.training.runlog import CONFIG
from lenstrain.training.train import train

RESULT = "result.json"
Say = Callable[[str], None]
POLL_SECONDS = 1.0
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""How a device or an allocator says that there is no memory left."""


class StoppedError(Exception):
    """A signal ended a training; its state is saved and the trial is taken up again later."""


def work(dataset: str, plan: Plan, files: StudyFiles, say: Say, parent: int | None = None) -> bool:
    """Work on a study until nothing is left to do.

    Parameters
    ----------
    dataset : str
    plan : Plan
    files : StudyFiles
    say : callable
        Told a line for each trial.
    parent : int, optional
        Process without which this one is to stop, as by a signal.

    Returns
    -------
    bool
        False if a signal ended the work before.
    """
    study = open_study(files, plan, Dataset.open(dataset).dataset_id)
    started, done = time.monotonic(), 0
    try:
        while True:
            claimed = claim(study, files, plan)
            if claimed is not None:
                try:
                    line = run_trial(study, claimed, dataset, plan, files, parent)
                finally:
                    claimed.release()
                done += 1
                say(f"{line}; {progress_words(study, plan, started, done)}")
            elif others_run(study):
                time.sleep(POLL_SECONDS)  # which trials are best is known when all have ended
            elif not refit_next(study, dataset, plan, files, say, parent):
                break
    except StoppedError:
        return False
    return True


def others_run(study: optuna.Study) -> bool:
    """Whether a trial is being trained somewhere."""
    return any(t.state == TrialState.RUNNING for t in study.get_trials(deepcopy=False))


def progress_words(study: optuna.Study, plan: Plan, started: float, done: int) -> str:
    """How far the study is, and how long it takes if all goes on like this."""
    ended = sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))
    left = max(plan.search.trials - ended, 0)
    minutes = (time.monotonic() - started) / done * left / 60
    return f"{ended} of {plan.search.trials} trials, at most {minutes:.0f} min left here"


def run_trial(
    study: optuna.Study,
    claimed: Claim,
    dataset: str,
    plan: Plan,
    files: StudyFiles,
    parent: int | None,
) -> str:
    """Train one trial and record how it ended, whatever that is; returns it in a line.

    Raises
    ------
    StoppedError
        If a signal ended it; the trial stays open.
    """
    trial, again = claimed.trial, claimed.again
    folder, name = files.trial(trial.number), f"trial {trial.number}"
    if again and not (folder / CONFIG).exists():
        shutil.rmtree(folder, ignore_errors=True)  # it died before it had begun
    try:
        with quiet():
            values = draw_all(plan.space, trial)
        config = trial_config(plan, values)
        watch = Pruning(trial, plan, parent)
        result = train(dataset, config, folder, resume=again, progress=watch)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        line = f"{name} pruned"
    except Exception as error:
        failure = describe(error)
        trial.set_user_attr("failure", failure)
        study.tell(trial, state=TrialState.FAIL)
        line = f"{name} failed: {failure}"
        del error
    else:
        if result["status"] == "interrupted":
            trial.set_user_attr("interrupted", True)
            raise StoppedError
        line = _finish(study, trial, result, plan, name)
    release_memory()
    if not plan.search.keep_checkpoints:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return line


def _finish(
    study: optuna.Study, trial: Trial, result: dict[str, Any], plan: Plan, name: str
) -> str:
    for key in ("best_epoch", "epochs", "seconds", "validation"):
        trial.set_user_attr(key, result[key])
    value = result["best_value"]
    if value is None or not math.isfinite(value):
        trial.set_user_attr("failure", f"no epoch had a finite {plan.search.objective}")
        study.tell(trial, state=TrialState.FAIL)
        return f"{name} failed: no epoch had a finite {plan.search.objective}"
    study.tell(trial, value)
    return f"{name}: {plan.search.objective} {value:.4f} (best {study.best_value:.4f})"


class Pruning:
    """Reports every epoch to the study, and ends the training if the pruner or nobody wants it."""

    def __init__(self, trial: Trial, plan: Plan, parent: int | None) -> None:
        self.trial, self.objective = trial, plan.search.objective
        self.orphaned = watch_parent(parent)

    def __call__(self, event: Event) -> None:
        """Take in an event of the run."""
        self.orphaned(event)
        value = event.record.get(self.objective) if event.stage == "epoch" else None
        if value is None or not math.isfinite(value):
            return
        with quiet():  # a resumed trial reports an epoch again
            self.trial.report(value, event.epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned


def watch_parent(parent: int | None) -> Progress:
    """A listener that stops this process, with its state saved, when its parent has gone."""

    def look(_: Event) -> None:
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return look


def describe(error: BaseException) -> str:
    """One line about a failure; running out of memory is named as such."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if memory or any(words in str(error) for words in OUT_OF_MEMORY):
        return f"out of memory: {text}"
    return text if isinstance(error, ProjectError) else f"{type(error).__name__}: {text}"


def release_memory() -> None:
    """Give back what a training held, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def refit_tasks(study: optuna.Study, plan: Plan) -> list[tuple[FrozenTrial, int]]:
    """The best trials and the seeds to train each with."""
    return [(t, seed) for seed in plan.refit.seeds for t in best_trials(study, plan.refit.top)]


def refit_config(files: StudyFiles, trial: FrozenTrial, seed: int, plan: Plan) -> Config:
    """Configuration of a trial with another seed, and another length if the plan has one."""
    mapping = to_mapping(load_config(Config, files.trial(trial.number) / CONFIG))
    mapping["train"]["seed"] = seed
    if plan.refit.epochs is not None:
        mapping["train"]["epochs"] = plan.refit.epochs
    return from_mapping(Config, mapping)


def refit_next(
    study: optuna.Study,
    dataset: str,
    plan: Plan,
    files: StudyFiles,
    say: Say,
    parent: int | None,
) -> bool:
    """Do one refit that nobody does; False if none is left for this worker.

    Raises
    ------
    StoppedError
    """
    for trial, seed in refit_tasks(study, plan):
        folder = files.refit(trial.number, seed)
        if (folder / RESULT).exists():
            continue
        lock = try_lock(files.lock(folder.name))
        if lock is None:
            continue
        try:
            if not (folder / RESULT).exists():
                outcome = refit(folder, dataset, refit_config(files, trial, seed, plan), parent)
                say(f"refit of trial {trial.number} with seed {seed}: {outcome}")
        finally:
            lock.close()
        return True
    return False


def refit(folder: Path, dataset: str, config: Config, parent: int | None) -> str:
    """Train once more, going on if it was begun, and leave the result in the folder."""
    begun = (folder / CONFIG).exists()
    try:
        result = train(dataset, config, folder, resume=begun, progress=watch_parent(parent))
    except Exception as error:
        result = {"status": "failed", "failure": describe(error), "best_value": None}
    release_memory()
    if result["status"] == "interrupted":
        raise StoppedError
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULT, json.dumps(result, default=str).encode())
    value = result["best_value"]
    return result.get("failure") or f"{config.train.monitor} {value:.4f}"

"""A worker: trials, then refits, one after the other, on its own device."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
from lenstrain.sweep.study import Claim, StudyFiles, best_trials, claim, open_study, try_lock
from lenstrain.training.memory import is_out_of_memory
from lenstrain.training.run import Event, Progress
from lenstrain.training.runlog import CHECKPOINTS, CONFIG
from lenstrain.training.train import train

RESULT = "result.json"
Say = Callable[[str], None]
POLL_SECONDS = 1.0


class StoppedError(Exception):
    """A signal ended a training; its state is saved, and the trial is resumed later."""


def work(dataset: str, plan: Plan, files: StudyFiles, say: Say, parent: int | None = None) -> bool:
    """Work on a study until nothing is left to do.

    Parameters
    ----------
    dataset : str
    plan : Plan
    files : StudyFiles
    say : callable
        Called with a line for each trial.
    parent : int, optional
        Process without which this one stops, as on a signal.

    Returns
    -------
    bool
        False if a signal ended the work before.
    """
    study = open_study(files, plan, Dataset.open(dataset).dataset_id)
    worker = Worker(study, dataset, plan, files, parent)
    started, done = time.monotonic(), 0
    try:
        while True:
            claimed = claim(study, files, plan)
            if claimed is not None:
                with claimed.lock:
                    line = worker.run_trial(claimed)
                done += 1
                say(f"{line}; {progress_words(study, plan, started, done)}")
            elif study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                time.sleep(POLL_SECONDS)  # which trials are best is known when all have ended
            elif (refitted := worker.refit_next()) is not None:
                say(refitted)
            else:
                return True
    except StoppedError:
        return False


def progress_words(study: optuna.Study, plan: Plan, started: float, done: int) -> str:
    """How far the study is, and how long it takes at this rate."""
    ended = sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))
    left = max(plan.search.trials - ended, 0)
    minutes = (time.monotonic() - started) / done * left / 60
    return f"{ended} of {plan.search.trials} trials, at most {minutes:.0f} min left here"


@dataclass(frozen=True, slots=True)
class Worker:
    """Trains what a study asks for, in this process."""

    study: optuna.Study
    dataset: str
    plan: Plan
    files: StudyFiles
    parent: int | None = None
    """Process without which this one stops, as on a signal."""

    def run_trial(self, claimed: Claim) -> str:
        """Train one trial and record how it ended, whatever that is; returns it in a line.

        Raises
        ------
        StoppedError
            If a signal ended it; the trial stays open.
        """
        trial, again = claimed.trial, claimed.again
        folder, name = self.files.trial(trial.number), f"trial {trial.number}"
        if again and not (folder / CONFIG).exists():
            shutil.rmtree(folder, ignore_errors=True)  # it died before its run began
        failure = None
        try:
            with warnings.catch_warnings(action="ignore"):
                values = draw_all(self.plan.space, trial)
            config = trial_config(self.plan, values)
            watch = self.watch(trial)
            result = train(self.dataset, config, folder, resume=again, progress=watch)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            line = f"{name} pruned"
        except Exception as error:
            failure = describe(error)
        else:
            if result["status"] == "interrupted":
                trial.set_user_attr("interrupted", True)
                raise StoppedError
            for key in ("best_epoch", "epochs", "seconds", "validation"):
                trial.set_user_attr(key, result[key])
            value, objective = result["best_value"], self.plan.search.objective
            if value is None or not math.isfinite(value):
                failure = f"no epoch had a finite {objective}"
            else:
                self.study.tell(trial, value)
                line = f"{name}: {objective} {value:.4f} (best {self.study.best_value:.4f})"
        if failure is not None:
            trial.set_user_attr("failure", failure)
            self.study.tell(trial, state=TrialState.FAIL)
            line = f"{name} failed: {failure}"
        release_memory()
        if not self.plan.search.keep_checkpoints:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return line

    def watch(self, trial: Trial | None = None) -> Progress:
        """A listener that ends a training if the parent has gone, or the pruner ends its trial."""

        def listen(event: Event) -> None:
            if self.parent is not None and os.getppid() != self.parent:
                os.kill(os.getpid(), signal.SIGTERM)  # its state is saved
            if trial is None or event.stage != "epoch":
                return
            value = event.record.get(self.plan.search.objective)
            if value is None or not math.isfinite(value):
                return
            with warnings.catch_warnings(action="ignore"):  # a resumed trial reports an epoch again
                trial.report(value, event.epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned

        return listen

    def refit_next(self) -> str | None:
        """Do one refit that no other worker does; returns its outcome, or None if none is left.

        Raises
        ------
        StoppedError
        """
        best = best_trials(self.study, self.plan.refit.top)
        for seed, trial in itertools.product(self.plan.refit.seeds, best):
            folder = self.files.refit(trial.number, seed)
            lock = None if (folder / RESULT).exists() else try_lock(self.files.lock(folder.name))
            if lock is None:
                continue
            with lock:
                if not (folder / RESULT).exists():
                    config = refit_config(self.files, trial, seed, self.plan)
                    outcome = self.refit(folder, config)
                    return f"refit of trial {trial.number} with seed {seed}: {outcome}"
        return None

    def refit(self, folder: Path, config: Config) -> str:
        """Train once more, continuing if it was begun, and leave the result in the folder."""
        begun = (folder / CONFIG).exists()
        try:
            result = train(self.dataset, config, folder, resume=begun, progress=self.watch())
        except Exception as error:
            result = {"status": "failed", "failure": describe(error), "best_value": None}
        release_memory()
        if result["status"] == "interrupted":
            raise StoppedError
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / RESULT, json.dumps(result, default=str).encode())
        value = result["best_value"]
        return result.get("failure") or f"{config.train.monitor} {value:.4f}"


def describe(error: BaseException) -> str:
    """One line about a failure; running out of memory is named as such."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, ProjectError):
        return text
    return f"{'out of memory' if is_out_of_memory(error) else type(error).__name__}: {text}"


def release_memory() -> None:
    """Give back what a training held, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def refit_config(files: StudyFiles, trial: FrozenTrial, seed: int, plan: Plan) -> Config:
    """Configuration of a trial with another seed, and another length if the plan has one."""
    mapping = to_mapping(load_config(Config, files.trial(trial.number) / CONFIG))
    mapping["train"]["seed"] = seed
    if plan.refit.epochs is not None:
        mapping["train"]["epochs"] = plan.refit.epochs
    return from_mapping(Config, mapping)

"""The whole sweep: start workers, replace those that die, and recommend at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import optuna

from lensprep.dataset import Dataset
from lensprep.errors import ProjectError, StorageError
from lensprep.store.interrupts import PREEMPTED, grace, killed_by
from lenstrain.sweep.config import Plan
from lenstrain.sweep.report import recommend
from lenstrain.sweep.study import StudyFiles, open_study
from lenstrain.training.counterfactuals import require_pairs
from lenstrain.training.signals import SAVE_SECONDS
from lenstrain.training.step import check_precision

_WORKERS_SECONDS = SAVE_SECONDS + 5.0
"""Time from a signal until all have ended: the workers save, or end without saving."""
MOST_DEATHS = 5
"""Workers lost without a finished trial in between, after which the sweep stops."""


class WorkerError(ProjectError):
    """The workers of a sweep ended before the study did."""


def sweep(
    dataset: str, plan: Plan, files: StudyFiles, arguments: Sequence[str], workers: int | None
) -> dict[str, Any]:
    """Search, refit and recommend.

    Parameters
    ----------
    dataset : str
    plan : Plan
    files : StudyFiles
    arguments : sequence of str
        Command line of the sweep, which a worker repeats with ``--worker N``.
    workers : int, optional
        Processes; by default one for each GPU, or one. Each uses one GPU if there are any.

    Returns
    -------
    dict
        See `lenstrain.sweep.report.recommend`; ``status`` is "completed" or "interrupted", with
        ``signal``.

    Raises
    ------
    ConfigError
        If no trial could train on this machine, or the dataset has no pairs to be steered by.
    WorkerError
        If workers end one after the other without finishing a trial.
    """
    gpus = visible_gpus()
    on_gpu = plan.base.train.device != "cpu" and gpus
    if all(dimension.key != "train.amp" for dimension in plan.space):
        check_precision(plan.base.train.amp, "cuda" if on_gpu else "cpu")
    opened = Dataset.open(dataset)
    require_pairs(opened, plan.base.eval.split, plan.search.objective, "search.objective")
    study = open_study(files, plan, opened.dataset_id)
    number = supervise(study, arguments, workers or max(len(gpus), 1))
    if number is not None:
        return {"status": "interrupted", "signal": number, "study": str(files.database)}
    return {"status": "completed", **recommend(study, dataset, plan, files)}


def report_study(dataset: str, plan: Plan, files: StudyFiles) -> dict[str, Any]:
    """Write the page of a study as it is, and train nothing.

    Returns
    -------
    dict
        As `sweep`; ``status`` is "completed" or "running".

    Raises
    ------
    StorageError
        If there is no such study.
    """
    if not files.database.exists():
        raise StorageError(f"{files.database}: no such study. Leave out --report to begin it.")
    study = open_study(files, plan, Dataset.open(dataset).dataset_id)
    result = recommend(study, dataset, plan, files)
    return {"status": "completed" if result["progress"]["finished"] else "running", **result}


def visible_gpus() -> list[str]:
    """GPUs that this process may use, by the names that CUDA knows them by."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def worker_environment(number: int, workers: int, gpus: Sequence[str]) -> dict[str, str]:
    """Environment of a worker: its own GPU, and its share of the processors."""
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))
    return environment


def supervise(study: optuna.Study, arguments: Sequence[str], workers: int) -> int | None:
    """Run the workers until all have succeeded; returns the signal if one came first."""
    gpus, received = visible_gpus(), []

    def end_workers() -> None:
        for number, process in list(running.items()):
            if number not in told:
                told.add(number)
                process.terminate()

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        end_workers()
        if number == signal.SIGINT and len(received) > 1:
            for process in running.values():
                process.kill()

    def start(number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lenstrain", *arguments, "--worker", str(number)]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env=worker_environment(number, workers, gpus)
        )

    running: dict[int, subprocess.Popen[bytes]] = {}
    told = set[int]()
    before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    deaths, ended = 0, -1
    try:
        with grace(_WORKERS_SECONDS, "Repeat the command to continue.", keeps_state=True):
            for worker in range(workers):
                running[worker] = start(worker)
            while running:
                if received:
                    end_workers()  # one that was just being started
                time.sleep(0.2)
                for number, process in list(running.items()):
                    status = process.poll()
                    if status is None:
                        continue
                    del running[number]
                    if status == 0 or received:
                        continue
                    now = sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))
                    deaths = 1 if now > ended else deaths + 1
                    ended = now
                    _check_deaths(status, deaths)
                    running[number] = start(number)
    finally:
        for process in running.values():
            process.terminate()
        for number, handler in before.items():
            signal.signal(number, handler)
    return received[0] if received else None


def _check_deaths(status: int, deaths: int) -> None:
    """Raise after an error that every worker would meet, or too many kills."""
    if status > 0 and status != PREEMPTED:
        raise WorkerError("A worker of the sweep ended with an error; see the lines above.")
    if deaths >= MOST_DEATHS:
        how = "stopped from outside" if status == PREEMPTED else f"killed ({killed_by(status)})"
        advice = "Use fewer --workers or smaller models; then repeat" if status == -9 else "Repeat"
        raise WorkerError(
            f"{deaths} workers in a row ended without finishing a trial; the last was {how}. "
            f"{advice} the command to continue."
        )

"""A run folder as it is now, local or in an object store: only read, never written into."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lensprep.configfile import from_mapping
from lensprep.errors import ConfigError, NotFoundError, StorageError, count_text, time_text
from lensprep.store import Store, is_remote, local_path, open_store
from lenstrain.config import Config
from lenstrain.monitor.diagnosis import Diagnosis, History, diagnose, since_best, values

Status = Literal[
    "not started", "starting", "running", "finished", "stopped", "interrupted", "crashed", "silent"
]
OVER = ("finished", "stopped", "interrupted", "crashed")
"""States that a run does not leave without a new start."""

LEAST_SILENCE = 120.0
"""Seconds without a new line before a run whose process is not known counts as silent."""
_CONFIG, _ENVIRONMENT, _METRICS = "config.toml", "environment.json", "metrics.jsonl"
_NONFINITE, _INTERRUPTED = "nonfinite.json", "interrupted.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What is known of a run at one moment."""

    run: str
    status: Status
    detail: str
    """The state in a sentence."""
    config: Config = field(default_factory=Config)
    history: History = field(default_factory=History)
    steps_per_epoch: int | None = None
    device: str = ""
    diagnoses: Sequence[Diagnosis] = ()

    @property
    def step(self) -> int:
        """Last step that is recorded."""
        records = (*self.history.intervals[-1:], *self.history.epochs[-1:])
        return max((int(record["step"]) for record in records), default=0)

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, if it is not stopped before."""
        if self.steps_per_epoch is None:
            return None
        return self.steps_per_epoch * self.config.train.epochs

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at the rate of the last intervals; None if it is not known."""
        if self.status in OVER or self.steps is None:
            return None
        rates = [rate for rate in values(self.history.intervals, "samples_per_s")[-20:] if rate > 0]
        if not rates:
            return None
        step_seconds = self.config.data.batch_size / statistics.median(rates)
        checks = values(self.history.epochs, "validation_seconds")
        validations = self.config.train.epochs - len(self.history.epochs)
        left = max(self.steps - self.step, 0) * step_seconds
        return left + validations * (statistics.median(checks) if checks else 0.0)

    def to_dict(self) -> dict[str, Any]:
        """The snapshot in plain types, for ``--json``."""
        train, epochs = self.config.train, self.history.epochs
        metric = values(epochs, train.monitor)
        best = len(metric) - 1 - since_best(self.history)
        return {
            "run": self.run,
            "status": self.status,
            "detail": self.detail,
            "epochs_done": len(epochs),
            "epochs": train.epochs,
            "step": self.step,
            "steps": self.steps,
            "seconds_left": self.seconds_left,
            "monitor": train.monitor,
            "best_value": metric[best] if metric else None,
            "best_epoch": int(epochs[best]["epoch"]) if metric else None,
            "latest_interval": dict(self.history.intervals[-1]) if self.history.intervals else None,
            "latest_epoch": dict(epochs[-1]) if epochs else None,
            "diagnoses": [asdict(finding) for finding in self.diagnoses],
        }


def expand(runs: Sequence[str]) -> list[str]:
    """Replace a local folder that is no run by the runs in it, such as the trials of a sweep."""
    found: list[str] = []
    for run in runs:
        inside: list[str] = []
        if not is_remote(run) and not (local_path(run) / _CONFIG).exists():
            inside = sorted(str(path.parent) for path in local_path(run).glob(f"*/{_CONFIG}"))
        found += inside or [run]
    return found


def may_be_run(run: str, absent: bool) -> bool:
    """Whether a location is a run, or an empty one that may become it.

    Parameters
    ----------
    run : str
    absent : bool
        What to answer if there is nothing at all.
    """
    if is_remote(run):
        store = open_store(run)
        return store.has(_CONFIG) or (absent and not store.entries())
    folder = local_path(run)
    if not folder.exists():
        return absent
    return folder.is_dir() and ((folder / _CONFIG).exists() or not any(folder.iterdir()))


def read_snapshot(run: str, now: float | None = None) -> Snapshot:
    """Read a run as it is now.

    Parameters
    ----------
    run : str
        A run folder, local or ``s3://``; one that is not there yet is "not started".
    now : float, optional
        Time in seconds since the epoch, if not the present.

    Returns
    -------
    Snapshot

    Raises
    ------
    StorageError
        If it cannot be read; not if there is nothing yet.
    """
    store = open_store(run)
    text = _read(store, _CONFIG)
    if text is None:
        return Snapshot(run=run, status="not started", detail="There is no run here yet.")
    config = _config(text, run)
    environment = _object(_read(store, _ENVIRONMENT))
    intervals, epochs = parse_metrics(_read(store, _METRICS) or "")
    steps = environment.get("steps_per_epoch")
    length = config.train.epochs * (steps or 0)
    history = History(
        intervals=intervals,
        epochs=epochs,
        monitor=config.train.monitor,
        peak_lr=config.optim.lr,
        warmup_steps=min(config.optim.warmup_epochs * (steps or 0), length / 2),
        clip_norm=config.optim.clip_norm,
        counterfactual_share=config.data.counterfactual_share,
        nonfinite=_read(store, _NONFINITE) is not None,
    )
    age = _age(run, time.time() if now is None else now)
    begun = bool(intervals or epochs or history.nonfinite)
    status, detail = judge(config, history, environment, _read(store, _INTERRUPTED), age)
    return Snapshot(
        run=run,
        status=status,
        detail=detail,
        config=config,
        history=history,
        steps_per_epoch=steps,
        device=str(environment.get("gpu") or environment.get("device") or ""),
        diagnoses=diagnose(replace(history, over=status in OVER)) if begun else (),
    )


def judge(
    config: Config,
    history: History,
    environment: dict[str, Any],
    interrupted: str | None,
    age: float | None,
) -> tuple[Status, str]:
    """Whether a run continues, and if not, why.

    Parameters
    ----------
    config : Config
    history : History
    environment : dict
        Content of environment.json.
    interrupted : str or None
        Text of interrupted.json, if it is there.
    age : float or None
        Seconds since the run last wrote, if that is known.
    """
    epochs = history.epochs
    if len(epochs) >= config.train.epochs:
        return "finished", f"{count_text(config.train.epochs, 'epoch')} done, as planned."
    waited = int(epochs[-1].get("epochs_without_gain") or 0) if epochs else 0
    if 0 < config.train.patience <= waited:
        return (
            "stopped",
            f"Stopped early: no gain in {history.monitor} for {count_text(waited, 'epoch')}.",
        )
    if history.nonfinite:
        return "crashed", "Ended because the loss was not finite; see nonfinite.json."
    ago = "" if age is None else f"; the last sign of life is {time_text(age)} old"
    go_on = "Continue with `lenstrain train --resume`."
    if interrupted is not None:
        how = _object(interrupted).get("signal") or "a signal"
        return "interrupted", f"Ended by {how} with its state saved{ago}. {go_on}"
    if process_alive(environment) is False:
        return "crashed", f"Process {environment['process']} has gone{ago}. {go_on}"
    if not (history.intervals or epochs):
        return "starting", f"No line is written yet{ago}."
    limit = max(LEAST_SILENCE, 5 * usual_gap(config, history))
    if age is not None and age > limit:
        return "silent", f"Nothing was written for {time_text(age)}; it hangs or was killed."
    return "running", f"Running{ago}." if age is not None else "Running, or ended without a trace."


def usual_gap(config: Config, history: History) -> float:
    """Usual seconds between two lines: an interval and the longest validation."""
    rates = [rate for rate in values(history.intervals, "samples_per_s") if rate > 0]
    stamps = config.train.log_every * config.data.batch_size
    interval = stamps / statistics.median(rates) if rates else 0.0
    return interval + max(values(history.epochs, "validation_seconds"), default=0.0)


def process_alive(environment: dict[str, Any]) -> bool | None:
    """Whether the process of a run is there; None on another machine, or if it is not known."""
    process = environment.get("process")
    if environment.get("host") != platform.node() or not isinstance(process, int):
        return None
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def parse_metrics(text: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of metrics.jsonl by kind; a last line that is still being written is left out."""
    found: dict[str, list[dict[str, Any]]] = {"interval": [], "epoch": []}
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(record, dict) and record.get("kind") in found and "step" in record:
            found[record["kind"]].append(record)
    return found["interval"], found["epoch"]


def _read(store: Store, name: str) -> str | None:
    try:
        data = store.read(name)
    except NotFoundError:
        return None
    return bytes(data).decode("utf-8", errors="replace")


def _config(text: str, run: str) -> Config:
    try:
        return from_mapping(Config, tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ConfigError) as error:
        raise StorageError(
            f"{run}: config.toml is not of this version: {error} Monitor the run with the version "
            "that trains it."
        ) from error


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _age(run: str, now: float) -> float | None:
    """Seconds since the newest of a local run's records; None for an object store."""
    if is_remote(run):
        return None
    folder = local_path(run)
    paths = [folder / _METRICS, folder / _CONFIG, folder / "checkpoints" / "last.pt"]
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return max(now - max(times), 0.0) if times else None

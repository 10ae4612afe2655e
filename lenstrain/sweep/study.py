"""The study in its database: opened, checked, locked; trials given out once, orphans adopted."""

from __future__ import annotations

import fcntl
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from lensprep.errors import ConfigError, StorageError, passing_fault
from lenstrain.config import completed
from lenstrain.evaluation.metrics import higher_is_better
from lenstrain.sweep.config import Plan, baseline_values

STUDY_NAME = "lenstrain"
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class StudyFiles:
    """Files of a study: the database, and a folder next to it."""

    database: Path

    @property
    def url(self) -> str:
        """URL of the database for SQLAlchemy, with special characters escaped."""
        return URL.create("sqlite", database=str(self.database)).render_as_string()

    @property
    def folder(self) -> Path:
        """Folder of runs, plots and the recommendation."""
        return self.database.with_suffix("")

    def trial(self, number: int) -> Path:
        """Run folder of a trial."""
        return self.folder / "trials" / f"trial-{number:04d}"

    def refit(self, number: int, seed: int) -> Path:
        """Run folder of a refit."""
        return self.folder / "refits" / f"trial-{number:04d}-seed-{seed}"

    def lock(self, name: str) -> Path:
        """A lock file."""
        return self.folder / "locks" / name


def make_study_files(database: Path) -> StudyFiles:
    """Check the name of the database and make the folder next to it."""
    if database.is_dir():
        raise StorageError(f"{database} is a folder; the study is a file, such as {database}.db.")
    if not database.suffix:
        raise StorageError(f"{database}: name the study's database with an ending, such as .db.")
    _check_kind(database)
    files = StudyFiles(database)
    try:
        files.lock("").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{files.folder} cannot be created: {error.strerror}.") from error
    return files


def _check_kind(database: Path) -> None:
    """Refuse a file of another kind before a folder is made next to it."""
    try:
        with database.open("rb") as file:
            start = file.read(len(_SQLITE))
    except FileNotFoundError:
        return
    except OSError as error:
        raise passing_fault(database, error) or error from error
    if start not in (b"", _SQLITE):
        raise StorageError(f"{database} is not an SQLite database. Name another file.")


@contextmanager
def database_errors(database: Path) -> Iterator[None]:
    """Raise StorageError with SQLite's own reason (read-only, locked, full) in one line."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DBAPIError):
            cause = cause.__cause__ or cause.__context__
        reason = str(error if cause is None else cause.orig).splitlines()[0]
        raise StorageError(f"{database} cannot be used: SQLite says: {reason}.") from error


@contextmanager
def exclusively(files: StudyFiles) -> Iterator[None]:
    """Use the study in one process at a time; the kernel frees the lock of one that dies.

    Optuna's warnings about its experimental features are kept from the user.
    """
    with files.lock("study").open("a") as file, database_errors(files.database):
        fcntl.flock(file, fcntl.LOCK_EX)
        with warnings.catch_warnings(action="ignore"):
            yield


def try_lock(path: Path) -> IO[str] | None:
    """Take a lock if it is free; closing the file releases it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def open_study(files: StudyFiles, plan: Plan, dataset_id: str) -> optuna.Study:
    """Open the study, or make it with the base configuration as its first trial.

    Raises
    ------
    ConfigError
        If it was begun with another dataset, base, objective or space.
    StorageError
        If the file is no study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = plan.search
    identity = {"dataset_id": dataset_id, **plan.identity()}
    with exclusively(files):
        fresh = not files.database.exists()
        if fresh and (files.folder / "trials").exists():
            raise StorageError(
                f"{files.folder} holds trials of a study whose database {files.database} is "
                "gone. Put the database back, or name another --study."
            )
        try:
            study = optuna.create_study(
                storage=optuna.storages.RDBStorage(files.url, {"connect_args": {"timeout": 60}}),
                study_name=STUDY_NAME,
                load_if_exists=True,
                direction="maximize" if higher_is_better(search.objective) else "minimize",
                sampler=make_sampler(plan, 0),
                pruner=optuna.pruners.MedianPruner(
                    n_startup_trials=search.pruner_startup,
                    n_warmup_steps=search.pruner_warmup_epochs,
                ),
            )
        except RuntimeError as error:  # Optuna's, of a database of another version
            raise StorageError(
                f"{files.database} is no study of this version: {str(error).splitlines()[0]}"
            ) from error
        check_identity(study, identity, files.database)
        if search.baseline and "identity" not in study.user_attrs:
            values = baseline_values(plan)
            stored = {d.key: d.stored(values[d.key]) for d in plan.space if d.key in values}
            study.enqueue_trial(stored, skip_if_exists=True)
        study.set_user_attr("identity", identity)
    return study


def check_identity(study: optuna.Study, identity: dict[str, Any], database: Path) -> None:
    """Refuse a study whose trials could not be compared with new ones."""
    before = study.user_attrs.get("identity")
    now = json.loads(json.dumps(identity))
    if before is not None:
        before = {**before, "base": completed(before["base"])}
    if before not in (None, now):
        key, old, new = _first_difference("", before, now)
        raise ConfigError(
            f"{database} was begun with {key} = {old!s:.100}, and now it is {new!s:.100}: its "
            "trials could not be compared with new ones. Use what it was begun with, or name "
            "another --study."
        )


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Name of the innermost value that differs, and both."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(str(key), old.get(key), new.get(key)) for key in [*new, *(old.keys() - new)]]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(k), *pair) for k, pair in enumerate(zip(old, new, strict=True))]
    else:
        return name, old, new
    key, before, now = next(pair for pair in pairs if pair[1] != pair[2])
    return _first_difference(f"{name}.{key}".lstrip("."), before, now)


@dataclass(slots=True)
class Claim:
    """A trial that this process works on, and the lock that says so."""

    trial: Trial
    lock: IO[str]
    again: bool
    """Whether a process that died had begun it."""


def claim(study: optuna.Study, files: StudyFiles, plan: Plan) -> Claim | None:
    """The next trial to work on: an orphan first, then a new one, or None if all are given out."""
    with exclusively(files):
        trials = study.get_trials(deepcopy=False)
        for frozen in trials:
            if frozen.state == TrialState.RUNNING:
                found = _adopt(study, files, frozen, plan.search.attempts)
                if found is not None:
                    return found
        given = sum(t.state != TrialState.WAITING for t in study.get_trials(deepcopy=False))
        if given >= plan.search.trials or hopeless(trials, plan):
            return None
        # The number is only known afterwards, but nobody else claims before this lock is free.
        study.sampler = make_sampler(plan, given)
        trial = study.ask()
        lock = try_lock(files.lock(f"trial-{trial.number:04d}"))
        assert lock is not None
        return Claim(trial, lock, again=False)


def make_sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """Sampler for one trial, seeded by its number, so that a killed study draws the same values.

    The constant liar keeps workers from trying the same values at the same time.
    """
    return optuna.samplers.TPESampler(
        n_startup_trials=plan.search.startup_trials,
        constant_liar=True,
        seed=plan.search.seed * 100_003 + number,
    )


def _adopt(
    study: optuna.Study, files: StudyFiles, frozen: FrozenTrial, attempts: int
) -> Claim | None:
    """Take over a running trial whose process is gone; fail it if that happened too often."""
    lock = try_lock(files.lock(f"trial-{frozen.number:04d}"))
    if lock is None:
        return None
    trial = Trial(study, frozen._trial_id)
    died = int(frozen.user_attrs.get("died", 0)) + 1
    if frozen.user_attrs.get("interrupted"):
        trial.set_user_attr("interrupted", False)  # it was asked to stop and did not die
    elif died >= attempts:
        trial.set_user_attr("failure", f"its process died {died} times")
        study.tell(trial, state=TrialState.FAIL)
        lock.close()
        return None
    else:
        trial.set_user_attr("died", died)
    return Claim(trial, lock, again=True)


def hopeless(trials: Sequence[FrozenTrial], plan: Plan) -> bool:
    """Whether ``search.failures_in_a_row`` trials failed, so that the next would too."""
    ended = [trial.state for trial in trials if trial.state.is_finished()]
    last = ended[-plan.search.failures_in_a_row :]
    return last == [TrialState.FAIL] * plan.search.failures_in_a_row


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """The best finished trials, best first; one of those with equal values."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1.0
    done.sort(key=lambda trial: (sign * float(trial.value or 0.0), trial.number))
    chosen: list[FrozenTrial] = []
    for trial in done:
        if all(trial.params != other.params for other in chosen):
            chosen.append(trial)
    return chosen[:count]

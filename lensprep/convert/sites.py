"""Where a conversion writes: the dataset, its work folder, a kept copy, local disk for a moment.

    plan = find_plan(store, resume=...)       of an earlier conversion; refuses what is occupied
    plan = make_plan(...)                     of a new one
    places = Places.of(plan, store, options, keep)
    require_disk(places.needs(rows, ...))     refuse to start what cannot end
    claim(store, plan)                        from here on the place is taken

Dataset and work folder may each be local or in an object store. The file ``.work/plan.json`` in
the dataset says what the conversion is of and where it works; it is there from the first moment
until after the manifest.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lensprep.convert.workfolder import PLAN_NAME, LocalWork, Work, open_work
from lensprep.dataset.layout import MANIFEST_NAME, RECORD_STRIDE, SPLITS
from lensprep.dataset.manifest import Manifest
from lensprep.dataset.strictjson import parse_json
from lensprep.errors import BudgetError, ChangedError, ConfigError, DatasetError, size_text
from lensprep.store import (
    LocalStore,
    RemoteStore,
    S3Options,
    Store,
    check_place,
    is_remote,
    is_within,
    local_path,
    open_store,
)

WORK_FOLDER: Final = ".work"
"""Folder in the dataset that holds the plan and, unless told otherwise, runs and progress."""

_PLAN: Final = f"{WORK_FOLDER}/{PLAN_NAME}"

GROUP_SHARDS: Final = 16
"""Most shards of one task of the second round: a run's index is opened once for all of them."""

_GROUP_BYTES: Final = 2 << 30
"""Most local disk for the records of one task, where runs are fetched from an object store."""

ROW_BYTES: Final = RECORD_STRIDE + 700
"""A row's record and sidecar row, in a run or in a shard."""

_SCRATCH_SHARE: Final = 0.5
"""Share of the free disk that tasks under way may take together."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Local folder for what is under way; every machine that runs tasks has its own."""

    conversion: str
    parent: Path | None = None
    """The machine's folder for temporary files if not given."""

    @property
    def root(self) -> Path:
        """Folder of this conversion."""
        return (self.parent or Path(tempfile.gettempdir())) / f"lensprep-{self.conversion}"

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """Path of a folder that is not made, and is gone afterwards."""
        path = self.root / f"{name}.{os.getpid()}"
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove what killed tasks on this machine left."""
        shutil.rmtree(self.root, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Need:
    """Room that a conversion takes somewhere."""

    where: str
    """Path or URI of a folder."""
    bytes: int
    """At most."""
    lasting: int
    """What remains of it when the conversion is finished."""

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return not is_remote(self.where)


@dataclass(frozen=True, slots=True)
class Places:
    """Where one conversion writes."""

    dataset: Store
    work: Work
    scratch: Scratch
    keep: Path | None = None
    """Local folder in which the shards of a dataset in an object store stay as well."""
    elsewhere: bool = False
    """Whether tasks run on other machines, each with a disk of its own for what is under way."""

    @classmethod
    def of(
        cls, plan: Mapping[str, Any], dataset: Store, options: S3Options, keep: Path | None
    ) -> Places:
        """Places of the conversion that a plan is about."""
        folder = plan["work"]
        # Objects that are gone in an hour do not belong into a class with a minimum of 30 days.
        plain = replace(options, storage_class=None)
        store = open_store(folder or f"{dataset.uri}/{WORK_FOLDER}", plain)
        parent = Path(folder) if folder and isinstance(store, LocalStore) else None
        scratch = Scratch(plan["id"], parent)
        return cls(dataset, open_work(store, plan["id"]), scratch, keep)

    @property
    def shard_folder(self) -> Path | None:
        """Local folder in which finished shards stay; None if they only pass through scratch."""
        if isinstance(self.dataset, LocalStore):
            return self.dataset.root
        return None if self.elsewhere else self.keep  # else it is downloaded at the end

    @property
    def shared_folders(self) -> list[Path]:
        """Local folders that whoever runs a task must see."""
        folders = [self.work.folder] if isinstance(self.work, LocalWork) else []
        if isinstance(self.dataset, LocalStore):
            folders.append(self.dataset.root / WORK_FOLDER)
        return list(dict.fromkeys(folders))

    @property
    def shard_store(self) -> RemoteStore | None:
        """Object store that finished shards are sent to."""
        return self.dataset if isinstance(self.dataset, RemoteStore) else None

    def group_shards(self, shard_rows: int, workers: int) -> int:
        """Most shards of one task of the second round."""
        if isinstance(self.work, LocalWork):
            return GROUP_SHARDS
        # Records of all of them are fetched before the first is written: as many as the disk
        # takes, since each run is then asked for fewer and longer ranges.
        free = _disk(self.scratch.root)[1]
        room = min(_GROUP_BYTES, _SCRATCH_SHARE * free / self._tasks_here(workers))
        return max(1, min(GROUP_SHARDS, int(room / _shard_bytes(shard_rows)) - 1))

    def needs(self, rows: int, shard_rows: int, workers: int) -> list[Need]:
        """Room that a conversion of so many rows takes, place by place.

        Parameters
        ----------
        rows : int
        shard_rows : int
            Rows of a shard, on average.
        workers : int
            Tasks that run at the same time.
        """
        data, inside = rows * ROW_BYTES, self.work.uri.startswith(f"{self.dataset.uri}/")
        found = [Need(self.dataset.uri, data + (data if inside else 0), data)]
        if not inside:
            found.append(Need(self.work.uri, data, 0))
        if self.keep is not None:
            found.append(Need(str(self.keep), data, data))
        shards = 0 if self.shard_folder else 1
        if not isinstance(self.work, LocalWork):
            most = -(-rows // (shard_rows * 4 * workers))
            shards += min(self.group_shards(shard_rows, workers), max(1, most))
        if shards:
            each = shards * min(_shard_bytes(shard_rows), data)
            here = self._tasks_here(workers)
            found.append(Need(str(self.scratch.root), here * each, 0))
        return found

    def _tasks_here(self, workers: int) -> int:
        """Tasks that share a disk: one where other machines run them."""
        return 1 if self.elsewhere else workers


def _shard_bytes(shard_rows: int) -> int:
    """Size of a shard with its sidecar: rows fall into shards by a hash, so some have more."""
    return int(shard_rows + 6 * math.sqrt(shard_rows)) * ROW_BYTES


def require_disk(needs: list[Need], rows: int) -> None:
    """Refuse to start what cannot end: on each disk, all that comes to lie there must fit.

    Raises
    ------
    BudgetError
    """
    disks: dict[int, list[Need]] = {}
    for need in needs:
        if need.is_local:
            disks.setdefault(_disk(Path(need.where))[0], []).append(need)
    for together in disks.values():
        needed = sum(need.bytes for need in together)
        free = _disk(Path(together[0].where))[1] + sum(_held(need.where) for need in together)
        if needed > free:
            lasting = sum(need.lasting for need in together)
            part = "all" if not lasting else f"{1 - lasting / needed:.0%}"
            raise BudgetError(
                f"{' and '.join(need.where for need in together)}: converting {rows:,} rows takes "
                f"up to {size_text(needed)} of disk ({part} of it only while it runs), but "
                f"{size_text(free)} are free. Choose another disk"
                + ("." if lasting else " with --work, or with TMPDIR for temporary files.")
            )


def _disk(folder: Path) -> tuple[int, int]:
    """Device that a folder lies on, or will, and its free bytes."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.stat().st_dev, shutil.disk_usage(there).free


def _held(folder: str) -> int:
    """Bytes that an interrupted conversion holds there already."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------ the plan


def find_plan(dataset: Store, *, resume: bool) -> dict[str, Any] | None:
    """Plan of a conversion that began here; None where there is nothing yet.

    A finished dataset may still have its plan: killed between its commit and its last line. With
    ``resume`` it may as well have none.

    Raises
    ------
    DatasetError
        If the place holds something else, or a finished dataset or an interrupted conversion and
        ``resume`` is not set. One that ended by itself (`mark_failed`) is in nobody's way.
    """
    if isinstance(dataset, LocalStore):
        check_place(dataset.root)
    if not _is_occupied(dataset):
        return None
    finished = dataset.has(MANIFEST_NAME)
    if finished and not resume:
        raise DatasetError(f"{dataset.uri} is a finished dataset already. Choose another folder.")
    if not dataset.has(_PLAN):
        if finished:
            return None
        what = "no interrupted conversion but other files" if resume else "other files"
        raise DatasetError(f"{dataset.uri} holds {what}. Choose another folder.")
    plan = {"id": "", "work": None, "failed": False, **_read_plan(dataset)}
    if not (resume or plan["failed"]):
        raise DatasetError(
            f"{dataset.uri} holds an interrupted conversion, or one that is running. Add --resume "
            "to go on with it, or remove the folder."
        )
    return plan


def _read_plan(dataset: Store) -> dict[str, Any]:
    try:
        return dict(parse_json(bytes(dataset.read(_PLAN))))
    except (ValueError, TypeError):
        raise DatasetError(
            f"{dataset.uri} holds a {_PLAN} that is not the plan of a conversion. Remove the "
            "folder, or choose another one."
        ) from None


def _is_occupied(dataset: Store) -> bool:
    """Whether there is anything in a folder."""
    if isinstance(dataset, RemoteStore):
        return dataset.has_any()
    root = Path(dataset.uri)
    return root.exists() and any(root.iterdir())


def require_apart(source: str, dataset: str, *others: str | None) -> None:
    """Refuse to write where the source lies, which would be read as rows of it, or around it.

    Parameters
    ----------
    source, dataset : str
    *others : str, optional
        Folders that may well hold the source, besides what is written.

    Raises
    ------
    ConfigError
    """
    pairs = [(source, dataset), *((place, source) for place in (dataset, *others) if place)]
    for inner, outer in pairs:
        if is_within(inner, outer):
            raise ConfigError(
                f"{inner} lies in {outer}: what is written would be taken for rows of the source. "
                "Choose a folder apart from it."
            )


def make_plan(identity: Mapping[str, Any], digest: str, work: str | None) -> dict[str, Any]:
    """Plan of a new conversion.

    Parameters
    ----------
    identity : mapping
        Settings that decide the bytes.
    digest : str
        Of the source's listing.
    work : str, optional
        Folder, local or ``s3://``, in which the work folder is to be made; the dataset's own if
        not given.
    """
    conversion = secrets.token_hex(8)
    return {
        "id": conversion,
        "work": _work_folder(work, conversion),
        "config": dict(identity),
        "source": digest,
        "failed": False,
    }


def _work_folder(work: str | None, conversion: str) -> str | None:
    if work is None:
        return None
    if is_remote(work):
        return f"{work.rstrip('/')}/lensprep-{conversion}".replace("s3a://", "s3://", 1)
    return str(local_path(work).absolute() / f"lensprep-{conversion}")


def difference(
    before: Mapping[str, Any],
    plan: Mapping[str, Any],
    dataset: Store,
    source: str,
    work: str | None,
) -> str | None:
    """Why an earlier conversion cannot go on as this one; None if it can.

    It must be of the same rows, settings and work folder.
    """
    if before["source"] != plan["source"]:
        return (
            f"{dataset.uri} is an interrupted conversion of other source files than {source} has "
            "now. Remove the folder and convert again."
        )
    if changed := _changed(before["config"], plan["config"]):
        return (
            f"{dataset.uri} was begun with {changed}. Resume with the same settings and version, "
            "or remove the folder."
        )
    if work is not None and _work_folder(work, before["id"]) != before["work"]:
        return (
            f"{dataset.uri} was begun with its work in {before['work'] or WORK_FOLDER}, not in "
            f"{work}. Resume without --work."
        )
    return None


def require_finished(
    manifest: Manifest, identity: Mapping[str, Any], digest: str, dataset: Store, source: str
) -> None:
    """A finished dataset is what this conversion would make only of the same rows and settings.

    Raises
    ------
    DatasetError
    """
    if manifest.source.get("digest") != digest:
        raise DatasetError(
            f"{dataset.uri} is a finished dataset of other source files than {source} has now. "
            "Choose another folder."
        )
    if changed := _changed(manifest.config, identity):
        raise DatasetError(
            f"{dataset.uri} is a finished dataset that was made with {changed}. Choose another "
            "folder."
        )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting that is another now, with both values."""
    for name, value in now.items():
        if before.get(name) != value:
            return f"{name} = {before.get(name)!r}, not {value!r}"
    return None


def claim(dataset: Store, plan: Mapping[str, Any]) -> None:
    """Take a place: of two conversions that begin there at the same moment, one does.

    Raises
    ------
    DatasetError
        If another one was faster.
    """
    try:
        dataset.create(_PLAN, json.dumps(plan, indent=2).encode())
    except ChangedError:
        raise DatasetError(
            f"Another conversion to {dataset.uri} has just begun. Choose another folder."
        ) from None


def mark_failed(dataset: Store, plan: Mapping[str, Any], failed: bool) -> None:
    """Say of a conversion that it ended by itself without a dataset, or that it goes on again."""
    dataset.write(_PLAN, json.dumps({**plan, "failed": failed}, indent=2).encode())


def discard(places: Places, plan: Mapping[str, Any]) -> None:
    """Remove what a conversion that failed has left: its shards, and all that `release` does.

    Raises
    ------
    DatasetError
        If another one is there by now.
    """
    dataset = places.dataset
    if _read_plan(dataset) != plan:
        raise DatasetError(
            f"Another conversion to {dataset.uri} has just begun. Choose another folder."
        )
    for split in SPLITS:
        for entry in dataset.entries(f"{split}/{split}-"):
            dataset.delete(entry.name)
    release(places)


def release(places: Places) -> None:
    """Remove the work folder, and then the plan: what is left is a dataset, or nothing."""
    places.scratch.remove()
    places.work.remove()
    dataset = places.dataset
    dataset.delete(_PLAN)
    if isinstance(dataset, LocalStore):
        for folder in (dataset.root / WORK_FOLDER, dataset.root):
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def kept_folder(dataset: Store, keep: str | None, *, resume: bool) -> Path | None:
    """Folder for a copy that is to be kept, if there is to be one.

    Raises
    ------
    ConfigError
        If the dataset is local anyway.
    DatasetError
        If the folder holds something else.
    """
    if keep is None:
        return None
    if isinstance(dataset, LocalStore):
        raise ConfigError("--keep-local is for a dataset in an object store; this one is local.")
    folder = LocalStore(local_path(keep))
    check_place(folder.root)
    if folder.has(MANIFEST_NAME) and not dataset.has(MANIFEST_NAME):
        raise DatasetError(f"{keep} is a finished dataset already. Choose another folder.")
    if _is_occupied(folder) and not resume:
        raise DatasetError(f"{keep} holds other files. Choose another folder.")
    return folder.root

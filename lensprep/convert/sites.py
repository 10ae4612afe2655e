"""Where a conversion writes: the dataset, its work folder, a kept copy, local disk for a moment.

    sites = Sites.of(plan, store, options, keep)
    require_disk(sites.needs(rows, ...))      refuse to start what cannot end

Dataset and work folder may each be local or in an object store.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lensprep.convert.plan import PLAN, WORK_FOLDER, Plan, read_plan, taken
from lensprep.convert.workfolder import LocalWork, Work, open_work
from lensprep.dataset.layout import MANIFEST_NAME, RECORD_STRIDE, SPLITS
from lensprep.errors import BudgetError, ConfigError, DatasetError, size_text
from lensprep.store import (
    LocalStore,
    RemoteStore,
    S3Options,
    Store,
    check_place,
    is_remote,
    local_path,
    open_store,
)
from lensprep.store.files import is_within

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
class Sites:
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
        cls,
        plan: Plan,
        dataset: Store,
        options: S3Options,
        keep: Path | None = None,
        *,
        elsewhere: bool = False,
    ) -> Sites:
        """Sites of the conversion that a plan is about."""
        # Objects that are gone in an hour do not belong into a class with a minimum of 30 days.
        plain = replace(options, storage_class=None)
        store = open_store(plan.work or f"{dataset.uri}/{WORK_FOLDER}", plain)
        parent = Path(plan.work) if plan.work and isinstance(store, LocalStore) else None
        scratch = Scratch(plan.id, parent)
        return cls(dataset, open_work(store, plan.id), scratch, keep, elsewhere)

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
        """Room that a conversion of so many rows takes, site by site.

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
            share = "all" if not lasting else f"{1 - lasting / needed:.0%}"
            raise BudgetError(
                f"{' and '.join(need.where for need in together)}: converting {rows:,} rows takes "
                f"up to {size_text(needed)} of disk ({share} of it only while it runs), but "
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
    pairs = [(source, dataset), *((folder, source) for folder in (dataset, *others) if folder)]
    for inner, outer in pairs:
        if is_within(inner, outer):
            raise ConfigError(
                f"{inner} lies in {outer}: what is written would be taken for rows of the source. "
                "Choose a folder apart from it."
            )


def discard(sites: Sites, plan: Plan) -> None:
    """Remove what a conversion that failed has left: its shards, and all that `release` does.

    Raises
    ------
    DatasetError
        If another one is there by now.
    """
    dataset = sites.dataset
    if read_plan(dataset) != plan:
        raise taken(dataset)
    for split in SPLITS:
        for entry in dataset.entries(f"{split}/{split}-"):
            dataset.delete(entry.name)
    release(sites)


def release(sites: Sites) -> None:
    """Remove the work folder, and then the plan: what is left is a dataset, or nothing."""
    sites.scratch.remove()
    sites.work.remove()
    dataset = sites.dataset
    dataset.delete(PLAN)
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
    if folder.has_any() and not resume:
        raise DatasetError(f"{keep} holds other files. Choose another folder.")
    return folder.root

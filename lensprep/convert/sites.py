"""Where a conversion writes: the dataset, its work folder, a local copy, temporary local disk.

    sites = Sites.of(plan, store, options, keep)
    require_disk(sites.needs(rows, ...))      refuse what would not fit

Dataset and work folder may each be local or in an object store.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lensprep.convert.plan import PLAN, WORK_FOLDER, Plan, read_plan, taken
from lensprep.convert.workfolder import LocalWork, Work, open_work
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.layout import MANIFEST_NAME, SPLITS
from lensprep.errors import BudgetError, ConfigError, DatasetError, size_text
from lensprep.source.listing import Location
from lensprep.store import (
    LocalStore,
    RemoteStore,
    S3Options,
    Store,
    check_location,
    is_remote,
    local_path,
    open_store,
)
from lensprep.store.files import is_within

GROUP_SHARDS: Final = 16
"""Most shards of one task of the second round: it opens a run's index once for all of them."""

_GROUP_BYTES: Final = 2 << 30
"""Most local disk for the records of one task, where runs are fetched from an object store."""

_SIDECAR_ROW_BYTES: Final = 700

_SCRATCH_SHARE: Final = 0.5
"""Share of the free disk that running tasks may take together."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Local folder for unfinished files; every machine that runs tasks has its own."""

    conversion: str
    parent: Path | None = None
    """By default the machine's folder for temporary files."""

    @property
    def root(self) -> Path:
        """Folder of this conversion."""
        return (self.parent or Path(tempfile.gettempdir())) / f"lensprep-{self.conversion}"

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """Path of a folder, which is not created here, and is removed afterwards."""
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
    """Space that a conversion takes on a disk or in a store."""

    where: str
    """Path or URI of a folder."""
    bytes: int
    """Upper limit."""
    lasting: int
    """The bytes that remain when the conversion is finished."""

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
    """Whether tasks run on other machines, each with its own disk for unfinished files."""

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
        """Sites of the conversion that a plan describes."""
        # Objects that last an hour do not belong in a storage class billed for 30 days or more.
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
        return None if self.elsewhere else self.keep  # filled by a download at the end instead

    @property
    def shared_folders(self) -> list[Path]:
        """Local folders that every worker must see."""
        folders = [self.work.folder] if isinstance(self.work, LocalWork) else []
        if isinstance(self.dataset, LocalStore):
            folders.append(self.dataset.root / WORK_FOLDER)
        return list(dict.fromkeys(folders))

    @property
    def shard_store(self) -> RemoteStore | None:
        """Object store that finished shards are sent to."""
        return self.dataset if isinstance(self.dataset, RemoteStore) else None

    def group_shards(self, shard_rows: int, workers: int, geometry: Geometry = DECALS) -> int:
        """Most shards of one task of the second round."""
        if isinstance(self.work, LocalWork):
            return GROUP_SHARDS
        # The records of all of them are fetched before the first shard is written. As many as the
        # disk holds are taken, since more shards mean fewer and longer ranges of each run.
        free = _disk(self.scratch.root)[1]
        room = min(_GROUP_BYTES, _SCRATCH_SHARE * free / self._tasks_here(workers))
        return max(1, min(GROUP_SHARDS, int(room / _shard_bytes(shard_rows, geometry)) - 1))

    def needs(
        self, rows: int, shard_rows: int, workers: int, geometry: Geometry = DECALS
    ) -> list[Need]:
        """Space that a conversion of this many rows takes, site by site."""
        data, inside = rows * row_bytes(geometry), self.work.uri.startswith(f"{self.dataset.uri}/")
        found = [Need(self.dataset.uri, data + (data if inside else 0), data)]
        if not inside:
            found.append(Need(self.work.uri, data, 0))
        if self.keep is not None:
            found.append(Need(str(self.keep), data, data))
        shards = 0 if self.shard_folder else 1
        if not isinstance(self.work, LocalWork):
            most = -(-rows // (shard_rows * 4 * workers))
            shards += min(self.group_shards(shard_rows, workers, geometry), max(1, most))
        if shards:
            each = shards * min(_shard_bytes(shard_rows, geometry), data)
            here = self._tasks_here(workers)
            found.append(Need(str(self.scratch.root), here * each, 0))
        return found

    def _tasks_here(self, workers: int) -> int:
        """Tasks that share a disk; taken as one if other machines run them."""
        return 1 if self.elsewhere else workers


def row_bytes(geometry: Geometry) -> int:
    """Size of a row's record and sidecar row, in a run or in a shard."""
    return geometry.stride + _SIDECAR_ROW_BYTES


def _shard_bytes(shard_rows: int, geometry: Geometry) -> int:
    """Size of a shard with its sidecar: rows fall into shards by a hash, so some have more."""
    return int(shard_rows + 6 * math.sqrt(shard_rows)) * row_bytes(geometry)


def require_disk(needs: list[Need], rows: int) -> None:
    """Raise BudgetError if a disk has no room for everything that will be written to it."""
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
    """Bytes that an interrupted conversion already holds there."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def require_apart(sources: Sequence[Location], dataset: str, *others: str | None) -> None:
    """Raise ConfigError if a folder to write lies in a source, or a source in the dataset.

    A source may lie in one of the other folders.
    """
    written = [folder for folder in (dataset, *others) if folder]
    pairs = [
        pair
        for source in sources
        for pair in ((source, dataset), *((folder, source) for folder in written))
    ]
    for inner, outer in pairs:
        if is_within(inner, outer):
            raise ConfigError(
                f"{inner} lies in {outer}: the output would be read as rows of the source. Choose "
                "a folder outside of it."
            )


def discard(sites: Sites, plan: Plan) -> None:
    """Remove the shards, work folder and plan of a failed conversion.

    Raises
    ------
    DatasetError
        If another conversion has taken the folder meanwhile.
    """
    dataset = sites.dataset
    if read_plan(dataset) != plan:
        raise taken(dataset)
    for split in SPLITS:
        for entry in dataset.entries(f"{split}/{split}-"):
            dataset.delete(entry.name)
    release(sites)


def release(sites: Sites) -> None:
    """Remove the work folder, and then the plan: a dataset is left, or nothing."""
    sites.scratch.remove()
    sites.work.remove()
    dataset = sites.dataset
    dataset.delete(PLAN)
    if isinstance(dataset, LocalStore):
        for folder in (dataset.root / WORK_FOLDER, dataset.root):
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def kept_folder(dataset: Store, keep: str | None, *, resume: bool) -> Path | None:
    """Folder for the local copy of the dataset, if one was asked for.

    Raises
    ------
    ConfigError
        If the dataset itself is local.
    DatasetError
        If the folder holds other files.
    """
    if keep is None:
        return None
    if isinstance(dataset, LocalStore):
        raise ConfigError("--keep-local is for a dataset in an object store; this one is local.")
    folder = LocalStore(local_path(keep))
    check_location(folder.root)
    if folder.has(MANIFEST_NAME) and not dataset.has(MANIFEST_NAME):
        raise DatasetError(f"{keep} is a finished dataset already. Choose another folder.")
    if folder.has_any() and not resume:
        raise DatasetError(f"{keep} holds other files. Choose another folder.")
    return folder.root

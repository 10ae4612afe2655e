"""`lensprep upload` and `download`: a finished dataset to or from an object store.

    upload("/nvme/lenses", "s3://bucket/lenses", S3Options(...))
    download("s3://bucket/lenses", "/nvme/lenses", S3Options(...))

Both can be stopped at any time and run again: files already there with the right digest are
skipped, every other one appears whole or not at all, and the manifest comes last, in a conditional
write that only the first of two writers can make. A reader never sees half a dataset, and no file
of another one is ever replaced.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from lensprep.dataset import MANIFEST_NAME, REJECTS_NAME, Dataset, Manifest
from lensprep.errors import (
    BudgetError,
    DatasetError,
    NotFoundError,
    StorageError,
    names_text,
    size_text,
)
from lensprep.store import (
    Entry,
    LocalStore,
    S3Options,
    Store,
    check_location,
    file_sha256,
    local_path,
    member_path,
    open_remote,
    remove_partials,
)
from lensprep.store.files import stored_sha256
from lensprep.store.transfer import abort_unfinished, download_file, run_files, upload_file

Progress = Callable[[str, int, int], None]
"""Called with a phase ("compare", or "MB" moved), what is done, and all."""

_STATS_AT_ONCE: Final = 16
_SPARE_BYTES: Final = 64 << 20
"""Space left free on a disk, for the manifest and for other programs."""


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """A file of a dataset, and what it must be."""

    name: str
    bytes: int
    sha256: str | None
    """None for `rejects.parquet`, whose digest no manifest states."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a transfer has to do."""

    absent: tuple[DatasetFile, ...]
    """Not there."""
    alike: tuple[DatasetFile, ...]
    """There, with the right size: their digests are to be compared."""
    unlike: tuple[DatasetFile, ...]
    """There, with another size."""


def dataset_files(manifest: Manifest) -> tuple[DatasetFile, ...]:
    """Shards and sidecars that a manifest names, in its order."""
    return tuple(
        file
        for split in manifest.splits.values()
        for shard in split.shards
        for file in (
            DatasetFile(shard.name, shard.bytes, shard.sha256),
            DatasetFile(shard.sidecar, shard.sidecar_bytes, shard.sidecar_sha256),
        )
    )


def plan_transfer(files: Sequence[DatasetFile], there: Mapping[str, Entry]) -> Plan:
    """Sort files by what the destination already holds."""
    sizes = {name: entry.bytes for name, entry in there.items()}
    return Plan(
        absent=tuple(file for file in files if file.name not in sizes),
        alike=tuple(file for file in files if sizes.get(file.name) == file.bytes),
        unlike=tuple(file for file in files if sizes.get(file.name, file.bytes) != file.bytes),
    )


def upload(
    dataset: str,
    uri: str,
    options: S3Options | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Copy a finished dataset from a local disk to an object store.

    Parameters
    ----------
    dataset : str
        Local folder.
    uri : str
        ``s3://bucket/folder``. Nothing else should write there at the same time.
    options : S3Options, optional
    progress : callable, optional

    Returns
    -------
    dict
        ``dataset_id``, ``destination``, ``files``, ``bytes``, ``sent_files``, ``sent_bytes``,
        ``skipped_files``, ``seconds`` and ``bytes_per_s`` (sent).

    Raises
    ------
    DatasetError
        If there is no finished dataset, it lacks a file, or the destination holds files of another.
    ChangedError
        If a local file is damaged, or another writer committed a dataset there meanwhile.
    StorageError
        If the store refuses or does not answer.
    """
    started = time.monotonic()
    source = Dataset.open(local_path(dataset))
    store = open_remote(uri, options)
    text = member_path(source.root, MANIFEST_NAME).read_bytes()
    there = {entry.name: entry for entry in store.entries()}
    committed = _committed(store, there, text)
    files = _local_files(source)
    todo, damaged = _compare(store, files, there, committed, progress)
    for file in damaged:
        store.delete(file.name)
    meter = _meter(todo, progress)
    run_files(store, [
        partial(upload_file, store, member_path(source.root, f.name), f.name, f.sha256, meter)
        for f in todo
    ])  # fmt: skip
    require_all(store, files)
    store.create(MANIFEST_NAME, text)
    abort_unfinished(store, [file.name for file in files])
    return _report(source, store.uri, files, todo, started)


def _local_files(source: Dataset) -> tuple[DatasetFile, ...]:
    """Files of a local dataset; all of them must be there."""
    here, files = LocalStore(source.root), dataset_files(source.manifest)
    for file in files:
        if not here.has(file.name):
            raise DatasetError(f"{source.root / file.name} is missing. Run `lensprep verify`.")
        size = here.stat(file.name).bytes
        if size != file.bytes:
            raise DatasetError(
                f"{source.root / file.name} has {size} bytes where the manifest states "
                f"{file.bytes}. Run `lensprep verify`."
            )
    if not here.has(REJECTS_NAME):  # written from arrays, without a source
        return files
    digest = file_sha256(source.root / REJECTS_NAME)
    return (*files, DatasetFile(REJECTS_NAME, here.stat(REJECTS_NAME).bytes, digest))


def require_all(store: Store, files: Sequence[DatasetFile]) -> None:
    """Require that all files are listed with their sizes, before the manifest is written."""
    plan = plan_transfer(files, {entry.name: entry for entry in store.entries()})
    for file in (*plan.absent, *plan.unlike):
        raise StorageError(
            f"{store.uri}/{file.name} was sent, but is not there now as it should be. Is somebody "
            "else writing there? Run the same command again."
        )


def download(
    uri: str,
    dataset: str,
    options: S3Options | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Copy a dataset from an object store to a local disk.

    Parameters
    ----------
    uri : str
        ``s3://bucket/folder``.
    dataset : str
        Local folder: a new one, or that of an unfinished download.
    options : S3Options, optional
    progress : callable, optional

    Returns
    -------
    dict
        As `upload`.

    Raises
    ------
    DatasetError
        If there is no dataset, or the folder holds files of another one.
    ChangedError
        If an object is damaged or was replaced.
    BudgetError
        If the disk is too small.
    StorageError
        If the store refuses or does not answer, or the disk refuses.
    """
    started = time.monotonic()
    store = open_remote(uri, options)
    root = local_path(dataset)
    check_location(root)
    source = Dataset.open(uri, options)
    text = bytes(store.read(MANIFEST_NAME))
    target = LocalStore(root)
    there = {entry.name: entry for entry in target.entries()}
    committed = _committed(target, there, text)
    files = dataset_files(source.manifest)
    try:
        rejects = store.stat(REJECTS_NAME)
        files = (*files, DatasetFile(REJECTS_NAME, rejects.bytes, rejects.sha256))
    except NotFoundError:
        pass
    if there and not there.keys() & {MANIFEST_NAME, *(file.name for file in files)}:
        raise DatasetError(
            f"{root} holds other files ({names_text(there, most=3)}), none of this dataset. Choose "
            "a folder that is empty or does not exist."
        )
    todo, _ = _compare(target, files, there, committed, progress)
    _require_disk(root, sum(file.bytes for file in todo))
    remove_partials(root)
    fetch = partial(download_file, store, progress=_meter(todo, progress))
    run_files(store, [
        partial(fetch, f.name, member_path(root, f.name), size=f.bytes, sha256=f.sha256)
        for f in todo
    ])  # fmt: skip
    target.create(MANIFEST_NAME, text)
    return _report(source, str(root), files, todo, started)


def _require_disk(root: Path, needed: int) -> None:
    folder = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed and free < needed + _SPARE_BYTES:
        raise BudgetError(
            f"{root}: {size_text(needed)} are needed, but only {size_text(free)} are free. "
            "Give a folder on a larger disk."
        )


def _committed(store: Store, there: Mapping[str, Entry], text: bytes) -> bool:
    """Whether the destination already holds this dataset; DatasetError if it holds another."""
    if MANIFEST_NAME not in there:
        return False
    if store.read(MANIFEST_NAME) != text:
        raise DatasetError(
            f"{store.uri} holds another dataset, and is left as it is. Choose another folder, or "
            "remove that dataset first."
        )
    return True


def _compare(
    store: Store,
    files: Sequence[DatasetFile],
    there: Mapping[str, Entry],
    committed: bool,
    progress: Progress | None,
) -> tuple[tuple[DatasetFile, ...], tuple[DatasetFile, ...]]:
    """Files to transfer, and those of them that are there but damaged.

    Under the manifest of this very dataset a file that differs is damaged; without that manifest,
    it belongs to something else.
    """
    plan = plan_transfer(files, there)
    unlike = list(plan.unlike)
    with ThreadPoolExecutor(_STATS_AT_ONCE) as threads:
        digests = threads.map(lambda file: stored_sha256(store, file.name), plan.alike)
        for done, (file, digest) in enumerate(zip(plan.alike, digests, strict=True), 1):
            if file.sha256 is not None and digest != file.sha256:
                unlike.append(file)
            if progress is not None:
                progress("compare", done, len(plan.alike))
    if unlike and not committed:
        more = f" (and {len(unlike) - 1} more files)" if len(unlike) > 1 else ""
        raise DatasetError(
            f"{store.uri}/{unlike[0].name}{more} already exists, with other content: left from "
            "another dataset, or just being written. Choose another folder, or remove it first."
        )
    return (*plan.absent, *unlike), tuple(unlike)


def _meter(files: Sequence[DatasetFile], progress: Progress | None) -> Callable[[int], None]:
    """Function by which many threads report the bytes of these files that they moved."""
    total, done, lock = sum(file.bytes for file in files), 0, threading.Lock()

    def add(more: int) -> None:
        nonlocal done
        with lock:
            done += more
            if progress is not None:
                progress("MB", done // 1_000_000, -(-total // 1_000_000))

    return add


def _report(
    source: Dataset,
    destination: str,
    files: Sequence[DatasetFile],
    moved: Sequence[DatasetFile],
    started: float,
) -> dict[str, Any]:
    seconds = time.monotonic() - started
    size = sum(file.bytes for file in moved)
    return {
        "dataset_id": source.dataset_id,
        "destination": destination,
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "sent_files": len(moved),
        "sent_bytes": size,
        "skipped_files": len(files) - len(moved),
        "seconds": round(seconds, 3),
        "bytes_per_s": round(size / seconds, 1),
    }

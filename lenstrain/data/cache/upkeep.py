"""What `lenstrain cache` does: look into a cache, fill it, hash it again, clear it."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from lensprep.dataset import Dataset
from lensprep.errors import ConfigError
from lensprep.store import S3Options, is_remote, local_path
from lenstrain.data.cache.filling import CachedSplit, Progress
from lenstrain.data.cache.folder import CacheFolder

logger = logging.getLogger("lenstrain.data")

_HASHERS = 4


def status(folder: CacheFolder) -> dict[str, Any]:
    """What is in a cache.

    Returns
    -------
    dict
        ``dir``, ``bytes`` (finished or on their way), ``free_bytes`` of the disk, ``datasets``, the
        most recently used first, and ``rates_mb_per_s``, which is empty: rates are no longer
        measured, but readers of the object may still look for the key. A dataset has
        ``dataset_id``, ``uri``, ``shards`` (complete), ``of`` (shards of the whole dataset; None
        if its description was lost), ``bytes``, ``coming`` (shards on their way), ``in_use`` and
        ``last_used`` (Unix time).
    """
    datasets = folder.held()  # which removes what killed processes left
    with folder.locked():
        used, _ = folder.usage()
    return {
        "dir": str(folder.root),
        "bytes": used,
        "free_bytes": folder.free(),
        "datasets": datasets,
        "rates_mb_per_s": {},
    }


def fill(
    folder: CacheFolder,
    uri: str,
    splits: Sequence[str] = (),
    *,
    s3: S3Options | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fetch splits of a dataset (all if none are named) as far as they fit.

    Returns
    -------
    dict
        ``dataset``, ``dataset_id``, ``dir``, ``splits``; wanted ``shards`` and those ``missing``
        (there was no room), ``bytes`` that are there, ``fetched`` shards and ``fetched_bytes`` by
        this call, ``seconds``, ``mb_per_s``.

    Raises
    ------
    ConfigError
        If the dataset is on a local disk already.
    DatasetError, ShardError, StorageError
        If it cannot be read, or the disk cannot be written to.
    """
    if not is_remote(uri):
        where = "is on a disk already" if local_path(uri).exists() else "is no s3:// location"
        raise ConfigError(f"{uri} {where}; only datasets in object stores are cached.")
    started = time.monotonic()
    dataset = Dataset.open(uri, s3)
    names = list(splits) or [name for name, split in dataset.manifest.splits.items() if split.rows]
    with closing(CachedSplit(folder, dataset, *names)) as copies:
        filled = copies.fill(progress)
        missing = copies.missing()
    seconds = time.monotonic() - started
    return {
        "dataset": dataset.uri,
        "dataset_id": dataset.dataset_id,
        "dir": str(folder.root),
        "splits": names,
        "shards": len(copies.shards),
        "missing": len(missing),
        "bytes": copies.bytes - sum(shard.bytes for shard in missing),
        "fetched": filled.fetched,
        "fetched_bytes": filled.fetched_bytes,
        "seconds": seconds,
        "mb_per_s": filled.fetched_bytes / seconds / 1e6,
    }


def verify(
    folder: CacheFolder, *, keep: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Hash every shard again, from the disk; a damaged one is removed unless `keep`.

    Returns
    -------
    dict
        ``ok``, ``dir``, ``shards``, ``bytes``, ``damaged`` (name, file, dataset_id and fault of
        each), ``removed``, ``seconds``.
    """
    started = time.monotonic()
    files = folder.shard_files()
    total, done = sum(size for *_, size in files), 0
    damaged = []
    with ThreadPoolExecutor(_HASHERS, "lenstrain-verify") as threads:
        faults = threads.map(lambda file: _fault(file[2]), files)
        for (dataset_id, name, path, size), fault in zip(files, faults, strict=True):
            done += size
            if progress is not None:
                progress(done, total)
            if fault is not None:
                entry = {"name": name, "file": str(path), "dataset_id": dataset_id, "fault": fault}
                damaged.append(entry)
                if not keep:
                    path.unlink(missing_ok=True)
    return {
        "ok": not damaged,
        "dir": str(folder.root),
        "shards": len(files),
        "bytes": total,
        "damaged": damaged,
        "removed": 0 if keep else len(damaged),
        "seconds": time.monotonic() - started,
    }


def _fault(path: Path) -> str | None:
    """What is wrong with a shard, whose name is its digest; None if nothing is."""
    try:
        with path.open("rb", buffering=0) as file:
            # What is in memory may be better than what is on the disk.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None  # evicted meanwhile
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == path.stem else f"its SHA-256 begins with {found[:12]}"


def clear(folder: CacheFolder, dataset_ids: Sequence[str] = ()) -> dict[str, Any]:
    """Remove datasets (all if none are named); those that a running process uses are kept.

    Parameters
    ----------
    folder : CacheFolder
    dataset_ids : sequence of str
        Beginnings of ids.

    Returns
    -------
    dict
        ``dir``, ``removed_bytes``, ``kept`` (ids in use).

    Raises
    ------
    ConfigError
        If an id is not that of just one dataset in the cache.
    """
    known = sorted(home.name for home in folder.homes())
    chosen = [_complete_id(text, known) for text in dataset_ids] if dataset_ids else known
    removed, kept = folder.clear(chosen)
    return {"dir": str(folder.root), "removed_bytes": removed, "kept": kept}


def _complete_id(text: str, known: Sequence[str]) -> str:
    found = [dataset_id for dataset_id in known if dataset_id.startswith(text)]
    if len(found) != 1:
        which = "no dataset" if not found else f"{len(found)} datasets"
        shown = ", ".join(dataset_id[:12] for dataset_id in known) or "nothing"
        raise ConfigError(f"{which} of this cache has an id like {text!r}; it holds {shown}.")
    return found[0]

"""Shards of an object store: whole ones to a local file, and the seam for a local cache.

    fetch_shard(dataset, shard, path)       one shard to a file, whole and of the right digest
    LocalCopies                             what a cache is to the reader of an object store

`lenstrain.data.split.open_split` chooses the source: a local dataset is mapped, one in an object
store is read by ranges, and shards of which `Reading.copies` has a local copy are mapped instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lensprep.dataset import Dataset, ShardInfo
from lensprep.errors import ChangedError, NotFoundError, ShardError, StorageError

MEMORY_BUDGET = 1 << 30
"""Bytes that read-ahead may hold by default."""


class LocalCopies(Protocol):
    """Shards that are on a local disk too, such as a cache; asked from several threads."""

    def path(self, shard: ShardInfo) -> Path | None:
        """Path of a complete, checked copy of a shard, or None to read it from the store.

        Asked whenever a part of the shard is about to be read. From then on the file must stay as
        it is until the reader is closed (it is mapped; its name may go, as the map keeps it).
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How the shards of an object store are read."""

    memory_budget: int = MEMORY_BUDGET
    """Most bytes of shards held at once."""
    check: bool = True
    """Compare the CRC-32 of every stamp on arrival."""
    copies: LocalCopies | None = None
    """Shards that need not be read from the store."""


def fetch_shard(
    dataset: Dataset,
    shard: ShardInfo,
    path: Path,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Copy a shard of an object store to a file, in parallel ranges.

    Parameters
    ----------
    dataset : Dataset
        In an object store.
    shard : ShardInfo
    path : Path
        It gets this name when it is whole, has the manifest's SHA-256, and is on the disk.
    progress : callable, optional
        Told, from any thread, how many bytes more have come.

    Raises
    ------
    ShardError
        If the shard is missing, or has not the size or digest that the manifest states.
    StorageError
        If the store or the disk refuses.
    """
    from lensprep.dataset.s3 import S3Store
    from lensprep.dataset.s3transfer import download_file

    if not isinstance(dataset.store, S3Store):
        raise StorageError(f"{dataset.uri} is on a local disk already; there is nothing to fetch.")
    try:
        download_file(
            dataset.store,
            shard.name,
            path,
            size=shard.bytes,
            sha256=shard.sha256,
            progress=progress,
        )
    except (NotFoundError, ChangedError) as error:
        raise ShardError(
            f"{str(error).rstrip('.')} ({shard.name}, offset 0). Upload the dataset again, or run "
            "`lensprep verify`."
        ) from error

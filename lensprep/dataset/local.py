"""A dataset on a local disk: its shards are mapped."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.dataset import Dataset
from lensprep.dataset.manifest import ShardInfo
from lensprep.dataset.record import payload_view
from lensprep.dataset.sidecar import unreadable
from lensprep.errors import ShardError
from lensprep.store import LocalStore


class LocalDataset(Dataset, remote=False):
    """A committed dataset on a local disk."""

    store: LocalStore

    def map_records(self, shard: ShardInfo) -> NDArray[np.uint8]:
        """Records of a shard, mapped: uint8, shape (rows, geometry.stride), read-only.

        Raises
        ------
        ShardError
            If the tar is missing or does not have the size in the manifest. The size is checked
            first because touching a mapped page beyond the end kills the process.
        """
        path, stride = self.path(shard.name), self.geometry.stride
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != shard.bytes:
                    raise ShardError(
                        f"{path} has {size} bytes where the manifest states {shard.bytes}: cut or "
                        f"replaced, offset {min(size, shard.bytes)}. Copy the shard again, or "
                        "convert again."
                    )
                if not shard.rows:
                    return np.empty((0, stride), np.uint8)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise unreadable(str(path), error) from error
        records = np.frombuffer(mapped, np.uint8, shard.rows * stride)
        return records.reshape(shard.rows, stride)

    def map_shard(self, shard: ShardInfo) -> NDArray[np.float16]:
        """Pixels of a shard, mapped: float16, (rows, *geometry.shape), strided and read-only.

        Raises
        ------
        ShardError
            As `map_records`.
        """
        return payload_view(self.map_records(shard), self.geometry)

    def read_records(
        self, shard: ShardInfo, start: int = 0, stop: int | None = None
    ) -> NDArray[np.uint8]:
        """Neighbouring records of a shard, mapped; see `Dataset.read_records`."""
        return self.map_records(shard)[start:stop]

    def read_tar(self, shard: ShardInfo) -> NDArray[np.uint8]:
        """Every byte of a shard, mapped; see `Dataset.read_tar`."""
        path = self.path(shard.name)
        try:
            return np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise unreadable(str(path), error) from error

    def _read_pixels(
        self,
        shards: Sequence[ShardInfo],
        which: NDArray[np.int64],
        rows: NDArray[np.int64],
        out: NDArray[np.float16],
    ) -> None:
        for number in np.unique(which):
            here = slice(*np.searchsorted(which, [number, number + 1]))
            out[here] = self.map_shard(shards[number])[rows[here]]

    @contextmanager
    def _open_sidecar(
        self, shard: ShardInfo, *, whole: bool = False, footer: bool = False
    ) -> Iterator[Path]:
        path = self.path(shard.sidecar)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise unreadable(str(path), error) from error
        if size != shard.sidecar_bytes:
            raise ShardError(
                f"{path} has {size} bytes where the manifest states {shard.sidecar_bytes}: cut or "
                "replaced. Copy it again, or convert again."
            )
        yield path

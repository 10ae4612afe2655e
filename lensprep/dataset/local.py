"""Open a dataset: its manifest, its shards as arrays, its sidecars as tables.

A dataset on a local disk is mapped and lies here; one in an object store is read by ranges
(`lensprep.dataset.remote`).
"""

from __future__ import annotations

import difflib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset.kinds import no_manifest, part_of
from lensprep.dataset.layout import (
    MANIFEST_NAME,
    RECORD_STRIDE,
    STAMP_DTYPE,
    STAMP_SHAPE,
)
from lensprep.dataset.manifest import MANIFEST_BYTES, Manifest, ShardInfo, SplitInfo
from lensprep.dataset.record import payload_view
from lensprep.dataset.sidecar import join_tables, open_sidecar, read_table, unreadable
from lensprep.errors import DatasetError, ShardError, StorageError
from lensprep.store import LocalStore, Store, is_remote, local_path, member_path

if TYPE_CHECKING:
    from lensprep.store import S3Options


class Dataset:
    """A committed dataset; make it with `Dataset.open`.

    Parameters
    ----------
    store : Store
        Folder of the dataset.
    manifest : Manifest
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.uri = store.uri
        self.manifest = manifest
        self.dataset_id = manifest.dataset_id

    @classmethod
    def open(cls, uri: str | os.PathLike[str], options: S3Options | None = None) -> Dataset:
        """Open a dataset.

        Parameters
        ----------
        uri : str or path
            A local folder, or ``s3://bucket/folder``.
        options : S3Options, optional
            How to reach an object store.

        Raises
        ------
        DatasetError
            If there is no such folder, no manifest (not converted, or not finished), or a bad one.
        StorageError
            If the object store does not let us, or does not answer.
        """
        if is_remote(uri):
            from lensprep.dataset.remote import RemoteDataset

            return RemoteDataset.open_at(str(uri), options)
        root = local_path(uri)
        path = root / MANIFEST_NAME
        if not root.is_dir():
            raise DatasetError(_no_folder(root))
        try:
            with path.open("rb") as file:
                text = file.read(MANIFEST_BYTES + 1)
        except FileNotFoundError:
            if holder := _holder(root):
                raise DatasetError(part_of(str(root), str(holder))) from None
            names = [entry.name for entry in LocalStore(root).entries()]
            raise DatasetError(no_manifest(str(root), names)) from None
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
        return cls(LocalStore(root), Manifest.from_json(text, str(path)))

    @property
    def root(self) -> Path:
        """Folder of a local dataset.

        Raises
        ------
        StorageError
            If it lies in an object store.
        """
        if not isinstance(self.store, LocalStore):
            raise StorageError(
                f"{self.uri} is not on a local disk, as this needs. Copy it with `lensprep "
                "download` first."
            )
        return self.store.root

    def split(self, name: str) -> SplitInfo:
        """Counts and shards of a split.

        Raises
        ------
        DatasetError
            If the dataset has no such split.
        """
        try:
            return self.manifest.splits[name]
        except KeyError:
            known = ", ".join(self.manifest.splits) or "none"
            raise DatasetError(f"{self.uri} has no split {name!r}; it has: {known}.") from None

    def path(self, name: str) -> Path:
        """Path of a file that the manifest names, of a local dataset."""
        return member_path(self.root, name)

    def map_records(self, shard: ShardInfo) -> NDArray[np.uint8]:
        """Records of a local shard, mapped: uint8, shape (rows, RECORD_STRIDE), read-only.

        Raises
        ------
        StorageError
            If the dataset is remote; `read_records` reads both kinds.
        ShardError
            If the tar is missing or has not the size that the manifest states. The size is
            checked first because touching a mapped page beyond the end kills the process.
        """
        path = self.path(shard.name)
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
                    return np.empty((0, RECORD_STRIDE), np.uint8)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise unreadable(str(path), error) from error
        records = np.frombuffer(mapped, np.uint8, shard.rows * RECORD_STRIDE)
        return records.reshape(shard.rows, RECORD_STRIDE)

    def map_shard(self, shard: ShardInfo) -> NDArray[np.float16]:
        """Pixels of a local shard, mapped: float16, (rows, 3, 64, 64), strided and read-only.

        Raises
        ------
        ShardError
            As `map_records`.
        """
        return payload_view(self.map_records(shard))

    def read_records(
        self, shard: ShardInfo, start: int = 0, stop: int | None = None
    ) -> NDArray[np.uint8]:
        """Neighbouring records of a shard, mapped or read: uint8, shape (n, RECORD_STRIDE).

        Parameters
        ----------
        shard : ShardInfo
        start, stop : int
            Rows, as in a slice.

        Raises
        ------
        ShardError
            If the tar is missing or has not the size that the manifest states.
        """
        return self.map_records(shard)[start:stop]

    def read_shard_pixels(
        self, shard: ShardInfo, rows: NDArray[Any] | Sequence[int]
    ) -> NDArray[np.float16]:
        """Pixels of chosen rows of one shard, in the order asked for: (n, 3, 64, 64), a copy.

        Raises
        ------
        ShardError
            As `read_records`.
        """
        return self.map_shard(shard)[np.asarray(rows, np.int64)]

    def read_tar(self, shard: ShardInfo) -> NDArray[np.uint8]:
        """Every byte of a shard, mapped or read: uint8, whatever its size; for those who verify it.

        Raises
        ------
        ShardError
            If the tar is missing or cannot be read.
        """
        path = self.path(shard.name)
        try:
            return np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise unreadable(str(path), error) from error

    def read_shard_sidecar(
        self, shard: ShardInfo, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Sidecar rows of one shard, in tar order.

        Raises
        ------
        ShardError
            If the sidecar is missing, has not the size and rows that the manifest states, or is
            none (`lensprep.dataset.sidecar`).
        DatasetError
            If a column is asked for that is not there.
        """
        path = self._sidecar_path(shard)
        return read_table(path, shard.rows, columns, str(path))

    def sidecar_footer(self, shard: ShardInfo) -> pq.FileMetaData:
        """Schema and row groups of a sidecar; no row is read.

        Raises
        ------
        ShardError
            As `read_shard_sidecar`.
        """
        path = self._sidecar_path(shard)
        with open_sidecar(path, shard.rows, str(path)) as file:
            return file.metadata

    def _sidecar_path(self, shard: ShardInfo) -> Path:
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
        return path

    def read_sidecar(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Sidecar rows of a split in split order (shards in manifest order, rows in tar order).

        Parameters
        ----------
        split : str
        columns : sequence of str, optional
            Columns to read; all that are not nested, if not given.

        Raises
        ------
        ShardError, DatasetError
            As `read_shard_sidecar`.
        """
        shards = self.split(split).shards
        if not shards:
            raise DatasetError(f"{self.uri}: split {split!r} is empty.")
        tables = (self.read_shard_sidecar(shard, columns) for shard in shards)
        return join_tables(tables, f"{self.uri}: the sidecars of {split}")

    def read_pixels(self, split: str, index: NDArray[Any] | Sequence[int]) -> NDArray[np.float16]:
        """Pixels of chosen rows of a split, in the order asked for.

        Parameters
        ----------
        split : str
        index : array_like of int, shape (n,)
            Positions in the split.

        Returns
        -------
        ndarray of float16, shape (n, 3, 64, 64)

        Raises
        ------
        ShardError
            If a shard is missing or cut.
        IndexError
            If a position lies outside the split.
        """
        shards = self.split(split).shards
        starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])])
        positions = np.asarray(index, np.int64)
        if positions.size and (positions.min() < 0 or positions.max() >= starts[-1]):
            raise IndexError(f"positions must lie in [0, {starts[-1]}) for split {split!r}")
        out = np.empty((len(positions), *STAMP_SHAPE), STAMP_DTYPE)
        which = np.searchsorted(starts, positions, side="right") - 1
        for number in np.unique(which):
            chosen = which == number
            out[chosen] = self.map_shard(shards[number])[positions[chosen] - starts[number]]
        return out


def _no_folder(root: Path) -> str:
    """What to say of a dataset that is a file, or not there."""
    if root.exists():
        holder = _holder(root)
        return part_of(str(root), str(holder)) if holder else f"{root} is a file, not a dataset."
    beside = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
    near = difflib.get_close_matches(root.name, beside, n=1)
    hint = f"Did you mean {root.parent / near[0]}?" if near else "`lensprep convert` makes one."
    return f"{root}: no such dataset. {hint}"


def _holder(path: Path) -> Path | None:
    """Dataset that something lies in: its manifest, a split's folder or a shard."""
    above = path.absolute().parents[:2]
    return next((folder for folder in above if (folder / MANIFEST_NAME).is_file()), None)

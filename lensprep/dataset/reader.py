"""Open a dataset: its manifest, its shards as arrays, its sidecars as tables."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset.layout import (
    MANIFEST_NAME,
    RECORD_STRIDE,
    STAMP_DTYPE,
    STAMP_SHAPE,
)
from lensprep.dataset.manifest import Manifest, ShardInfo, SplitInfo
from lensprep.dataset.record import payload_view
from lensprep.dataset.storage import local_path, member_path
from lensprep.errors import DatasetError, ShardError


class Dataset:
    """A committed dataset on a local disk.

    Parameters
    ----------
    root : Path
        Folder of the dataset.
    manifest : Manifest
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.uri = str(root)
        self.manifest = manifest
        self.dataset_id = manifest.dataset_id

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Dataset:
        """Open a dataset.

        Raises
        ------
        DatasetError
            If there is no such folder, no manifest (not converted, or not finished), or a bad one.
        """
        root = local_path(uri)
        path = root / MANIFEST_NAME
        if not root.is_dir():
            raise DatasetError(f"{root}: no such dataset. Make one with `lensprep convert`.")
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise DatasetError(
                f"{root} has no {MANIFEST_NAME}: it is not a dataset, or its conversion did not "
                "finish. Run `lensprep convert ... --resume`."
            ) from None
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
        return cls(root, Manifest.from_json(text, str(path)))

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
        """Path of a file that the manifest names."""
        return member_path(self.root, name)

    def map_records(self, shard: ShardInfo) -> NDArray[np.uint8]:
        """Records of a shard, mapped: uint8, shape (rows, RECORD_STRIDE), read-only.

        Raises
        ------
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
            raise ShardError(f"{path} cannot be read: {error.strerror}.") from error
        records = np.frombuffer(mapped, np.uint8, shard.rows * RECORD_STRIDE)
        return records.reshape(shard.rows, RECORD_STRIDE)

    def map_shard(self, shard: ShardInfo) -> NDArray[np.float16]:
        """Pixels of a shard, mapped: float16, shape (rows, 3, 64, 64), strided and read-only.

        Raises
        ------
        ShardError
            As `map_records`.
        """
        return payload_view(self.map_records(shard))

    def read_shard_sidecar(
        self, shard: ShardInfo, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Sidecar rows of one shard, in tar order.

        Raises
        ------
        ShardError
            If the sidecar is missing, unreadable, or has not the shard's number of rows.
        DatasetError
            If a column is asked for that is not there.
        """
        path = self.path(shard.sidecar)
        try:
            file = pq.ParquetFile(path)
            self._check_columns(file.schema_arrow, columns, path)
            # A few columns cost less to read than threads to start: half the time for one.
            names = None if columns is None else list(columns)
            table = file.read(columns=names, use_threads=columns is None)
        except (OSError, pa.ArrowException) as error:
            raise ShardError(f"{path} cannot be read: {error}") from error
        if file.metadata.num_rows != shard.rows:
            raise ShardError(
                f"{path} has {file.metadata.num_rows} rows where the manifest states {shard.rows}."
            )
        return table

    def _check_columns(self, schema: pa.Schema, columns: Sequence[str] | None, path: Path) -> None:
        missing = [name for name in columns or () if name not in schema.names]
        if missing:
            raise DatasetError(
                f"{path} has no column {missing[0]!r}; it has: {', '.join(schema.names)}."
            )

    def read_sidecar(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Sidecar rows of a split in split order (shards in manifest order, rows in tar order).

        Parameters
        ----------
        split : str
        columns : sequence of str, optional
            Columns to read; all if not given.

        Raises
        ------
        ShardError, DatasetError
            As `read_shard_sidecar`.
        """
        shards = self.split(split).shards
        if not shards:
            raise DatasetError(f"{self.uri}: split {split!r} is empty.")
        return pa.concat_tables(self.read_shard_sidecar(shard, columns) for shard in shards)

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

"""Shards to look at: of a dataset, one of them, or a tar alone, all as records and sidecar rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset import Dataset, ShardInfo
from lensprep.dataset.layout import MANIFEST_NAME, RECORD_STRIDE, TRAILER_BYTES
from lensprep.dataset.record import header_faults, payload_view, record_json, record_key
from lensprep.dataset.storage import local_path
from lensprep.errors import DatasetError, ShardError


@dataclass(frozen=True, slots=True)
class Part:
    """One shard, mapped."""

    split: str
    name: str
    records: NDArray[np.uint8]
    """Shape (rows, RECORD_STRIDE), read-only."""
    sidecar: pa.Table
    """Rows in tar order; of a tar without sidecar, what its JSON members hold."""
    has_sidecar: bool = True

    @property
    def pixels(self) -> NDArray[np.float16]:
        """Stored pixels, shape (rows, 3, 64, 64), strided and read-only."""
        return payload_view(self.records)


@dataclass(frozen=True, slots=True)
class Target:
    """What a location names; make one with `open_target`."""

    location: str
    kind: str
    """``dataset``, ``shard`` or ``tar``."""
    dataset: Dataset | None
    splits: tuple[str, ...]
    shards: dict[str, tuple[ShardInfo, ...]] = field(default_factory=dict)
    tar: Path | None = None

    def shard_rows(self, split: str) -> list[int]:
        """Rows of each shard of a split."""
        if self.dataset is None:
            return [len(self.part(split, 0).records)]
        return [shard.rows for shard in self.shards[split]]

    def part(self, split: str, number: int) -> Part:
        """One shard of a split.

        Raises
        ------
        ShardError
            If it is missing, cut, or no tar of this format.
        """
        if self.dataset is None:
            assert self.tar is not None
            return _bare_part(self.tar)
        shard = self.shards[split][number]
        return Part(
            split,
            shard.name,
            self.dataset.map_records(shard),
            self.dataset.read_shard_sidecar(shard),
        )

    def parts(self, split: str) -> Iterator[Part]:
        """The shards of a split, one by one."""
        count = 1 if self.dataset is None else len(self.shards[split])
        return (self.part(split, number) for number in range(count))

    @property
    def tar_bytes(self) -> int:
        """Size of all tars."""
        if self.tar is not None:
            return self.tar.stat().st_size
        return sum(shard.bytes for shards in self.shards.values() for shard in shards)


def open_target(location: str | os.PathLike[str], split: str | None = None) -> Target:
    """Find out what a location names.

    Parameters
    ----------
    location : str or path
        A dataset's folder, a tar of a dataset, or a tar alone.
    split : str, optional
        Only this split.

    Raises
    ------
    DatasetError
        If there is no such thing, or the dataset has no such split.
    """
    path = local_path(location)
    if not path.is_file():
        dataset = Dataset.open(location)
        names = (split,) if split is not None else tuple(dataset.manifest.splits)
        shards = {name: dataset.split(name).shards for name in names}
        return Target(str(location), "dataset", dataset, names, shards)
    if path.suffix != ".tar":
        raise DatasetError(f"{location} is neither a dataset's folder nor a .tar of one.")
    root = path.absolute().parent.parent
    if not (root / MANIFEST_NAME).is_file():
        return Target(str(location), "tar", None, (path.parent.name,), tar=path)
    dataset = Dataset.open(root)
    name = path.absolute().relative_to(root).as_posix()
    for holder, info in dataset.manifest.splits.items():
        for shard in info.shards:
            if shard.name == name:
                return Target(str(location), "shard", dataset, (holder,), {holder: (shard,)})
    raise DatasetError(f"{location} is not named by {root / MANIFEST_NAME}: not of this dataset.")


def _bare_part(path: Path) -> Part:
    """A tar without a manifest: its size and headers must be those of the grid."""
    size = path.stat().st_size
    rows, rest = divmod(size - TRAILER_BYTES, RECORD_STRIDE)
    if rest or rows < 0:
        raise ShardError(
            f"{path} has {size} bytes: cut, or not a shard of this format (records of "
            f"{RECORD_STRIDE} bytes and {TRAILER_BYTES} at the end)."
        )
    records = np.memmap(path, np.uint8, "r", shape=(rows * RECORD_STRIDE,)) if rows else None
    grid = np.empty((0, RECORD_STRIDE), np.uint8) if records is None else records
    grid = np.asarray(grid).reshape(rows, RECORD_STRIDE)
    if rows and len(header_faults(grid[:1])):
        raise ShardError(f"{path}, offset 0: not a record of this format.")
    sidecar = path.with_suffix(".parquet")
    if sidecar.is_file():
        table = pq.read_table(sidecar)
        if table.num_rows != rows:
            raise ShardError(f"{sidecar} has {table.num_rows} rows where {path} has {rows}.")
        return Part(path.parent.name, path.name, grid, table)
    return Part(path.parent.name, path.name, grid, _json_table(path, grid), has_sidecar=False)


def _json_table(path: Path, records: NDArray[np.uint8]) -> pa.Table:
    """What the JSON members hold, with the keys."""
    rows = []
    for number, record in enumerate(records):
        try:
            rows.append({"key": record_key(record), **record_json(record)})
        except ValueError as error:
            raise ShardError(
                f"{path}, offset {number * RECORD_STRIDE}: the JSON member cannot be read: {error}."
            ) from error
    return pa.Table.from_pylist(rows)


def table_numbers(table: pa.Table, *names: str) -> Sequence[NDArray[np.float64]]:
    """Columns as float64, NaN for null and for a column that is not there."""
    return [
        table[name].cast(pa.float64(), safe=False).to_numpy()
        if name in table.column_names
        else np.full(table.num_rows, np.nan)
        for name in names
    ]

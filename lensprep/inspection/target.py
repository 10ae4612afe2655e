"""Shards to look at: of a dataset, one of them, or a tar alone, all as records and sidecar rows.

Of a dataset in an object store only the records that are asked for are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset import Dataset, ShardInfo
from lensprep.dataset.layout import JSON_FIELDS, MANIFEST_NAME, RECORD_STRIDE, TRAILER_BYTES
from lensprep.dataset.record import header_faults, payload_view, record_json, record_key
from lensprep.dataset.sidecar import read_table
from lensprep.errors import DatasetError, ShardError
from lensprep.store import S3Options, is_remote, local_path, open_remote, open_store

_JSON_TYPES: Final = {
    "label": pa.int64(),
    "region_id": pa.int64(),
    "theta_e_arcsec": pa.float64(),
    "ra": pa.float64(),
    "dec": pa.float64(),
}
"""Of the fields of a record's JSON that are numbers; the others are text."""


@dataclass(frozen=True, slots=True)
class Part:
    """One shard; its sidecar is read, its records are mapped, or read when asked for."""

    split: str
    name: str
    rows: int
    records: Callable[[int, int], NDArray[np.uint8]]
    """Neighbouring records, from one row to before another: shape (n, RECORD_STRIDE)."""
    pixels: Callable[[NDArray[np.intp]], NDArray[np.float16]]
    """Stored pixels of chosen rows: shape (n, 3, 64, 64)."""
    sidecar: pa.Table
    """Rows in tar order; of a tar without sidecar, what its JSON members hold."""
    has_sidecar: bool = True


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
            return [self.part(split, 0).rows]
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
            shard.rows,
            partial(self.dataset.read_records, shard),
            partial(self.dataset.read_shard_pixels, shard),
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


def open_target(
    location: str | os.PathLike[str],
    split: str | None = None,
    options: S3Options | None = None,
) -> Target:
    """Find out what a location names.

    Parameters
    ----------
    location : str or path
        A dataset's folder, a tar of a dataset, or a tar alone.
    split : str, optional
        Only this split.
    options : S3Options, optional
        How to reach an object store.

    Raises
    ------
    DatasetError
        If there is no such thing, or the dataset has no such split.
    """
    if is_remote(location):
        return _open_remote(str(location), split, options)
    path = local_path(location)
    if not path.is_file():
        return _whole_dataset(str(location), Dataset.open(location), split)
    if path.suffix != ".tar":
        raise DatasetError(f"{location} is neither a dataset's folder nor a .tar of one.")
    root = path.absolute().parent.parent
    if not (root / MANIFEST_NAME).is_file():
        return Target(str(location), "tar", None, (path.parent.name,), tar=path)
    name = path.absolute().relative_to(root).as_posix()
    return _one_shard(str(location), Dataset.open(root), name, split)


def _open_remote(location: str, split: str | None, options: S3Options | None) -> Target:
    if not location.endswith(".tar"):
        return _whole_dataset(location, Dataset.open(location, options), split)
    parts = open_remote(location, options).uri.split("/")
    cut = max(3, len(parts) - 2)  # after the bucket at least
    root, name = "/".join(parts[:cut]), "/".join(parts[cut:])
    if not open_store(root, options).has(MANIFEST_NAME):
        raise DatasetError(
            f"{location}: a tar in an object store is read by its dataset, and {root} holds none."
        )
    return _one_shard(location, Dataset.open(root, options), name, split)


def _whole_dataset(location: str, dataset: Dataset, split: str | None) -> Target:
    names = (split,) if split is not None else tuple(dataset.manifest.splits)
    shards = {name: dataset.split(name).shards for name in names}
    return Target(location, "dataset", dataset, names, shards)


def _one_shard(location: str, dataset: Dataset, name: str, split: str | None) -> Target:
    if split not in (None, PurePosixPath(name).parts[0]):
        raise DatasetError(f"{location} is no shard of {split}.")
    for holder, info in dataset.manifest.splits.items():
        for shard in info.shards:
            if shard.name == name:
                return Target(location, "shard", dataset, (holder,), {holder: (shard,)})
    raise DatasetError(
        f"{location} is not named by {dataset.uri}/{MANIFEST_NAME}: not of this dataset."
    )


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
    has_sidecar = sidecar.is_file()
    table = (
        read_table(sidecar, rows, None, str(sidecar)) if has_sidecar else _json_table(path, grid)
    )
    return Part(
        path.parent.name,
        path.name,
        rows,
        lambda start, stop: grid[start:stop],
        lambda chosen: payload_view(grid)[chosen],
        table,
        has_sidecar,
    )


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
    found = {name for row in rows for name in row}
    kinds = {name: _JSON_TYPES.get(name, pa.string()) for name in ("key", *JSON_FIELDS)}
    schema = pa.schema([(name, kind) for name, kind in kinds.items() if name in found])
    return pa.Table.from_pylist(rows, schema)


def table_numbers(table: pa.Table, *names: str) -> Sequence[NDArray[np.float64]]:
    """Columns as float64, NaN for null and for a column that is not there."""
    return [
        table[name].cast(pa.float64(), safe=False).to_numpy()
        if name in table.column_names
        else np.full(table.num_rows, np.nan)
        for name in names
    ]

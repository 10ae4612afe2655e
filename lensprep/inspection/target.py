"""Shards to look at, of a dataset or a tar alone, as records and sidecar rows.

In an object store only the records that are asked for are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset import DECALS, Dataset, Geometry, ShardInfo, open_dataset
from lensprep.dataset.layout import (
    JSON_MEMBERS,
    MANIFEST_NAME,
    NUMBERS,
    PAYLOAD_OFFSET,
    TRAILER_BYTES,
    WHOLE_NUMBERS,
)
from lensprep.dataset.record import header_faults, record_json, record_key
from lensprep.dataset.sidecar import open_sidecar, read_table
from lensprep.errors import DatasetError, ShardError, StorageError
from lensprep.store import S3Options, Store, is_remote, join_uri, local_path, open_store, split_uri

_BLOCK_ROWS: Final = 1024
_SHAPE: Final = re.compile(rb"'shape': \(([0-9]{1,3}), ([0-9]{1,3}), ([0-9]{1,3})\)")


@dataclass(frozen=True, slots=True)
class OpenShard:
    """One shard: its sidecar has been read; its records are mapped, or read on demand."""

    split: str
    name: str
    rows: int
    records: Callable[[int, int], NDArray[np.uint8]]
    """Neighbouring records, from one row to before another: shape (n, geometry.stride)."""
    sidecar: pa.Table
    """Rows in tar order; of a tar without sidecar, what its JSON members hold."""
    has_sidecar: bool = True
    info: ShardInfo | None = None
    """Its entry in the manifest, if there is one."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a location names; make one with `open_target`."""

    location: str
    kind: str
    """``dataset``, ``shard`` or ``tar``."""
    dataset: Dataset | None
    splits: tuple[str, ...]
    geometry: Geometry
    """Of the stamps. A tar alone says only their shape: see `_bare_geometry`."""
    shards: dict[str, tuple[ShardInfo, ...]] = field(default_factory=dict)
    tar: OpenShard | None = None
    """The tar without a manifest."""

    def shard_rows(self, split: str) -> list[int]:
        """Rows of each shard of a split."""
        return [shard.rows for shard in ([self.tar] if self.tar else self.shards[split])]

    def open_shard(self, split: str, number: int) -> OpenShard:
        """One shard of a split.

        Raises
        ------
        ShardError
            If it is missing, cut, or no tar of this format.
        """
        if self.tar is not None:
            return self.tar
        assert self.dataset is not None
        shard = self.shards[split][number]
        return OpenShard(
            split,
            shard.name,
            shard.rows,
            partial(self.dataset.read_records, shard),
            self.dataset.read_shard_sidecar(shard),
            info=shard,
        )

    def open_shards(self, split: str) -> Iterator[OpenShard]:
        """The shards of a split, one by one."""
        return (self.open_shard(split, number) for number in range(len(self.shard_rows(split))))


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
    text = str(location)
    if is_remote(location):
        if not text.endswith(".tar"):
            return _whole_dataset(text, open_dataset(location, options), split)
        folder, name = split_uri(location)
    else:
        path = local_path(location).absolute()
        if not path.is_file():
            return _whole_dataset(text, open_dataset(location), split)
        if path.suffix != ".tar":
            raise DatasetError(f"{location} is neither a dataset's folder nor a .tar of one.")
        folder, name = split_uri(path)
    try:
        root, holder = split_uri(folder)
    except StorageError:  # a bucket, or all of a disk, lies in no folder
        root, holder = folder, ""
    if holder and open_store(root, options).has(MANIFEST_NAME):
        return _one_shard(text, open_dataset(root, options), f"{holder}/{name}", split)
    geometry, tar = _bare_tar(open_store(folder, options), name, holder)
    return Target(text, "tar", None, (holder,), geometry, tar=tar)


def _whole_dataset(location: str, dataset: Dataset, split: str | None) -> Target:
    names = (split,) if split is not None else tuple(dataset.manifest.splits)
    shards = {name: dataset.split(name).shards for name in names}
    return Target(location, "dataset", dataset, names, dataset.geometry, shards)


def _one_shard(location: str, dataset: Dataset, name: str, split: str | None) -> Target:
    holder = name.partition("/")[0]
    if split not in (None, holder):
        raise DatasetError(f"{location} is no shard of {split}.")
    info = dataset.manifest.splits.get(holder)
    for shard in info.shards if info else ():
        if shard.name == name:
            one: dict[str, tuple[ShardInfo, ...]] = {holder: (shard,)}
            return Target(location, "shard", dataset, (holder,), dataset.geometry, one)
    raise DatasetError(
        f"{location} is not named by {dataset.uri}/{MANIFEST_NAME}: not of this dataset."
    )


def _bare_tar(store: Store, name: str, split: str) -> tuple[Geometry, OpenShard]:
    """A tar without a manifest: its size and headers must be those of the grid."""
    where, size = join_uri(store.uri, name), store.stat(name).bytes
    geometry = _bare_geometry(bytes(store.read_range(name, 0, min(size, PAYLOAD_OFFSET))), where)
    stride = geometry.stride
    rows, rest = divmod(size - TRAILER_BYTES, stride)
    if rest or rows < 0:
        raise ShardError(
            f"{where} has {size} bytes: cut, or not a shard of this format (records of "
            f"{stride} bytes and {TRAILER_BYTES} at the end)."
        )

    def records(start: int, stop: int) -> NDArray[np.uint8]:
        data = store.read_range(name, start * stride, (stop - start) * stride)
        return np.frombuffer(data, np.uint8).reshape(-1, stride)

    if rows and len(header_faults(records(0, 1), geometry)):
        raise ShardError(f"{where}, offset 0: not a record of this format.")
    sidecar = name.removesuffix(".tar") + ".parquet"
    has_sidecar = store.has(sidecar)
    if has_sidecar:
        beside = join_uri(store.uri, sidecar)
        with store.open(sidecar) as file:
            columns = open_sidecar(file, rows, beside, geometry).schema_arrow.names
            geometry = _name_bands(geometry, columns)
            table = read_table(file, rows, None, beside, geometry)
    else:
        table = _json_table(where, records, rows, geometry)
    return geometry, OpenShard(split, name, rows, records, table, has_sidecar)


def _bare_geometry(head: bytes, where: str) -> Geometry:
    """Geometry of a tar by its first headers; what they do not say is made up but for DECaLS."""
    found = _SHAPE.search(head)
    if found is None:  # no records, or none of this format, as will turn out
        return DECALS
    bands, side, other = map(int, found.groups())
    if (bands, side, other) == DECALS.shape:
        return DECALS
    names = tuple(f"band{number}" for number in range(bands))
    try:
        geometry = Geometry(
            survey="unknown",
            bands=names,
            side=side,
            pixel_scale_arcsec=1.0,
            reference_band=names[bands // 2] if names else "",
            zero_point=0.0,
            sky_noise=(1.0,) * bands,
        )
    except DatasetError as error:
        raise ShardError(f"{where}, offset 0: not a record of this format ({error}).") from None
    return geometry


def _name_bands(geometry: Geometry, columns: Sequence[str]) -> Geometry:
    """Name bands that are not known by the columns of a sidecar."""
    measured = tuple(name[7:] for name in columns if name.startswith("median_"))
    if geometry is DECALS or len(measured) != len(geometry.bands):
        return geometry
    try:
        reference = measured[geometry.reference]
        return replace(geometry, bands=measured, reference_band=reference)
    except DatasetError:
        return geometry


def _json_table(
    where: str,
    records: Callable[[int, int], NDArray[np.uint8]],
    rows: int,
    geometry: Geometry,
) -> pa.Table:
    """What the JSON members hold, with the keys."""
    values, step = [], geometry.scaled_rows(_BLOCK_ROWS)
    for start in range(0, rows, step):
        for record in records(start, min(rows, start + step)):
            try:
                values.append({"key": record_key(record), **record_json(record, geometry)})
            except ValueError as error:
                raise ShardError(
                    f"{where}, offset {len(values) * geometry.stride}: the JSON member cannot be "
                    f"read: {error}."
                ) from error
    found = {name for row in values for name in row}
    schema = pa.schema([
        (name, pa.float64() if name in NUMBERS
         else pa.int64() if name in WHOLE_NUMBERS else pa.string())
        for name in ("key", *JSON_MEMBERS) if name in found
    ])  # fmt: skip
    return pa.Table.from_pylist(values, schema)


def table_numbers(table: pa.Table, *names: str) -> Sequence[NDArray[np.float64]]:
    """Columns as float64, NaN for null and for a column that is not there."""
    return [
        table[name].cast(pa.float64(), safe=False).to_numpy()
        if name in table.column_names
        else np.full(table.num_rows, np.nan)
        for name in names
    ]

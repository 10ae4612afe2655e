"""Write shards, sidecars and the manifest; equal content gives equal bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset import layout
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.manifest import Manifest, ShardInfo, SplitInfo
from lensprep.dataset.normalization import NormalizationSpec
from lensprep.dataset.record import (
    encode_json,
    new_records,
    payload_crc32,
    payload_view,
    set_json,
    set_keys,
)
from lensprep.dataset.sidecar import count_kinds
from lensprep.errors import ChangedError, DatasetError
from lensprep.store import RemoteStore, atomic_writer, member_path, sync_file, write_atomic
from lensprep.store.transfer import SMALL_PART_BYTES, upload_file


def write_shard(
    root: Path,
    split: str,
    index: int,
    blocks: Iterable[NDArray[np.uint8]],
    sidecar: pa.Table,
    geometry: Geometry = DECALS,
) -> ShardInfo:
    """Write one shard and its sidecar.

    Parameters
    ----------
    root : Path
        Folder of the dataset.
    split : str
    index : int
        Number of the shard in its split.
    blocks : iterable of ndarray of uint8, shape (n, geometry.stride)
        Finished records in order.
    sidecar : pyarrow.Table
        One row a record, in the same order.
    geometry : Geometry
        Of the stamps.

    Returns
    -------
    ShardInfo

    Raises
    ------
    DatasetError
        If records and sidecar rows differ in number. Neither file is left behind.
    """
    name, side = layout.shard_name(split, index), layout.sidecar_name(split, index)
    digest, rows = hashlib.sha256(), 0
    with atomic_writer(member_path(root, name)) as file:
        for block in blocks:
            data = np.ascontiguousarray(block).reshape(-1).data
            file.write(data)
            digest.update(data)
            rows += len(data) // geometry.stride
        trailer = bytes(layout.TRAILER_BYTES)
        file.write(trailer)
        digest.update(trailer)
        if rows != sidecar.num_rows:
            raise DatasetError(f"{name}: {rows} records but {sidecar.num_rows} sidecar rows.")
    buffer = io.BytesIO()
    pq.write_table(sidecar, buffer, compression="zstd")
    parquet = buffer.getvalue()
    write_atomic(member_path(root, side), parquet, sync=False)
    return ShardInfo(
        name=name,
        rows=rows,
        bytes=geometry.shard_bytes(rows),
        sha256=digest.hexdigest(),
        sidecar=side,
        sidecar_bytes=len(parquet),
        sidecar_sha256=hashlib.sha256(parquet).hexdigest(),
    )


def send_shard(root: Path, shard: ShardInfo, store: RemoteStore, *, keep: bool) -> None:
    """Send a shard that `write_shard` wrote to the dataset's store, digests compared.

    Parameters
    ----------
    root : Path
        Folder that it was written in.
    shard : ShardInfo
    store : RemoteStore
    keep : bool
        Keep the local files; else each is removed when it has arrived.

    Raises
    ------
    DatasetError
        If the names are taken by other content.
    StorageError
        If the store does not let us or does not answer.
    """
    for name, digest in ((shard.name, shard.sha256), (shard.sidecar, shard.sidecar_sha256)):
        path = member_path(root, name)
        send_file(store, path, name, digest)
        if not keep:
            path.unlink()


def send_file(store: RemoteStore, path: Path, name: str, sha256: str | None = None) -> str:
    """Send one file of a dataset that is being made, unless its name is taken; returns its digest.

    Raises
    ------
    DatasetError
        If the name is taken by other content.
    """
    try:
        return upload_file(store, path, name, sha256, part_bytes=SMALL_PART_BYTES)
    except ChangedError as error:
        raise DatasetError(
            f"{error} Is another conversion writing there? If not, and if it may go, remove it and "
            "run the same command with --resume."
        ) from error


def sync_shards(root: Path, manifest: Manifest) -> None:
    """Force the files that a manifest names to the disk."""
    names = [
        name
        for split in manifest.splits.values()
        for shard in split.shards
        for name in (shard.name, shard.sidecar)
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: sync_file(member_path(root, name)), names))


def write_dataset(
    root: Path,
    splits: Mapping[str, tuple[NDArray[np.float16], pa.Table]],
    normalization: NormalizationSpec,
    *,
    shard_rows: int,
    geometry: Geometry = DECALS,
    label_map: Mapping[str, int] = layout.LABEL_MAP,
) -> Manifest:
    """Write arrays that are in memory as a committed dataset, in the order given.

    For small datasets made by other means (tests, experiments); `lensprep convert` is the way
    from Phase 4c.

    Parameters
    ----------
    root : Path
    splits : mapping of str to (ndarray of float16, shape (n, *geometry.shape), pyarrow.Table)
        Pixels and sidecar rows of each split. The table needs ``key``, ``label`` and
        ``region_id``; ``payload_crc32`` is added.
    normalization : NormalizationSpec
        What was done to the pixels.
    shard_rows : int
        Rows of a shard; the last one may have fewer.
    geometry : Geometry
        Of the stamps.
    label_map : mapping of str to int
        Labels by ``lens_model``, if not those of Phase 4c alone.

    Returns
    -------
    Manifest
    """
    infos = {}
    for split, (pixels, table) in splits.items():
        shards, names = [], {*table.column_names}
        for index, start in enumerate(range(0, table.num_rows, shard_rows)):
            rows = table.slice(start, shard_rows)
            records = new_records(rows.num_rows, geometry)
            payload_view(records, geometry)[:] = pixels[start : start + shard_rows]
            set_keys(records, rows["key"].to_pylist(), geometry)
            texts = encode_json({f: rows[f].to_pylist() for f in layout.JSON_MEMBERS if f in names})
            set_json(records, [text for text in texts if text is not None], geometry)
            crc32 = pa.array(payload_crc32(records, geometry))
            side = rows.append_column("payload_crc32", crc32)
            shards.append(write_shard(root, split, index, [records], side, geometry))
        labels = table["label"].to_pylist()
        infos[split] = SplitInfo(
            rows=table.num_rows,
            classes={"0": labels.count(0), "1": labels.count(1)},
            regions=pc.count_distinct(table["region_id"], mode="all").as_py(),
            shards=tuple(shards),
            counterfactuals=count_kinds(table),
        )
    manifest = Manifest(
        normalization=normalization,
        splits=infos,
        geometry=geometry,
        label_map=dict(label_map),
    )
    write_atomic(root / layout.MANIFEST_NAME, manifest.to_json().encode(), sync=False)
    return manifest

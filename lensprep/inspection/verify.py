"""Check a dataset against its manifest, byte by byte, and a sample of it against its source."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset import Dataset, ShardInfo
from lensprep.dataset.layout import (
    JSON_BYTES,
    JSON_FIELDS,
    JSON_OFFSET,
    MANIFEST_NAME,
    RECORD_STRIDE,
    REJECTS_NAME,
    STAMP_SHAPE,
)
from lensprep.dataset.record import (
    encode_json,
    header_faults,
    payload_crc32,
    payload_view,
    record_key,
)
from lensprep.decode.normalize import Normalizer
from lensprep.decode.stampnpz import decode_batch
from lensprep.engine import default_workers, run_tasks
from lensprep.errors import ChangedError, InputError, NotFoundError, ShardError, StorageError
from lensprep.source.listing import filesystem_for
from lensprep.source.survey import STAMP_COLUMN
from lensprep.source.tree import LEAVE_OUT, Source
from lensprep.store import S3Options, Store, is_remote

MAX_FAULTS = 20
"""Faults listed for one shard, or one file of a source; those beyond are counted in a last line."""

_BLOCK_ROWS = 256


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as the manifest says."""

    file: str
    row: int | None
    offset: int | None
    """Byte in the file at which the faulty part begins."""
    what: str

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {"file": self.file, "row": self.row, "offset": self.offset, "what": self.what}


@dataclass(frozen=True, slots=True)
class _Task:
    uri: str
    split: str
    index: int
    options: S3Options | None


@dataclass(frozen=True, slots=True)
class _Checked:
    split: str
    faults: list[Fault]
    rows: int
    classes: dict[str, int]
    regions: list[int]
    is_read: bool
    """Whether its sidecar could be read, so that there is something to count."""


def verify(
    dataset: str,
    *,
    against: str | None = None,
    sample: int | None = 1000,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    options: S3Options | None = None,
) -> dict[str, Any]:
    """Verify a dataset.

    Every header, CRC, digest, JSON member, count and sidecar is read and compared.

    Parameters
    ----------
    dataset : str
        Folder of the dataset, local or ``s3://``.
    against : str, optional
        The Phase 4c tree it was made of: rows are decoded and normalised again and compared.
    sample : int, optional
        How many rows to compare with the source, drawn at random; None means all.
    seed : int
        Seed of that draw.
    workers : int, optional
        Processes; as many as processors if not given.
    progress : callable, optional
        Called with (rows done, all rows).
    options : S3Options, optional
        How to reach an object store; a shard of a remote dataset is held in memory.

    Returns
    -------
    dict
        ``ok``, ``shards``, ``rows``, ``compared`` (rows compared with the source) and ``faults``.

    Raises
    ------
    DatasetError
        If there is no manifest to verify against.
    """
    opened = Dataset.open(dataset, options)
    # Before hours of reading: it may not be there.
    source = None if against is None else _open_source(against, options)
    splits = opened.manifest.splits
    total = sum(split.rows for split in splits.values())
    tasks = [
        _Task(opened.uri, name, index, options)
        for name, split in splits.items()
        for index in range(len(split.shards))
    ]
    faults, checked, done = list(_stray_files(opened)), list[_Checked](), 0
    for result in run_tasks(_verify_shard, tasks, workers=workers or default_workers()):
        faults += result.faults
        checked.append(result)
        done += result.rows
        if progress is not None:
            progress(done, total)
    faults += _count_faults(opened, checked)
    faults += _reject_faults(opened)
    compared = 0
    if source is not None:
        compared, found = _compare_with_source(opened, source, sample, seed)
        faults += found
    faults.sort(key=lambda fault: (fault.file, fault.row or 0))
    return {
        "ok": not faults,
        "shards": len(tasks),
        "rows": total,
        "compared": compared,
        "dataset_id": opened.dataset_id,
        "faults": [fault.to_dict() for fault in faults],
    }


def _stray_files(dataset: Dataset) -> Iterator[Fault]:
    """Files that the manifest does not name: left over, or put there by somebody."""
    known = {MANIFEST_NAME, REJECTS_NAME}
    for split in dataset.manifest.splits.values():
        known.update(name for shard in split.shards for name in (shard.name, shard.sidecar))
    for entry in dataset.store.entries():
        if entry.name not in known:
            yield Fault(entry.name, None, None, "is not named by the manifest")


def _verify_shard(task: _Task) -> _Checked:
    """Check one shard and its sidecar; a module-level function, for the workers."""
    dataset = Dataset.open(task.uri, task.options)
    shard = dataset.split(task.split).shards[task.index]
    classes, regions, faults = dict[str, int](), list[int](), list[Fault]()
    is_read = False
    # Sizes first: a file may be replaced by one that no memory holds.
    faults += _size_faults(dataset.store, shard.name, shard.bytes)
    faults += _size_faults(dataset.store, shard.sidecar, shard.sidecar_bytes)
    if not faults:
        try:
            tar = dataset.read_tar(shard)
            faults += _digest_faults(tar, shard.name, shard.sha256)
            sidecar = dataset.store.read(shard.sidecar)
            faults += _digest_faults(sidecar, shard.sidecar, shard.sidecar_sha256)
            side = dataset.read_shard_sidecar(shard)
            classes = {
                str(e["values"]): e["counts"] for e in pc.value_counts(side["label"]).to_pylist()
            }
            regions = pc.unique(side["region_id"]).to_pylist()
            is_read = True
            faults += _record_faults(dataset, shard, tar, side)
        except (ShardError, StorageError) as error:
            # What a disk refuses is said of each file; a store that does not answer, once.
            if is_remote(task.uri) and not isinstance(
                error, ShardError | NotFoundError | ChangedError
            ):
                raise
            faults.append(_fault_of(dataset, error, shard.name, shard.sidecar))
    faults = _first_of(faults, shard.name)
    return _Checked(task.split, faults, shard.rows, classes, regions, is_read)


def _fault_of(dataset: Dataset, error: Exception, *names: str) -> Fault:
    """An error of one of some files, which need not be named twice."""
    text = str(error).splitlines()[0].rstrip(".")
    for name in names:
        _, place, what = text.partition(f"{dataset.uri}/{name}")
        if place and text.startswith(place):
            return Fault(name, None, None, what.removeprefix(":").strip())
    return Fault(names[0], None, None, text)


def _first_of(faults: list[Fault], name: str) -> list[Fault]:
    """As many as are listed, and how many more there are."""
    if len(faults) <= MAX_FAULTS:
        return faults
    more = len(faults) - MAX_FAULTS
    return [*faults[:MAX_FAULTS], Fault(name, None, None, f"and {more} more faults")]


def _size_faults(store: Store, name: str, expected: int) -> Iterator[Fault]:
    try:
        found = store.stat(name).bytes
    except NotFoundError:
        yield Fault(name, None, None, "is missing")
        return
    if found != expected:
        what = f"has {found} bytes where the manifest states {expected}: cut or replaced"
        yield Fault(name, None, min(found, expected), what)


def _digest_faults(
    data: NDArray[np.uint8] | bytes | bytearray, name: str, expected: str
) -> list[Fault]:
    found = hashlib.sha256(np.frombuffer(data, np.uint8).data).hexdigest()
    if found == expected:
        return []
    return [Fault(name, None, None, f"SHA-256 is {found[:12]}…, not {expected[:12]}…")]


def _record_faults(
    dataset: Dataset, shard: ShardInfo, tar: NDArray[np.uint8], side: pa.Table
) -> list[Fault]:
    """Faults of the records, each with its row and offset."""
    end = shard.rows * RECORD_STRIDE
    records = tar[:end].reshape(shard.rows, RECORD_STRIDE)
    clip = dataset.manifest.normalization.clip
    keys = side["key"].to_pylist()
    crcs = side["payload_crc32"].to_numpy()
    texts = _expected_json(side)
    faults: list[Fault] = []

    def add(row: int, offset: int, what: str) -> None:
        faults.append(Fault(shard.name, row, row * RECORD_STRIDE + offset, what))

    for start in range(0, shard.rows, _BLOCK_ROWS):
        block = records[start : start + _BLOCK_ROWS]
        rows = range(start, start + len(block))
        for row in header_faults(block).tolist():
            add(start + row, 0, "a tar or .npy header is not the writer's")
        for row in np.flatnonzero(payload_crc32(block) != crcs[start : start + len(block)]):
            add(start + int(row), 640, "the pixels do not have the sidecar's CRC-32")
        outside = ~(np.abs(payload_view(block)) <= clip).all(axis=(1, 2, 3))
        for row in np.flatnonzero(outside):
            add(start + int(row), 640, f"a pixel is not finite or beyond the clip of {clip:g}")
        for row, record in zip(rows, block, strict=True):
            if record_key(record) != keys[row]:
                add(row, 0, f"the key is not the sidecar's {keys[row]}")
            if bytes(record[JSON_OFFSET : JSON_OFFSET + JSON_BYTES]) != texts[row]:
                add(row, JSON_OFFSET, "the JSON member is not what the sidecar says")
    if tar[end:].any():
        add(shard.rows, 0, "the archive does not end in two zero blocks")
    if "lens_model" in side.column_names:
        label_map, models = dataset.manifest.label_map, side["lens_model"].to_pylist()
        labels = np.array([label_map.get(name, -1) for name in models], np.int64)
        for row in np.flatnonzero(labels != side["label"].to_numpy()):
            add(int(row), JSON_OFFSET, "the label is not the label map's of lens_model")
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        if first.setdefault(key, row) != row:
            what = f"the key {key} is that of row {first[key]} too"
            faults.append(Fault(shard.sidecar, row, None, what))
    return faults


def _expected_json(side: pa.Table) -> list[bytes | None]:
    columns = {name: side[name].to_pylist() for name in JSON_FIELDS if name in side.column_names}
    if "region_split" in side.column_names:
        columns["split"] = side["region_split"].to_pylist()
    return encode_json(columns)


def _count_faults(dataset: Dataset, checked: list[_Checked]) -> Iterator[Fault]:
    """What the sidecars add up to, against the manifest."""
    for name, split in dataset.manifest.splits.items():
        parts = [part for part in checked if part.split == name]
        if not all(part.is_read for part in parts):
            continue  # what could not be counted contradicts nothing
        classes = Counter({"0": 0, "1": 0})
        for part in parts:
            classes.update(part.classes)
        regions = len({region for part in parts for region in part.regions})
        for what, found, stated in (
            ("classes", dict(classes), split.classes),
            ("regions", regions, split.regions),
        ):
            if found != stated:
                text = f"states {what} of {name} as {stated}, the sidecars hold {found}"
                yield Fault(MANIFEST_NAME, None, None, text)


def _reject_faults(dataset: Dataset) -> Iterator[Fault]:
    """The account must balance, and `rejects.parquet` hold the rows that it left out."""
    account = dataset.manifest.account
    if not account:  # written from arrays, without a source
        return
    left_out = sum(account["filtered"].values()) + sum(account["rejected"].values())
    accepted = sum(split.rows for split in dataset.manifest.splits.values())
    if account["input_rows"] != account["accepted"] + left_out or accepted != account["accepted"]:
        text = (
            f"the account does not balance: of {account['input_rows']} rows "
            f"{account['accepted']} accepted and {left_out} left out; the splits have {accepted}"
        )
        yield Fault(MANIFEST_NAME, None, None, text)
    try:
        with dataset.store.open(REJECTS_NAME) as file:
            rows = pq.ParquetFile(file).metadata.num_rows
    except (StorageError, OSError, ValueError, pa.ArrowException) as error:
        yield _fault_of(dataset, error, REJECTS_NAME)
        return
    if rows != left_out:
        yield Fault(REJECTS_NAME, None, None, f"has {rows} rows where {left_out} were left out")


def _open_source(uri: str, options: S3Options | None) -> Source:
    return Source.open(uri, skip_bad_files=True, filesystem=filesystem_for(uri, options))


def _compare_with_source(
    dataset: Dataset, source: Source, sample: int | None, seed: int
) -> tuple[int, list[Fault]]:
    """Derive rows again from the source and compare pixels and identity, bit by bit.

    Of a source that is not the manifest's one fault tells how it differs.
    """
    files = {file.path: file for file in source.files}
    normalizer = Normalizer(dataset.manifest.normalization)
    faults: dict[str, list[Fault]] = {}
    compared, named = 0, set[str]()
    wanted = ["task_id", "source_file", "source_row_group", "source_row"]
    total = sum(split.rows for split in dataset.manifest.splits.values())
    for name, split in dataset.manifest.splits.items():
        side = dataset.read_sidecar(name, wanted)
        for column in wanted:
            if side[column].null_count:
                text = f"the sidecars of {name} have nulls in {column}: nothing to compare"
                return compared, [Fault(name, None, None, text)]
        named.update(pc.unique(side["source_file"]).to_pylist())
        index = np.arange(split.rows)
        if sample is not None and sample < total:
            share = -(-sample * split.rows // total)
            index = np.sort(np.random.default_rng(seed).choice(index, share, replace=False))
        side = side.take(pa.array(index)).append_column("index", pa.array(index))
        for (path, group), rows in _by_row_group(side).items():
            found = faults.setdefault(path, [])
            if path not in files:
                found.append(Fault(path, None, None, f"is not in {source.uri}"))
                continue
            groups = files[path].row_groups
            if not 0 <= group < len(groups) or not groups[group].rows:
                found.append(Fault(path, None, None, f"has no row group {group} with rows"))
                continue
            try:
                table = source.read_row_group(files[path], group, ["task_id", STAMP_COLUMN])
            except InputError as error:
                found.append(Fault(path, None, None, str(error).removesuffix(LEAVE_OUT).strip()))
                continue
            compared += rows.num_rows
            found += _row_faults(dataset, name, rows, table, normalizer)
    if dataset.manifest.source.get("digest") not in (None, source.digest()):
        altered = {path for path, found in faults.items() if found} & {*files}
        return compared, [_other_source(dataset, source, named, altered)]
    return compared, [f for path, found in faults.items() for f in _first_of(found, path)]


def _other_source(dataset: Dataset, source: Source, named: set[str], altered: set[str]) -> Fault:
    """How a source differs from the one that the manifest names."""
    files, about = {file.path for file in source.files}, dataset.manifest.source
    bad = {file.path: f"{file.path}: {file.reason}" for file in source.bad_files}
    differences = [
        f"{what}: {len(paths)} ({', '.join(sorted(paths)[:2])}{', ...' * (len(paths) > 2)})"
        for what, paths in (
            ("files that cannot be read", {*bad.values()}),
            ("files that are missing", named - files - {*bad}),
            ("files with other rows", altered),
            ("files that gave no stamp to the dataset", files - named),
        )
        if paths
    ]
    stated = ", ".join(f"{about.get(name)!s:.30} {name}" for name in ("files", "rows", "bytes"))
    return Fault(
        MANIFEST_NAME,
        None,
        None,
        f"names another source than {source.uri}: {about.get('uri')!s:.200} with {stated}, not "
        f"{len(source.files)} files, {source.rows} rows, {source.bytes} bytes. "
        + ("; ".join(differences) or "Every row that was compared is the same")
        + ".",
    )


def _by_row_group(side: pa.Table) -> dict[tuple[str, int], pa.Table]:
    order = side.sort_by([("source_file", "ascending"), ("source_row_group", "ascending")])
    pairs = list(
        zip(order["source_file"].to_pylist(), order["source_row_group"].to_pylist(), strict=True)
    )
    edges = [i for i, pair in enumerate(pairs) if i == 0 or pair != pairs[i - 1]] + [len(pairs)]
    return {pairs[a]: order.slice(a, b - a) for a, b in pairwise(edges)}


def _row_faults(
    dataset: Dataset, split: str, rows: pa.Table, table: pa.Table, normalizer: Normalizer
) -> Iterator[Fault]:
    source_rows = rows["source_row"].to_numpy()
    known = (source_rows >= 0) & (source_rows < table.num_rows)
    taken = table.take(pa.array(np.where(known, source_rows, 0)))
    for start in range(0, rows.num_rows, _BLOCK_ROWS):
        part, fresh = rows.slice(start, _BLOCK_ROWS), taken.slice(start, _BLOCK_ROWS)
        pixels = np.zeros((part.num_rows, *STAMP_SHAPE), np.float32)
        reasons = decode_batch(fresh[STAMP_COLUMN], pixels)
        pixels[[reason is not None for reason in reasons]] = 0
        stored = dataset.read_pixels(split, part["index"].to_numpy())
        derived = np.empty_like(stored)
        normalizer(pixels, derived)
        same = (derived.view(np.uint16) == stored.view(np.uint16)).all(axis=(1, 2, 3))
        tasks = part["task_id"].to_pylist()
        there = fresh["task_id"].to_pylist()
        good = known[start : start + _BLOCK_ROWS] & same & (np.array(there) == np.array(tasks))
        good &= np.array([reason is None for reason in reasons])
        for row in np.flatnonzero(~good).tolist():
            if not known[start + row]:
                what = "the source has no such row"
            elif there[row] != tasks[row]:
                what = f"that is the object {there[row]}, not {tasks[row]}"
            elif reasons[row] is not None:
                what = f"its stamp cannot be decoded ({reasons[row]})"
            else:
                what = "the pixels differ"
            index = int(part["index"][row].as_py())
            where = f"{part['source_file'][row]} row {part['source_row'][row]} of the source"
            yield Fault(split, index, None, f"row {index} of {split} is not {where}: {what}")

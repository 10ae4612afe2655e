"""Check a dataset byte by byte against its manifest, and a sample of it against its source."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset import Dataset, Geometry, ShardInfo, layout
from lensprep.dataset.record import (
    encode_json,
    header_faults,
    payload_crc32,
    payload_view,
    record_key,
)
from lensprep.dataset.sidecar import count_kinds
from lensprep.dataset.strictjson import check_object
from lensprep.decode.cutoutfile import read_catalog_cutout, read_position
from lensprep.decode.normalize import Normalizer
from lensprep.decode.stampnpz import decode_batch
from lensprep.engine import default_workers, run_tasks
from lensprep.errors import (
    ChangedError,
    ConfigError,
    DatasetError,
    InputError,
    NotFoundError,
    ShardError,
    StorageError,
)
from lensprep.source.catalog import Catalog, CutoutSource, is_catalog, open_catalogs
from lensprep.source.cutouts import NO_CUTOUT
from lensprep.source.footers import SourceFile
from lensprep.source.listing import Location, as_locations
from lensprep.source.survey import STAMP_COLUMN, recorded_survey
from lensprep.source.tree import LEAVE_OUT, Source
from lensprep.store import S3Options, Store, is_remote

MAX_FAULTS = 20
"""Faults listed for one shard, or one file of a source; those beyond are counted in a last line."""

_NO_CATALOG: Final = "Folders of cutouts belong to catalogues: name their tables with --against."
_BLOCK_ROWS: Final = 256
"""Rows checked together, `Geometry.scaled_rows`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as the manifest says."""

    file: str
    what: str
    row: int | None = None
    offset: int | None = None
    """Byte in the file at which the fault begins."""


@dataclass(frozen=True, slots=True)
class _Checked:
    split: str
    rows: int
    faults: list[Fault]
    counts: tuple[Counter[str], set[int], dict[str, int]] | None
    """Rows by label, regions, counterfactuals by kind; None if the sidecar could not be read."""


def verify(
    dataset: str,
    *,
    against: Location | Sequence[Location] | None = None,
    folders: Sequence[str] = (),
    sample: int | None = 1000,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    options: S3Options | None = None,
) -> dict[str, Any]:
    """Verify a dataset.

    Every header, CRC, digest, JSON member, count and sidecar is read and compared. A counterfactual
    may not be in another split than its host or donor, which conversion may have left out.

    Parameters
    ----------
    dataset : str
        Folder of the dataset, local or ``s3://``.
    against : str or path, or a sequence of them, optional
        The trees and catalogues of cutouts it was made from: rows are decoded and normalised again
        and compared. What catalogues call their columns, and which grades are lenses, stands in the
        manifest.
    folders : sequence of str
        Folders of the cutouts, in the order of the catalogues; the folder that a catalogue lies in
        for those that have none.
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
    source = None
    if against is not None:  # opened before hours of reading, since it may not be there
        source = _open_source(opened, as_locations(against), folders, options or S3Options())
    elif folders:
        raise ConfigError(_NO_CATALOG)
    splits = opened.manifest.splits
    total = sum(split.rows for split in splits.values())
    tasks = [(name, index) for name, split in splits.items() for index in range(len(split.shards))]
    check = partial(_verify_shard, opened.uri, options)
    faults, checked, done = list(_stray_files(opened)), list[_Checked](), 0
    for result in run_tasks(check, tasks, workers=workers or default_workers()):
        faults += result.faults
        checked.append(result)
        done += result.rows
        if progress is not None:
            progress(done, total)
    faults += _count_faults(opened, checked)
    faults += _family_faults(opened, checked)
    faults += _reject_faults(opened)
    compared = 0
    if source is not None:
        compared, found = _compare_with_source(opened, *source, sample, seed, options)
        faults += found
    faults.sort(key=lambda fault: (fault.file, fault.row or 0))
    return {
        "ok": not faults,
        "shards": len(tasks),
        "rows": total,
        "compared": compared,
        "dataset_id": opened.dataset_id,
        "faults": [asdict(fault) for fault in faults],
    }


def _stray_files(dataset: Dataset) -> Iterator[Fault]:
    """Files that the manifest does not name: leftovers, or put there by somebody."""
    known = {layout.MANIFEST_NAME, layout.REJECTS_NAME}
    for split in dataset.manifest.splits.values():
        known.update(name for shard in split.shards for name in (shard.name, shard.sidecar))
    for entry in dataset.store.entries():
        if entry.name not in known:
            yield Fault(entry.name, "is not named by the manifest")


def _verify_shard(uri: str, options: S3Options | None, which: tuple[str, int]) -> _Checked:
    """Check one shard and its sidecar, in a worker."""
    dataset, (split, index) = Dataset.open(uri, options), which
    shard, counts = dataset.split(split).shards[index], None
    # Sizes first: a file may be replaced by one that no memory holds.
    faults = [
        *_size_faults(dataset.store, shard.name, shard.bytes),
        *_size_faults(dataset.store, shard.sidecar, shard.sidecar_bytes),
    ]
    if not faults:
        try:
            tar = dataset.read_tar(shard)
            faults += _digest_faults(tar, shard.name, shard.sha256)
            sidecar = dataset.store.read(shard.sidecar)
            faults += _digest_faults(sidecar, shard.sidecar, shard.sidecar_sha256)
            side = dataset.read_shard_sidecar(shard)
            labels = Counter(map(str, side["label"].to_pylist()))
            counts = labels, {*side["region_id"].to_pylist()}, count_kinds(side)
            faults += _record_faults(dataset, shard, tar, side)
        except (ShardError, StorageError) as error:
            # A disk's refusal is a fault of the file; a store that does not answer ends the run.
            if is_remote(uri) and not isinstance(error, ShardError | NotFoundError | ChangedError):
                raise
            faults.append(_fault_of(dataset, error, shard.name, shard.sidecar))
    return _Checked(split, shard.rows, _first_of(faults, shard.name), counts)


def _fault_of(dataset: Dataset, error: Exception, *names: str) -> Fault:
    """An error about one of these files as a fault, without naming the file twice."""
    text = str(error).splitlines()[0].rstrip(".")
    for name in names:
        _, where, what = text.partition(f"{dataset.uri}/{name}")
        if where and text.startswith(where):
            return Fault(name, what.removeprefix(":").strip())
    return Fault(names[0], text)


def _first_of(faults: list[Fault], name: str) -> list[Fault]:
    """The faults that are listed, and how many more there are."""
    if len(faults) <= MAX_FAULTS:
        return faults
    more = len(faults) - MAX_FAULTS
    return [*faults[:MAX_FAULTS], Fault(name, f"and {more} more faults")]


def _size_faults(store: Store, name: str, expected: int) -> Iterator[Fault]:
    try:
        found = store.stat(name).bytes
    except NotFoundError:
        yield Fault(name, "is missing")
        return
    if found != expected:
        what = f"has {found} bytes where the manifest states {expected}: cut or replaced"
        yield Fault(name, what, offset=min(found, expected))


def _digest_faults(
    data: NDArray[np.uint8] | bytes | bytearray, name: str, expected: str
) -> list[Fault]:
    found = hashlib.sha256(np.frombuffer(data, np.uint8).data).hexdigest()
    if found == expected:
        return []
    return [Fault(name, f"SHA-256 is {found[:12]}…, not {expected[:12]}…")]


def _record_faults(
    dataset: Dataset, shard: ShardInfo, tar: NDArray[np.uint8], side: pa.Table
) -> list[Fault]:
    """Faults of the records, each with its row and offset."""
    geometry = dataset.geometry
    end, step = shard.rows * geometry.stride, geometry.scaled_rows(_BLOCK_ROWS)
    records = tar[:end].reshape(shard.rows, geometry.stride)
    clip = dataset.manifest.normalization.clip
    keys = side["key"].to_pylist()
    crcs = side["payload_crc32"].to_numpy()
    texts = _expected_json(side)
    faults: list[Fault] = []

    def add(row: int, offset: int, what: str) -> None:
        faults.append(Fault(shard.name, what, row, row * geometry.stride + offset))

    for start in range(0, shard.rows, step):
        block = records[start : start + step]
        rows = range(start, start + len(block))
        for row in header_faults(block, geometry).tolist():
            add(start + row, 0, "a tar or .npy header is not the writer's")
        found = payload_crc32(block, geometry)
        for row in np.flatnonzero(found != crcs[start : start + len(block)]):
            add(
                start + int(row),
                layout.PAYLOAD_OFFSET,
                "the pixels do not have the sidecar's CRC-32",
            )
        outside = ~(np.abs(payload_view(block, geometry)) <= clip).all(axis=(1, 2, 3))
        for row in np.flatnonzero(outside):
            what = f"a pixel is not finite or beyond the clip of {clip:g}"
            add(start + int(row), layout.PAYLOAD_OFFSET, what)
        for row, record in zip(rows, block, strict=True):
            if record_key(record) != keys[row]:
                add(row, 0, f"the key is not the sidecar's {keys[row]}")
            if bytes(record[geometry.json_offset :]) != texts[row]:
                add(row, geometry.json_offset, "the JSON member is not what the sidecar says")
    if tar[end:].any():
        add(shard.rows, 0, "the archive does not end in two zero blocks")
    if "lens_model" in side.column_names:
        label_map, models = dataset.manifest.label_map, side["lens_model"].to_pylist()
        labels = np.array([label_map.get(name, -1) for name in models], np.int64)
        for row in np.flatnonzero(labels != side["label"].to_numpy()):
            add(int(row), geometry.json_offset, "the label is not the label map's of lens_model")
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        if first.setdefault(key, row) != row:
            faults.append(
                Fault(shard.sidecar, f"the key {key} is also that of row {first[key]}", row)
            )
    return faults


def _expected_json(side: pa.Table) -> list[bytes | None]:
    columns = {
        name: side[name].to_pylist() for name in layout.JSON_MEMBERS if name in side.column_names
    }
    if "region_split" in side.column_names:
        columns["split"] = side["region_split"].to_pylist()
    return encode_json(columns)


def _count_faults(dataset: Dataset, checked: list[_Checked]) -> Iterator[Fault]:
    """Compare the sidecars' totals with the manifest."""
    for name, split in dataset.manifest.splits.items():
        counts = [shard.counts for shard in checked if shard.split == name]
        if None in counts:
            continue  # an incomplete count says nothing
        classes, kinds = Counter({"0": 0, "1": 0}), Counter[str]()
        regions = set[int]()
        for found in counts:
            if found is not None:
                classes.update(found[0])
                regions |= found[1]
                kinds.update(found[2])
        for what, held, stated in (
            ("classes", dict(classes), split.classes),
            ("regions", len(regions), split.regions),
            ("counterfactuals", dict(kinds), split.counterfactuals),
        ):
            if held != stated:
                text = f"states {what} of {name} as {stated}, the sidecars hold {held}"
                yield Fault(layout.MANIFEST_NAME, text)


def _family_faults(dataset: Dataset, checked: list[_Checked]) -> Iterator[Fault]:
    """Counterfactuals whose host or donor is in another split."""
    splits = dataset.manifest.splits
    if not any(split.counterfactuals for split in splits.values()):
        return
    if any(shard.counts is None for shard in checked):
        return  # what cannot be read has its fault already
    task_ids = {name: dataset.read_sidecar(name, ["task_id"])["task_id"] for name in splits}
    family = (layout.COUNTERFACTUAL, layout.HOST_TASK, layout.DONOR_TASK)
    for name in (name for name, split in splits.items() if split.counterfactuals):
        try:
            rows = dataset.read_sidecar(name, family).append_column("task_id", task_ids[name])
        except DatasetError as error:
            yield _fault_of(dataset, error, name)
            continue
        rows = rows.filter(pc.field(layout.COUNTERFACTUAL).is_valid())
        others = [chunk for other in splits if other != name for chunk in task_ids[other].chunks]
        elsewhere = pa.chunked_array(others, task_ids[name].type)
        for column in family[1:]:
            lost = rows.filter(pc.is_in(rows[column], value_set=elsewhere))
            if lost.num_rows:
                first = lost.slice(0, 1).to_pylist()[0]
                yield Fault(
                    name,
                    f"{lost.num_rows} counterfactuals of {name} have their {column} in another "
                    f"split; the first is {first['task_id']}, of {first[column]}",
                )


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
        yield Fault(layout.MANIFEST_NAME, text)
    if by_source := account.get("sources"):
        parts = [kind for of in by_source.values() for at in of.values() for kind in at.values()]
        for what in ("input_rows", "accepted"):
            if (rows := sum(part[what] for part in parts)) != account[what]:
                text = f"its sources have {rows} {what}, where the account has {account[what]}"
                yield Fault(layout.MANIFEST_NAME, text)
    try:
        with dataset.store.open(layout.REJECTS_NAME) as file:
            rows = pq.ParquetFile(file).metadata.num_rows
    except (StorageError, OSError, ValueError, pa.ArrowException) as error:
        yield _fault_of(dataset, error, layout.REJECTS_NAME)
        return
    if rows != left_out:
        yield Fault(layout.REJECTS_NAME, f"has {rows} rows where {left_out} were left out")


def _open_source(
    dataset: Dataset, uris: Sequence[Location], folders: Sequence[str], options: S3Options
) -> tuple[Source, dict[str, Catalog]]:
    """Trees and catalogues as one source, and the catalogues by what ``source_file`` says.

    Regions and splits of catalogues' rows are not looked for: pixels, identity and labels of a row
    do not depend on the trees around it.
    """
    survey = recorded_survey(dataset.manifest.source)
    named = [uri for uri in uris if is_catalog(uri, survey, options)]
    trees = [uri for uri in uris if uri not in named]
    if folders and not named:
        raise ConfigError(_NO_CATALOG)
    tree = None
    if trees:
        tree = Source.open(trees, skip_bad_files=True, options=options, survey=survey)
        if not named:
            return tree, {}
    columns, grades, dropped = _catalog_settings(dataset.manifest.config)
    opened = open_catalogs(
        named,
        folders,
        read_position,
        survey=survey,
        columns=columns,
        grade_lens=grades,
        drop_columns=dropped,
        options=options,
    )
    uri = " ".join(map(str, uris))
    source = CutoutSource.of(tree, opened, uri, survey, dropped, options)
    return source, {catalog.path: catalog for catalog in opened}


def _catalog_settings(config: Mapping[str, Any]) -> tuple[dict[str, str], list[str], list[str]]:
    """What catalogues call their columns, grades that are lenses, and columns that were dropped."""
    given = check_object(config.get("cutouts") or {}, "config: cutouts")
    columns, grades = given.get("columns") or [], given.get("grade_lens") or []
    dropped = config.get("drop_columns") or []
    for name, pairs in (("cutouts", columns), ("cutouts", [grades]), ("drop_columns", [dropped])):
        if not isinstance(pairs, list) or not all(map(_is_texts, pairs)):
            raise DatasetError(f"config: {name} does not hold names of columns or grades")
    if any(len(pair) != 2 for pair in columns):
        raise DatasetError("config: cutouts: columns does not hold pairs of names")
    return dict(columns), grades, dropped


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _compare_with_source(
    dataset: Dataset,
    source: Source,
    catalogs: Mapping[str, Catalog],
    sample: int | None,
    seed: int,
    options: S3Options | None,
) -> tuple[int, list[Fault]]:
    """Derive rows again from the source and compare pixels and identity, bit by bit.

    If the source is not the one in the manifest, a single fault says how it differs.
    """
    files: dict[str, SourceFile | Catalog] = {file.path: file for file in source.files}
    files |= catalogs
    normalizer = Normalizer(dataset.manifest.normalization, dataset.geometry)
    faults: dict[str, list[Fault]] = {}
    compared, named = 0, set[str]()
    wanted = ["task_id", "label", "source_file", "source_row_group", "source_row"]
    total = sum(split.rows for split in dataset.manifest.splits.values())
    for name, split in dataset.manifest.splits.items():
        side = dataset.read_sidecar(name, wanted)
        for column in wanted:
            if side[column].null_count:
                text = f"the sidecars of {name} have nulls in {column}: nothing to compare"
                return compared, [Fault(name, text)]
        named.update(pc.unique(side["source_file"]).to_pylist())
        index = np.arange(split.rows)
        if sample is not None and sample < total:
            share = -(-sample * split.rows // total)
            index = np.sort(np.random.default_rng(seed).choice(index, share, replace=False))
        side = side.take(pa.array(index)).append_column("index", pa.array(index))
        for (path, group), rows in _by_row_group(side):
            found = faults.setdefault(path, [])
            if path not in files:
                found.append(Fault(path, f"is not in {source.uri}"))
                continue
            try:
                fresh = _fresh_rows(source, files[path], group, dataset.geometry, options)
            except InputError as error:
                found.append(Fault(path, str(error).removesuffix(LEAVE_OUT).strip()))
                continue
            if fresh is None:
                found.append(Fault(path, f"has no row group {group} with rows"))
                continue
            compared += rows.num_rows
            found += _row_faults(dataset, name, rows, fresh, normalizer)
    if not _is_same_source(dataset, source, catalogs):
        altered = {path for path, found in faults.items() if found} & {*files}
        return compared, [_other_source(dataset, source, named, altered)]
    return compared, [f for path, found in faults.items() for f in _first_of(found, path)]


def _is_same_source(dataset: Dataset, source: Source, catalogs: Mapping[str, Catalog]) -> bool:
    """Whether a source is the one in the manifest, as far as its listing says."""
    about = dataset.manifest.source
    if not catalogs:
        return about.get("digest") in (None, source.digest())
    # The digest of catalogues covers regions and splits of their rows, which are not made here.
    now = {"files": len(source.files), "rows": source.rows, "bytes": source.bytes}
    return all(about.get(name) in (None, value) for name, value in now.items())


class _Fresh(NamedTuple):
    """Rows of a row group of the source, or of a catalogue."""

    task_ids: pa.ChunkedArray
    labels: NDArray[np.int8] | None
    """What a catalogue says; of trees None."""
    decode: Callable[[NDArray[np.int64], NDArray[np.float32]], Sequence[str | None]]
    """Puts the pixels of some rows into an array; why each has none, or None."""


def _fresh_rows(
    source: Source,
    file: SourceFile | Catalog,
    group: int,
    geometry: Geometry,
    options: S3Options | None,
) -> _Fresh | None:
    """The rows of a row group; None if there is none with rows."""
    if isinstance(file, Catalog):
        decode = partial(_decode_cutouts, file, geometry, options)
        labels = file.facts["label"].to_numpy()
        return None if group else _Fresh(file.table["task_id"], labels, decode)
    if not 0 <= group < len(file.row_groups) or not file.row_groups[group].rows:
        return None
    table = source.read_row_group(file, group, ["task_id", STAMP_COLUMN])

    def decode_rows(rows: NDArray[np.int64], out: NDArray[np.float32]) -> Sequence[str | None]:
        return decode_batch(table[STAMP_COLUMN].take(pa.array(rows)), out, geometry.bands)

    return _Fresh(table["task_id"], None, decode_rows)


def _decode_cutouts(
    catalog: Catalog,
    geometry: Geometry,
    options: S3Options | None,
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
) -> list[str | None]:
    reasons = list[str | None]()
    for file, pixels in zip(
        catalog.facts["file"].take(pa.array(rows)).to_pylist(), out, strict=True
    ):
        if file is None:
            reasons.append(NO_CUTOUT)
            continue
        refusal = read_catalog_cutout(catalog.folder, file, pixels, geometry, options)
        reasons.append(refusal and f"{refusal.reason}: {refusal.detail}")
    return reasons


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
        layout.MANIFEST_NAME,
        f"names another source than {source.uri}: {about.get('uri')!s:.200} with {stated}, not "
        f"{len(source.files)} files, {source.rows} rows, {source.bytes} bytes. "
        + ("; ".join(differences) or "Every row that was compared is the same")
        + ".",
    )


def _by_row_group(side: pa.Table) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    order = side.sort_by([("source_file", "ascending"), ("source_row_group", "ascending")])
    pairs = zip(
        order["source_file"].to_pylist(), order["source_row_group"].to_pylist(), strict=True
    )
    start = 0
    for pair, same in groupby(pairs):
        rows = len(list(same))
        yield pair, order.slice(start, rows)
        start += rows


def _row_faults(
    dataset: Dataset, split: str, rows: pa.Table, fresh: _Fresh, normalizer: Normalizer
) -> Iterator[Fault]:
    """Rows of a split that are not those of a row group of the source."""
    source_rows = rows["source_row"].to_numpy()
    known = (source_rows >= 0) & (source_rows < len(fresh.task_ids))
    taken = np.where(known, source_rows, 0)
    step = dataset.geometry.scaled_rows(_BLOCK_ROWS)
    for start in range(0, rows.num_rows, step):
        block, places = rows.slice(start, step), taken[start : start + step]
        pixels = np.zeros((block.num_rows, *dataset.geometry.shape), np.float32)
        reasons = fresh.decode(places, pixels)
        pixels[[reason is not None for reason in reasons]] = 0
        stored = dataset.read_pixels(split, block["index"].to_numpy())
        derived = np.empty_like(stored)
        normalizer(pixels, derived)
        same = (derived.view(np.uint16) == stored.view(np.uint16)).all(axis=(1, 2, 3))
        there = fresh.task_ids.take(pa.array(places)).to_pylist()
        for number, row in enumerate(block.to_pylist()):
            if not known[start + number]:
                what = "the source has no such row"
            elif there[number] != row["task_id"]:
                what = f"that is the object {there[number]}, not {row['task_id']}"
            elif reasons[number] is not None:
                what = f"its stamp cannot be decoded ({reasons[number]})"
            elif not same[number]:
                what = "the pixels differ"
            elif (
                fresh.labels is not None and (label := fresh.labels[places[number]]) != row["label"]
            ):
                what = f"its label is {'none' if label < 0 else label} there, not {row['label']}"
            else:
                continue
            index = row["index"]
            where = f"{row['source_file']} row {row['source_row']} of the source"
            yield Fault(split, f"row {index} of {split} is not {where}: {what}", index)

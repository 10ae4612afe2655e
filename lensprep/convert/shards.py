"""The second round of a conversion: sorted runs -> shards.

A task leaves a small JSON file when a shard is done. Shards have fixed names and bytes, so writing
one again, on this machine or another, is harmless. Runs (`lensprep.convert.workfolder`) and shards
may be on a local disk or in an object store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.convert.config import ConvertConfig
from lensprep.convert.sites import Scratch, Sites
from lensprep.convert.spill import ShardRows, Stretch, arrange, read_records
from lensprep.convert.tasks import Progress, first_and_last, peak_rss_bytes, without_collector
from lensprep.convert.workfolder import Work
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.layout import KIND, ORIGIN, SPLITS, shard_name
from lensprep.dataset.manifest import ShardInfo, SplitInfo
from lensprep.dataset.sidecar import count_kinds
from lensprep.dataset.writer import send_shard, write_shard
from lensprep.decode.account import ACCEPTED, Account, row_classes
from lensprep.decode.placement import shard_count, shard_range
from lensprep.decode.prepare import duplicate_rows, origins_and_kinds
from lensprep.decode.reasons import RejectReason
from lensprep.decode.rowgroup import record_memory
from lensprep.engine import Engine
from lensprep.store import LocalStore, RemoteStore, member_path, sync_file

BLOCK_ROWS = 4096
"""Records of a shard that are in memory at a time, `Geometry.scaled_rows`: those of a run."""

_WRITE_ROWS = 64
"""Records hashed and written at a time, scaled: 1.7 MB, still in the cache when they are
written."""

_SYNC_THREADS = 2


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Second round: the rows of some neighbouring shards -> those shards."""

    split: str
    first: int
    stop: int
    shards: int
    """Number of shards of the whole split."""
    geometry: Geometry
    root: Path | None
    """Local folder in which the shards stay; without one they pass through ``scratch``."""
    store: RemoteStore | None
    """Object store that they are sent to."""
    work: Work
    scratch: Scratch
    runs: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Names of the shards' files in the work folder, without ending."""
        return [f"shard-{self.split}-{index:06d}" for index in range(self.first, self.stop)]

    @property
    def label(self) -> str:
        """Name for messages."""
        ends = first_and_last(range(self.first, self.stop))
        return " to ".join(shard_name(self.split, index) for index in ends)


@without_collector()
def write_shards(task: ShardTask) -> list[dict[str, Any]]:
    """Do one task of the second round; finished shards are only reported.

    Returns
    -------
    list of dict
        For each shard ``shard`` (as `ShardInfo`), ``classes``, ``regions``, ``counterfactuals`` (by
        kind), ``dropped`` (number of duplicates by class) and ``peak_rss_bytes``.
    """
    found = task.work.read_markers(task.names)
    if all(result is not None for result in found):
        return found
    low, _ = shard_range(task.first, task.shards)
    _, high = shard_range(task.stop - 1, task.shards)
    with (
        task.scratch.folder(task.names[0]) as scratch,
        task.work.stretches(task.runs, task.split, low, high, scratch) as stretches,
    ):
        return [
            result or _write_shard(task, index, stretches, scratch)
            for index, result in zip(range(task.first, task.stop), found, strict=True)
        ]


def _write_shard(
    task: ShardTask, index: int, stretches: Sequence[Stretch], scratch: Path
) -> dict[str, Any]:
    """Write one shard, send it to the object store if there is one, and leave its marker."""
    places = shard_range(index, task.shards)
    rows = arrange([stretch.between(*places) for stretch in stretches])
    root = task.root or scratch
    shard = write_shard(
        root, task.split, index, _record_blocks(rows, task.geometry), rows.table, task.geometry
    )
    if task.store is not None:
        send_shard(root, shard, task.store, keep=task.root is not None)
    name = task.names[index - task.first]
    task.work.write_left_out(name, duplicate_rows(rows.dropped))
    result = {
        "shard": asdict(shard),
        "classes": _value_counts(rows.table["label"]),
        "regions": pc.unique(rows.table["region_id"]).to_pylist(),
        "counterfactuals": count_kinds(rows.table),
        "dropped": Counter(row_classes(rows.dropped, rows.dropped["label"].to_numpy()).tolist()),
        "dropped_sources": _dropped_sources(rows.dropped),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    task.work.write_marker(name, result)
    return result


def _record_blocks(rows: ShardRows, geometry: Geometry) -> Iterator[NDArray[np.uint8]]:
    """Records of a shard in tar order, a few at a time."""
    count, block = rows.table.num_rows, geometry.scaled_rows(BLOCK_ROWS)
    step = geometry.scaled_rows(_WRITE_ROWS)
    for first in range(0, count, block):
        records = read_records(rows, record_memory(min(block, count - first), geometry), first)
        for start in range(0, len(records), step):
            yield records[start : start + step]


def _dropped_sources(dropped: pa.Table) -> list[list[Any]]:
    """Duplicates by [file, origin, kind], where catalogues are among the sources."""
    if not {ORIGIN, KIND} <= {*dropped.column_names}:
        return []
    places = zip(dropped["source_file"].to_pylist(), *origins_and_kinds(dropped), strict=True)
    return [[*place, rows] for place, rows in sorted(Counter(places).items())]


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {str(e["values"]): e["counts"] for e in pc.value_counts(column).to_pylist()}


def second_round(
    config: ConvertConfig,
    sites: Sites,
    runs: list[str],
    account: Account,
    engine: Engine,
    progress: Progress | None,
    source_names: Mapping[str, str],
    geometry: Geometry = DECALS,
) -> tuple[dict[str, SplitInfo], int]:
    """Write the shards and complete the account; returns the splits and the workers' peak RSS.

    ``source_names`` has the source of each file, where the account is by source too.
    """
    accepted = Counter[str]()
    for (split, _, outcome), rows in account.counts.items():
        accepted[split] += rows if outcome == ACCEPTED else 0
    splits = [split for split in SPLITS if accepted[split]]
    task = partial(
        ShardTask,
        geometry=geometry,
        root=sites.shard_folder,
        store=sites.shard_store,
        work=sites.work,
        scratch=sites.scratch,
        runs=tuple(runs),  # one for all tasks: of 100 million rows 25,000 names
    )
    most = sites.group_shards(config.rows_per_shard, engine.workers, geometry)
    tasks = [
        task(split, first, min(first + step, count), count)
        for split in splits
        for count in [shard_count(accepted[split], config.rows_per_shard)]
        for step in [max(1, min(most, count // (4 * engine.workers)))]
        for first in range(0, count, step)
    ]
    results: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    done = 0
    with ThreadPoolExecutor(_SYNC_THREADS) as syncing:
        for result in (r for rs in engine.run(write_shards, tasks) for r in rs):
            name = str(result["shard"]["name"])
            if isinstance(sites.dataset, LocalStore):
                # Started now, so that the commit has little left to wait for.
                syncing.submit(sync_file, member_path(sites.dataset.root, name))
            split = name.split("/")[0]
            results[split].append(result)
            for label, rows in result["dropped"].items():
                account.move(split, label, RejectReason.DUPLICATE_ROW.value, rows)
            for file, *place, rows in result.get("dropped_sources", ()) if source_names else ():
                of_source = (source_names[file], *place)
                account.sources[*of_source, ACCEPTED] -= rows
                account.sources[*of_source, RejectReason.DUPLICATE_ROW.value] += rows
            done += int(result["shard"]["rows"]) + sum(result["dropped"].values())
            if progress is not None:
                progress("shards", done, accepted.total())
    peak = max((r["peak_rss_bytes"] for of_split in results.values() for r in of_split), default=0)
    return {split: _split_info(found) for split, found in results.items()}, peak


def _split_info(results: list[dict[str, Any]]) -> SplitInfo:
    classes, kinds = Counter({"0": 0, "1": 0}), Counter[str]()
    for result in results:
        classes.update(result["classes"])
        kinds.update(result.get("counterfactuals", {}))  # absent in earlier versions
    shards = sorted((ShardInfo(**r["shard"]) for r in results), key=lambda shard: shard.name)
    return SplitInfo(
        rows=sum(shard.rows for shard in shards),
        classes=dict(classes),
        regions=len({region for result in results for region in result["regions"]}),
        shards=tuple(shards),
        counterfactuals=dict(sorted(kinds.items())),
    )

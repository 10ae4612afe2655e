"""The two rounds of tasks of a conversion: row groups -> sorted runs, then runs -> shards.

A task leaves a small JSON file when it is done. Its files have fixed names and its shards fixed
bytes, so doing it again, here or elsewhere, is harmless. Where runs lie
(`lensprep.convert.workfolder`) and where shards go, here or in an object store, makes no difference
to them.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.convert.sites import Scratch
from lensprep.convert.spill import ShardRows, Stretch, arrange, read_records
from lensprep.convert.workfolder import Work
from lensprep.dataset.layout import shard_name
from lensprep.dataset.manifest import NormalizationSpec
from lensprep.dataset.record import blank_records
from lensprep.dataset.writer import send_shard, write_shard
from lensprep.decode.normalize import Normalizer
from lensprep.decode.placement import shard_range
from lensprep.decode.prepare import REJECT_SCHEMA, Prepared, Preparer, duplicate_rows
from lensprep.decode.rowgroup import prepare_row_groups, record_memory
from lensprep.engine.trial import find_fatal
from lensprep.errors import InputError, size_text
from lensprep.source.contract import FilterRules
from lensprep.source.footers import SourceFile
from lensprep.source.tree import Source
from lensprep.store.s3 import S3Store

RUN_ROWS = 4096
"""Rows of one run: 109 MB of records in memory."""

_WRITE_ROWS = 64
"""Records hashed and written at a time: 1.7 MB, still in the cache when they are written."""


@contextmanager
def _without_collector() -> Iterator[None]:
    """Let the search for cycles rest: a task makes none, and looking costs it three per cent."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@dataclass(frozen=True, slots=True)
class RunTask:
    """First round: some row groups -> sorted runs."""

    index: int
    source: Source
    parts: tuple[tuple[SourceFile, int], ...]
    """File and row group."""
    seed: int
    rules: FilterRules
    spec: NormalizationSpec
    skip_bad_files: bool
    work: Work

    @property
    def name(self) -> str:
        """Name of the task's files without ending."""
        return f"run-{self.index:06d}"

    @property
    def label(self) -> str:
        """What a person calls it."""
        groups: dict[str, list[int]] = {}
        for file, group in self.parts:
            groups.setdefault(file.path, []).append(group)
        return "; ".join(
            f"{path}, row group{'' if len(of) == 1 else 's'} {' to '.join(map(str, _ends(of)))}"
            for path, of in groups.items()
        )


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Second round: the rows of some neighbouring shards -> those shards."""

    split: str
    first: int
    stop: int
    shards: int
    """Number of shards of the whole split."""
    root: Path | None
    """Local folder in which the shards stay; they go through ``scratch`` if there is none."""
    store: S3Store | None
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
        """What a person calls it."""
        ends = _ends(range(self.first, self.stop))
        return " to ".join(shard_name(self.split, index) for index in ends)


def _ends(numbers: Sequence[int]) -> list[int]:
    """First and last of some numbers, once if they are the same."""
    return sorted({numbers[0], numbers[-1]})


def peak_rss_bytes() -> int:
    """Largest resident memory that this process has had so far, bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        # Not Linux. There `ru_maxrss` would be too high: a new process inherits its parent's.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --------------------------------------------------------------------------- first round


@_without_collector()
def run_rows(task: RunTask) -> dict[str, Any]:
    """Do one task of the first round; a task that is done already only reports.

    While it goes on a note says so. One that is there already was left by a process that died, of
    what it read or of something else: that is found out before any of it is read here.

    Returns
    -------
    dict
        ``rows`` read, ``account`` (see `Account.to_list`), ``read_again``: rows, ``runs``: names,
        ``peak_rss_bytes``.

    Raises
    ------
    InputError
        If a row group cannot be read, or kills whoever reads it, and ``skip_bad_files`` is not set.
    """
    note = f"begun-{task.name}"
    done, begun = task.work.read_markers([task.name, note])
    if done is not None:
        return dict(done)
    fatal = find_fatal(partial(_try_part, task), task.parts) if begun is not None else []
    if fatal and not task.skip_bad_files:
        file, group = fatal[0]
        raise InputError(
            f"{file.path}, row group {group} kills the process that reads it; a second one, which "
            "read nothing else, died too: it is damaged, or there is not enough memory for its "
            f"{size_text(file.row_groups[group].bytes)}. Use fewer --workers, copy the file again, "
            "or leave the row group out with --skip-bad-files."
        )
    task.work.write_marker(note, task.label)
    preparer, runs, left_out = _preparer(task), _RunWriter(task), [REJECT_SCHEMA.empty_table()]
    for prepared in prepare_row_groups(
        task.source,
        task.parts,
        preparer,
        runs.space,
        skip_unreadable=task.skip_bad_files,
        fatal=fatal,
    ):
        left_out.append(prepared.left_out)
        runs.add(prepared)
    runs.flush()
    account = preparer.account
    task.work.write_left_out(task.name, pa.concat_tables(left_out))
    result = {
        "rows": account.input_rows,
        "account": account.to_list(),
        "read_again": account.read_again,
        "runs": runs.names,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    task.work.write_marker(task.name, result)
    task.work.remove_marker(note)
    return result


def _preparer(task: RunTask) -> Preparer:
    return Preparer(task.seed, task.rules, Normalizer(task.spec))


def _try_part(task: RunTask, part: tuple[SourceFile, int]) -> None:
    """All that is done with a row group until its records are written."""
    skip = task.skip_bad_files
    for _ in prepare_row_groups(task.source, [part], _preparer(task), skip_unreadable=skip):
        pass


class _RunWriter:
    """Collects finished records in memory and writes them as a run when it is full."""

    def __init__(self, task: RunTask) -> None:
        rows = sum(file.row_groups[group].rows for file, group in task.parts)
        self._task = task
        self._records = record_memory(min(rows, RUN_ROWS))
        blank_records(self._records)
        self._tables: list[pa.Table] = []
        self._used = 0
        self.names: list[str] = []

    def space(self, rows: int) -> NDArray[np.uint8]:
        """Room for so many records more."""
        if self._used + rows > len(self._records):
            self.flush()
        return self._records[self._used :]

    def add(self, prepared: Prepared) -> None:
        """Count what was put into the room as written."""
        if prepared.rows:
            self._used += prepared.rows
            self._tables.append(prepared.table)

    def flush(self) -> None:
        """Write what there is."""
        if self._used:
            name = f"{self._task.name}-{len(self.names):03d}"
            table = pa.concat_tables(self._tables)
            self._task.work.write_run(name, self._records[: self._used], table)
            self.names.append(name)
            self._tables, self._used = [], 0
            # What parquet pages were decoded in would stay with the allocator, a third of a worker.
            pa.default_memory_pool().release_unused()


# -------------------------------------------------------------------------- second round


@_without_collector()
def write_shards(task: ShardTask) -> list[dict[str, Any]]:
    """Do one task of the second round; shards that are done already are only reported.

    Returns
    -------
    list of dict
        For each shard ``shard`` (as `ShardInfo`), ``classes``, ``regions``, ``dropped``: the
        rows that were there twice, by class, and ``peak_rss_bytes``.
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
    """Write one shard, send it if it is to go elsewhere, and say that it is done."""
    places = shard_range(index, task.shards)
    rows = arrange([stretch.between(*places) for stretch in stretches])
    root = task.root or scratch
    shard = write_shard(root, task.split, index, _record_blocks(rows), rows.table)
    if task.store is not None:
        send_shard(root, shard, task.store, keep=task.root is not None)
    name = task.names[index - task.first]
    task.work.write_left_out(name, duplicate_rows(rows.dropped))
    result = {
        "shard": asdict(shard),
        "classes": _value_counts(rows.table["label"]),
        "regions": pc.unique(rows.table["region_id"]).to_pylist(),
        "dropped": _value_counts(rows.dropped["label"]),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    task.work.write_marker(name, result)
    return result


def _record_blocks(rows: ShardRows) -> Iterator[NDArray[np.uint8]]:
    """Records of a shard in tar order, a few at a time; no more is in memory than in a run."""
    count = rows.table.num_rows
    for first in range(0, count, RUN_ROWS):
        records = read_records(rows, record_memory(min(RUN_ROWS, count - first)), first)
        for start in range(0, len(records), _WRITE_ROWS):
            yield records[start : start + _WRITE_ROWS]


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {str(e["values"]): e["counts"] for e in pc.value_counts(column).to_pylist()}

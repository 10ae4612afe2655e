"""The first round of a conversion: row groups -> sorted runs of finished records.

A task leaves a small JSON file when it is done. The names and content of its files are fixed, so
running it again, on this machine or another, is harmless.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.convert.config import ConvertConfig
from lensprep.convert.noise import find_doubt, measure
from lensprep.convert.rejects import check_rejects
from lensprep.convert.tasks import Progress, first_and_last, peak_rss_bytes, without_collector
from lensprep.convert.workfolder import Work
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.normalization import NormalizationSpec
from lensprep.dataset.record import blank_records
from lensprep.decode.account import Account
from lensprep.decode.normalize import Normalizer
from lensprep.decode.prepare import REJECT_SCHEMA, Prepared, Preparer
from lensprep.decode.rowgroup import prepare_row_groups, record_memory
from lensprep.engine import Engine
from lensprep.engine.trial import find_fatal
from lensprep.errors import InputError, size_text
from lensprep.source.contract import FilterRules
from lensprep.source.footers import SourceFile, neighbours
from lensprep.source.tree import Source

_log = logging.getLogger("lensprep.convert")

RUN_ROWS = 4096
"""Rows of one run, `Geometry.scaled_rows`: 109 MB of records in memory."""


@dataclass(frozen=True, slots=True)
class RunTask:
    """First round: some row groups -> sorted runs."""

    index: int
    source: Source
    row_groups: tuple[tuple[SourceFile, int], ...]
    """File and row group."""
    seed: int
    rules: FilterRules
    spec: NormalizationSpec
    skip_bad_files: bool
    work: Work
    geometry: Geometry

    @property
    def name(self) -> str:
        """Name of the task's files without ending."""
        return f"run-{self.index:06d}"

    @property
    def label(self) -> str:
        """Name for messages."""
        return "; ".join(
            f"{path}, row group{'s' * (len(ends) > 1)} {' to '.join(map(str, ends))}"
            for path, groups in groupby(self.row_groups, key=lambda group: group[0].path)
            for ends in [first_and_last([number for _, number in groups])]
        )


@without_collector()
def run_rows(task: RunTask) -> dict[str, Any]:
    """Do one task of the first round; a finished task is only reported.

    While the task runs there is a note of it. An older note was left by a process that died,
    perhaps of what it read: row groups that kill their reader are found before anything is read.

    Returns
    -------
    dict
        ``rows`` read, ``account`` (see `Account.to_list`), ``read_again`` (rows), ``runs`` (names),
        ``measured`` (see `lensprep.convert.noise.measure`), ``peak_rss_bytes``.

    Raises
    ------
    InputError
        If a row group cannot be read, or kills its reader, and ``skip_bad_files`` is not set.
    """
    note = f"begun-{task.name}"
    done, begun = task.work.read_markers([task.name, note])
    if done is not None:
        return dict(done)
    fatal = find_fatal(partial(_try_row_group, task), task.row_groups) if begun is not None else []
    if fatal and not task.skip_bad_files:
        file, group = fatal[0]
        raise InputError(
            f"{file.label(group)} kills the process that reads it; a second one, which "
            "read nothing else, died too: it is damaged, or there is not enough memory for its "
            f"{size_text(file.row_groups[group].bytes)}. Use fewer --workers, copy the file again, "
            "or leave the row group out with --skip-bad-files."
        )
    task.work.write_marker(note, task.label)
    preparer, runs, left_out = _preparer(task), _RunWriter(task), [REJECT_SCHEMA.empty_table()]
    noise = []
    for prepared in prepare_row_groups(
        task.source,
        task.row_groups,
        preparer,
        runs.space,
        skip_unreadable=task.skip_bad_files,
        fatal=fatal,
    ):
        left_out.append(prepared.left_out)
        runs.add(prepared)
        if len(prepared.records):
            noise.append(prepared.table.select(task.geometry.band_columns("scale", "clip_frac")))
    runs.flush()
    account = preparer.account
    task.work.write_left_out(task.name, pa.concat_tables(left_out, promote_options="default"))
    result = {
        "rows": account.input_rows,
        "account": account.to_list(),
        "sources": [[*place, rows] for place, rows in sorted(account.sources.items())],
        "read_again": account.read_again,
        "runs": runs.names,
        "measured": measure(noise, task.geometry),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    task.work.write_marker(task.name, result)
    task.work.remove_marker(note)
    return result


def _preparer(task: RunTask) -> Preparer:
    normalizer = Normalizer(task.spec, task.geometry)
    return Preparer(task.seed, task.rules, normalizer, task.source.survey)


def _try_row_group(task: RunTask, row_group: tuple[SourceFile, int]) -> None:
    """Prepare a row group as `run_rows` does, and write nothing."""
    skip = task.skip_bad_files
    for _ in prepare_row_groups(task.source, [row_group], _preparer(task), skip_unreadable=skip):
        pass


class _RunWriter:
    """Collects finished records in memory and writes them as a run when it is full."""

    def __init__(self, task: RunTask) -> None:
        rows = sum(file.row_groups[group].rows for file, group in task.row_groups)
        self._task = task
        rows = min(rows, task.geometry.scaled_rows(RUN_ROWS))
        self._records = record_memory(rows, task.geometry)
        blank_records(self._records, task.geometry)
        self._tables: list[pa.Table] = []
        self._used = 0
        self.names: list[str] = []

    def space(self, rows: int) -> NDArray[np.uint8]:
        """Free memory for this many more records."""
        if self._used + rows > len(self._records):
            self.flush()
        return self._records[self._used :]

    def add(self, prepared: Prepared) -> None:
        """Take over the records that were put into this memory."""
        if len(prepared.records):
            self._used += len(prepared.records)
            self._tables.append(prepared.table)

    def flush(self) -> None:
        """Write what there is."""
        if self._used:
            name = f"{self._task.name}-{len(self.names):03d}"
            table = pa.concat_tables(self._tables)
            self._task.work.write_run(name, self._records[: self._used], table)
            self.names.append(name)
            self._tables, self._used = [], 0
            # The allocator would keep the memory of decoded parquet pages, a third of a worker's.
            pa.default_memory_pool().release_unused()


def identity(config: ConvertConfig) -> dict[str, Any]:
    """The settings that bytes and tasks depend on; a conversion resumes only with the same ones.

    The rows of a run decide which rows a task of `plan_runs` reads.
    """
    return {**config.identity, "run_rows": RUN_ROWS}


def plan_runs(
    source: Source,
    config: ConvertConfig,
    rules: FilterRules,
    work: Work,
    geometry: Geometry = DECALS,
) -> list[RunTask]:
    """Group neighbouring row groups into tasks of about one run each."""
    spec = config.normalization
    bare, skip = source.bare, config.skip_bad_files
    return [
        RunTask(index, bare, row_groups, config.seed, rules, spec, skip, work, geometry)
        for index, row_groups in enumerate(neighbours(source.files, geometry.scaled_rows(RUN_ROWS)))
    ]


def first_round(
    source: Source,
    config: ConvertConfig,
    rules: FilterRules,
    work: Work,
    engine: Engine,
    progress: Progress | None,
    geometry: Geometry = DECALS,
) -> tuple[Account, list[str], int]:
    """Read all rows into runs; returns the account, the runs' names and the workers' peak RSS."""
    tasks = plan_runs(source, config, rules, work, geometry)
    account, runs, peak, done = Account(), list[str](), 0, 0
    measured: list[dict[str, Any]] = []
    for result in engine.run(run_rows, tasks):
        account.merge(Account.from_list(result["account"]))
        for *place, rows in result.get("sources", ()):
            account.sources[tuple(place)] += rows
        account.read_again += result.get("read_again", 0)  # absent in earlier versions
        runs += result["runs"]
        if (found := result.get("measured")) is not None:  # absent in earlier versions
            measured.append(found)
        peak = max(peak, result["peak_rss_bytes"])
        done += result["rows"]
        if progress is not None:
            progress("decode", done, source.rows)
        check_rejects(account, source, config, work)
    doubt = find_doubt(measured, config.normalization, geometry)
    if doubt is not None:
        _log.warning("%s: %s", source.uri, doubt)
    return account, sorted(runs), peak

"""Writes a synthetic Phase 4c tree: Hive folders, part files, row groups, markers.

::

    OUT/_truth.parquet              with defects only; hidden from readers, as Spark hides "_"
    OUT/stamps/train_stamp64_bandsgrz_gridgrid_small/
      _SUCCESS
      region_split=train/part-00000-<uuid>.c000.snappy.parquet
      region_split=train/.part-00000-<uuid>.c000.snappy.parquet.crc
"""

from __future__ import annotations

import math
import os
import shutil
import struct
import tempfile
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lensprep.dataset.layout import SPLITS
from lensprep.engine import run_tasks
from lensprep.errors import BudgetError, ProjectError, StorageError, size_text
from lensprep.extras import install_hint
from lensprep.source.survey import SCHEMA, SPLIT_COLUMN, STAMP_COLUMN
from lensprep.store import (
    S3Options,
    check_folder,
    is_remote,
    join_uri,
    local_path,
    open_store,
    written_folder,
)
from lensprep.synth.defects import (
    DEFECT_BY_NAME,
    DROPPED_COLUMNS,
    DefectPlan,
    Repeat,
    plan_defects,
    repeat,
    spoil,
)
from lensprep.synth.priors import UPSTREAM, Priors, find_priors
from lensprep.synth.rows import EXPERIMENT_ID, Row, encode_stamp, galaxy_id, render_row
from lensprep.synth.survey import Brick, SurveyPlan, is_lens, plan_survey

STAMPS_DIR: Final = f"stamps/{EXPERIMENT_ID}"
FILE_SCHEMA: Final = SCHEMA.remove(SCHEMA.get_field_index(SPLIT_COLUMN))
"""Schema of a part file: the split stands in the folder's name only."""
TRUTH_NAME: Final = "_truth.parquet"
TRUTH_SCHEMA: Final = pa.schema(
    [
        ("task_id", pa.string()),
        ("file", pa.string()),
        ("row_group", pa.int32()),
        ("row", pa.int64()),
        ("defect", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("repeats_task_id", pa.string()),
    ]
)
"""One row a defect. ``file`` is relative to OUT, ``row`` counts within the row group (both as
``source_file`` and ``source_row`` of a dataset converted from OUT). ``outcome`` is accepted,
filtered or rejected, for ``reason`` (several, joined by ``|``, where chance decides). Of a row and
its ``duplicate_task`` conversion keeps one, either of them."""
MAX_FILE_ROWS: Final = 1024
MAX_GROUP_ROWS: Final = 256

_FILES_PER_SPLIT = 4
_GROUPS_PER_FILE = 4
_CRC_CHUNK = 512
_ROW_BYTES = 47_500


class Entry(NamedTuple):
    """One row of a part file."""

    row: int
    """Of the plan."""
    brick: Brick
    defect: str = ""
    """Defect to plant in it, if any."""
    again: Repeat | None = None
    """Set if the row repeats the stamp of another row."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """One part file to write, with all that a worker needs."""

    folder: Path
    """Folder of the tree."""
    name: str
    """Path below the folder, as in ``source_file`` when the whole tree is read."""
    split: str
    seed: int
    priors: Priors
    entries: tuple[Entry, ...]
    dropped: tuple[str, ...] = ()
    """Columns that the file lacks."""


@dataclass(frozen=True, slots=True)
class PartResult:
    """What was written."""

    split: str
    rows: int
    controls: int
    bytes: int
    truth: list[dict[str, Any]]
    """A record for every planted defect."""


def synthesize(
    out: str | os.PathLike[str],
    *,
    rows: int,
    seed: int,
    priors: str = UPSTREAM.name,
    workers: int | None = None,
    regions: int | None = None,
    split_fractions: Mapping[str, float] | None = None,
    defects: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    options: S3Options | None = None,
) -> dict[str, Any]:
    """Write a synthetic Phase 4c tree.

    The bytes depend on ``rows``, ``seed``, ``priors``, ``regions`` and ``split_fractions`` alone,
    not on the number of workers (given the same versions of NumPy, SciPy, pyarrow and lenstronomy).

    Parameters
    ----------
    out : str or path
        Folder to make, local or s3://; it must be empty or not exist. It appears when it is
        complete; one in an object store is made in the folder for temporary files and then sent,
        ``_SUCCESS`` last.
    rows : int
    seed : int
    priors : str, optional
        Name in `lensprep.synth.priors.PRIORS`: what hosts, lenses and arcs are drawn from.
    workers : int, optional
        Processes; by default as many as there are processors.
    regions : int, optional
        Regions of sky; see `lensprep.synth.survey.plan_survey`.
    split_fractions : mapping of split to share, optional
        By default train 60 %, val 15 %, test 25 %.
    defects : mapping of defect to rate, optional
        Known defects to plant, each in this share of the rows (at least in one), such as
        `lensprep.synth.DEFAULT_RATES`. Duplicates are added to ``rows``, part files differ in
        their columns, and ``_truth.parquet`` in ``out`` says what was planted where and what
        conversion must make of it.
    progress : callable, optional
        Called with the number of finished rows, and ``rows``.
    options : S3Options, optional
        How to reach an object store.

    Returns
    -------
    dict
        out, truth, rows, seed, priors, regions, files, bytes, seconds, stamps_per_s, splits (rows,
        controls, injections, regions of each) and defects (rows of each). Controls and injections
        are counted before defects change any label.

    Raises
    ------
    ConfigError
        If a number is out of range or ``priors`` unknown.
    StorageError
        If ``out`` is in use or cannot be written.
    BudgetError
        If the disk has no room for it.
    ProjectError
        If lenstronomy is not installed.
    """
    if find_spec("lenstronomy") is None:
        raise ProjectError(install_hint("lenstronomy"))
    started = time.perf_counter()
    drawn_from = find_priors(priors)
    if open_store(out, options).entries():
        raise StorageError(f"{out} is not empty. Name a folder that does not exist or is empty.")
    _require_disk(Path(tempfile.gettempdir()) if is_remote(out) else local_path(out), rows)
    plan = plan_survey(rows, seed, regions, split_fractions)
    planted = _planned_defects(plan, seed, defects) if defects else DefectPlan({}, ())
    mark = f"{STAMPS_DIR}/_SUCCESS"
    check_folder(out, mark, options)
    results: list[PartResult] = []
    with written_folder(out, mark, options) as folder:
        for split in SPLITS:
            (folder / STAMPS_DIR / f"{SPLIT_COLUMN}={split}").mkdir(parents=True)
        parts = plan_files(plan, seed, drawn_from, folder, planted, older_versions=bool(defects))
        for result in run_tasks(write_part, parts, workers=workers):
            results.append(result)
            if progress is not None:
                progress(sum(result.rows for result in results), rows)
        if defects:
            records = [record for result in results for record in result.truth]
            records.sort(key=itemgetter("file", "row_group", "row"))
            pq.write_table(pa.Table.from_pylist(records, schema=TRUTH_SCHEMA), folder / TRUTH_NAME)
        (folder / mark).write_bytes(b"")
        _write_checksums(folder / mark)
    seconds = time.perf_counter() - started
    written = sum(result.rows for result in results)
    return {
        "out": str(out),
        "truth": join_uri(out, TRUTH_NAME) if defects else None,
        "rows": written,
        "seed": seed,
        "priors": priors,
        "regions": len(plan.region_split),
        "files": len(parts),
        "bytes": sum(result.bytes for result in results),
        "seconds": seconds,
        "stamps_per_s": written / seconds,
        "splits": {split: _split_summary(split, plan, results) for split in SPLITS},
        "defects": dict(sorted(Counter(t["defect"] for r in results for t in r.truth).items())),
    }


def plan_files(
    plan: SurveyPlan,
    seed: int,
    priors: Priors,
    folder: Path,
    planted: DefectPlan,
    *,
    older_versions: bool = False,
) -> list[PartFile]:
    """Divide every split into part files of at most 1,024 rows, at least four if there are enough.

    Duplicates are added to them. With ``older_versions`` the files differ in their columns, like
    those of several pipeline versions.
    """
    rng = np.random.default_rng([seed, 3])
    job = uuid.UUID(bytes=rng.bytes(16), version=4)
    parts: list[PartFile] = []
    for split in SPLITS:
        rows = plan.rows_of(split)
        count = max(math.ceil(len(rows) / MAX_FILE_ROWS), min(_FILES_PER_SPLIT, len(rows)))
        again = [more for more in planted.repeats if more.split == split]
        homes = rng.integers(0, count, len(again))
        for i, chunk in enumerate(np.array_split(rows, count)):
            entries = [
                Entry(row, plan.brick_of(row), planted.spoilt.get(row, ""))
                for row in chunk.tolist()
            ]
            for more in (again[k] for k in np.flatnonzero(homes == i)):
                entry = Entry(more.row, plan.brick_of(more.row), more.defect, more)
                entries.insert(int(rng.integers(len(entries) + 1)), entry)
            name = f"{SPLIT_COLUMN}={split}/part-{len(parts):05d}-{job}.c000.snappy.parquet"
            dropped = DROPPED_COLUMNS[: len(parts) % (len(DROPPED_COLUMNS) + 1)]
            parts.append(
                PartFile(
                    folder,
                    f"{STAMPS_DIR}/{name}",
                    split,
                    seed,
                    priors,
                    tuple(entries),
                    dropped if older_versions else (),
                )
            )
    return parts


def write_part(part: PartFile) -> PartResult:
    """Render the rows of one part file and write it, with its checksum file."""
    group_rows = max(1, min(MAX_GROUP_ROWS, math.ceil(len(part.entries) / _GROUPS_PER_FILE)))
    records: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    controls = 0
    for position, entry in enumerate(part.entries):
        row = render_row(part.seed, entry.row, entry.brick, part.split, part.priors)
        columns, blob = _finish(part, entry, row)
        records.append(columns | {STAMP_COLUMN: blob})
        controls += row.columns["is_control"]
        if entry.defect:
            defect = DEFECT_BY_NAME[entry.defect]
            record = {
                "task_id": columns["task_id"],
                "file": part.name,
                "row_group": position // group_rows,
                "row": position % group_rows,
                "defect": defect.name,
                "outcome": defect.outcome,
                "reason": defect.reason,
                "repeats_task_id": row.columns["task_id"] if entry.again else None,
            }
            truth.append(record)
    schema = pa.schema([field for field in FILE_SCHEMA if field.name not in part.dropped])
    path = part.folder / part.name
    light = [field.name for field in schema if field.name != STAMP_COLUMN]
    pq.write_table(
        pa.Table.from_pylist(records, schema=schema),
        path,
        compression="snappy",
        row_group_size=group_rows,
        use_dictionary=light,
        write_batch_size=32,  # pages of a megabyte or two, as Spark's
        write_statistics=light,
        write_page_checksum=True,  # as Spark 3.2 and later
    )
    _write_checksums(path)
    return PartResult(part.split, len(records), controls, path.stat().st_size, truth)


def _finish(part: PartFile, entry: Entry, row: Row) -> tuple[dict[str, Any], bytes | None]:
    """Columns and blob of an entry, defects included."""
    if entry.again is not None:
        return repeat(row, entry.again)
    if entry.defect:
        return spoil(row, entry.defect, part.seed, entry.row)
    return row.columns, encode_stamp(row.pixels)


def _planned_defects(plan: SurveyPlan, seed: int, rates: Mapping[str, float]) -> DefectPlan:
    rows = range(len(plan.brick_of_row))
    is_control = [not is_lens(seed, galaxy_id(plan.brick_of(row), row)) for row in rows]
    splits = [plan.region_split[plan.brick_of(row).region_id] for row in rows]
    return plan_defects(rates, seed, np.array(is_control), splits)


def _write_checksums(path: Path) -> None:
    """Write Hadoop's hidden ``.<name>.crc``: a CRC-32 for every 512 bytes."""
    view = memoryview(path.read_bytes())
    sums = [zlib.crc32(view[at : at + _CRC_CHUNK]) for at in range(0, len(view), _CRC_CHUNK)]
    header = b"crc\0" + struct.pack(">I", _CRC_CHUNK)
    crc = path.with_name(f".{path.name}.crc")
    crc.write_bytes(header + struct.pack(f">{len(sums)}I", *sums))


def _require_disk(out: Path, rows: int) -> None:
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    need, free = rows * _ROW_BYTES, shutil.disk_usage(existing).free
    if need > free:
        raise BudgetError(
            f"{rows:,} rows take about {size_text(need)}, and {existing} has {size_text(free)} "
            "free. Ask for fewer rows or name another disk."
        )


def _split_summary(split: str, plan: SurveyPlan, results: list[PartResult]) -> dict[str, int]:
    mine = [result for result in results if result.split == split]
    rows, controls = sum(r.rows for r in mine), sum(r.controls for r in mine)
    regions = sum(1 for name in plan.region_split.values() if name == split)
    return {"rows": rows, "controls": controls, "injections": rows - controls, "regions": regions}

"""Writes a synthetic Phase 4c tree: Hive folders, part files, row groups, markers.

::

    OUT/stamps/train_stamp64_bandsgrz_gridgrid_small/
      _SUCCESS
      region_split=train/part-00000-<uuid>.c000.snappy.parquet
      region_split=train/.part-00000-<uuid>.c000.snappy.parquet.crc
"""

from __future__ import annotations

import math
import shutil
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.contract import SCHEMA, SPLIT_COLUMN, STAMP_COLUMN
from lensprep.dataset.layout import SPLITS
from lensprep.engine import default_workers, run_tasks
from lensprep.errors import StorageError
from lensprep.synth.rows import EXPERIMENT_ID, encode_stamp, render_row
from lensprep.synth.survey import Brick, SurveyPlan, plan_survey

STAMPS_DIR: Final = f"stamps/{EXPERIMENT_ID}"
FILE_SCHEMA: Final = SCHEMA.remove(SCHEMA.get_field_index(SPLIT_COLUMN))
"""Schema of a part file: the split stands in the folder's name only."""
MAX_FILE_ROWS: Final = 1024
MAX_GROUP_ROWS: Final = 256

_FILES_PER_SPLIT = 4
_GROUPS_PER_FILE = 4
_CRC_CHUNK = 512


@dataclass(frozen=True, slots=True)
class PartFile:
    """One part file to write; all that a worker has to know."""

    path: Path
    name: str
    """Path below the folder of the stamps."""
    split: str
    seed: int
    rows: NDArray[np.int64]
    """Rows of the plan, in the order of the file."""
    bricks: tuple[Brick, ...]
    """Brick of each row."""


@dataclass(frozen=True, slots=True)
class PartResult:
    """What was written."""

    split: str
    rows: int
    controls: int
    bytes: int


def synthesize(
    out: Path,
    *,
    rows: int,
    seed: int,
    workers: int | None = None,
    regions: int | None = None,
    split_fractions: Mapping[str, float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write a synthetic Phase 4c tree.

    The bytes depend on ``rows``, ``seed``, ``regions`` and ``split_fractions`` alone, not on the
    number of workers (given the same versions of NumPy, SciPy, pyarrow and lenstronomy).

    Parameters
    ----------
    out : Path
        Folder to make; it must not exist, or be empty. It appears when it is complete.
    rows : int
    seed : int
    workers : int, optional
        Processes; by default as many as there are processors.
    regions : int, optional
        Regions of sky; see `lensprep.synth.survey.plan_survey`.
    split_fractions : mapping of split to share, optional
        By default train 60 %, val 15 %, test 25 %.
    progress : callable, optional
        Called with the number of rows that were finished since the last call.

    Returns
    -------
    dict
        out, rows, seed, regions, seconds, stamps_per_s, bytes, files, and splits with rows,
        controls, injections and regions of each.

    Raises
    ------
    ConfigError
        If a number is out of range.
    StorageError
        If ``out`` is in use or cannot be written.
    """
    started = time.perf_counter()
    plan = plan_survey(rows, seed, regions, split_fractions)
    results: list[PartResult] = []
    with _finished_folder(out) as folder:
        stamps = folder / STAMPS_DIR
        for split in SPLITS:
            (stamps / f"{SPLIT_COLUMN}={split}").mkdir(parents=True)
        parts = plan_files(plan, seed, stamps)
        for result in run_tasks(write_part, parts, workers=workers or default_workers()):
            results.append(result)
            if progress is not None:
                progress(result.rows)
        _write_marked(stamps / "_SUCCESS", b"")
    seconds = time.perf_counter() - started
    return {
        "out": str(out),
        "rows": rows,
        "seed": seed,
        "regions": len(plan.region_split),
        "files": len(parts),
        "bytes": sum(result.bytes for result in results),
        "seconds": seconds,
        "stamps_per_s": rows / seconds,
        "splits": {split: _split_summary(split, plan, results) for split in SPLITS},
    }


def plan_files(plan: SurveyPlan, seed: int, stamps: Path) -> list[PartFile]:
    """Cut every split into part files of at most 1,024 rows, four or more where rows allow."""
    job = uuid.UUID(int=int(np.random.default_rng([seed, 3]).integers(2**62)), version=4)
    parts: list[PartFile] = []
    for split in SPLITS:
        rows = plan.rows_of(split)
        count = max(math.ceil(len(rows) / MAX_FILE_ROWS), min(_FILES_PER_SPLIT, len(rows)))
        for chunk in np.array_split(rows, count):
            name = f"part-{len(parts):05d}-{job}.c000.snappy.parquet"
            bricks = tuple(plan.bricks[i] for i in plan.brick_of_row[chunk])
            path = f"{SPLIT_COLUMN}={split}/{name}"
            parts.append(PartFile(stamps / path, path, split, seed, chunk, bricks))
    return parts


def write_part(part: PartFile) -> PartResult:
    """Render the rows of one part file and write it, with its checksum file."""
    records = []
    for index, brick in zip(part.rows.tolist(), part.bricks, strict=True):
        row = render_row(part.seed, index, brick, part.split)
        records.append(row.columns | {STAMP_COLUMN: encode_stamp(row.pixels)})
    table = pa.Table.from_pylist(records, schema=FILE_SCHEMA)
    _write_table(part.path, table)
    controls = sum(record["is_control"] for record in records)
    return PartResult(part.split, len(records), controls, part.path.stat().st_size)


def _write_table(path: Path, table: pa.Table) -> None:
    group_rows = max(1, min(MAX_GROUP_ROWS, math.ceil(table.num_rows / _GROUPS_PER_FILE)))
    light = [name for name in table.column_names if name != STAMP_COLUMN]
    try:
        pq.write_table(
            table,
            path,
            compression="snappy",
            row_group_size=group_rows,
            use_dictionary=light,
            write_statistics=light,
        )
        _write_checksums(path)
    except OSError as error:
        raise StorageError(
            f"Cannot write {path}: {error}. Free some space and try again."
        ) from error


def _write_marked(path: Path, content: bytes) -> None:
    """Write a small file with its checksum file, as Hadoop does for a local folder."""
    path.write_bytes(content)
    _write_checksums(path)


def _write_checksums(path: Path) -> None:
    """Write Hadoop's hidden ``.<name>.crc``: a CRC-32 for every 512 bytes."""
    view = memoryview(path.read_bytes())
    sums = [zlib.crc32(view[at : at + _CRC_CHUNK]) for at in range(0, len(view), _CRC_CHUNK)]
    header = b"crc\0" + struct.pack(">I", _CRC_CHUNK)
    crc = path.with_name(f".{path.name}.crc")
    crc.write_bytes(header + struct.pack(f">{len(sums)}I", *sums))


@contextmanager
def _finished_folder(out: Path) -> Iterator[Path]:
    """A folder that gets its name when the block ends well, and vanishes when it does not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out} is in use. Name a folder that does not exist or is empty.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise StorageError(
            f"Cannot make {partial}: {error.strerror}. Choose another OUT."
        ) from error
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _split_summary(split: str, plan: SurveyPlan, results: list[PartResult]) -> dict[str, int]:
    mine = [result for result in results if result.split == split]
    rows, controls = sum(r.rows for r in mine), sum(r.controls for r in mine)
    regions = sum(1 for name in plan.region_split.values() if name == split)
    return {"rows": rows, "controls": controls, "injections": rows - controls, "regions": regions}

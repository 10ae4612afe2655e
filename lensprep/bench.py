"""How fast conversion is on this machine, compared with what it replaces and what bounds it.

Three things are timed on the same rows, in turn, in one process on one core:

    seed path       as upstream reads: pyarrow, ``np.load``, three keys, ``np.median`` twice a band,
                    clip, float16, ``webdataset.TarWriter``
    ours            `lensprep.convert.convert`, from parquet to the committed dataset
    inflate floor   libdeflate inflating the members of the same blobs, already in memory and
                    already found: the work that no reader can avoid

and, for orientation, two steps of ours alone: decoding and normalising.

The first two normalise as upstream does (``mad_stamp``), so that the same work is compared.

Then ours is timed with one worker and with two, in turn, on eight times the rows: several tasks for
each worker. The workers have been started and have done the same work once before, as in a
conversion of millions of rows, where the second that they take to start is nothing.

Before each contestant the same amount of memory is touched and freed. The host of a virtual machine
takes free pages back, and the first touch of such a page costs several times the work done with it,
which would fall to the first contestant after a pause.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from deflate import deflate_decompress

from lensprep.convert import ConvertConfig, convert
from lensprep.convert.tasks import Progress
from lensprep.dataset.geometry import DECALS
from lensprep.dataset.layout import JSON_FIELDS
from lensprep.dataset.normalization import DEFAULT_CLIP, MAD_TO_SIGMA, normalization_spec
from lensprep.decode import zipwalk
from lensprep.decode.normalize import Normalizer
from lensprep.decode.rowgroup import BATCH_ROWS
from lensprep.decode.stampnpz import decode_batch
from lensprep.engine import default_workers
from lensprep.engine.local import LocalEngine
from lensprep.errors import InputError
from lensprep.source.survey import SCHEMA, SPLIT_COLUMN, STAMP_COLUMN, ZERO_POINT
from lensprep.source.tree import Source
from lensprep.store import S3Options
from lensprep.synth.rows import encode_stamp

DEFAULT_ROWS: Final = 8192
"""Enough to make the fixed cost of a conversion (60 ms) as negligible as for millions of rows."""
DEFAULT_ROUNDS: Final = 5
_WARM_UP_ROWS: Final = 64
_GROUP_ROWS: Final = 256
"""Rows taken from one row group of a large source, so that a few thousand come from all over."""
_DISTINCT: Final = 1024
"""Different stamps made when there is no source; making one takes 2 ms."""

_REPEATS: Final = 4
"""How often the rows are repeated for the comparison of one worker with two."""

_MODE: Final = "mad_stamp"
"""Upstream's normalisation. The default takes longer, and upstream has nothing like it."""
_PACKAGES: Final = ("numpy", "numba", "pyarrow", "deflate", "webdataset")


def run_bench(
    src: str | None = None,
    *,
    rows: int = DEFAULT_ROWS,
    rounds: int = DEFAULT_ROUNDS,
    folder: Path | None = None,
    progress: Progress | None = None,
    options: S3Options | None = None,
) -> dict[str, Any]:
    """Measure conversion on this machine.

    Parameters
    ----------
    src : str, optional
        Phase 4c tree whose stamps are used: some rows of row groups from all over it. Without it,
        stamps of sky noise and a galaxy are made, which compress like real ones.
    rows : int
        Rows to convert in each round; fewer if `src` has fewer.
    rounds : int
        Repetitions; the figures are medians.
    folder : Path, optional
        Where to write, and to clean up; by default the folder for temporary files. A slow disk
        there slows the seed path and ours.
    progress : callable, optional
    options : S3Options, optional
        How to reach an object store that `src` lies in.

    Returns
    -------
    dict
        ``seed_path_stamps_per_s``, ``stamps_per_s``, ``inflate_floor_stamps_per_s``, ``speedup``
        (ours over the seed path), ``over_floor`` (our time over that of the floor),
        ``us_per_stamp`` of each part, ``rows``, ``blob_bytes`` (mean), ``runs`` (the seconds of
        every round), ``one_worker_stamps_per_s``, ``two_workers_stamps_per_s``, ``two_over_one``,
        ``workers_rows`` and ``workers_runs`` (the four last null on a single core), ``source``,
        ``machine``, ``versions``.

    Raises
    ------
    InputError
        If the source is missing or not Phase 4c.
    """
    if rows < 1 or rounds < 1:
        raise ValueError(f"rows and rounds must be at least 1, got {rows} and {rounds}")
    report = progress or (lambda phase, done, total: None)
    with tempfile.TemporaryDirectory(prefix="lensprep-bench-", dir=folder) as name:
        work = Path(name)
        report("rows", 0, rows)
        table = made_rows(rows) if src is None else some_rows(src, rows, options)
        write_parquet(table, work / "stamps" / "part-00000.parquet")
        write_parquet(table.slice(0, _WARM_UP_ROWS), work / "warm-up" / "part-00000.parquet")
        report("rows", table.num_rows, table.num_rows)
        runs = []
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            with _pinned():  # the process starts here, and keeps the core
                warm_up = process.submit(_time_round, work / "warm-up", work / "out")
            warm_up.result()
            for done in range(rounds):
                report("rounds", done, rounds)
                timed = process.submit(_time_round, work / "stamps", work / "out")
                runs.append(timed.result())
        report("rounds", rounds, rounds)
        workers = _compare_workers(table, work, rounds, report) if default_workers() > 1 else []
    return _summary(table, runs, src) | _workers_summary(table.num_rows * _REPEATS, workers)


def _summary(table: pa.Table, runs: list[dict[str, float]], src: str | None) -> dict[str, Any]:
    """Medians of the rounds as rates, and what they were measured on."""
    seconds = {name: median(run[name] for run in runs) for name in runs[0]}
    rows = table.num_rows
    blobs = table[STAMP_COLUMN]
    return {
        "seed_path_stamps_per_s": rows / seconds["seed_path"],
        "stamps_per_s": rows / seconds["convert"],
        "inflate_floor_stamps_per_s": rows / seconds["inflate_floor"],
        "speedup": seconds["seed_path"] / seconds["convert"],
        "over_floor": seconds["convert"] / seconds["inflate_floor"],
        "us_per_stamp": {name: 1e6 * value / rows for name, value in seconds.items()},
        "rows": rows,
        "blob_bytes": sum(len(blob.as_buffer() or b"") for blob in blobs) / rows,
        "runs": runs,
        "source": src or "made: sky noise and a galaxy",
        "machine": _machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES},
    }


def _workers_summary(rows: int, runs: list[dict[str, float]]) -> dict[str, Any]:
    """Rates with one worker and with two."""
    one, two = (median(run[name] for run in runs) if runs else None for name in ("one", "two"))
    return {
        "one_worker_stamps_per_s": rows / one if one else None,
        "two_workers_stamps_per_s": rows / two if two else None,
        "two_over_one": one / two if one and two else None,
        "workers_rows": rows if runs else None,
        "workers_runs": runs,
    }


def _machine() -> dict[str, Any]:
    """The machine that the figures hold for."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "pinned_to_one_core": True,
        "system": f"{platform.system()} {platform.release()}",
    }


@contextmanager
def _pinned() -> Iterator[None]:
    """Keep this thread, and the threads and processes that it starts now, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---------------------------------------------------------------------------------------------
# What is timed
# ---------------------------------------------------------------------------------------------


def _time_round(tree: Path, out: Path) -> dict[str, float]:
    """Seconds of each contestant, one after the other."""
    blobs = pq.read_table(tree, columns=[STAMP_COLUMN], use_threads=False)[STAMP_COLUMN]
    streams = list(_streams(blobs))
    seconds = {"inflate_floor": _seconds(_inflate, streams)}
    seconds |= _time_steps(blobs)
    for name, function in (("convert", _convert), ("seed_path", seed_path)):
        _make_ready(len(blobs))
        seconds[name] = _seconds(function, tree, out)
        shutil.rmtree(out)
    return seconds


def _make_ready(rows: int) -> None:
    """Leave the next contestant neither pending writes to the disk nor untouched memory.

    As much memory is touched as a conversion of so many rows writes to files: runs and shards.
    """
    os.sync()
    np.ones(2 * rows * DECALS.stride, np.uint8)


def _compare_workers(
    table: pa.Table, work: Path, rounds: int, report: Progress
) -> list[dict[str, float]]:
    """Seconds of converting the same tree with one worker and with two, in turn."""
    tree, out = work / "repeats", work / "out"
    for number in range(_REPEATS):
        # The same rows as other objects: with equal task_id and pixels they would be duplicates.
        names = [f"{number}/{task_id}".encode() for task_id in table["task_id"].to_pylist()]
        ids = pa.array([hashlib.sha256(name).hexdigest() for name in names])
        repeated = table.set_column(table.column_names.index("task_id"), "task_id", ids)
        write_parquet(repeated, tree / f"part-{number:05d}.parquet")
    runs = []
    with LocalEngine(1) as one, LocalEngine(2) as two:
        for done in range(-1, rounds):
            report("workers", max(done, 0), rounds)
            seconds = {}
            for name, engine in (("one", one), ("two", two)):
                _make_ready(table.num_rows * _REPEATS)
                seconds[name] = _seconds(_convert, tree, out, engine)
                shutil.rmtree(out)
            if done >= 0:  # the first one starts the workers and warms them up
                runs.append(seconds)
    report("workers", rounds, rounds)
    return runs


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def _streams(blobs: pa.ChunkedArray) -> Iterator[tuple[memoryview, int]]:
    """Deflate stream and full size of every band that can be read."""
    for scalar in blobs:
        data = memoryview(scalar.as_buffer() or b"")
        bands, codes = zipwalk.walk(data, np.array([0, len(data)]))
        if codes[0] == zipwalk.READ:
            for k in range(0, len(bands), zipwalk.FIELDS):
                start, compressed, size, _, method = bands[k : k + zipwalk.FIELDS]
                if method == zipwalk.DEFLATED:
                    yield data[start : start + compressed], size


def _inflate(streams: list[tuple[memoryview, int]]) -> None:
    for data, size in streams:
        deflate_decompress(data, size)


def _time_steps(blobs: pa.ChunkedArray) -> dict[str, float]:
    """Seconds of decoding and of normalising, in batches as conversion has them."""
    pixels = np.empty((BATCH_ROWS, *DECALS.shape), np.float32)
    half = np.empty(pixels.shape, np.float16)
    normalizer = Normalizer(normalization_spec(_MODE))
    seconds = {"decode": 0.0, "normalize": 0.0}
    for first in range(0, len(blobs), BATCH_ROWS):
        batch = blobs.slice(first, BATCH_ROWS)
        n = len(batch)
        seconds["decode"] += _seconds(decode_batch, batch, pixels)
        seconds["normalize"] += _seconds(normalizer, pixels[:n], half[:n])
    return seconds


def _convert(tree: Path, out: Path, engine: LocalEngine | None = None) -> None:
    config = ConvertConfig(max_reject_rate=1.0, normalize=_MODE)
    convert(str(tree), str(out), config, workers=1, engine=engine)


def seed_path(tree: Path, out: Path) -> int:
    """Convert as upstream's readers do, without this package: one tar per split, in a new folder.

    The parquet files must have a physical ``region_split``. Rows that cannot be read are skipped
    silently; returns the number of stamps written.
    """
    import webdataset

    out.mkdir()
    writers: dict[str, Any] = {}
    written = 0
    for path in sorted(tree.glob("*.parquet")):
        columns = list(dict.fromkeys((STAMP_COLUMN, SPLIT_COLUMN, *JSON_FIELDS)))
        have = pq.read_schema(path).names
        batches = pq.ParquetFile(path).iter_batches(256, columns=[c for c in columns if c in have])
        for row in (row for batch in batches for row in batch.to_pylist()):
            stamp = _seed_stamp(row.pop(STAMP_COLUMN))
            if stamp is None:
                continue
            split = str(row[SPLIT_COLUMN])
            if split not in writers:
                writers[split] = webdataset.TarWriter(str(out / f"{split}.tar"))
            sample = {"__key__": row["task_id"], "stamp.npy": stamp, "json": row}
            writers[split].write(sample)
            written += 1
    for writer in writers.values():
        writer.close()
    return written


def _seed_stamp(blob: bytes | None) -> npt.NDArray[np.float16] | None:
    """One stamp by NumPy alone; None if that fails."""
    try:
        with np.load(io.BytesIO(blob or b""), allow_pickle=False) as archive:
            pixels = np.stack([archive[f"image_{band}"] for band in DECALS.bands])
    except Exception:  # what upstream does with a blob that cannot be read
        return None
    pixels = pixels.astype(np.float32)
    for i, band in enumerate(pixels):
        centre = np.median(band)
        mad = np.median(np.abs(band - centre))
        if not mad > 0:
            return None
        pixels[i] = (band - centre) / (MAD_TO_SIGMA * mad)
    return np.clip(pixels, -DEFAULT_CLIP, DEFAULT_CLIP).astype(np.float16)


# ---------------------------------------------------------------------------------------------
# The rows
# ---------------------------------------------------------------------------------------------


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a file as Spark does: no dictionary of blobs, and pages of a megabyte or two."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(
        table,
        path,
        row_group_size=1024,
        compression="snappy",
        use_dictionary=[name for name in table.column_names if name != STAMP_COLUMN],
        write_batch_size=32,
    )


def some_rows(src: str, rows: int, options: S3Options | None = None) -> pa.Table:
    """At most so many rows of a source, from row groups spread evenly over it."""
    source = Source.open(src, options=options)
    groups = [(f, i) for f in source.files for i, _ in f.filled]
    if not groups:
        raise InputError(f"{src} has no rows to measure with.")
    each = max(1, min(source.rows // len(groups), _GROUP_ROWS))
    wanted = min(-(-rows // each), len(groups))
    spread = [groups[k * len(groups) // wanted] for k in range(wanted)]
    # Small groups first: what they lack is then shared by the larger ones.
    spread.sort(key=lambda group: group[0].row_groups[group[1]].rows)
    tables, left = [], rows
    for k, (file, index) in enumerate(spread):
        take = -(-left // (wanted - k))
        tables.append(next(source.iter_row_group(file, index, batch_rows=take)))
        left -= tables[-1].num_rows
        if left <= 0:
            break
    return pa.concat_tables(tables)


def made_rows(rows: int) -> pa.Table:
    """Rows that keep the contract: noise with a galaxy, every other one a control."""
    blobs = [_made_blob(seed) for seed in range(min(rows, _DISTINCT))]
    filler = {field.name: "" if pa.types.is_string(field.type) else 0 for field in SCHEMA}
    records = [
        filler
        | {
            "task_id": hashlib.sha256(b"%d" % i).hexdigest(),
            "region_id": i // 2 % 20,
            "region_split": "train" if i // 2 % 20 < 16 else "val" if i // 2 % 20 < 18 else "test",
            "brickname": f"{i % 3600:04d}p000",
            "bandset": "".join(DECALS.bands),
            "stamp_size": DECALS.side,
            "is_control": 1 - i % 2,
            "cutout_ok": 1,
            "lens_model": "SIE" if i % 2 else "CONTROL",
            "theta_e_arcsec": i % 2,
            "ra": i * 0.01 % 360,
            "ab_zp_nmgy": ZERO_POINT,
            STAMP_COLUMN: blobs[i % len(blobs)],
        }
        for i in range(rows)
    ]
    return pa.Table.from_pylist(records, SCHEMA)


def _made_blob(seed: int) -> bytes:
    """One stamp of sky noise and a galaxy, nanomaggies, as upstream stores it."""
    rng = np.random.default_rng(seed)
    noise = np.array(DECALS.sky_noise)[:, None, None]
    y, x = (
        np.mgrid[: DECALS.side, : DECALS.side]
        - (DECALS.side - 1) / 2
        + rng.uniform(-2, 2, (2, 1, 1))
    )
    galaxy = np.exp(-np.hypot(x, y) / rng.uniform(1.5, 6)) * rng.uniform(0.02, 0.5)
    colour = np.geomspace(0.4, 1.8, len(DECALS.bands))
    pixels = rng.normal(0, noise, DECALS.shape) + galaxy * colour[:, None, None]
    return encode_stamp(pixels.astype(np.float32))

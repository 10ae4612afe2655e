"""Phase 4c parquet -> dataset: plan the tasks, run them, commit.

Two rounds of independent tasks (`lensprep.rounds`): the first reads row groups and leaves sorted
runs of finished records, the second gathers each shard from all runs. What is done stays done
across an interruption; the manifest, written last, makes the dataset.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lensprep.account import ACCEPTED, Account
from lensprep.contract import FilterRules
from lensprep.dataset.layout import MANIFEST_NAME, RECORD_STRIDE, REJECTS_NAME, SPLITS
from lensprep.dataset.manifest import Manifest, ShardInfo, SplitInfo
from lensprep.dataset.reader import Dataset
from lensprep.dataset.s3client import S3Options
from lensprep.dataset.storage import (
    atomic_writer,
    local_path,
    remove_partials,
    sync_file,
    write_atomic,
)
from lensprep.dataset.where import compile_where
from lensprep.dataset.writer import commit
from lensprep.engine import Engine, LocalEngine, default_workers
from lensprep.errors import BudgetError, ConfigError, DatasetError, ProjectError
from lensprep.listing import filesystem_for
from lensprep.normalize import Mode, normalization_spec
from lensprep.placement import shard_count
from lensprep.prepare import REJECT_SCHEMA
from lensprep.rounds import RUN_ROWS, RunTask, ShardTask, peak_rss_bytes, run_rows, write_shards
from lensprep.source import Source, SourceFile
from lensprep.stampnpz import RejectReason
from lensprep.witness import WitnessEngine

WORK_FOLDER = ".work"
"""Folder in the dataset that holds runs and progress; it goes when the manifest is written."""

_SIDECAR_BYTES = 700
"""Sidecar bytes a row, in a run; for the disk estimate."""

_SYNC_THREADS = 2

_GROUP_SHARDS = 16
"""Most shards of one task of the second round: a run's index is opened once for all of them."""


Progress = Callable[[str, int, int], None]
"""Called with a phase ("decode" or "shards"), the rows done and all rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """What decides the content of a dataset, and the limits within which it is accepted."""

    seed: int = 0
    """Seed of the placement: another seed, another global shuffle."""
    shard_rows: int = 8192
    """Rows of a shard, on average."""
    normalize: Mode = "mad_stamp"
    """Normalisation mode."""
    clip: float = 10.0
    """Stored values are clipped to [-clip, clip]."""
    max_bad_pixel_frac: float | None = None
    """Leave out rows with a larger ``bad_pixel_frac``."""
    where: str | None = None
    """Keep only rows for which this expression on the columns is true."""
    max_reject_rate: float = 0.01
    """Commit nothing if a larger share of the input rows is rejected."""
    skip_bad_files: bool = False
    """Leave out parquet files and row groups that cannot be read, and account for them."""

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1, got {self.shard_rows}.")
        if not 0 <= self.max_reject_rate <= 1:
            raise ConfigError(f"max_reject_rate must lie in [0, 1], got {self.max_reject_rate}.")
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed must fit 64 bits, got {self.seed}.")
        normalization_spec(self.normalize, self.clip)  # refuses what it does not know

    @property
    def identity(self) -> dict[str, Any]:
        """The part that decides the bytes: an interrupted run may go on only with the same."""
        tolerances = ("max_reject_rate", "skip_bad_files")
        return {name: value for name, value in asdict(self).items() if name not in tolerances}

    def rules(self, schema: pa.Schema) -> FilterRules:
        """The user's cuts, compiled and tried on no rows, so that a mistake in them is told first.

        Raises
        ------
        ConfigError
            If ``where`` cannot be parsed, names an unknown column, or compares unlike types.
        """
        if self.where is None:
            return FilterRules(max_bad_pixel_frac=self.max_bad_pixel_frac)
        where = compile_where(self.where, schema.names)
        where.mask(schema.empty_table())
        return FilterRules(max_bad_pixel_frac=self.max_bad_pixel_frac, where=where)


def convert(
    src: str,
    dataset: str,
    config: ConvertConfig | None = None,
    *,
    workers: int | None = None,
    engine: Engine | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    announce: Callable[[int], None] | None = None,
    options: S3Options | None = None,
) -> dict[str, Any]:
    """Convert a Phase 4c tree into a dataset.

    Parameters
    ----------
    src : str
        Folder of the parquet tree, local or ``s3://``.
    dataset : str
        Folder to make.
    config : ConvertConfig, optional
    workers : int, optional
        Processes; as many as processors if not given. The bytes do not depend on it.
    engine : Engine, optional
        What runs the tasks instead of processes of this machine (`make_engine`); entered
        already, and left open. Its workers must see both folders under the same path.
    resume : bool
        Go on with an interrupted conversion of the same source and configuration.
    progress : Progress, optional
    announce : callable, optional
        Told the number of rows before the work begins; `disk_bytes` turns it into disk.
    options : S3Options, optional
        How to reach an object store.

    Returns
    -------
    dict
        ``input_rows``, ``accepted``, ``filtered``, ``rejected``, ``splits``, ``seconds``,
        ``stamps_per_s``, ``peak_rss_bytes``, ``dataset_id``. The peak is an upper bound: the
        driver's, and for each worker the largest that any told.

    Raises
    ------
    InputError
        If the source is missing, corrupt or not Phase 4c; nothing is left behind.
    DatasetError
        If the folder holds something else, or an interrupted conversion of something else.
    BudgetError
        If too many rows are rejected, or the disk is too small; nothing is committed.
    """
    started = time.monotonic()
    config = config or ConvertConfig()
    workers = engine.workers if engine else workers or default_workers()
    root = local_path(dataset)
    if engine is not None:
        root = root.absolute()  # a worker elsewhere may run in another folder
    if resume and (root / MANIFEST_NAME).exists() and (root / WORK_FOLDER).exists():
        return _finish(root, started)
    _refuse_occupied(root, resume)
    filesystem = filesystem_for(src, options)
    source = Source.open(src, skip_bad_files=config.skip_bad_files, filesystem=filesystem)
    rules = config.rules(source.schema)
    _require_disk(root, source.rows)
    if announce is not None:
        announce(source.rows)
    work = _begin(root, config, source)
    try:
        with WitnessEngine(engine, work) if engine else LocalEngine(workers) as pool:
            account, runs, first = _first_round(source, config, rules, work, pool, progress)
            shards, second = _second_round(config, root, work, runs, account, pool, progress)
        _check_rejects(account, source.rows, config.max_reject_rate, final=True)
        _write_rejects(root, work)
        remove_partials(root)  # of workers that were lost on the way
    except BaseException as error:
        remove_partials(root)
        if isinstance(error, ProjectError) and not any(work.glob("run-*.json")):
            _remove_work(root)
        raise
    manifest = Manifest(
        normalization=normalization_spec(config.normalize, config.clip),
        splits=shards,
        account=account.summary(),
        source=_listing(source),
        versions=_versions(),
        config=asdict(config),
    )
    commit(root, manifest)
    shutil.rmtree(work)
    workers = pool.workers  # a cluster's may be more by now
    elsewhere = workers > 1 or not isinstance(engine, LocalEngine | None)
    peak = peak_rss_bytes() + (workers * max(first, second) if elsewhere else 0)
    return _report(manifest, time.monotonic() - started, peak)


def _finish(root: Path, started: float) -> dict[str, Any]:
    """Clean up after a conversion that was killed between its commit and its last line."""
    manifest = Dataset.open(root).manifest
    shutil.rmtree(root / WORK_FOLDER)
    return _report(manifest, time.monotonic() - started, peak_rss_bytes())


def _refuse_occupied(root: Path, resume: bool) -> None:
    if (root / MANIFEST_NAME).exists():
        raise DatasetError(f"{root} is a finished dataset already. Choose another folder.")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        if not (root / WORK_FOLDER / "plan.json").exists():
            raise DatasetError(f"{root} is not empty. Choose another folder.")
        if not resume:
            raise DatasetError(
                f"{root} holds an interrupted conversion. Add --resume to go on with it, or "
                "remove the folder."
            )


def _require_disk(root: Path, rows: int) -> None:
    """Refuse to start what cannot end: runs and shards lie side by side on the disk."""
    needed = disk_bytes(rows)
    folder = next(path for path in (root, *root.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + held
    if needed > free:
        raise BudgetError(
            f"{root}: converting {rows:,} rows takes up to {needed / 1e9:.1f} GB of disk (half of "
            f"it only while it runs), but {free / 1e9:.1f} GB are free. Choose another disk."
        )


def disk_bytes(rows: int) -> int:
    """Most disk that a conversion of so many rows takes while it runs, bytes."""
    return 2 * rows * (RECORD_STRIDE + _SIDECAR_BYTES)


def _begin(root: Path, config: ConvertConfig, source: Source) -> Path:
    """Make the work folder, or take up the one that is there if it is of the same conversion."""
    work = root / WORK_FOLDER
    plan: dict[str, Any] = {"config": config.identity, "source": source.digest()}
    path = work / "plan.json"
    if not path.exists():
        write_atomic(path, json.dumps(plan, indent=2).encode())
        return work
    remove_partials(root)  # of tasks that were killed
    before = json.loads(path.read_bytes())
    if before["source"] != plan["source"]:
        raise DatasetError(
            f"{root} is an interrupted conversion of other source files than {source.uri} has "
            "now. Remove the folder and convert again."
        )
    changed = [k for k, v in plan["config"].items() if before["config"].get(k) != v]
    if changed:
        raise DatasetError(
            f"{root} was begun with {changed[0]} = {before['config'].get(changed[0])!r}, not "
            f"{plan['config'][changed[0]]!r}. Resume with the same settings, or remove the folder."
        )
    return work


def _remove_work(root: Path) -> None:
    """Leave nothing of a conversion that did nothing yet."""
    shutil.rmtree(root / WORK_FOLDER, ignore_errors=True)
    if root.exists() and not any(root.iterdir()):
        root.rmdir()


def plan_runs(
    source: Source, config: ConvertConfig, rules: FilterRules, work: Path
) -> list[RunTask]:
    """Group neighbouring row groups into tasks of about one run each."""
    spec = normalization_spec(config.normalize, config.clip)
    bare = replace(source, files=(), bad_files=())  # a task carries only the files it reads
    return [
        RunTask(index, bare, parts, config.seed, rules, spec, config.skip_bad_files, work)
        for index, parts in enumerate(_group_rows(source))
    ]


def _group_rows(source: Source) -> Iterator[tuple[tuple[SourceFile, int], ...]]:
    parts: list[tuple[SourceFile, int]] = []
    rows = 0
    for file in source.files:
        for number, group in enumerate(file.row_groups):
            if parts and rows + group.rows > RUN_ROWS:
                yield tuple(parts)
                parts, rows = [], 0
            parts.append((file, number))
            rows += group.rows
    if parts:
        yield tuple(parts)


def _first_round(
    source: Source,
    config: ConvertConfig,
    rules: FilterRules,
    work: Path,
    engine: Engine,
    progress: Progress | None,
) -> tuple[Account, list[str], int]:
    """Read all rows into runs; returns the account, the runs' names and the workers' peak RSS."""
    tasks = plan_runs(source, config, rules, work)
    account, runs, peak, done = Account(), list[str](), 0, 0
    for result in engine.run(run_rows, tasks):
        account.merge(Account.from_list(result["account"]))
        runs += result["runs"]
        peak = max(peak, result["peak_rss_bytes"])
        done += result["rows"]
        if progress is not None:
            progress("decode", done, source.rows)
        _check_rejects(account, source.rows, config.max_reject_rate)
    return account, sorted(runs), peak


def _check_rejects(account: Account, rows: int, limit: float, *, final: bool = False) -> None:
    """Stop as soon as it is sure that too many rows will have been rejected."""
    summary = account.summary()
    rejected = sum(summary["rejected"].values())
    if rejected > limit * rows:
        reasons = ", ".join(f"{name} {n:,}" for name, n in summary["rejected"].items())
        raise BudgetError(
            f"{rejected:,} of {rows:,} rows are rejected ({reasons}), more than "
            f"--max-reject-rate {limit:g}; nothing is committed. Look at them with "
            "`lensprep check`, or resume with a higher rate."
        )
    if final and not summary["accepted"]:
        raise BudgetError("No row was accepted; there is nothing to commit.")


def _second_round(
    config: ConvertConfig,
    root: Path,
    work: Path,
    runs: list[str],
    account: Account,
    engine: Engine,
    progress: Progress | None,
) -> tuple[dict[str, SplitInfo], int]:
    """Gather the shards and complete the account; returns the splits and the workers' peak RSS."""
    accepted = Counter[str]()
    for (split, _, outcome), rows in account.counts.items():
        accepted[split] += rows if outcome == ACCEPTED else 0
    splits = [split for split in SPLITS if accepted[split]]
    names = tuple(runs)  # one for all tasks: of 100 million rows 25,000 names
    tasks = [
        ShardTask(split, first, min(first + step, count), count, root, work, names)
        for split in splits
        for count in [shard_count(accepted[split], config.shard_rows)]
        for step in [max(1, min(_GROUP_SHARDS, count // (4 * engine.workers)))]
        for first in range(0, count, step)
    ]
    results: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    done = 0
    with ThreadPoolExecutor(_SYNC_THREADS) as syncing:
        for result in (r for rs in engine.run(write_shards, tasks) for r in rs):
            name = str(result["shard"]["name"])
            # Begun now, the way to the disk is short when `commit` makes sure of it.
            syncing.submit(sync_file, root / name)
            split = name.split("/")[0]
            results[split].append(result)
            for label, rows in result["dropped"].items():
                account.move(split, label, RejectReason.DUPLICATE_ROW.value, rows)
            done += int(result["shard"]["rows"]) + sum(result["dropped"].values())
            if progress is not None:
                progress("shards", done, accepted.total())
    peak = max((r["peak_rss_bytes"] for part in results.values() for r in part), default=0)
    return {split: _split_info(part) for split, part in results.items()}, peak


def _split_info(results: list[dict[str, Any]]) -> SplitInfo:
    classes = Counter({"0": 0, "1": 0})
    for result in results:
        classes.update(result["classes"])
    shards = sorted((ShardInfo(**r["shard"]) for r in results), key=lambda shard: shard.name)
    return SplitInfo(
        rows=sum(shard.rows for shard in shards),
        classes=dict(classes),
        regions=len({region for result in results for region in result["regions"]}),
        shards=tuple(shards),
    )


def _write_rejects(root: Path, work: Path) -> None:
    """Collect the rows left out in the order of the source, then those that were there twice."""
    parts = [*sorted(work.glob("run-*.rejects")), *sorted(work.glob("shard-*.rejects"))]
    with (
        atomic_writer(root / REJECTS_NAME) as file,
        pq.ParquetWriter(file, REJECT_SCHEMA, compression="zstd") as writer,
    ):
        for part in parts:
            writer.write_table(pq.ParquetFile(part).read())


def _listing(source: Source) -> dict[str, Any]:
    """What the manifest says of the source."""
    return {
        "uri": source.uri,
        "digest": source.digest(),
        "files": len(source.files),
        "rows": source.rows,
        "bytes": source.bytes,
        "skipped_files": [asdict(bad) for bad in source.bad_files],
    }


def _versions() -> dict[str, str]:
    names = ("lensprep", "numpy", "numba", "pyarrow", "deflate", "xxhash")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _report(manifest: Manifest, seconds: float, peak: int) -> dict[str, Any]:
    account = manifest.account
    splits = {
        name: {"rows": split.rows, "shards": len(split.shards), "classes": split.classes}
        for name, split in manifest.splits.items()
    }
    return {
        **{name: account[name] for name in ("input_rows", "accepted", "filtered", "rejected")},
        "splits": splits,
        "seconds": round(seconds, 3),
        "stamps_per_s": round(account["input_rows"] / seconds, 1),
        "peak_rss_bytes": peak,
        "dataset_id": manifest.dataset_id,
    }

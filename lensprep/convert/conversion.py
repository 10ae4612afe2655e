"""Phase 4c parquet -> dataset: plan the tasks, run them, commit.

Two rounds of independent tasks (`lensprep.convert.rounds`): the first reads row groups and leaves
sorted runs of finished records, the second gathers each shard from all runs. What is done stays
done across an interruption; the manifest, written last, makes the dataset. Dataset and runs may lie
here or in an object store (`lensprep.convert.sites`).
"""

from __future__ import annotations

import logging
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lensprep.configfile import typed
from lensprep.convert.rounds import (
    RUN_ROWS,
    RunTask,
    ShardTask,
    peak_rss_bytes,
    run_rows,
    write_shards,
)
from lensprep.convert.sites import (
    Need,
    Places,
    claim,
    difference,
    discard,
    find_plan,
    kept_folder,
    make_plan,
    mark_failed,
    release,
    require_apart,
    require_disk,
    require_finished,
)
from lensprep.convert.workfolder import Work
from lensprep.dataset import Dataset
from lensprep.dataset.layout import MANIFEST_NAME, REJECTS_NAME, SPLITS
from lensprep.dataset.manifest import Manifest, ShardInfo, SplitInfo
from lensprep.dataset.normalization import Mode, normalization_spec
from lensprep.dataset.where import compile_where
from lensprep.dataset.writer import send_file, sync_shards
from lensprep.decode.account import ACCEPTED, Account
from lensprep.decode.placement import shard_count
from lensprep.decode.prepare import REJECT_SCHEMA
from lensprep.decode.stampnpz import RejectReason
from lensprep.engine.local import Engine, LocalEngine, default_workers
from lensprep.engine.witness import WitnessEngine
from lensprep.errors import (
    BudgetError,
    ConfigError,
    DatasetError,
    NotFoundError,
    ProjectError,
    SchemaError,
    StorageError,
)
from lensprep.source.contract import FilterRules
from lensprep.source.listing import UNFINISHED, filesystem_for
from lensprep.source.tree import Source, SourceFile
from lensprep.store import (
    LocalStore,
    S3Options,
    atomic_writer,
    check_place,
    is_remote,
    local_path,
    member_path,
    open_store,
    remove_partials,
    sync_file,
)
from lensprep.store.s3 import S3Store
from lensprep.store.transfer import abort_unfinished
from lensprep.transfer import DatasetFile, dataset_files, download, require_all

_log = logging.getLogger("lensprep.convert")

_SYNC_THREADS = 2

_WORKER_CONNECTIONS = 3
"""Most requests of a worker at once: each holds a part of 5 MiB, and there are many workers."""


Progress = Callable[[str, int, int], None]
"""Called with a phase ("decode" or "shards"), the rows done and all rows."""


@typed
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
    """Leave out parquet files and row groups that cannot be read, and account for them; take what a
    job that did not finish has written."""
    drop_columns: tuple[str, ...] | None = None
    """Columns of the source to leave out of the sidecars, none of them required."""

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1, got {self.shard_rows}.")
        if not 0 <= self.max_reject_rate <= 1:
            raise ConfigError(f"max_reject_rate must lie in [0, 1], got {self.max_reject_rate}.")
        if self.max_bad_pixel_frac is not None and not self.max_bad_pixel_frac >= 0:
            raise ConfigError(
                f"max_bad_pixel_frac must be at least 0, got {self.max_bad_pixel_frac}."
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed must fit 64 bits, got {self.seed}.")
        normalization_spec(self.normalize, self.clip)  # refuses what it does not know
        # None rather than empty, as in the plan of a version that did not know it.
        dropped = tuple(sorted({*(self.drop_columns or ())})) or None
        object.__setattr__(self, "drop_columns", dropped)

    @property
    def identity(self) -> dict[str, Any]:
        """The part that decides the bytes: an interrupted run may go on only with the same.

        Values are as JSON gives them back.
        """
        tolerances = ("max_reject_rate", "skip_bad_files")
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in tolerances
        }

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
    work: str | None = None,
    keep_local: str | None = None,
    progress: Progress | None = None,
    announce: Callable[[int, list[Need]], None] | None = None,
    options: S3Options | None = None,
) -> dict[str, Any]:
    """Convert a Phase 4c tree into a dataset.

    Parameters
    ----------
    src : str
        Folder of the parquet tree, local or ``s3://``.
    dataset : str
        Folder to make, local or ``s3://``. There, shards are sent as they are finished; only
        those under way are on a local disk.
    config : ConvertConfig, optional
    workers : int, optional
        Processes; as many as processors if not given. The bytes do not depend on it.
    engine : Engine, optional
        What runs the tasks instead of processes of this machine (`make_engine`); entered
        already, and left open. Its workers must see local folders under the same path.
    resume : bool
        Go on with an interrupted conversion of the same source and configuration. Where that is
        finished already, nothing is left to do.
    work : str, optional
        Folder, local or ``s3://``, for the runs between the two rounds, which are as large as the
        dataset; in the dataset if not given. With several machines all of them must reach it.
    keep_local : str, optional
        Local folder in which a dataset that is made in an object store is to be as well.
    progress : Progress, optional
    announce : callable, optional
        Told the number of rows, and what room is needed where, before the work begins.
    options : S3Options, optional
        How to reach an object store.

    Returns
    -------
    dict
        ``input_rows``, ``accepted``, ``filtered``, ``rejected``, ``read_again``: rows of row
        groups that came damaged over a network and were read twice, ``splits``, ``seconds``,
        ``stamps_per_s``, ``peak_rss_bytes``, ``dataset_id``.

    Raises
    ------
    InputError
        If the source is missing, corrupt or not Phase 4c; nothing is left behind.
    DatasetError
        If the folder holds something else, or a dataset or an interrupted conversion of something
        else, or another conversion took it meanwhile.
    BudgetError
        If too many rows are rejected, or the disk is too small; nothing is committed.
    StorageError
        If the object store does not let us, or does not answer.
    """
    started = time.monotonic()
    config = config or ConvertConfig()
    workers = engine.workers if engine else workers or default_workers()
    options = options or S3Options()
    options = replace(options, connections=min(options.connections, _WORKER_CONNECTIONS))
    if engine is not None and not is_remote(dataset):
        dataset = str(local_path(dataset).absolute())  # a worker elsewhere runs in another folder
    require_apart(src, dataset, work, keep_local)
    if work is not None and not is_remote(work):
        check_place(local_path(work))
    store = open_store(dataset, options)
    before = find_plan(store, resume=resume)
    finished = store.has(MANIFEST_NAME)
    filesystem = filesystem_for(src, options)
    source = Source.open(
        src,
        skip_bad_files=config.skip_bad_files,
        drop_columns=config.drop_columns or (),
        filesystem=filesystem,
    )
    _require_one_type(source)
    if source.unfinished is not None:
        _log.warning("%s holds %s: %s.", source.uri, source.unfinished, UNFINISHED)
    rules = config.rules(source.schema)
    # What `plan_runs` makes of a source depends on it: a resumed task must read the same rows.
    identity = {**config.identity, "run_rows": RUN_ROWS}
    plan = make_plan(identity, source.digest(), work)
    failed = None
    if before is not None and not finished:
        other = difference(before, plan, store, source.uri, work)
        if other is not None and not before["failed"]:
            raise DatasetError(other)
        if other is not None:
            before, failed = None, before
    keep = kept_folder(store, keep_local, resume=finished or before is not None)
    plan = before or plan
    places = Places.of(plan, store, options, keep)
    if finished:
        manifest = Dataset.open(store.uri, options).manifest
        require_finished(manifest, config.identity, source.digest(), store, source.uri)
        _finish(places, options)  # also of one that was killed between its commit and its last line
        return _report(manifest, time.monotonic() - started, peak_rss_bytes())
    if not isinstance(engine, LocalEngine | None):
        places = replace(places, elsewhere=True)
    needs = places.needs(source.rows, config.shard_rows, workers)
    require_disk(needs, source.rows)
    if announce is not None:
        announce(source.rows, needs)
    if failed is not None:
        discard(Places.of(failed, store, options, None), failed)
    if before is None:
        claim(store, plan)
    else:
        if plan["failed"]:
            mark_failed(store, plan, False)
        _remove_unfinished(places)
    with _cleaning_up(places, plan, new=before is None):
        seen = places.shared_folders
        with WitnessEngine(engine, seen) if engine else LocalEngine(workers) as pool:
            account, runs, first = _first_round(source, config, rules, places.work, pool, progress)
            shards, second = _second_round(config, places, runs, account, pool, progress)
        if engine is not None:
            _remove_unfinished(places)  # of workers that were lost on the way
        _check_rejects(account, source, config, places.work, final=True)
        manifest = Manifest(
            normalization=normalization_spec(config.normalize, config.clip),
            splits=shards,
            account=account.summary(),
            source=_listing(source),
            versions=_versions(),
            config=asdict(config),
        )
        _commit(places, manifest)
    _finish(places, options)
    workers = pool.workers  # a cluster's may be more by now
    others = workers if workers > 1 or places.elsewhere else 0
    peak = peak_rss_bytes() + others * max(first, second)
    return _report(manifest, time.monotonic() - started, peak)


def _require_one_type(source: Source) -> None:
    """What the files of a source do not agree on is left out only if the user says so."""
    if source.left_out:
        column, what = next(iter(source.left_out.items()))
        more = sorted({*source.left_out} - {column})
        raise SchemaError(
            f"{source.uri}: column {column} {what}. Write the files again with one type, or leave "
            f"it out with --drop-column {column}"
            + (f" (the same holds for {', '.join(more)})." if more else ".")
        )


def _finish(places: Places, options: S3Options) -> None:
    """After the commit: complete the kept copy, and remove what is not the dataset."""
    if places.keep is not None:
        download(places.dataset.uri, str(places.keep), options)
    release(places)


def _remove_unfinished(places: Places) -> None:
    """Remove what tasks that were killed left half done."""
    places.work.tidy()
    places.scratch.remove()
    if places.shard_folder is not None:
        remove_partials(places.shard_folder)
    if places.shard_store is not None:
        with suppress(StorageError):
            abort_unfinished(places.shard_store)


@contextmanager
def _cleaning_up(places: Places, plan: Mapping[str, Any], *, new: bool) -> Iterator[None]:
    """After a failure nothing half done stays, and nothing at all if no task was done."""
    try:
        yield
    except BaseException as error:
        _remove_unfinished(places)
        if isinstance(error, NotFoundError) and places.dataset.has(MANIFEST_NAME):
            raise DatasetError(
                f"{places.dataset.uri} was finished by another conversion meanwhile. Look at it "
                "with `lensprep inspect`."
            ) from error
        with suppress(StorageError):  # what happened is told, not what came of it
            if new and isinstance(error, ProjectError) and not places.work.is_begun():
                release(places)
            elif isinstance(error, BudgetError):
                mark_failed(places.dataset, plan, True)
        raise


def plan_runs(
    source: Source, config: ConvertConfig, rules: FilterRules, work: Work
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
        for number, group in file.filled:
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
    work: Work,
    engine: Engine,
    progress: Progress | None,
) -> tuple[Account, list[str], int]:
    """Read all rows into runs; returns the account, the runs' names and the workers' peak RSS."""
    tasks = plan_runs(source, config, rules, work)
    account, runs, peak, done = Account(), list[str](), 0, 0
    for result in engine.run(run_rows, tasks):
        account.merge(Account.from_list(result["account"]))
        account.read_again += result.get("read_again", 0)  # of a version before: not told
        runs += result["runs"]
        peak = max(peak, result["peak_rss_bytes"])
        done += result["rows"]
        if progress is not None:
            progress("decode", done, source.rows)
        _check_rejects(account, source, config, work)
    return account, sorted(runs), peak


def _check_rejects(
    account: Account, source: Source, config: ConvertConfig, work: Work, *, final: bool = False
) -> None:
    """Stop as soon as it is sure that too many rows will have been rejected."""
    summary, rows, limit = account.summary(), source.rows, config.max_reject_rate
    rejected = sum(summary["rejected"].values())
    if rejected > limit * rows:
        least = "" if final else "at least "
        twice = RejectReason.DUPLICATE_ROW in summary["rejected"]
        raise BudgetError(
            f"{source.uri}: {least}{rejected:,} of {rows:,} rows are rejected "
            f"({_counts(summary['rejected'])}), more than --max-reject-rate {limit:g}; nothing is "
            f"committed. The first: {'; '.join(_first_rejected(work))}. `lensprep check "
            f"{source.uri} --rejects FILE.csv` lists them all{' but duplicates' * twice}. If they "
            "are to be left out, run the same command again with a higher rate: what is done is "
            "kept."
        )
    if final and not summary["accepted"]:
        reasons = _counts({**summary["filtered"], **summary["rejected"]})
        raise BudgetError(
            f"No row of {rows:,} was accepted ({reasons}); there is nothing to commit. If it is a "
            "cut of yours, change it and run the same command again."
        )


def _first_rejected(work: Work, most: int = 3) -> list[str]:
    """Where the first rejected rows stand, each with its reason."""
    rows = (
        f"{row['source_file']}, row group {row['source_row_group']}, row {row['source_row']}: "
        f"{row['reason']}"
        for table in work.left_out()
        for row in table.filter(pc.field("kind") == "rejected").to_pylist()
    )
    return list(islice(rows, most))


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {rows:,}" for name, rows in reasons.items())


def _second_round(
    config: ConvertConfig,
    places: Places,
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
    task = partial(
        ShardTask,
        root=places.shard_folder,
        store=places.shard_store,
        work=places.work,
        scratch=places.scratch,
        runs=tuple(runs),  # one for all tasks: of 100 million rows 25,000 names
    )
    most = places.group_shards(config.shard_rows, engine.workers)
    tasks = [
        task(split, first, min(first + step, count), count)
        for split in splits
        for count in [shard_count(accepted[split], config.shard_rows)]
        for step in [max(1, min(most, count // (4 * engine.workers)))]
        for first in range(0, count, step)
    ]
    results: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    done = 0
    with ThreadPoolExecutor(_SYNC_THREADS) as syncing:
        for result in (r for rs in engine.run(write_shards, tasks) for r in rs):
            name = str(result["shard"]["name"])
            if isinstance(places.dataset, LocalStore):
                # Begun now, the way to the disk is short when the commit makes sure of it.
                syncing.submit(sync_file, member_path(places.dataset.root, name))
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


def _commit(places: Places, manifest: Manifest) -> None:
    """Make a dataset of what lies there: all of it durable, the manifest last, by one writer."""
    dataset = places.dataset
    if isinstance(dataset, LocalStore):
        _write_rejects(dataset.root / REJECTS_NAME, places.work)
        sync_shards(dataset.root, manifest)
    else:
        assert isinstance(dataset, S3Store)
        with places.scratch.folder("rejects") as folder:
            path = folder / REJECTS_NAME
            _write_rejects(path, places.work)
            size = path.stat().st_size
            rejects = DatasetFile(REJECTS_NAME, size, send_file(dataset, path, REJECTS_NAME))
        files = (*dataset_files(manifest), rejects)
        require_all(dataset, files)
        abort_unfinished(dataset, [file.name for file in files])
    dataset.create(MANIFEST_NAME, manifest.to_json().encode())


def _write_rejects(path: Path, work: Work) -> None:
    """Collect the rows left out in the order of the source, then those that were there twice."""
    with (
        atomic_writer(path) as file,
        pq.ParquetWriter(file, REJECT_SCHEMA, compression="zstd") as writer,
    ):
        for table in work.left_out():
            writer.write_table(table)


def _listing(source: Source) -> dict[str, Any]:
    """What the manifest says of the source."""
    return {
        "uri": source.uri,
        "digest": source.digest(),
        "files": len(source.files),
        "rows": source.rows,
        "bytes": source.bytes,
        "skipped_files": [asdict(bad) for bad in source.bad_files],
        "unfinished": source.unfinished,
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
        "read_again": account.get("read_again", 0),
        "splits": splits,
        "seconds": round(seconds, 3),
        "stamps_per_s": round(account["input_rows"] / seconds, 1),
        "peak_rss_bytes": peak,
        "dataset_id": manifest.dataset_id,
    }

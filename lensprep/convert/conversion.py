"""Trees of parquet and catalogues of cutouts -> dataset: plan the tasks, run them, commit.

Two rounds of independent tasks: the first (`lensprep.convert.runs`) reads row groups and leaves
sorted runs of finished records, the second (`lensprep.convert.shards`) gathers each shard from all
runs. An interrupted conversion keeps its finished tasks. The manifest is written last and commits
the dataset (`lensprep.convert.commit`). Dataset and runs may be on a local disk or in an object
store (`lensprep.convert.sites`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lensprep.convert.commit import cleaning_up, commit, finish, make_manifest, remove_unfinished
from lensprep.convert.config import ConvertConfig
from lensprep.convert.cutouts import Sky, join_catalogs
from lensprep.convert.plan import PLAN, Plan, claim, find_plan, require_finished
from lensprep.convert.rejects import check_rejects
from lensprep.convert.runs import first_round, identity
from lensprep.convert.shards import second_round
from lensprep.convert.sites import (
    Need,
    Sites,
    discard,
    kept_folder,
    require_apart,
    require_disk,
)
from lensprep.convert.tasks import Progress, peak_rss_bytes
from lensprep.dataset.dataset import Dataset
from lensprep.dataset.layout import MANIFEST_NAME
from lensprep.dataset.manifest import Manifest
from lensprep.engine import Engine, default_workers
from lensprep.engine.local import LocalEngine
from lensprep.engine.witness import WitnessEngine
from lensprep.errors import ConfigError, SchemaError, names_text
from lensprep.source.catalog import CutoutSource, headings, is_catalog
from lensprep.source.listing import UNFINISHED, Location, as_locations
from lensprep.source.tree import Source
from lensprep.store import S3Options, check_location, is_remote, local_path, open_store

_log = logging.getLogger("lensprep.convert")

_OF_CATALOGS = ("sources", "overlaps_dropped", "same_objects")
"""What the report has of conversions with catalogues."""
_WORKER_CONNECTIONS = 3
"""Most concurrent requests of a worker: each holds 5 MiB, and there are many workers."""


def convert(
    src: Location | Sequence[Location],
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
    """Convert trees and catalogues of cutouts into a dataset.

    Parameters
    ----------
    src : str or path, or a sequence of them
        Folder of the parquet tree, or table of a catalogue of cutouts (`ConvertConfig.cutouts`),
        local or ``s3://``; or several, whose order does not matter.
    dataset : str
        Folder to make, local or ``s3://``. To an object store shards are sent as they are
        finished; only unfinished ones are on a local disk.
    config : ConvertConfig, optional
    workers : int, optional
        Processes; as many as processors if not given. The bytes do not depend on it.
    engine : Engine, optional
        Runs the tasks instead of processes of this machine (`make_engine`); already entered,
        and left open. Its workers must see local folders under the same path.
    resume : bool
        Resume an interrupted conversion of the same source and configuration. If it is
        already finished, nothing is done.
    work : str, optional
        Folder, local or ``s3://``, for the runs between the two rounds, which are as large as the
        dataset; in the dataset if not given. With several machines all of them must reach it.
    keep_local : str, optional
        Local folder for a copy of a dataset that is made in an object store.
    progress : Progress, optional
    announce : callable, optional
        Called before the work begins with the number of rows, and the space needed on each disk
        and store.
    options : S3Options, optional
        How to reach an object store.

    Returns
    -------
    dict
        ``input_rows``, ``accepted``, ``filtered``, ``rejected``, ``read_again`` (rows of row
        groups that arrived damaged over a network and were read twice), ``splits`` (each with its
        ``counterfactuals`` by kind, if there are any), ``seconds``, ``stamps_per_s``,
        ``peak_rss_bytes``, ``dataset_id``; with catalogues also ``sources`` (the account by source,
        origin and kind), ``overlaps_dropped`` and ``same_objects``.

    Raises
    ------
    InputError
        If the source is missing, corrupt or not Phase 4c; nothing is left behind.
    DatasetError
        If the folder holds other files, a dataset or an interrupted conversion of another source
        or configuration, or was taken by another conversion meanwhile.
    BudgetError
        If too many rows are rejected, or the disk is too small; nothing is committed.
    StorageError
        If the object store refuses, or does not answer.
    """
    started = time.monotonic()
    config, options = config or ConvertConfig(), options or S3Options()
    options = replace(options, connections=min(options.connections, _WORKER_CONNECTIONS))
    workers = engine.workers if engine else workers or default_workers()
    if engine is not None and not is_remote(dataset):
        dataset = str(local_path(dataset).absolute())  # a worker elsewhere runs in another folder
    sources = as_locations(src)
    require_apart(sources, dataset, work, keep_local)
    if work is not None and not is_remote(work):
        check_location(local_path(work))
    store = open_store(dataset, options)
    before = find_plan(store, resume=resume)
    finished = store.has(MANIFEST_NAME)
    source, sky = _open_sources(sources, config, options)
    rules, geometry = config.rules(source.schema), config.survey.geometry
    now, failed = Plan.new(identity(config), source.digest(), work), None
    if not (before is None or finished or before.goes_on(now, store, source.uri, work)):
        before, failed = None, before
    keep = kept_folder(store, keep_local, resume=finished or before is not None)
    plan = before or now
    elsewhere = not isinstance(engine, LocalEngine | None)
    sites = Sites.of(plan, store, options, keep, elsewhere=elsewhere)
    if finished:
        manifest = Dataset.open(store.uri, options).manifest
        require_finished(manifest, config.identity, source.digest(), store, source.uri)
        finish(sites, options)  # it may have been killed between commit and clean-up
        return _report(manifest, time.monotonic() - started, peak_rss_bytes())
    needs = sites.needs(source.rows, config.rows_per_shard, workers, geometry)
    require_disk(needs, source.rows)
    if announce is not None:
        announce(source.rows, needs)
    if failed is not None:
        discard(Sites.of(failed, store, options), failed)
    if before is None:
        claim(store, plan)
    else:
        if plan.failed:
            store.write(PLAN, replace(plan, failed=False).to_json())
        remove_unfinished(sites)
    with cleaning_up(sites, plan, new=before is None):
        seen = sites.shared_folders
        with WitnessEngine(engine, seen) if engine else LocalEngine(workers) as pool:
            account, runs, first = first_round(
                source, config, rules, sites.work, pool, progress, geometry
            )
            splits, second = second_round(
                config, sites, runs, account, pool, progress, _source_names(source), geometry
            )
        if engine is not None:
            remove_unfinished(sites)  # of workers that were lost on the way
        check_rejects(account, source, config, sites.work, final=True)
        manifest = make_manifest(config, source, account, splits, sky)
        commit(sites, manifest)
    finish(sites, options)
    workers = pool.workers  # a cluster's may be more by now
    others = workers if workers > 1 or sites.elsewhere else 0
    peak = peak_rss_bytes() + others * max(first, second)
    return _report(manifest, time.monotonic() - started, peak)


def _open_sources(
    src: Sequence[Location], config: ConvertConfig, options: S3Options
) -> tuple[Source, Sky | None]:
    """Trees and catalogues as one source; without catalogues the trees alone."""
    catalogs = [uri for uri in src if is_catalog(uri, config.survey, options)]
    trees = [uri for uri in src if uri not in catalogs]
    if not catalogs:
        if config.cutouts is not None:
            raise ConfigError(
                "Cutouts, grades, fractions and overlaps belong to catalogues, and none of the "
                "sources is a table of cutouts (one file; a folder of parquet is a tree). Name "
                "one, or leave these options out."
            )
        return _open_source(src, config, options), None
    tree = _trees_beside(trees, catalogs, config, options)
    return join_catalogs(tree, catalogs, " ".join(map(str, src)), config, options)


def _trees_beside(
    trees: Sequence[Location],
    catalogs: Sequence[Location],
    config: ConvertConfig,
    options: S3Options,
) -> Source | None:
    """The trees beside catalogues; each column to leave out must be in some source."""
    dropped = {*(config.drop_columns or ())}
    theirs = {name for uri in catalogs for name in headings(uri, options)}
    if not trees:
        if unknown := sorted(dropped - theirs):
            raise ConfigError(
                f"No catalogue has a column {unknown[0]!r} to leave out; there are: "
                f"{names_text(sorted(theirs), unknown[0])}."
            )
        return None
    only = replace(config, drop_columns=tuple(dropped - theirs))
    if shared := dropped & theirs:
        there = Source.open(
            trees,
            skip_bad_files=config.skip_bad_files,
            options=options,
            survey=config.survey,
        )
        shared &= {*there.schema.names, *there.left_out}
        only = replace(config, drop_columns=(*(dropped - theirs), *shared))
    return _open_source(trees, only, options)


def _source_names(source: Source) -> dict[str, str]:
    """The source of each file, where the account is by source too."""
    if not isinstance(source, CutoutSource):
        return {}
    return {file.path: source.name_of(file) for file in source.files}


def _open_source(src: Sequence[Location], config: ConvertConfig, options: S3Options) -> Source:
    """The source; columns on which its files disagree are left out only if the user says so."""
    source = Source.open(
        src,
        skip_bad_files=config.skip_bad_files,
        drop_columns=config.drop_columns or (),
        options=options,
        survey=config.survey,
    )
    if source.left_out:
        column, what = next(iter(source.left_out.items()))
        more = sorted({*source.left_out} - {column})
        raise SchemaError(
            f"{source.uri}: column {column} {what}. Write the files again with one type, or leave "
            f"it out with --drop-column {column}"
            + (f" (the same holds for {', '.join(more)})." if more else ".")
        )
    if source.unfinished is not None:
        _log.warning("%s holds %s: %s.", source.uri, source.unfinished, UNFINISHED)
    return source


def _report(manifest: Manifest, seconds: float, peak: int) -> dict[str, Any]:
    account = manifest.account
    splits = {
        name: {"rows": split.rows, "shards": len(split.shards), "classes": split.classes}
        | ({"counterfactuals": split.counterfactuals} if split.counterfactuals else {})
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
    } | {name: found[name] for name in _OF_CATALOGS for found in (account, manifest.source)
         if name in found}  # fmt: skip

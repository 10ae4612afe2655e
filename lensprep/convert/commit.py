"""The end of a conversion: the manifest, and cleaning up after success or failure."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import version

from lensprep.convert.config import ConvertConfig
from lensprep.convert.cutouts import Sky
from lensprep.convert.plan import PLAN, Plan
from lensprep.convert.rejects import write_rejects
from lensprep.convert.sites import Sites, release
from lensprep.dataset.layout import CUTOUT_LABELS, MANIFEST_NAME, REJECTS_NAME
from lensprep.dataset.manifest import Manifest, SplitInfo
from lensprep.dataset.writer import send_file, sync_shards
from lensprep.decode.account import Account
from lensprep.decode.prepare import CUTOUT_REJECT_SCHEMA, REJECT_SCHEMA
from lensprep.errors import BudgetError, DatasetError, NotFoundError, ProjectError, StorageError
from lensprep.source.survey import survey_record
from lensprep.source.tree import Source
from lensprep.store import LocalStore, RemoteStore, S3Options, remove_partials
from lensprep.store.transfer import abort_unfinished
from lensprep.transfer import DatasetFile, dataset_files, download, require_all


def make_manifest(
    config: ConvertConfig,
    source: Source,
    account: Account,
    splits: dict[str, SplitInfo],
    sky: Sky | None = None,
) -> Manifest:
    """The manifest of the finished dataset."""
    survey = config.survey
    settings = config.facts
    if survey.is_phase4c:
        del settings["survey"]  # as before there were others
    libraries = ("lensprep", "numpy", "numba", "pyarrow", "deflate", "xxhash")
    return Manifest(
        normalization=config.normalization,
        splits=splits,
        label_map=dict(survey.label_map) | (CUTOUT_LABELS if sky else {}),
        account=account.summary(),
        source={
            "uri": source.uri,
            "digest": source.digest(),
            "files": len(source.files),
            "rows": source.rows,
            "bytes": source.bytes,
            "skipped_files": [asdict(bad) for bad in source.bad_files],
            "unfinished": source.unfinished,
        }
        | survey_record(survey)
        | (sky.facts if sky else {}),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in libraries},
        config=settings,
        geometry=survey.geometry,
    )


def commit(sites: Sites, manifest: Manifest) -> None:
    """Commit the dataset: make its files durable, then create the manifest, unless there is one."""
    dataset = sites.dataset
    schema = CUTOUT_REJECT_SCHEMA if "catalogs" in manifest.source else REJECT_SCHEMA
    if isinstance(dataset, LocalStore):
        write_rejects(dataset.root / REJECTS_NAME, sites.work, schema)
        sync_shards(dataset.root, manifest)
    else:
        assert isinstance(dataset, RemoteStore)
        with sites.scratch.folder("rejects") as folder:
            path = folder / REJECTS_NAME
            write_rejects(path, sites.work, schema)
            size = path.stat().st_size
            rejects = DatasetFile(REJECTS_NAME, size, send_file(dataset, path, REJECTS_NAME))
        files = (*dataset_files(manifest), rejects)
        require_all(dataset, files)
        abort_unfinished(dataset, [file.name for file in files])
    dataset.create(MANIFEST_NAME, manifest.to_json().encode())


def finish(sites: Sites, options: S3Options) -> None:
    """After the commit: complete the local copy, and remove what is not the dataset."""
    if sites.keep is not None:
        download(sites.dataset.uri, str(sites.keep), options)
    release(sites)


def remove_unfinished(sites: Sites) -> None:
    """Remove unfinished files of tasks that were killed."""
    sites.work.tidy()
    sites.scratch.remove()
    if sites.shard_folder is not None:
        remove_partials(sites.shard_folder)
    if sites.shard_store is not None:
        with suppress(StorageError):
            abort_unfinished(sites.shard_store)


@contextmanager
def cleaning_up(sites: Sites, plan: Plan, *, new: bool) -> Iterator[None]:
    """After a failure remove unfinished files, and everything if no task was finished."""
    try:
        yield
    except BaseException as error:
        remove_unfinished(sites)
        if isinstance(error, NotFoundError) and sites.dataset.has(MANIFEST_NAME):
            raise DatasetError(
                f"{sites.dataset.uri} was finished by another conversion meanwhile. Look at it "
                "with `lensprep inspect`."
            ) from error
        with suppress(StorageError):  # the first error is reported, not one of the clean-up
            if new and isinstance(error, ProjectError) and not sites.work.is_begun():
                release(sites)
            elif isinstance(error, BudgetError):
                sites.dataset.write(PLAN, replace(plan, failed=True).to_json())
        raise

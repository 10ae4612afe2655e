"""The end of a conversion: the manifest, what is cleaned up behind it, and behind a failure."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from lensprep.convert.config import ConvertConfig
from lensprep.convert.plan import Plan, write_plan
from lensprep.convert.rejects import write_rejects
from lensprep.convert.sites import Sites, release
from lensprep.dataset.layout import MANIFEST_NAME, REJECTS_NAME
from lensprep.dataset.manifest import Manifest, SplitInfo
from lensprep.dataset.normalization import normalization_spec
from lensprep.dataset.writer import send_file, sync_shards
from lensprep.decode.account import Account
from lensprep.errors import BudgetError, DatasetError, NotFoundError, ProjectError, StorageError
from lensprep.source.tree import Source
from lensprep.store import LocalStore, RemoteStore, S3Options, remove_partials
from lensprep.store.transfer import abort_unfinished
from lensprep.transfer import DatasetFile, dataset_files, download, require_all


def make_manifest(
    config: ConvertConfig, source: Source, account: Account, splits: dict[str, SplitInfo]
) -> Manifest:
    """What the dataset will say of itself."""
    return Manifest(
        normalization=normalization_spec(config.normalize, config.clip),
        splits=splits,
        account=account.summary(),
        source=_listing(source),
        versions=_versions(),
        config=asdict(config),
    )


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


def commit(sites: Sites, manifest: Manifest) -> None:
    """Make a dataset of what lies there: all of it durable, the manifest last, by one writer."""
    dataset = sites.dataset
    if isinstance(dataset, LocalStore):
        write_rejects(dataset.root / REJECTS_NAME, sites.work)
        sync_shards(dataset.root, manifest)
    else:
        assert isinstance(dataset, RemoteStore)
        with sites.scratch.folder("rejects") as folder:
            path = folder / REJECTS_NAME
            write_rejects(path, sites.work)
            size = path.stat().st_size
            rejects = DatasetFile(REJECTS_NAME, size, send_file(dataset, path, REJECTS_NAME))
        files = (*dataset_files(manifest), rejects)
        require_all(dataset, files)
        abort_unfinished(dataset, [file.name for file in files])
    dataset.create(MANIFEST_NAME, manifest.to_json().encode())


def finish(sites: Sites, options: S3Options) -> None:
    """After the commit: complete the kept copy, and remove what is not the dataset."""
    if sites.keep is not None:
        download(sites.dataset.uri, str(sites.keep), options)
    release(sites)


def remove_unfinished(sites: Sites) -> None:
    """Remove what tasks that were killed left half done."""
    sites.work.tidy()
    sites.scratch.remove()
    if sites.shard_folder is not None:
        remove_partials(sites.shard_folder)
    if sites.shard_store is not None:
        with suppress(StorageError):
            abort_unfinished(sites.shard_store)


@contextmanager
def cleaning_up(sites: Sites, plan: Plan, *, new: bool) -> Iterator[None]:
    """After a failure nothing half done stays, and nothing at all if no task was done."""
    try:
        yield
    except BaseException as error:
        remove_unfinished(sites)
        if isinstance(error, NotFoundError) and sites.dataset.has(MANIFEST_NAME):
            raise DatasetError(
                f"{sites.dataset.uri} was finished by another conversion meanwhile. Look at it "
                "with `lensprep inspect`."
            ) from error
        with suppress(StorageError):  # what happened is told, not what came of it
            if new and isinstance(error, ProjectError) and not sites.work.is_begun():
                release(sites)
            elif isinstance(error, BudgetError):
                write_plan(sites.dataset, replace(plan, failed=True))
        raise

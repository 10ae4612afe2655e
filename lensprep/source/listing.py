"""Where a source lies, which of its files are data, and how to open them, locally or in a store."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import partial
from itertools import permutations
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lensprep.dataset.kinds import folder_kind
from lensprep.errors import ConfigError, InputError
from lensprep.store import S3Options, is_remote, local_path
from lensprep.store.arrow import RemoteHandler, remote_filesystem
from lensprep.store.files import is_within

_SUFFIX: Final = ".parquet"
_READ_BUFFER: Final = 4 << 20
"""Bytes read at once from a local file: without it a whole column chunk (140 MB) is held."""
_STAGING: Final = (".spark-staging-", "__magic", ".hive-staging_")
"""Prefixes of the folders, besides ``_temporary``, in which a job writes until it is finished."""
UNFINISHED: Final = "the job that writes it is running, or did not finish, and rows may be missing"


class Listing(NamedTuple):
    """What is at a location."""

    root: str
    """Folder that names are relative to."""
    files: list[pafs.FileInfo]
    """The parquet files, sorted by name."""
    others: tuple[str, ...] = ()
    """Names of everything else, hidden files and (on a disk) folders included."""


Location = str | os.PathLike[str]
"""Path or URI."""


def as_locations(uri: Location | Sequence[Location]) -> list[Location]:
    """The locations of a source, of which there may be one or several."""
    return [uri] if isinstance(uri, (str, os.PathLike)) else [*uri]


def tell_apart(locations: Sequence[Location]) -> list[str]:
    """A name for each of several locations: its last folders, as many as all of them need.

    ``demo/phase4c`` and ``demo/counterfactuals`` are ``phase4c`` and ``counterfactuals``; ``a/new``
    and ``s3://b/new`` are ``a/new`` and ``b/new``. No name begins with the folders of another one,
    and the order of the locations does not matter. One location needs no name.

    Raises
    ------
    ConfigError
        If there is no location, or one lies in another one.
    """
    if not locations:
        raise ConfigError("There is no source. Name at least one Phase 4c tree.")
    if len(locations) == 1:
        return [""]
    for inner, outer in permutations(map(str, locations), 2):
        if is_within(inner, outer):
            how = "is named twice" if is_within(outer, inner) else f"lies in {outer}"
            raise ConfigError(f"{inner} {how}: its rows would come twice. Name it once.")
    parts = [
        str(one).replace("s3a://", "s3://").rstrip("/").replace("://", ":/").split("/")
        if is_remote(one)
        else local_path(one).resolve().as_posix().strip("/").split("/")
        for one in locations
    ]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if not any(f"{a}/".startswith(f"{b}/") for a, b in permutations(names, 2)):
            break
    return names


def filesystem_for(uri: Location, options: S3Options | None = None) -> pafs.FileSystem | None:
    """File system of an object store for `Source.open`; None for a local path."""
    return remote_filesystem(str(uri), options) if is_remote(uri) else None


def locate(
    uri: Location, filesystem: pafs.FileSystem | None, options: S3Options | None = None
) -> tuple[pafs.FileSystem, str]:
    """File system, and path in it, of a location."""
    filesystem = filesystem or filesystem_for(uri, options)
    if filesystem is None:
        # Absolute: a worker may run in another folder, and the folder's name may hold the split.
        return pafs.LocalFileSystem(), local_path(uri).absolute().as_posix()
    text = str(uri)
    return filesystem, (text.split("://", 1)[1] if is_remote(text) else text).rstrip("/")


def list_parquet(filesystem: pafs.FileSystem, path: str, uri: str) -> Listing:
    """The parquet files of a tree, or the one file that a location names."""
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise InputError(f"{uri}: no such file or folder. Give the folder of a Phase 4c tree.")
        if info.type == pafs.FileType.File:
            return Listing(str(PurePosixPath(path).parent), [info])
        found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise InputError(f"{uri} cannot be listed: {str(error).splitlines()[0]}.") from error
    named = {relative(entry.path, path): entry for entry in found}
    chosen = {
        name: entry
        for name, entry in sorted(named.items())
        if entry.type == pafs.FileType.File and _is_data(name)
    }
    others = tuple(sorted({*named} - {*chosen}))
    if not chosen:
        raise InputError(_nothing(uri, [n for n in others if named[n].type == pafs.FileType.File]))
    return Listing(path, list(chosen.values()), others)


def _nothing(uri: str, files: Collection[str]) -> str:
    """The message for a folder without data."""
    if mark := unfinished_job(files):
        return f"{uri} holds no {_SUFFIX} file but {mark}: {UNFINISHED}."
    if kind := folder_kind([name for name in files if not name.lower().endswith(_SUFFIX)]):
        return f"{uri} holds no {_SUFFIX} file of a Phase 4c tree; it is {kind}."
    return (
        f"{uri} holds no {_SUFFIX} file ({len(files)} other files). Give the folder above the "
        "region_split=... folders of a Phase 4c tree."
    )


def unfinished_job(names: Collection[str]) -> str | None:
    """The file or folder that shows that a job did not finish; None if there is none."""
    for name in names:
        parts = PurePosixPath(name).parts
        for depth, part in enumerate(parts, 1):
            if part == "_temporary" or part.startswith(_STAGING):
                return "/".join(parts[:depth])
        # Databricks: a job has a name, and commits under it.
        if (
            parts[-1].startswith("_started_")
            and name.replace("_started_", "_committed_") not in names
        ):
            return name
    return None


def open_parquet(
    filesystem: pafs.FileSystem,
    path: str,
    *,
    stream: bool = True,
    version: str | None = None,
    checked: bool = False,
) -> tuple[pq.ParquetFile, str | None]:
    """Open a file, and return its version (ETag) if it has one. Page checksums are verified.

    With ``stream`` most of the file will be read, in order: the next block of a remote file is
    fetched while one is decoded. Otherwise exactly the ranges of a few columns are read. With
    ``checked`` what is read has checksums inside, so only the footer is read twice over plain HTTP.
    """
    parquet = partial(pq.ParquetFile, page_checksum_verification=True)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return parquet(path, filesystem=filesystem, buffer_size=_READ_BUFFER), None
    if isinstance(filesystem, pafs.PyFileSystem) and isinstance(filesystem.handler, RemoteHandler):
        file = filesystem.handler.open(path, read_ahead=stream, version=version)
        buffer = _READ_BUFFER if stream else 0
        opened = parquet(file, pre_buffer=not stream, buffer_size=buffer)
        file.checked = checked
        return opened, file.entry.version
    return parquet(path, filesystem=filesystem, pre_buffer=True), None


def relative(path: str, root: str) -> str:
    """A path as seen from a folder, with ``/``."""
    return PurePosixPath(path).relative_to(root).as_posix()


def _is_data(name: str) -> bool:
    """Whether a relative path is a data file: Spark hides what begins with ``.`` or ``_``."""
    hidden = any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)
    return name.lower().endswith(_SUFFIX) and not hidden

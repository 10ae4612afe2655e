"""Files of a dataset: paths that stay in their folder, and writes that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lensprep.errors import StorageError

PARTIAL_SUFFIX = ".partial"
"""Ending of a file that is still being written; no reader looks at such a file."""


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether a location is an object store (``s3://`` or ``s3a://``)."""
    return str(uri).startswith(("s3://", "s3a://"))


def local_path(uri: str | os.PathLike[str]) -> Path:
    """Local path of a location.

    Raises
    ------
    StorageError
        If the location has a scheme that this version does not read.
    """
    text = str(uri)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if "://" in text:
        scheme = text.split("://", 1)[0]
        raise StorageError(
            f"{text}: this command reads local paths only, not {scheme}://. "
            "Copy the data to a local disk first."
        )
    return Path(text)


def member_path(root: Path, name: str) -> Path:
    """Path of a file named by a manifest, which must lie below ``root``.

    Raises
    ------
    StorageError
        If the name is absolute or climbs out of the folder.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
        raise StorageError(
            f"{name!r} is not a name inside {root}; the manifest is not to be trusted."
        )
    return root / pure


@contextmanager
def atomic_writer(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when the block ends without an error.

    Parameters
    ----------
    path : Path
        Final name; its folder is made if missing. An older file of that name is replaced.
    sync : bool
        Force the bytes and the name to the disk before returning.

    Raises
    ------
    StorageError
        If the disk refuses (full, read-only, no permission).
    """
    # The process id keeps two writers of one name apart; the last rename wins with equal bytes.
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a small file whole or not at all (see `atomic_writer`)."""
    with atomic_writer(path, sync=sync) as file:
        file.write(data)


def remove_partials(folder: Path) -> None:
    """Remove what writers that were killed left behind; nobody may be writing there now."""
    for path in folder.rglob(f".*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Force a finished file's bytes to the disk."""
    sync_folder(path)

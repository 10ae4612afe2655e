"""A folder on a local disk: writes that are whole or absent, and forced to the disk."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lensprep.errors import ChangedError, NotFoundError, StorageError
from lensprep.store.base import Entry, member_path

PARTIAL_SUFFIX = ".partial"
"""Ending of a file that is still being written; no reader looks at such a file."""


def check_place(folder: Path) -> None:
    """Refuse a folder that cannot be made, before the work that is to fill it.

    Raises
    ------
    StorageError
        If it is a file, or would lie in one.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if there.is_dir():
        return
    if there == folder:
        raise StorageError(f"{folder} is a file; a folder is needed here.")
    raise StorageError(f"{there} is a file, so {folder} cannot be made.")


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
    # A name of its own for each writer, since two may write one file at a time: threads, or
    # processes of two machines, whose ids may be equal. The last rename wins with equal bytes.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}")
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


class LocalStore:
    """A folder on a local disk (see `Store`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def entries(self, prefix: str = "") -> list[Entry]:
        """Files whose names begin with ``prefix``, sorted by name; unfinished ones left out."""
        if not self.root.is_dir():
            return []
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        entries = [
            Entry(path.relative_to(self.root).as_posix(), path.stat().st_size)
            for path in paths
            if path.suffix != PARTIAL_SUFFIX
        ]
        chosen = (entry for entry in entries if entry.name.startswith(prefix))
        return sorted(chosen, key=lambda entry: entry.name)

    def stat(self, name: str) -> Entry:
        """Size of a file."""
        path = member_path(self.root, name)
        with _local_errors(path, "read"):
            return Entry(name, path.stat().st_size)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return member_path(self.root, name).is_file()

    def read(self, name: str) -> bytes:
        """A whole file."""
        path = member_path(self.root, name)
        with _local_errors(path, "read"):
            return path.read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``."""
        path = member_path(self.root, name)
        with _local_errors(path, "read"), path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise ChangedError(f"{path} ends at {start + len(data)}, before {start + length}.")
        return data

    def open(self, name: str) -> io.BufferedReader:
        """A seekable binary file object for reading."""
        path = member_path(self.root, name)
        with _local_errors(path, "read"):
            return path.open("rb")

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, in place of an older one."""
        write_atomic(member_path(self.root, name), data)

    def create(self, name: str, data: bytes) -> None:
        """Write a file only if there is none: of two writers one wins."""
        path = member_path(self.root, name)
        # Each writer has a name of its own; a link, unlike a rename, never replaces.
        draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}")
        try:
            write_atomic(draft, data)
            with _local_errors(path, "written"):
                _name_if_new(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        if self.read(name) != data:
            raise ChangedError(f"{path} is there already, with other content; it is left as it is.")

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        path = member_path(self.root, name)
        with _local_errors(path, "removed"):
            path.unlink(missing_ok=True)


def _name_if_new(draft: Path, path: Path) -> None:
    """Give a finished file its name unless the name is taken."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if path.exists():
            return
        draft.replace(path)
    sync_folder(path.parent)


@contextmanager
def _local_errors(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{path}: no such file.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be {done}: {error.strerror or error}.") from error

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
"""Ending of a file that is still being written; readers ignore such files."""


def check_location(folder: Path) -> None:
    """Refuse a folder that cannot be created, before the work that would fill it.

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
    raise StorageError(f"{there} is a file, so {folder} cannot be created.")


@contextmanager
def disk_errors(where: object, done: str = "read") -> Iterator[None]:
    """Turn what a disk refuses into an error of one line, also where pyarrow has several."""
    try:
        yield
    except OSError as error:
        if done == "read" and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise NotFoundError(f"{where}: no such file.") from error
        reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
        raise StorageError(f"{where} could not be {done}: {reason}.") from error


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
    partial = _draft(path)
    try:
        with disk_errors(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)
            if sync:
                sync_folder(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    """Name for a file while it is written.

    Each writer has its own, since two may write one file at a time: threads, or processes of two
    machines, whose ids may be equal.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}")


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a small file whole or not at all (see `atomic_writer`)."""
    with atomic_writer(path, sync=sync) as file:
        file.write(data)


def remove_partials(folder: Path) -> None:
    """Remove the drafts of writers that were killed; nobody may be writing there now."""
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
        entries = (
            Entry(path.relative_to(self.root).as_posix(), path.stat().st_size)
            for path in self.root.rglob("*")
            if path.is_file() and path.suffix != PARTIAL_SUFFIX
        )
        chosen = [entry for entry in entries if entry.name.startswith(prefix)]
        return sorted(chosen, key=lambda entry: entry.name)

    def stat(self, name: str) -> Entry:
        """Size of a file."""
        path = member_path(self.root, name)
        with disk_errors(path):
            return Entry(name, path.stat().st_size)

    def has_any(self) -> bool:
        """Whether there is anything in this folder, unfinished files left out."""
        return self.root.is_dir() and any(p.suffix != PARTIAL_SUFFIX for p in self.root.iterdir())

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return member_path(self.root, name).is_file()

    def read(self, name: str) -> bytes:
        """A whole file."""
        path = member_path(self.root, name)
        with disk_errors(path):
            return path.read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``."""
        path = member_path(self.root, name)
        with disk_errors(path), path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise ChangedError(f"{path} ends at {start + len(data)}, before {start + length}.")
        return data

    def open(self, name: str) -> io.BufferedReader:
        """A seekable binary file object for reading."""
        path = member_path(self.root, name)
        with disk_errors(path):
            return path.open("rb")

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, replacing an older one."""
        write_atomic(member_path(self.root, name), data)

    def create(self, name: str, data: bytes) -> None:
        """Write a file only if there is none: of two writers, one wins."""
        path = member_path(self.root, name)
        draft = _draft(path)
        try:
            write_atomic(draft, data)
            with disk_errors(path, "written"):
                _name_if_new(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        if self.read(name) != data:
            raise ChangedError(f"{path} already exists, with other content; it is left as it is.")

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        path = member_path(self.root, name)
        with disk_errors(path, "removed"):
            path.unlink(missing_ok=True)


def _name_if_new(draft: Path, path: Path) -> None:
    """Give a finished file its name unless it is taken; a link, unlike a rename, never replaces."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if path.exists():
            return
        draft.replace(path)
    sync_folder(path.parent)

"""What every store is: a folder with a few operations, and names that cannot lead out of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from lensprep.errors import ChangedError, StorageError


def member_name(root: object, name: str) -> PurePosixPath:
    """Name of a file that must lie below ``root``.

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
    return pure


def member_path(root: Path, name: str) -> Path:
    """Path of a file named by a manifest, which must lie below ``root``.

    Raises
    ------
    StorageError
        If the name is absolute or climbs out of the folder.
    """
    return root / member_name(root, name)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a store."""

    name: str
    """Relative to the store, with ``/``."""
    bytes: int
    version: str | None = None
    """Changes with the content: the ETag of an object."""
    sha256: str | None = None
    """Digest stated with the object when it was written; a listing does not have it."""


class Store(Protocol):
    """A folder on a disk or in an object store. Errors are StorageError or its subclasses."""

    uri: str

    def entries(self, prefix: str = "") -> list[Entry]:
        """Files whose names begin with ``prefix``, sorted by name; none if there is no folder."""

    def stat(self, name: str) -> Entry:
        """Size and, where the store knows it, version and digest; NotFoundError if not there."""

    def has_any(self) -> bool:
        """Whether there is anything in this folder."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def read(self, name: str) -> bytes | bytearray:
        """A whole file."""

    def read_range(self, name: str, start: int, length: int) -> bytes | bytearray:
        """Exactly ``length`` bytes from ``start``; ChangedError if the file ends earlier."""

    def open(self, name: str) -> Any:
        """A seekable binary file object for reading."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, replacing an older one."""

    def create(self, name: str, data: bytes) -> None:
        """Write a file only if there is none; ChangedError if there is one with other content."""

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""


class DamagedError(ChangedError):
    """An object is not what was written."""


def damaged(where: str, found: str, expected: str) -> DamagedError:
    """Error for an object with another SHA-256 than expected."""
    return DamagedError(
        f"{where} is damaged: its SHA-256 begins with {found[:12]}, not {expected[:12]}. Upload or "
        "convert it again."
    )

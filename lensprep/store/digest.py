"""SHA-256 of files, here and in a store."""

from __future__ import annotations

import hashlib

from lensprep.errors import NotFoundError, StorageError
from lensprep.store.base import Store, member_path
from lensprep.store.files import Uri, read_file
from lensprep.store.local import LocalStore
from lensprep.store.registry import is_remote, local_path


def file_sha256(uri: Uri) -> str:
    """SHA-256 of what a file holds, in hexadecimal digits.

    Raises
    ------
    NotFoundError
        If there is none.
    StorageError
        If it cannot be read.
    """
    if is_remote(uri):
        return hashlib.sha256(read_file(uri)).hexdigest()
    try:
        with local_path(uri).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri}: no such file.") from error
    except OSError as error:
        raise StorageError(f"{uri} cannot be read: {error.strerror or error}.") from error


def stored_sha256(store: Store, name: str) -> str:
    """SHA-256 of a file of a store: as stated with the object, else by reading it."""
    if isinstance(store, LocalStore):
        return file_sha256(member_path(store.root, name))
    return store.stat(name).sha256 or hashlib.sha256(store.read(name)).hexdigest()

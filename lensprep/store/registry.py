"""Which store a location belongs to: the only file that knows the schemes.

    store = open_store("s3://bucket/lenses", S3Options(...))    or a local folder

Another object store is a file next to `s3`, with a `RemoteStore`, and a line in `_STORES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lensprep.errors import ConfigError, StorageError
from lensprep.store.base import Store
from lensprep.store.local import LocalStore

if TYPE_CHECKING:
    from lensprep.store.options import S3Options
    from lensprep.store.remote import RemoteStore

Opener = Callable[[str, "S3Options | None"], "RemoteStore"]


def _s3(uri: str, options: S3Options | None) -> RemoteStore:
    from lensprep.store.s3 import S3Store  # imported only when needed

    return S3Store(uri, options)


_STORES: Final[dict[str, Opener]] = {"s3": _s3}
_ALIASES: Final = {"s3a": "s3"}
"""Other spellings of a scheme."""


def remote_schemes() -> tuple[str, ...]:
    """Schemes of object stores: ``s3`` and ``s3a``."""
    return *_STORES, *_ALIASES


def scheme_of(uri: str | os.PathLike[str]) -> str | None:
    """Scheme of an object store, without aliases; None for any other location."""
    scheme, mark, _ = str(uri).partition("://")
    scheme = _ALIASES.get(scheme, scheme)
    return scheme if mark and scheme in _STORES else None


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether a location is an object store (``s3://`` or ``s3a://``)."""
    return scheme_of(uri) is not None


def local_path(uri: str | os.PathLike[str]) -> Path:
    """Local path of a location.

    Raises
    ------
    StorageError
        If the location is in a store, or has an unknown scheme.
    """
    text = str(uri)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if is_remote(text):
        raise StorageError(
            f"{text}: a local path is needed here. Copy the data to a local disk first (a "
            "dataset with `lensprep download`)."
        )
    if "://" in text:
        known = ", ".join(f"{name}://" for name in _STORES)
        raise StorageError(
            f"{text}: {text.split('://', 1)[0]}:// is not read; local paths and {known} are."
        )
    scheme, mark, path = text.partition(":/")  # what pathlib makes of it
    if mark and scheme in remote_schemes():
        raise StorageError(f"{text} lacks a slash: write {scheme}://{path} (in Python as a str).")
    return Path(text)


def open_store(uri: str | os.PathLike[str], options: S3Options | None = None) -> Store:
    """Open a folder, local or ``s3://`` (``s3a://``), for reading and writing.

    Parameters
    ----------
    uri : str or path
    options : S3Options, optional
        How to reach an object store; the usual AWS variables and profiles apply in any case.

    Raises
    ------
    StorageError
        If the location has an unknown scheme, or the store's client cannot be created.
    """
    return open_remote(str(uri), options) if is_remote(uri) else LocalStore(local_path(uri))


def open_remote(uri: str, options: S3Options | None = None) -> RemoteStore:
    """Open a folder in an object store.

    Raises
    ------
    ConfigError
        If the location is not in one.
    StorageError
        If the store's client cannot be created.
    """
    scheme = scheme_of(uri)
    if scheme is None:
        raise ConfigError(f"{uri!r} is not in an object store. Give it like s3://bucket/folder.")
    return _STORES[scheme](uri, options)

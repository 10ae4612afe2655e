"""Reads of an object store that are believed only when two answers agree.

    store = guarded(open_store(uri, options))       the same, or over plain HTTP an AgreedStore
    store = AgreedStore("s3://bucket/x", options)   an S3Store that reads everything twice
    if is_plain(store): ...                         nothing but TCP guards what it answers

TCP lets an altered bit pass now and then, a proxy as many as it likes, and a range of an object
has no checksum of its own. What is read and looks damaged is read again in this way before it is
believed, and over plain HTTP so is what would not look damaged: listings, footers, scalar columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from lensprep.dataset.s3 import S3Store
from lensprep.dataset.s3client import S3Options
from lensprep.dataset.storage import Entry, Store
from lensprep.errors import StorageError

T = TypeVar("T")

_ANSWERS: Final = 10
"""Most answers to one question; of ten that are each altered once in two, two agree."""


def is_plain(store: S3Store) -> bool:
    """Whether bytes of this store come over plain HTTP, where nobody notices that one changed."""
    return str(store.client.meta.endpoint_url).startswith("http://")


def agreed(read: Callable[[], T], where: str) -> T:
    """What two answers in a row have in common: all of it.

    Raises
    ------
    StorageError
        If ten answers all differ from the one before.
    """
    before = read()
    for _ in range(_ANSWERS - 1):
        now = read()
        if now == before:
            return now
        before = now
    raise StorageError(
        f"{where}: of {_ANSWERS} answers no two in a row agree. Something on the way to the store "
        "alters them: use https, or another network."
    )


def guarded(store: Store) -> Store:
    """A folder whose small files come as they are, also where nobody else sees to that."""
    if isinstance(store, S3Store) and is_plain(store):
        return AgreedStore(store.uri, store.options)
    return store


class AgreedStore(S3Store):
    """A folder in an object store that is asked until two answers agree.

    Parameters
    ----------
    uri : str
    options : S3Options, optional
    ranges : bool
        Do so for ranges of a version too; else only for the ends of objects, and what is small.
    """

    def __init__(self, uri: str, options: S3Options | None = None, *, ranges: bool = True) -> None:
        super().__init__(uri, options)
        self._ranges = ranges

    def entries(self, prefix: str = "") -> list[Entry]:
        """Files whose names begin with ``prefix``; see `S3Store.entries`."""
        read = super().entries
        return agreed(lambda: read(prefix), self.uri)

    def read(self, name: str) -> bytearray:
        """A whole file; see `S3Store.read`."""
        read = super().read
        return agreed(lambda: read(name), self.locate(name))

    def read_range(self, name: str, start: int, length: int) -> bytearray:
        """So many bytes; see `S3Store.read_range`."""
        read = super().read_range
        return agreed(lambda: read(name, start, length), self.locate(name))

    def read_tail(self, name: str, length: int) -> tuple[bytearray, Entry]:
        """The last bytes of a file, and what it is; see `S3Store.read_tail`."""
        read = super().read_tail
        return agreed(lambda: read(name, length), self.locate(name))

    def read_version(self, entry: Entry, start: int, stop: int) -> bytearray:
        """Bytes of a version of a file; see `S3Store.read_version`."""
        read = super().read_version
        if not self._ranges:
            return read(entry, start, stop)
        return agreed(lambda: read(entry, start, stop), self.locate(entry.name))

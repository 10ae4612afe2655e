"""A folder in an object store, whichever: ranged, parallel reads and conditional, checked writes.

    store.fetch([Piece("train/train-000000.tar", start, view)])   many ranges at once, into memory
    store.read(name)  .read_range(...)  .read_tail(...)  .open(name)
    store.write(name, data)  .create(name, data)                  see `lensprep.store.base.Store`

The single requests are those of one kind of store (`lensprep.store.s3`); here and in
`lensprep.store.transfer` they are combined. No object is ever replaced unless asked.

Over plain HTTP nothing shows whether bytes arrived as they were sent: a range has no checksum in S3
(except one that is exactly a part as it was uploaded, and not with every store). So where no digest
is known everything is read until two consecutive readings agree.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, TypeVar

from lensprep.errors import ChangedError, NotFoundError, StorageError
from lensprep.store.base import Entry, member_name
from lensprep.store.connection import Connection, Tries
from lensprep.store.options import S3Options
from lensprep.store.ranges import (
    PART_BYTES,
    Answer,
    BrokenBodyError,
    Piece,
    Reception,
    split_piece,
)
from lensprep.store.remotefile import RemoteFile

logger = logging.getLogger("lensprep.s3")

_Found = TypeVar("_Found")


class BrokenOffError(StorageError):
    """A request with content broke off again and again; a smaller one may succeed."""


class RemoteStore(ABC):
    """A folder in an object store (see `Store`); subclasses add the requests.

    Parameters
    ----------
    uri : str
        The one usual spelling of the folder's location.
    options : S3Options
    connection : Connection
    """

    def __init__(self, uri: str, options: S3Options, connection: Connection) -> None:
        self.uri, self.options, self.connection = uri, options, connection

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str, S3Options]]:
        """Pickled without the connection: another process makes its own."""
        return type(self), (self.uri, self.options)

    # ------------------------------------------------------------------ single requests

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """URL of the store: two may have folders of one name."""

    @abstractmethod
    def list_once(self, prefix: str) -> list[Entry]:
        """Files whose names begin with ``prefix``, sorted by name."""

    @abstractmethod
    def stat(self, name: str) -> Entry:
        """Size, version and stated digest of a file; NotFoundError if there is none."""

    @abstractmethod
    def has_any(self) -> bool:
        """Whether there is anything in this folder."""

    @abstractmethod
    def get(self, name: str, start: int, stop: int, version: str | None) -> Answer:
        """Ask for bytes ``start`` to ``stop`` of that version; the object may end earlier."""

    @abstractmethod
    def get_tail(self, name: str, length: int) -> Answer:
        """Ask for the last ``length`` bytes of a file, or all of it."""

    @abstractmethod
    def put(self, name: str, data: bytes, *, new: bool) -> None:
        """Write an object in one request, with its digest.

        Raises
        ------
        ChangedError
            If it is to be ``new`` and the name is taken.
        BrokenOffError
            If the connection broke each time.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""

    @abstractmethod
    def begin_upload(self, name: str, sha256: str | None = None) -> str:
        """Begin an object that is sent in parts, and state its digest; returns the upload's id."""

    @abstractmethod
    def put_part(
        self, name: str, upload: str, number: int, data: bytes | bytearray, over: threading.Event
    ) -> Any:
        """Send a part, numbered from 1; returns what `end_upload` needs of it.

        Once ``over`` is set, nothing is retried.
        """

    @abstractmethod
    def end_upload(self, name: str, upload: str, parts: Sequence[Any], *, new: bool) -> None:
        """Make the object of its parts; ChangedError or NotFoundError as `put`, or if ended."""

    @abstractmethod
    def abort_upload(self, name: str, upload: str) -> None:
        """Drop an upload; NotFoundError if there is none."""

    @abstractmethod
    def list_uploads(self) -> list[tuple[str, str]]:
        """Name and id of every upload that was begun and not ended."""

    # ------------------------------------------------------------------ names

    def locate(self, name: str) -> str:
        """URI of a file."""
        return f"{self.uri}/{member_name(self.uri, name)}"

    def require_going(self, name: str) -> None:
        """StorageError once the connection was stopped."""
        if self.connection.stopped:
            raise StorageError(f"{self.locate(name)}: stopped.")

    def entries(self, prefix: str = "") -> list[Entry]:
        """Files whose names begin with ``prefix``, sorted by name.

        Over plain HTTP they are listed until two consecutive listings agree. If none do, since
        somebody is writing there, a majority vote of all listings is returned.
        """
        found = [self.list_once(prefix)]
        if not self.connection.plain:
            return found[0]
        while len(found) < self.options.attempts:
            found.append(self.list_once(prefix))
            if found[-1] == found[-2]:
                return found[-1]
        names = Counter(entry.name for listing in found for entry in listing)
        votes = Counter(entry for listing in found for entry in listing)
        best = {entry.name: entry for entry, _ in reversed(votes.most_common())}
        return [best[name] for name in sorted(best) if 2 * names[name] > len(found)]

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.stat(name)
        except NotFoundError:
            return False
        return True

    # ------------------------------------------------------------------ reading

    def read(self, name: str, sha256: str | None = None) -> bytearray:
        """A whole file; one request if it is not larger than `PART_BYTES`.

        Over plain HTTP it is read until it has the digest `sha256`, or two consecutive readings
        agree: that is what the store holds, whatever its digest.
        """

        def is_right(found: tuple[bytearray, Entry]) -> bool:
            return sha256 is not None and hashlib.sha256(found[0]).hexdigest() == sha256

        return self._agreed(self.locate(name), lambda: self._read_once(name), is_right)[0]

    def _read_once(self, name: str) -> tuple[bytearray, Entry]:
        first = memoryview(bytearray(PART_BYTES))
        head = self.fill(Piece(name, 0, first, checked=True), short=True)
        if head.bytes <= PART_BYTES:
            return bytearray(first[: head.bytes]), head
        out = bytearray(head.bytes)
        view = memoryview(out)
        view[:PART_BYTES] = first
        rest = view[PART_BYTES:]
        self.fetch([Piece(name, PART_BYTES, rest, head.bytes, None, head.version, checked=True)])
        return out, head

    def _agreed(
        self,
        where: str,
        read: Callable[[], _Found],
        is_right: Callable[[_Found], bool] = lambda _: False,
    ) -> _Found:
        """Read until the result is right or comes twice in a row; over TLS once is enough."""
        found = read()
        if not self.connection.plain or is_right(found):
            return found
        for _ in range(self.options.attempts):
            again = read()
            if again == found or is_right(again):
                return again
            logger.warning("%s: two readings differ; reading it again", where)
            found = again
        raise StorageError(
            f"{where}: {self.options.attempts + 1} readings all differed, so the network alters "
            "what it carries. Use https://, or have the network repaired."
        )

    def read_range(self, name: str, start: int, length: int) -> bytearray:
        """Exactly ``length`` bytes from ``start``."""
        out = bytearray(length)
        self.fetch([Piece(name, start, memoryview(out))])
        return out

    def read_version(
        self, entry: Entry, start: int, stop: int, *, checked: bool = False
    ) -> bytearray:
        """Bytes ``start`` to ``stop`` of exactly that version of a file; see `Piece.checked`."""
        out = bytearray(stop - start)
        view = memoryview(out)
        self.fetch([Piece(entry.name, start, view, entry.bytes, None, entry.version, checked)])
        return out

    def read_tail(self, name: str, length: int) -> tuple[bytearray, Entry]:
        """The last ``length`` bytes of a file, or all of it, and its entry."""
        return self._agreed(self.locate(name), lambda: self._read_tail(name, length))

    def _read_tail(self, name: str, length: int) -> tuple[bytearray, Entry]:
        with closing(self.get_tail(name, length)) as answer, suppress(BrokenBodyError):
            end = answer.entry.bytes
            out = bytearray(min(length, end))
            if answer.span == (end - len(out), end):
                came = sum(answer.receive(memoryview(out), 0, len(out)))
                if came == len(out):
                    return out, answer.entry
        logger.warning("%s: the end did not arrive whole; reading it again", self.locate(name))
        entry = self.stat(name)
        return self.read_version(entry, max(0, entry.bytes - length), entry.bytes), entry

    def open(self, name: str) -> RemoteFile:
        """A seekable binary file object that reads ranges as they are asked for."""
        return RemoteFile(self, name)

    def fetch(self, pieces: Sequence[Piece]) -> None:
        """Read many ranges in parallel, long ones in several requests.

        Raises
        ------
        NotFoundError
            If an object is not there.
        ChangedError
            If an object does not have the size, digest or version that it must have, ends before a
            range does, or was replaced meanwhile.
        StorageError
            If the store refuses or does not answer.
        """
        parts = [part for piece in pieces if piece.view for part in split_piece(piece)]
        if len(parts) == 1:
            self.fill(parts[0])
            return
        futures = [self.connection.threads.submit(self.fill, part) for part in parts]
        answers = self.connection.results(futures)
        versions: dict[str, str | None] = {}
        for answer in answers:
            if versions.setdefault(answer.name, answer.version) != answer.version:
                raise ChangedError(f"{self.locate(answer.name)} was replaced while it was read.")

    def fill(self, piece: Piece, *, short: bool = False, watch: Reception | None = None) -> Entry:
        """Read one range in one request, or several if the body breaks off.

        With ``short`` the object may end before the range does. Another thread may `watch` a range
        that is `checked`, and stop it: then this raises StorageError.
        """
        if piece.checked or not self.connection.plain:
            return self._receive(piece, short, watch)

        def read() -> tuple[Entry, int]:
            entry = self._receive(piece, short, watch)
            return entry, crc32(piece.view[: max(0, entry.bytes - piece.start)])

        where = f"{self.locate(piece.name)}, bytes from {piece.start}"
        return self._agreed(where, read)[0]

    def _receive(self, piece: Piece, short: bool, watch: Reception | None) -> Entry:
        """Read one range once; a body that breaks off is continued, in the same version."""
        size, done, version, unlike = len(piece.view), 0, piece.version, ""
        tries = Tries(self.connection, base_s=0.1, longest_s=5.0)
        while True:
            self.require_going(piece.name)
            start = piece.start + done
            answer = self.get(piece.name, start, piece.start + size, version)
            entry = answer.entry
            try:
                with closing(answer):
                    span = start, min(piece.start + size, entry.bytes)
                    if answer.body is not None and answer.span != span:
                        raise BrokenBodyError("another range came than was asked for, or a page")
                    if version not in (None, entry.version):
                        raise BrokenBodyError("another version came than was asked for")
                    before, unlike = unlike, _difference(piece, entry, 0 if short else size)
                    if unlike and unlike == before:
                        raise ChangedError(f"{self.locate(piece.name)} {unlike}.")
                    if unlike:  # once, it may be the answer to another request
                        raise BrokenBodyError(f"it {unlike}")
                    if short:
                        size = min(size, entry.bytes - piece.start)
                    version = entry.version
                    if watch is not None:
                        watch.began(entry, answer.body)
                    for count in answer.receive(piece.view, done, size):
                        done += count
                        self.require_going(piece.name)
                        if watch is not None:
                            watch.moved(done)
                    if done != size:
                        raise BrokenBodyError("the body is too short")
                return entry
            except BrokenBodyError as error:
                where = f"{self.locate(piece.name)}, bytes {piece.start} to {piece.start + size}"
                if watch is not None and watch.stopped:
                    raise StorageError(f"{where}: reading was stopped.") from None
                if not tries.again(f"{where}: broke off after {done} ({error})", done):
                    raise StorageError(
                        f"{where}: nothing arrived in {tries.failed} consecutive tries ({error}). "
                        "Check the network, and run the same command again; finished work is kept."
                    ) from error

    # ------------------------------------------------------------------ writing

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, replacing an older one."""
        self.put(name, data, new=False)

    def create(self, name: str, data: bytes) -> None:
        """Write a small file only if there is none: of two writers, one wins.

        Raises
        ------
        ChangedError
            If there is one with other content. The same content is accepted: the answer to our own
            write may have been lost.
        """
        try:
            self.put(name, data, new=True)
        except ChangedError:
            if self.read(name) != data:
                raise ChangedError(
                    f"{self.locate(name)} already exists, with other content; it is left as it is."
                ) from None
            logger.warning("%s already exists, with this content", self.locate(name))


def _difference(piece: Piece, entry: Entry, size: int) -> str:
    """How an object differs from the one that the reader has in mind; empty if it does not."""
    if entry.bytes < piece.start + size:
        return f"has {entry.bytes} bytes, not {piece.start + size} or more"
    if piece.bytes is not None and entry.bytes != piece.bytes:
        return f"has {entry.bytes} bytes where {piece.bytes} are stated"
    if piece.sha256 is not None and entry.sha256 not in (None, piece.sha256):
        return (
            f"holds other content than stated (its SHA-256 begins with {str(entry.sha256)[:12]}, "
            f"not {piece.sha256[:12]})"
        )
    return ""


def crc32(data: Any) -> int:
    """CRC-32, as `zlib.crc32` has it."""
    try:
        from deflate import crc32 as checksum
    except ImportError:  # four times slower
        checksum = zlib.crc32
    return int(checksum(data))

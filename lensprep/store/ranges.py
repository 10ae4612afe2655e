"""Ranges of objects on their way into memory, whatever the store.

    Piece("train/train-000000.tar", start, view)    what is to be read, and where it goes
    receive_range(store, piece)                     one range; a body that breaks off is continued

A body that breaks off is continued by a range of the same version. What an answer states (size,
digest, version, range) is compared with what the reader has in mind.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, NoReturn, Protocol

from lensprep.errors import ChangedError, StorageError
from lensprep.store.base import Entry
from lensprep.store.connection import Connection

logger = logging.getLogger("lensprep.s3")

PART_BYTES: Final = 512 * 26_624
"""Bytes of one request: 512 records of a dataset, 13 MiB. AWS advises 8 to 16 MB, reads in the
parts written."""
_CHUNK: Final = 1 << 20
"""Bytes taken from a socket at once: with boto3's 64 KiB a core moves a third as much."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of an object and the memory that it goes to."""

    name: str
    start: int
    view: memoryview | Scatter
    """Writable, one byte an item; its length is that of the range."""
    bytes: int | None = None
    """Size that the whole object must have."""
    sha256: str | None = None
    """Digest that must be stated with the object, if any is."""
    version: str | None = None
    """Version that the object must have (see `Entry.version`)."""
    checked: bool = False
    """Who reads it compares the bytes with a digest: they need not be read twice over HTTP."""


class Scatter:
    """Memory in several places that is filled as if it were one."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = list(views)
        self._ends = list(accumulate(len(view) for view in views))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, part: slice) -> memoryview:
        """As much of the part as lies in one place: not nothing, but less than asked for."""
        number = bisect_right(self._ends, part.start)
        view = self._views[number]
        before = self._ends[number] - len(view)
        return view[part.start - before : part.stop - before]


class Body(Protocol):
    """Content of an answer on its way."""

    def readinto(self, view: memoryview) -> int:
        """Take bytes; 0 at the end. BrokenBodyError where the connection breaks or stalls."""

    def interrupt(self) -> None:
        """Break the connection: a thread that waits for bytes wakes up at once."""

    def close(self) -> None:
        """Keep the connection if all has come, else close it."""


class BrokenBodyError(Exception):
    """The connection broke, or stalled, in the middle of a body; another try may go on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store sends for a range."""

    entry: Entry
    """The whole object."""
    span: tuple[int, int] | None
    """First byte, and the one after the last, as the answer states them."""
    body: Body | None
    """None for an empty object, which has no range."""


class Reception:
    """A range on its way, as another thread sees it; `receive_range` tells it what happens."""

    def __init__(self) -> None:
        self.stopped = False
        self._body: Body | None = None

    def began(self, entry: Entry, body: Body | None) -> None:
        """The store has answered."""
        self._body = body
        if self.stopped:
            self.stop()

    def moved(self, done: int) -> None:
        """So many bytes of the range have come."""

    def stop(self) -> None:
        """Break the connection: a thread that waits for its bytes wakes up at once."""
        self.stopped = True
        if self._body is not None:
            self._body.interrupt()


class Ranged(Protocol):
    """What reading ranges needs of a store (see `lensprep.store.remote.RemoteStore`)."""

    connection: Connection

    def locate(self, name: str) -> str:
        """Location of an object, for messages."""

    def require_going(self, name: str) -> None:
        """StorageError once the connection is to be given up."""

    def get(self, name: str, start: int, stop: int, version: str | None) -> Answer:
        """Ask for a range, once."""

    def read_tail(self, name: str, length: int) -> tuple[bytearray, Entry]:
        """The end of an object."""

    def read_version(
        self, entry: Entry, start: int, stop: int, *, checked: bool = False
    ) -> bytearray:
        """A range of the version that an entry names."""


def split_piece(piece: Piece) -> Iterator[Piece]:
    """A long range in parts."""
    if not isinstance(piece.view, memoryview):
        yield piece
        return
    for low in range(0, len(piece.view), PART_BYTES):
        view = piece.view[low : low + PART_BYTES]
        yield replace(piece, start=piece.start + low, view=view)


def receive(body: Body | None, view: memoryview | Scatter, done: int, size: int) -> Iterator[int]:
    """Take a body straight into memory; yields how many bytes came."""
    if body is None:
        return
    try:
        while done < size and (count := body.readinto(view[done : min(done + _CHUNK, size)])):
            done += count
            yield count
    finally:
        body.close()


def receive_range(
    store: Ranged, piece: Piece, *, short: bool = False, watch: Reception | None = None
) -> Entry:
    """Read one range, in more requests than one where the body breaks off.

    See `lensprep.store.remote.RemoteStore.fill`, which reads it twice where that is called for.
    """
    size, done, version, unlike = len(piece.view), 0, piece.version, ""

    def attempt() -> Entry:
        nonlocal size, done, version, unlike
        store.require_going(piece.name)
        start = piece.start + done
        answer = store.get(piece.name, start, piece.start + size, version)
        entry = answer.entry
        try:
            _require_span(answer, start, min(piece.start + size, entry.bytes), version)
            _compare(store, piece, entry, size, short)
        except (BrokenBodyError, ChangedError) as error:
            if answer.body is not None:
                answer.body.close()
            if isinstance(error, ChangedError):
                # Said once, it may be the answer to another request.
                before, unlike = unlike, str(error)
                if before != unlike:
                    raise BrokenBodyError(unlike.rstrip(".")) from error
            raise
        if short:
            size = min(size, entry.bytes - piece.start)
        version = entry.version
        if watch is not None:
            watch.began(entry, answer.body)
        try:
            for count in receive(answer.body, piece.view, done, size):
                done += count
                store.require_going(piece.name)
                if watch is not None:
                    watch.moved(done)
            if done != size:
                raise BrokenBodyError("the body is too short")
        except BrokenBodyError:
            if watch is not None and watch.stopped:
                raise StorageError(f"{store.locate(piece.name)}: reading was stopped.") from None
            raise
        return entry

    def tell(error: Exception, _: int) -> None:
        logger.warning("%s: broke off after %d (%s); going on from there", where(), done, error)

    def give_up(error: Exception, tries: int) -> NoReturn:
        raise StorageError(
            f"{where()}: nothing came in {tries} tries in turn ({error}). Check the network, "
            "and run the same command again; what is done is kept."
        ) from error

    def where() -> str:
        return f"{store.locate(piece.name)}, bytes {piece.start} to {piece.start + size}"

    return store.connection.persist(
        attempt,
        lambda error: isinstance(error, BrokenBodyError),
        tell=tell,
        give_up=give_up,
        progress=lambda: done,
        base_s=_FIRST_PAUSE,
        longest_s=_LONGEST_PAUSE,
    )


def _require_span(answer: Answer, start: int, stop: int, version: str | None) -> None:
    if answer.body is not None and answer.span != (start, stop):
        raise BrokenBodyError("another range came than was asked for, or a page that is no object")
    if version not in (None, answer.entry.version):
        raise BrokenBodyError("another version came than was asked for")


def _compare(store: Ranged, piece: Piece, entry: Entry, size: int, short: bool) -> None:
    """An object must be the one that the reader has in mind."""
    where = store.locate(piece.name)
    if not short and entry.bytes < piece.start + size:
        end = piece.start + size
        raise ChangedError(f"{where} has {entry.bytes} bytes, not {end} or more.")
    if piece.bytes is not None and entry.bytes != piece.bytes:
        raise ChangedError(f"{where} has {entry.bytes} bytes where {piece.bytes} are stated.")
    if piece.sha256 is not None and entry.sha256 not in (None, piece.sha256):
        raise ChangedError(
            f"{where} holds other content than stated (its SHA-256 begins with "
            f"{str(entry.sha256)[:12]}, not {piece.sha256[:12]})."
        )

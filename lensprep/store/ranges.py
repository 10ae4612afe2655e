"""Ranges of objects: what is to be read and where it goes, and what a store answers.

Piece("train/train-000000.tar", start, view)    see `lensprep.store.remote.RemoteStore.fetch`
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, Protocol

from lensprep.store.base import Entry

PART_BYTES: Final = 512 * 26_624
"""Bytes of one request: 512 records of a dataset, 13 MiB. AWS advises 8 to 16 MB, reads in the
parts written."""
_CHUNK: Final = 1 << 20
"""Bytes taken from a socket at once: with boto3's 64 KiB a core moves a third as much."""


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
    """Digest that the object must have, if one is stated with it."""
    version: str | None = None
    """Version that the object must have (see `Entry.version`)."""
    checked: bool = False
    """The reader compares the bytes with a digest, so they need not be read twice over HTTP."""


class Scatter:
    """Several pieces of memory that are filled as if they were one."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = list(views)
        self._ends = list(accumulate(len(view) for view in views))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, wanted: slice) -> memoryview:
        """The beginning of the slice, as far as one piece of memory holds it; never empty."""
        number = bisect_right(self._ends, wanted.start)
        view = self._views[number]
        before = self._ends[number] - len(view)
        return view[wanted.start - before : wanted.stop - before]


class Body(Protocol):
    """Content of an answer, while it arrives."""

    def readinto(self, view: memoryview) -> int:
        """Receive bytes; 0 at the end. BrokenBodyError if the connection breaks or stalls."""

    def interrupt(self) -> None:
        """Break the connection: a thread that waits for bytes wakes up at once."""

    def close(self) -> None:
        """Keep the connection if everything has arrived, else close it."""


class BrokenBodyError(Exception):
    """A body broke off or stalled, or answers another request; another try may continue it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store sends for a range."""

    entry: Entry
    """The whole object."""
    span: tuple[int, int] | None
    """First byte, and the one after the last, as the answer states them."""
    body: Body | None
    """None for an empty object, which has no range."""

    def receive(self, view: memoryview | Scatter, done: int, size: int) -> Iterator[int]:
        """Receive bytes ``done`` to ``size`` of a view straight into it; yields how many came."""
        while done < size and self.body is not None:
            count = self.body.readinto(view[done : min(done + _CHUNK, size)])
            if not count:
                return
            done += count
            yield count

    def close(self) -> None:
        """Let go of the body (see `Body.close`)."""
        if self.body is not None:
            self.body.close()


class Reception:
    """A range on its way, as another thread sees it; `RemoteStore.fill` reports to it."""

    def __init__(self) -> None:
        self.stopped = False
        self._body: Body | None = None

    def began(self, entry: Entry, body: Body | None) -> None:
        """The store has answered."""
        self._body = body
        if self.stopped:
            self.stop()

    def moved(self, done: int) -> None:
        """So many bytes of the range have arrived."""

    def stop(self) -> None:
        """Break the connection: a thread that waits for its bytes wakes up at once."""
        self.stopped = True
        if self._body is not None:
            self._body.interrupt()


def split_piece(piece: Piece) -> Iterator[Piece]:
    """A long range as several requests."""
    if not isinstance(piece.view, memoryview):
        yield piece
        return
    for low in range(0, len(piece.view), PART_BYTES):
        view = piece.view[low : low + PART_BYTES]
        yield replace(piece, start=piece.start + low, view=view)

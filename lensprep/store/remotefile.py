"""Objects as files: for pyarrow, and whatever else reads by seek and read.

    file = RemoteFile(store, name)              a request for its end, then ranges as asked for
    file = RemoteFile(..., read_ahead=True)     the next block is fetched while one is used

The client is ours, not pyarrow's, so that profiles, endpoints, retries and errors are the same
everywhere.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any, Final, Protocol

from lensprep.errors import ChangedError
from lensprep.store.base import Entry
from lensprep.store.connection import Connection

TAIL_BYTES: Final = 64 << 10
"""Read when a file is opened: a parquet footer is there, mostly whole."""
BLOCK_BYTES: Final = 8 << 20
"""Block of a file that is read ahead."""
_BLOCKS: Final = 4
"""Blocks held: the one in use, those on their way, and one of columns stored elsewhere."""


class Readable(Protocol):
    """What reading an object needs of `lensprep.store.remote.RemoteStore`, which opens it."""

    connection: Connection

    def locate(self, name: str) -> str:
        """Location of an object, for messages."""

    def read_tail(self, name: str, length: int) -> tuple[bytearray, Entry]:
        """The end of an object."""

    def read_version(
        self, entry: Entry, start: int, stop: int, *, checked: bool = False
    ) -> bytearray:
        """A range of the version that an entry names."""


class RemoteFile(io.RawIOBase):
    """An object as a seekable file. All its bytes come from one version of the object.

    Parameters
    ----------
    store : RemoteStore
    name : str
    read_ahead : bool
        Read in blocks, the next one before it is asked for: for a file that is read mostly in
        order. Otherwise exactly the ranges that are asked for are read.
    version : str, optional
        ETag that the object must have.

    Raises
    ------
    NotFoundError
        If there is no such object.
    ChangedError
        If it has another version; when reading, if it was replaced meanwhile.
    """

    def __init__(
        self, store: Readable, name: str, *, read_ahead: bool = False, version: str | None = None
    ) -> None:
        super().__init__()
        self._store, self.name = store, name
        self._position = 0
        self._ahead = read_ahead
        self._blocks: OrderedDict[int, Future[bytearray]] = OrderedDict()
        tail, entry = store.read_tail(name, TAIL_BYTES)
        if version is not None and entry.version != version:
            raise ChangedError(f"{store.locate(name)} was replaced after it was listed.")
        self._tail = memoryview(tail)
        self.checked = False
        """Whether the reader compares the bytes with checksums (see `Piece.checked`)."""
        self.entry: Entry = entry
        self.mode = "rb"

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._position

    def size(self) -> int:
        """Bytes of the object."""
        return self.entry.bytes

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.entry.bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as there is room for, fewer only at the end."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Everything from here to the end."""
        return self.read(-1)

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, fewer only at the end of the object."""
        end = self.entry.bytes
        stop = end if size is None or size < 0 else min(end, self._position + size)
        start, self._position = self._position, max(self._position, stop)
        if stop <= start:
            return b""
        tail_start = end - len(self._tail)
        if start >= tail_start:
            return bytes(self._tail[start - tail_start : stop - tail_start])
        if self._ahead:
            return self._from_blocks(start, stop)
        return bytes(self._range(start, stop))

    def _range(self, start: int, stop: int) -> bytearray:
        return self._store.read_version(self.entry, start, stop, checked=self.checked)

    def _from_blocks(self, start: int, stop: int) -> bytes:
        numbers = range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        # Read ahead only if the reader goes from block to block, or is at its first.
        onward = numbers[0] - 1 in self._blocks or numbers[0] in self._blocks or not self._blocks
        for number in numbers:
            self._request(number)
        if onward and (numbers[-1] + 1) * BLOCK_BYTES < self.entry.bytes:
            self._request(numbers[-1] + 1)
        pieces = []
        for number in numbers:
            low = number * BLOCK_BYTES
            block = memoryview(self._blocks[number].result())
            pieces.append(block[max(0, start - low) : stop - low])
        while len(self._blocks) > max(_BLOCKS, len(numbers) + 1):
            self._blocks.popitem(last=False)
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def _request(self, number: int) -> None:
        """Ask for a block, unless it is held or on its way."""
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return
        start = number * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, self.entry.bytes)
        self._blocks[number] = self._store.connection.threads.submit(self._range, start, stop)

    def close(self) -> None:
        """Drop the blocks that are held or on their way."""
        for block in self._blocks.values():
            block.cancel()
        self._blocks.clear()
        super().close()

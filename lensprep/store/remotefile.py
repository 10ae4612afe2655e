"""Objects as files: for pyarrow, and whatever else reads by seek and read.

    file = RemoteFile(store, name)              a request for its end, then ranges as asked for
    file = RemoteFile(..., read_ahead=True)     the next block is on its way while one is used
    filesystem = remote_filesystem(uri, options)    a pyarrow.fs.FileSystem; it pickles

The client is ours, not that of pyarrow, so that profiles, endpoints, retries and errors are the
same everywhere.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs

from lensprep.errors import ChangedError, NotFoundError
from lensprep.store.base import Entry
from lensprep.store.options import S3Options
from lensprep.store.registry import open_remote, scheme_of
from lensprep.store.remote import RemoteStore

TAIL_BYTES: Final = 64 << 10
"""Read when a file is opened: a parquet footer is there, mostly whole."""
BLOCK_BYTES: Final = 8 << 20
"""Block of a file that is read ahead."""
_BLOCKS: Final = 4
"""Blocks held: that in use, those on the way, and one of columns that lie elsewhere."""


class RemoteFile(io.RawIOBase):
    """An object as a seekable file. All its bytes come from one version of the object.

    Parameters
    ----------
    store : RemoteStore
    name : str
    read_ahead : bool
        Read in blocks, the next one before it is asked for: right for a file that is read in
        large, mostly sequential pieces. Else exactly the ranges that are asked for are read.
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
        self, store: RemoteStore, name: str, *, read_ahead: bool = False, version: str | None = None
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
        """Whether who reads on compares the bytes with checksums (see `Piece.checked`)."""
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
        """All that is left."""
        return self.read(-1)

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, fewer only at the end of the object."""
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
        # Ahead only of a reader that goes on from block to block, or is at its first.
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
        """Have a block, or have it on its way."""
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return
        start = number * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, self.entry.bytes)
        self._blocks[number] = self._store.connection.threads.submit(self._range, start, stop)

    def close(self) -> None:
        """Let go of what is held and on its way."""
        for block in self._blocks.values():
            block.cancel()
        self._blocks.clear()
        super().close()


class RemoteHandler(pafs.FileSystemHandler):
    """What pyarrow asks of a file system, for reading; paths are ``bucket/key``."""

    def __init__(self, scheme: str, options: S3Options | None = None) -> None:
        self.scheme, self.options = scheme, options or S3Options()

    def _key(self) -> tuple[str, S3Options]:
        return self.scheme, self.options

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteHandler) and other._key() == self._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def get_type_name(self) -> str:
        """Name of the kind of file system."""
        return f"lensprep-{self.scheme}"

    def normalize_path(self, path: str) -> str:
        """Paths are taken as they are."""
        return path

    def open(
        self, path: str, *, read_ahead: bool = False, version: str | None = None
    ) -> RemoteFile:
        """Open an object for reading; see `RemoteFile`."""
        store, name = self._file(path)
        return RemoteFile(store, name, read_ahead=read_ahead, version=version)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open an object for reading at any position."""
        return pa.PythonFile(self.open(path), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Open an object for reading from its beginning."""
        return pa.PythonFile(self.open(path, read_ahead=True), mode="r")

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """What is at these paths; a prefix of objects is a directory."""
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        store = self._folder(path)
        if "/" in path.strip("/"):  # else a bucket
            above, name = self._file(path)
            try:
                return _file_info(path, above.stat(name).bytes)
            except NotFoundError:
                pass
        found = store.has_any()
        kind = pafs.FileType.Directory if found else pafs.FileType.NotFound
        return pafs.FileInfo(path, kind)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """All objects below a directory (subdirectories have no entries of their own)."""
        base = selector.base_dir.rstrip("/")
        entries = self._folder(base).entries()
        if not entries and not selector.allow_not_found:
            raise FileNotFoundError(base)
        return [
            _file_info(f"{base}/{entry.name}", entry.bytes)
            for entry in entries
            if selector.recursive or "/" not in entry.name
        ]

    def _file(self, path: str) -> tuple[RemoteStore, str]:
        folder, _, name = path.rstrip("/").rpartition("/")
        return self._folder(folder), name

    def _folder(self, path: str) -> RemoteStore:
        return open_remote(f"{self.scheme}://{path}", self.options)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("lensprep reads its sources and never writes to them")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse


def remote_filesystem(uri: str, options: S3Options | None = None) -> pafs.PyFileSystem:
    """File system of a location's object store for pyarrow; it can be pickled to workers."""
    return pafs.PyFileSystem(RemoteHandler(scheme_of(uri) or "s3", options))


def _file_info(path: str, size: int) -> pafs.FileInfo:
    return pafs.FileInfo(path, pafs.FileType.File, size=size)

"""Shards on a local disk, mapped: a row is copied once, from the page cache into its batch."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import PAYLOAD_OFFSET, Dataset, ShardInfo
from lensprep.errors import ShardError
from lenstrain.data.sidecar import Column, PayloadCheck
from lenstrain.data.sources.base import Reading, ShardSource, check_gather
from lenstrain.data.sources.mappedrows import MappedRows, rows_ahead


class LocalSource(ShardSource):
    """Shards on a local disk, mapped when first needed; a row is copied once.

    The shards are those of the split in manifest order; a ShardError says that one is missing or
    has not the size that the manifest states.
    """

    def __init__(self, dataset: Dataset, shards: Sequence[ShardInfo], reading: Reading) -> None:
        geometry = dataset.geometry
        self.shape, self._stride = geometry.shape, geometry.stride
        self.depth = reading.depth(geometry.payload_bytes)
        self.lookahead = max(1, rows_ahead(geometry) // reading.batch_size)
        self._paths = [dataset.path(shard.name) for shard in shards]
        self._bytes = [shard.bytes for shard in shards]
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])
        self._bases = np.zeros(len(shards), np.int64)
        self._maps: dict[int, FileMap] = {}
        self._rows = MappedRows(self._starts, self._bases, geometry)
        self._payloads: PayloadCheck | None = None
        self._copying = threading.Lock()
        self._closed = False
        self.check()

    def compare_with(self, checksums: Column) -> None:
        """Compare every row, when it is first gathered, with the CRC-32 that conversion stored."""
        self._payloads = PayloadCheck(checksums, int(self._starts[-1]))

    def check(self) -> None:
        """Compare every shard's size with the manifest, and a mapped one with what was mapped."""
        for number, (path, size) in enumerate(zip(self._paths, self._bytes, strict=True)):
            identity = _identity(path, size)
            mapped = self._maps.get(number)
            if mapped is not None and mapped.identity != identity:
                raise ShardError(
                    f"{path} was replaced or written to while it was in use. Leave a dataset alone "
                    "while it is read, run `lensprep verify`, and start again."
                )

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Have these rows on their way from the disk, if they are not in memory."""
        if not self._bases.all():
            with self._copying, suppress(ShardError):  # raised when they are gathered
                if not self._closed:
                    self._map_for(rows)
        self._rows.expect(rows)

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Take back one `expect` whose rows will not be gathered after all."""
        self._rows.forget(rows)

    def gather(self, rows: NDArray[np.int64], out: NDArray[np.float16]) -> None:
        """Copy the pixels of `rows` into `out`, without holding the interpreter lock.

        Raises
        ------
        ShardError
            If a shard has vanished or changed its size since the last look, or a stamp is not the
            one that was written (with `compare_with`).
        IndexError
            If a row lies outside the split.
        ValueError
            If `out` does not fit, or the source is closed.
        """
        check_gather(rows, int(self._starts[-1]), self.shape, out)
        with self._copying:
            if self._closed:
                raise ValueError("the loader is closed")
            if not self._rows.copy(rows, out.ctypes.data):
                self._map_for(rows)
                if not self._rows.copy(rows, out.ctypes.data):
                    raise ShardError("the rows of the shards do not add up: see `lensprep verify`.")
        for row, found, expected in self._payloads.faults(rows, out) if self._payloads else ():
            shard, offset = self.locate(row)
            raise ShardError(
                f"{shard}: the stamp at offset {offset} is not the one that was written "
                f"(CRC-32 {found:08x}, expected {expected:08x}). Run `lensprep "
                "verify`, and copy the shard again, or convert again."
            )

    def _map_for(self, rows: NDArray[np.int64]) -> None:
        """Map the shards of these rows that are not mapped yet."""
        shards = np.unique(np.searchsorted(self._starts, rows, side="right") - 1)
        for number in shards[self._bases[shards] == 0].tolist():
            self._maps[number] = FileMap(self._paths[number], self._bytes[number])
            self._bases[number] = self._maps[number].address

    def locate(self, row: int) -> tuple[str, int]:
        """Path of the shard that holds a row, and the offset of its pixels there."""
        shard, offset = row_offset(self._starts, row, self._stride)
        return str(self._paths[shard]), offset

    def forget_checks(self) -> None:
        """Compare every row again when it is next gathered."""
        if self._payloads is not None:
            self._payloads.forget()

    def close(self) -> None:
        """Unmap all shards, after the copy that is under way."""
        with self._copying:
            self._closed = True
            self._rows.close()
            self._bases[:] = 0
            self._maps.clear()


def row_offset(starts: NDArray[np.int64], row: int, stride: int) -> tuple[int, int]:
    """Number of the shard that holds a row, and the offset of its pixels there.

    Records have `stride` bytes.
    """
    shard = int(np.searchsorted(starts, row, side="right")) - 1
    return shard, int(row - starts[shard]) * stride + PAYLOAD_OFFSET


def _identity(path: Path, size: int) -> tuple[int, int, int, int]:
    """Identity of a shard's file; ShardError if it has not the right size."""
    try:
        identity = file_identity(path)
    except OSError as error:
        # Another copy is known to help only where there is none.
        again = " Copy it again." if isinstance(error, FileNotFoundError) else ""
        raise ShardError(f"{path} (offset 0) cannot be read: {error.strerror}.{again}") from error
    found = identity[2]
    if found != size:
        raise ShardError(
            f"{path} has {found} bytes where the manifest states {size}: cut or replaced, "
            f"offset {min(found, size)}. Copy the shard again, or convert again."
        )
    return identity


def file_identity(path: Path) -> tuple[int, int, int, int]:
    """Device, inode, size and time of a file."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class FileMap:
    """A file mapped read-only without keeping it open.

    Python's own mmap keeps a descriptor for every map (until 3.13), and the usual limit of 1,024
    is less than the shards of ten million rows.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.identity = _identity(path, size)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"{path} cannot be read: {error.strerror}.") from error
        try:
            self.address = _mmap(descriptor, size, path)
        finally:
            os.close(descriptor)
        self._end = weakref.finalize(self, _munmap, self.address, size)
        self._end.atexit = False  # a reader thread may still be copying when the program ends


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    number = ctypes.c_int
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, number, number, number, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, number]
    return libc


def _mmap(descriptor: int, size: int, path: Path) -> int:
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        advice = " See the limits of `ulimit -v`." if number == errno.ENOMEM else ""
        raise ShardError(f"{path} cannot be mapped: {os.strerror(number)}.{advice}")
    # Rows are asked for (`MappedRows`): what the system reads around each fault is not needed.
    libc.madvise(address, size, mmap.MADV_RANDOM)
    return int(address)


def _munmap(address: int, size: int) -> None:
    _libc().munmap(address, size)

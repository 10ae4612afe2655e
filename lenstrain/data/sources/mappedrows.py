"""Rows of mapped shards: on their way from a disk before they are copied, and copied.

A row that is copied from a page that is not in memory waits for the disk, one page fault after the
other. Asked for in advance (``MADV_WILLNEED``) a thousand rows are under way at once, and the disk
reads the pages of these rows and no others.
"""

from __future__ import annotations

import mmap
import resource
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from lensprep.dataset import DECALS, PAYLOAD_OFFSET, Geometry
from lensprep.kernel import kernel

ROWS_AHEAD = 1024
"""Most rows that are on their way at once, beyond what a disk takes at a time."""
BYTES_AHEAD = ROWS_AHEAD * DECALS.payload_bytes
"""Most bytes of them, 25 MB: fewer rows where these are larger."""
ROWS_TOGETHER = 64
"""Most rows that are asked for, or copied, in one go: between the two the disk must not run dry."""
COPIERS = 2
"""Threads that copy rows that came from a disk: in them the pages are first touched, which takes
several times as long as a copy, and the interrupts of the disk are served."""
STEPS_ALERT = 256
"""Steps that are asked for after anything came from a disk."""

_PAGE = mmap.PAGESIZE
_WILLNEED = mmap.MADV_WILLNEED
_madvise = types.ExternalFunction("madvise", types.intc(types.int64, types.int64, types.intc))
"""madvise of the C library, as a kernel calls it."""


class MappedRows:
    """Copies rows, and asks for the pages of those announced, as far as they come from a disk.

    Asking costs a tenth of the copy where all is in memory already. So it is done at first, and
    then for as long as anything comes from a disk: also the rows of a step that was not asked for.

    Shard ``k`` has the rows ``starts[k] ... starts[k + 1] - 1`` and begins at address ``bases[k]``,
    0 where it is not mapped. Nothing may be unmapped during a copy; when it is asked for, that does
    no harm: this is advice.
    """

    def __init__(
        self, starts: NDArray[np.int64], bases: NDArray[np.int64], geometry: Geometry = DECALS
    ) -> None:
        self._starts, self._bases = starts, bases
        self._stride, self._bytes = geometry.stride, geometry.payload_bytes
        self._ahead = rows_ahead(geometry)
        self._coming: deque[NDArray[np.int64]] = deque()
        self._asked, self._read, self.alert = 0, (-1, -1), 0
        self._lock = threading.Lock()

    @cached_property
    def _copiers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(COPIERS, "lenstrain-copy")

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Ask for the rows of a step, as soon as enough of those before have been copied."""
        with self._lock:
            before, self._read = self._read, _read_from_disk()
            if self._read != before:
                self.alert = STEPS_ALERT
            if self.alert:
                self.alert -= 1
                self._coming.extend(_pieces(rows))
                self._ask()

    def copy(self, rows: NDArray[np.int64], out: int) -> bool:
        """Copy the pixels of rows to address `out`; False if one of them is not mapped."""
        if not self.alert or len(rows) <= ROWS_TOGETHER:
            return self._copy(rows, out)
        pieces = _pieces(rows)
        places = range(out, out + rows.size * self._bytes, ROWS_TOGETHER * self._bytes)
        return all(list(self._copiers.map(self._copy, pieces, places)))

    def _copy(self, rows: NDArray[np.int64], out: int) -> bool:
        done = bool(copy_rows(rows, self._starts, self._bases, out, self._stride, self._bytes))
        if done:
            self.copied(len(rows))
        return done

    def copied(self, rows: int) -> None:
        """Note that so many rows have been copied, and ask for others."""
        with self._lock:
            self._asked = max(0, self._asked - rows)
            self._ask()

    def _ask(self) -> None:
        while self._coming and self._asked < self._ahead:
            rows = self._coming.popleft()
            self._asked += len(rows)
            will_need(rows, self._starts, self._bases, self._stride, self._bytes)

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Take back one `expect` of this very array, whose rows will not be copied."""
        with self._lock:
            kept = [piece for piece in self._coming if not np.may_share_memory(piece, rows)]
            unasked = sum(map(len, self._coming)) - sum(map(len, kept))
            self._coming = deque(kept)
            self._asked = max(0, self._asked - (len(rows) - unasked))
            self._ask()

    def close(self) -> None:
        """Ask for nothing any more, and end the copying threads."""
        with self._lock:
            self._coming.clear()
        if "_copiers" in vars(self):
            self._copiers.shutdown()


def rows_ahead(geometry: Geometry) -> int:
    """Rows that are on their way at once, twice `ROWS_TOGETHER` at least."""
    return max(2 * ROWS_TOGETHER, min(ROWS_AHEAD, BYTES_AHEAD // geometry.payload_bytes))


def _pieces(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[i : i + ROWS_TOGETHER] for i in range(0, len(rows), ROWS_TOGETHER)]


def _read_from_disk() -> tuple[int, int]:
    """Blocks that this process had read, and its page faults that waited for a disk.

    Not every network file system counts blocks; the faults count everywhere.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_inblock, usage.ru_majflt


@kernel
def will_need(rows, starts, bases, stride, payload):  # type: ignore[no-untyped-def]
    """Tell the system that the pixels of rows will be needed; neighbours in one call.

    Records have `stride` bytes, and their pixels `payload`.

    What is not mapped, or lies outside of the shards, is passed over: whoever copies it will say.
    """
    i = 0
    while i < rows.size:
        shard = np.searchsorted(starts, rows[i], side="right") - 1
        first = i
        i += 1
        if shard < 0 or shard >= bases.size or bases[shard] == 0:
            continue
        while i < rows.size and rows[i] == rows[i - 1] + 1 and rows[i] < starts[shard + 1]:
            i += 1
        begin = bases[shard] + (rows[first] - starts[shard]) * stride + PAYLOAD_OFFSET
        end = begin + (i - 1 - first) * stride + payload
        begin -= begin % _PAGE
        _madvise(begin, end - begin, _WILLNEED)


@intrinsic
def _memcpy(typingctx, target, source, size):  # type: ignore[no-untyped-def]
    """Copy `size` bytes from address `source` to address `target`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, of = (builder.inttoptr(address, cgutils.voidptr_t) for address in args[:2])
        cgutils.raw_memcpy(builder, to, of, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@kernel
def copy_rows(rows, starts, bases, out, stride, payload):  # type: ignore[no-untyped-def]
    """Copy the pixels of rows to address `out`; False at the first row that is not mapped.

    `check_gather` has made sure that they fit. Shard k, with the rows from ``starts[k]`` to
    ``starts[k + 1]``, begins at address ``bases[k]``; 0 where it is not mapped. Its
    records have `stride` bytes, and their pixels `payload`.
    """
    for i in range(rows.size):
        shard = np.searchsorted(starts, rows[i], side="right") - 1
        if shard < 0 or shard >= min(bases.size, starts.size - 1) or bases[shard] == 0:
            return False
        if rows[i] < starts[shard] or rows[i] >= starts[shard + 1]:  # the starts do not ascend
            return False
        record = bases[shard] + (rows[i] - starts[shard]) * stride
        _memcpy(out + i * payload, record + PAYLOAD_OFFSET, payload)
    return True

"""What every source of stamps does: the seam between order and transport.

A source learns which rows come next and copies rows into a buffer. Everything above it (order,
batches, resume) is the same for every source; everything below it (mapped files, ranged reads, a
cache) is up to the source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.layout import STAMP_DTYPE
from lensprep.errors import ConfigError
from lenstrain.data.cache.folder import CacheOptions

Verify = Literal["size", "crc"]

MEMORY_BUDGET = 1 << 30
"""Bytes that read-ahead may hold by default."""

_MOST_AHEAD = 8
"""Batches read ahead: enough to ride out a pause, few enough to stay in the processor's cache."""
_STREAMED_SHARE = 0.25
"""Share of the budget for finished batches where the ranges that they come from need memory too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How one rank reads a split."""

    batch_size: int = 256
    memory_budget: int = MEMORY_BUDGET
    """Most bytes that read-ahead holds, besides the batches that the consumer holds."""
    verify: Verify | None = None
    """``"crc"`` compares the checksum of every stamp, ``"size"`` compares none; None leaves it to
    the source: what came over a network is compared, what lies on a local disk is not."""
    cache_dir: str | PathLike[str] | None = None
    """Folder for copies of what is in an object store."""
    cache: CacheOptions | None = None
    log: bool = True
    """Log where the split is read from: one of the ranks does."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.verify not in ("size", "crc", None):
            raise ConfigError(f"verify must be 'size' or 'crc', got {self.verify!r}")

    def depth(self, stamp_bytes: int, *, streamed: bool = False) -> int:
        """Batches of stamps of so many bytes to read ahead; one more is being filled meanwhile.

        Raises
        ------
        ConfigError
            If the budget holds less than two.
        """
        batch_bytes = self.batch_size * stamp_bytes
        if self.memory_budget < 2 * batch_bytes:
            raise ConfigError(
                f"memory_budget of {self.memory_budget} bytes holds less than two batches of "
                f"{self.batch_size} stamps ({batch_bytes} bytes each). Raise it or use "
                "smaller batches."
            )
        budget = self.memory_budget * (_STREAMED_SHARE if streamed else 1.0)
        return min(_MOST_AHEAD, max(1, int(budget) // batch_bytes - 1))

    def streamed_bytes(self, stamp_bytes: int) -> int:
        """What the budget leaves, besides the batches, for what comes from an object store."""
        batches = self.depth(stamp_bytes, streamed=True) + 1
        return self.memory_budget - batches * self.batch_size * stamp_bytes


class ShardSource(ABC):
    """Rows of one split, by position.

    The methods that are not abstract here are right for a source that needs no time to get at its
    rows.
    """

    shape: tuple[int, int, int]
    """Shape of a stamp: (bands, side, side)."""
    depth: int
    """Batches to read ahead of the consumer."""
    lookahead: int = 0
    """Steps that the source wants to know before they are gathered."""

    def prepare(  # noqa: B027
        self, rows: NDArray[np.int64] | None, steps: Iterable[NDArray[np.int64]] | None
    ) -> None:
        """Get ready for epochs of these rows, or refuse them.

        Parameters
        ----------
        rows : ndarray of int64, optional
            Positions that take part, ascending; None for all.
        steps : iterable of ndarray of int64, optional
            Rows of some steps that follow each other; None if each may need any row.

        Raises
        ------
        BudgetError
            If the memory budget is too small for this order.
        """

    def start_epoch(self) -> None:
        """Look at every shard once, and begin what runs during an epoch.

        Raises
        ------
        ShardError
            If a shard is missing or not the one that the manifest states.
        """
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Look at every shard once; ShardError as for `start_epoch`."""

    def expect(self, rows: NDArray[np.int64]) -> None:  # noqa: B027
        """Say which rows will be gathered soon, in that order, so that they can be on their way."""

    def forget(self, rows: NDArray[np.int64]) -> None:  # noqa: B027
        """Take back one `expect` whose rows will not be gathered after all."""

    @abstractmethod
    def gather(self, rows: NDArray[np.int64], out: NDArray[np.float16]) -> None:
        """Copy the pixels of `rows` into `out`, shape (len(rows), *shape), C-contiguous."""

    @abstractmethod
    def locate(self, row: int) -> tuple[str, int]:
        """Path or URI of the shard that holds a row, and the offset of its pixels there."""

    def forget_checks(self) -> None:  # noqa: B027
        """Compare every row again when it is next read, if rows are compared when first read."""

    def close(self) -> None:  # noqa: B027
        """Let go of files, maps and connections; nothing may be gathered afterwards."""


def check_gather(
    rows: NDArray[np.int64], total: int, shape: tuple[int, int, int], out: NDArray[np.float16]
) -> None:
    """Refuse rows and room that `ShardSource.gather` would read or write beyond.

    Raises
    ------
    IndexError
        If a row lies outside the `total` rows of the split.
    ValueError
        If `out` is not plain writable memory for these rows of stamps of this `shape`.
    """
    if rows.size and (rows.min() < 0 or rows.max() >= total):
        raise IndexError(f"rows must lie in 0 ... {total - 1}")
    plain = out.flags.c_contiguous and out.flags.writeable and out.dtype == STAMP_DTYPE
    if rows.ndim != 1 or out.shape != (rows.size, *shape) or not plain:
        raise ValueError(
            f"out must be contiguous, writable and hold {rows.size} stamps of {STAMP_DTYPE} "
            f"{shape}, not {out.dtype} {out.shape}"
        )

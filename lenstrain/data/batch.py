"""The batches that the loader hands out, and the memory that they lie in."""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lensprep.dataset import DECALS


class Batch(NamedTuple):
    """One rank's share of a global batch.

    A batch stays as it is for as long as anybody holds it or a view of it: its memory is used again
    only after the last tensor (or array) over it is gone. So ``list(loader)``, a slow consumer and
    a consumer in another thread all see the right rows.

    It is a tuple, so the stages of WebDataset that work on tuples work on it.
    """

    pixels: torch.Tensor
    """float16, shape (B, bands, side, side): normalised stamps."""
    labels: torch.Tensor
    """int64, shape (B,): 1 for a lens, 0 for a non-lens."""
    index: torch.Tensor  # type: ignore[assignment]  # the name covers tuple.index
    """int64, shape (B,): position in the split (shards in manifest order, rows in tar order)."""
    weight: torch.Tensor
    """float32, shape (B,): 1, or 0 for a row that only fills the last batch."""


class _Loan(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a view of pooled memory, and that memory."""

    __slots__ = ("memory",)

    memory: NDArray[np.float16]


class PixelPool:
    """Memory for pixels that comes back when nobody uses it any more.

    Fresh memory costs as much as the copy into it (the kernel clears every page), so it is worth
    keeping. Each loan is a new NumPy view, which the tensor's storage owns: the view dies with the
    last tensor, slice or array over it, and only then is the memory lent again.

    Pinned memory needs no pool of ours: torch's caching allocator keeps it, and it alone knows
    when a copy to the device that is still under way has finished with it.

    A loan has `rows` stamps of shape `stamp`; at most `keep` free buffers are kept.
    """

    def __init__(
        self,
        rows: int,
        stamp: tuple[int, int, int] = DECALS.shape,
        *,
        keep: int = 4,
        pin_memory: bool = False,
    ) -> None:
        self.shape = (rows, *stamp)
        self._keep = keep
        self._pin_memory = pin_memory
        self._free: list[NDArray[np.float16]] = []
        self._lent: dict[int, _Loan] = {}
        self._lock = threading.Lock()

    def lend(self) -> torch.Tensor:
        """Return a tensor float16 of shape (rows, *stamp), contents undefined."""
        if self._pin_memory:
            return torch.empty(self.shape, dtype=torch.float16, pin_memory=True)
        with self._lock:
            # Last in, first out: the buffer let go of most recently is the one still in the cache.
            memory = self._free.pop() if self._free else np.empty(self.shape, np.float16)
        view = memory[:]
        # Not weakref.finalize: it runs in the consumer, and takes it 13 us longer.
        loan = _Loan(view, self._take_back)
        loan.memory = memory
        self._lent[id(loan)] = loan  # a weak reference that nobody holds is never called
        return torch.from_numpy(view)

    def _take_back(self, loan: _Loan) -> None:
        # Each of these is atomic. A lock here could deadlock: the garbage collector may run this
        # inside `lend`, in the thread that holds it.
        del self._lent[id(loan)]
        if len(self._free) < self._keep:
            self._free.append(loan.memory)

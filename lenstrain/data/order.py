"""The order of an epoch, as a pure function: which row stands at which place of which step.

Nothing here is stored per row. An order is a keyed bijection that is evaluated only for the places
asked for, so the first batch of ten million rows, or a resume in the middle of an epoch, costs what
any other batch costs. No rank, node, worker, cache or transport enters: a rank takes a contiguous
share of each global batch, and that is all a rank is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lensprep.kernel import kernel

Shuffle = Literal["global", "block"] | None

BLOCK_ROWS = 256
"""Rows of one block of the block shuffle: 6.8 MB of a shard, a good size for one ranged read."""

LANE_ROWS = 512
"""Rows that are mixed within one lane of the block shuffle: two blocks."""

LANES = 32
"""Lanes of the block shuffle: a batch takes an equal part from each, so 32 ranks can read apart."""

_ROUNDS = 8
_MIN_BITS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderSpec:
    """What the order of an epoch depends on, besides the epoch number.

    Parameters
    ----------
    rows : int
        Rows of one epoch; at least 1.
    global_batch : int
        Rows of one step, over all ranks.
    seed : int
        Seed of the run.
    dataset_id : str
        Identity of what is ordered (dataset, split and selection): another one, another order.
    shuffle : {"global", "block", None}
        ``"global"`` is a permutation of all rows; ``"block"`` mixes rows of blocks that lie near
        each other in time, for sources where a read should be long; None is the stored order.
    drop_last : bool
        Leave out the rows that do not fill a global batch, instead of filling it.
    lane_rows, lanes : int
        Geometry of the block shuffle; their product is the mixing window.
    """

    rows: int
    global_batch: int
    seed: int
    dataset_id: str
    shuffle: Shuffle = "global"
    drop_last: bool = False
    lane_rows: int = LANE_ROWS
    lanes: int = LANES

    def __post_init__(self) -> None:
        for name in ("rows", "global_batch", "lane_rows", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.shuffle not in ("global", "block", None):
            raise ValueError(f"shuffle must be 'global', 'block' or None, got {self.shuffle!r}")

    @property
    def steps(self) -> int:
        """Steps of an epoch: the same on every rank."""
        whole, rest = divmod(self.rows, self.global_batch)
        return whole if self.drop_last or rest == 0 else whole + 1

    @property
    def used_rows(self) -> int:
        """Rows that an epoch hands out: all, or the whole batches of them."""
        return min(self.rows, self.steps * self.global_batch)

    @property
    def mixing_window(self) -> int:
        """Rows that can meet in one batch: how far the shuffle reaches, in samples."""
        if self.shuffle == "global":
            return self.rows
        if self.shuffle == "block":
            return min(self.rows, self.lane_rows * min(self.lanes, self.global_batch))
        return min(self.rows, self.global_batch)


class EpochOrder:
    """The order of one epoch, evaluated step by step.

    Parameters
    ----------
    spec : OrderSpec
        What the order depends on.
    epoch : int
        Number of the epoch, from 0.
    blocks : ndarray of int64, shape (n_blocks + 1,), optional
        Bounds of the blocks (`block_bounds`), for ``shuffle="block"``.
    """

    def __init__(
        self, spec: OrderSpec, epoch: int, blocks: NDArray[np.int64] | None = None
    ) -> None:
        self.spec = spec
        self.epoch = epoch
        self.key = order_key(spec, epoch)
        self._lanes = _lane_table(spec, self.key, blocks) if spec.shuffle == "block" else None

    def part(
        self, step: int, rank: int = 0, world_size: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and weights of one rank's share of a global batch.

        Parameters
        ----------
        step : int
            Step of the epoch, from 0.
        rank, world_size : int
            Which share; the global batch is a multiple of `world_size`.

        Returns
        -------
        rows : ndarray of int64, shape (global_batch / world_size,)
            Positions in 0 ... `OrderSpec.rows` - 1. A filler repeats a row of the epoch's start.
        weight : ndarray of float32, same shape
            1, or 0 for a filler.

        Raises
        ------
        IndexError
            If the epoch has no such step.
        """
        if not 0 <= step < self.spec.steps:
            raise IndexError(f"step {step} is outside the epoch's {self.spec.steps} steps")
        size = self.spec.global_batch // world_size
        start = step * self.spec.global_batch + rank * size
        places = np.arange(start, start + size, dtype=np.int64)
        weight = (places < self.spec.used_rows).astype(np.float32)
        return self._rows_at(places % self.spec.used_rows), weight

    def _rows_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row at each place of the epoch; places lie in 0 ... used_rows - 1."""
        if self.spec.shuffle is None:
            return places
        rows = np.empty_like(places)
        if self._lanes is None:
            _permute_many(places, self.spec.rows, np.uint64(self.key), rows)
        else:
            spec, key = self.spec, np.uint64(self.key)
            _lane_rows_at(places, spec.global_batch, spec.lane_rows, key, *self._lanes, rows)
        return rows


def order_key(spec: OrderSpec, epoch: int) -> int:
    """Return the 64-bit key of an epoch: a digest of all that the order depends on."""
    text = f"lenstrain-order-1|{spec.dataset_id}|{spec.seed}|{epoch}|{spec.global_batch}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(places: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Apply a keyed permutation of 0 ... size - 1 to some places, without making the whole of it.

    A Feistel network over the next power of two (at least 2**8), walked along its cycle until
    it lands inside [1]_. It takes less than two walks on average and no memory.

    Parameters
    ----------
    places : ndarray of int64
        Values in 0 ... size - 1.
    size : int
        Size of the permuted range.
    key : int
        64-bit key.

    Returns
    -------
    ndarray of int64, same shape
        The images.

    Raises
    ------
    ValueError
        If a place is not a whole number, or outside the range, or the range is empty.

    References
    ----------
    .. [1] Black & Rogaway 2002, "Ciphers with arbitrary finite domains", CT-RSA.
    """
    if size < 1 or places.dtype.kind not in "iu":
        raise ValueError(f"places of type {places.dtype} in a range of {size} cannot be permuted")
    places = np.ascontiguousarray(places, dtype=np.int64)
    if places.size and (places.min() < 0 or places.max() >= size):
        raise ValueError(f"places must lie in 0 ... {size - 1}")
    out = np.empty_like(places)
    _permute_many(places.ravel(), size, np.uint64(key), out.ravel())
    return out


def block_bounds(shard_rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Cut shards into blocks of at most `BLOCK_ROWS` rows; no block crosses a shard.

    Parameters
    ----------
    shard_rows : sequence of int
        Rows of each shard, in manifest order.

    Returns
    -------
    ndarray of int64, shape (n_blocks + 1,)
        Block ``b`` holds the rows ``bounds[b] ... bounds[b + 1] - 1``.
    """
    parts = [np.zeros(1, np.int64)]
    start = 0
    for rows in shard_rows:
        parts.append(np.arange(start + BLOCK_ROWS, start + rows, BLOCK_ROWS, dtype=np.int64))
        start += int(rows)
        parts.append(np.full(1 if rows else 0, start, np.int64))
    return np.concatenate(parts)


def repeat_counts(
    weights: NDArray[np.float64], key: int, groups: NDArray[np.integer] | None = None
) -> NDArray[np.int64]:
    """How often each row comes in an epoch of weighted sampling.

    Row ``i`` comes ``floor(w_i)`` or ``ceil(w_i)`` times, with mean ``w_i`` over epochs, and all
    together exactly ``round(sum w)`` times: systematic sampling along a keyed random order of the
    rows. So weighted epochs have equal lengths, and no row is missed whose weight is 1 or more.

    Parameters
    ----------
    weights : ndarray of float64, shape (n,)
        Finite, not negative, with a sum of 1 or more.
    key : int
        64-bit key, from `order_key`.
    groups : ndarray of int, shape (n,), optional
        Group of each row: the sum over a group then differs from its weight by less than 1.

    Returns
    -------
    ndarray of int64, shape (n,)
        Counts; their sum is ``round(weights.sum())``.
    """
    total = int(np.rint(weights.sum()))
    along = permute(np.arange(weights.size), weights.size, key ^ 0x5851F42D4C957F2D)
    if groups is not None:
        along = along[np.argsort(groups[along], kind="stable")]
    edges = np.cumsum(weights[along])
    edges *= total / edges[-1]
    edges[-1] = total
    start = key / 2.0**64
    ends = np.floor(edges + start).astype(np.int64)
    counts = np.empty(weights.size, np.int64)
    counts[along] = np.diff(ends, prepend=0)
    return counts


def _lane_table(
    spec: OrderSpec, key: int, blocks: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], ...]:
    """Arrays of the block shuffle: slot bounds, lane bounds, blocks in seeded order, their bounds.

    The blocks are put in a seeded order, one after the other, and that sequence is cut into lanes.
    A slot of the global batch belongs to one lane and walks along it: neighbouring slots, hence a
    rank, read few blocks, while a batch holds rows from all lanes.
    """
    if blocks is None or len(blocks) < 2 or blocks[0] != 0 or blocks[-1] != spec.rows:
        raise ValueError("a block shuffle needs the bounds of blocks that cover the rows")
    if (np.diff(blocks) < 0).any():
        raise ValueError("the bounds of blocks must not descend")
    lanes = min(spec.lanes, spec.global_batch)
    slots = np.arange(lanes + 1, dtype=np.int64) * spec.global_batch // lanes
    whole, rest = divmod(spec.used_rows, spec.global_batch)
    starts = whole * slots + np.minimum(slots, rest)
    count = len(blocks) - 1
    order = permute(np.arange(count), count, key ^ 0x2545F4914F6CDD1D)
    sizes = np.diff(blocks)[order]
    return slots, starts, blocks[:-1][order], np.concatenate([[0], np.cumsum(sizes)])


@kernel
def _mix(x):  # type: ignore[no-untyped-def]
    """Finish a 64-bit hash (splitmix64: Steele, Lea & Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def _permute_one(place, size, key):  # type: ignore[no-untyped-def]
    """Image of one place under the keyed permutation of 0 ... size - 1."""
    bits = _MIN_BITS
    while (np.int64(1) << bits) < size:
        bits += 1
    low = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(bits - bits // 2)) - np.uint64(1)
    value = np.uint64(place)
    while True:
        left = value >> low
        right = value & low_mask
        for turn in range(0, _ROUNDS, 2):
            left ^= _mix(right + key + np.uint64(turn) * np.uint64(0x9E3779B97F4A7C15)) & high_mask
            right ^= (
                _mix(left + key + np.uint64(turn + 1) * np.uint64(0x9E3779B97F4A7C15)) & low_mask
            )
        value = (left << low) | right
        if value < np.uint64(size):
            return np.int64(value)


@kernel
def _permute_many(places, size, key, out):  # type: ignore[no-untyped-def]
    for i in range(places.size):
        out[i] = _permute_one(places[i], size, key)


@kernel
def _lane_rows_at(  # type: ignore[no-untyped-def]
    places, batch, lane_rows, key, slots, starts, block_start, bounds, out
):
    """Rows at places of the block shuffle: slot -> lane -> window of the lane -> block -> row."""
    lanes = slots.size - 1
    for i in range(places.size):
        step = places[i] // batch
        slot = places[i] - step * batch
        lane = np.searchsorted(slots, slot, side="right") - 1
        within = step * (slots[lane + 1] - slots[lane]) + slot - slots[lane]
        # Lanes change their windows at different steps: no burst of reads, no common seam.
        phase = lane * lane_rows // lanes
        window = (within + phase) // lane_rows
        first = max(np.int64(0), window * lane_rows - phase)
        last = min(starts[lane + 1] - starts[lane], (window + 1) * lane_rows - phase)
        window_key = _mix(key + np.uint64(window * lanes + lane + 1))
        place = starts[lane] + first + _permute_one(within - first, last - first, window_key)
        block = np.searchsorted(bounds, place, side="right") - 1
        out[i] = block_start[block] + place - bounds[block]

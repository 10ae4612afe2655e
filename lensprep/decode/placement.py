"""Where a row goes: hashes of its content give its key, its shard and its position (pure).

A row's place depends on the row and the seed alone, so the same rows and seed give the same shards
whatever the files, row groups, workers and interruptions. Places are uniform on [0, 2**64), and a
split's shards are equal ranges of them: sorting by place is a global shuffle.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

PLACE = "place"
"""Column of a run's sidecar rows that is left out of the shard's sidecar."""


def row_key(task_id: str, pixel_hash: str) -> str:
    """Identity of a row, the same for every seed: 32 hex digits. The hash is of its raw pixels."""
    return blake2b(f"{task_id}\0{pixel_hash}".encode(), digest_size=16).hexdigest()


def row_place(seed: int, key: str) -> int:
    """Place of a row in [0, 2**64): a keyed hash of its key."""
    salt = seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(blake2b(key.encode(), digest_size=8, key=salt).digest(), "little")


def shard_count(rows: int, shard_rows: int) -> int:
    """Number of shards of a split, so that they have ``shard_rows`` rows or fewer on average."""
    return -(-rows // shard_rows)


def shard_range(index: int, shards: int) -> tuple[int, int]:
    """Places of a shard: ``low <= place < high``, equal ranges of [0, 2**64)."""
    return (index << 64) // shards, ((index + 1) << 64) // shards


def sort_order(places: NDArray[np.uint64], keys: NDArray[np.bytes_]) -> NDArray[np.intp]:
    """Order of rows within a shard: by place, then by key (two keys may share a place)."""
    return np.lexsort((keys, places))

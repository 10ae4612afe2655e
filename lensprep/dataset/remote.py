"""A dataset in an object store, read by ranges: only what is asked for crosses the network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset.dataset import Dataset
from lensprep.dataset.geometry import Geometry
from lensprep.dataset.manifest import ShardInfo
from lensprep.dataset.record import payload_view
from lensprep.errors import ChangedError, NotFoundError, ShardError
from lensprep.store import Piece, RemoteStore
from lensprep.store.base import damaged
from lensprep.store.remotefile import RemoteFile

_GAP_ROWS: Final = 16
"""Unwanted rows between two wanted ones that are read to save a request: 0.4 MB of DECaLS."""
_ROWS_AT_ONCE: Final = 8192
"""Rows held in memory besides the pixels that were asked for: about 220 MB of DECaLS."""
_SIDECARS_AT_ONCE: Final = 8


class RemoteDataset(Dataset, remote=True):
    """A committed dataset in an object store."""

    store: RemoteStore

    def read_records(
        self, shard: ShardInfo, start: int = 0, stop: int | None = None
    ) -> NDArray[np.uint8]:
        """Neighbouring records of a shard; see `Dataset.read_records`."""
        low, high, _ = slice(start, stop).indices(shard.rows)
        stride = self.geometry.stride
        records = np.empty((max(0, high - low), stride), np.uint8)
        with _shard_errors(f" ({shard.name}, offset {low * stride})"):
            self.store.fetch([_piece(shard, low, records)])
        return records

    def read_tar(self, shard: ShardInfo) -> NDArray[np.uint8]:
        """Every byte of a shard, whatever its size; see `Dataset.read_tar`."""
        with _shard_errors(f" ({shard.name}, offset 0)"):
            return np.frombuffer(self.store.read(shard.name, shard.sha256), np.uint8)

    def _read_pixels(
        self,
        shards: Sequence[ShardInfo],
        which: NDArray[np.int64],
        rows: NDArray[np.int64],
        out: NDArray[np.float16],
    ) -> None:
        stride = self.geometry.stride
        for stretches in _batches(rows, which, self.geometry):
            # With the rows between them: reading a few of these costs less than another request.
            held = [np.empty((rows[high - 1] - rows[low] + 1, stride), np.uint8)
                    for low, high in stretches]  # fmt: skip
            pieces = [_piece(shards[which[low]], int(rows[low]), records)
                      for (low, _), records in zip(stretches, held, strict=True)]  # fmt: skip
            with _shard_errors(""):
                self.store.fetch(pieces)
            for (low, high), records in zip(stretches, held, strict=True):
                pixels = payload_view(records, self.geometry)
                out[low:high] = pixels[rows[low:high] - rows[low]]

    @contextmanager
    def _open_sidecar(
        self, shard: ShardInfo, *, whole: bool = False, footer: bool = False
    ) -> Iterator[RemoteFile | pa.BufferReader]:
        with _shard_errors(f" ({shard.sidecar}, offset 0)"):
            # All of it takes one request; over plain HTTP only the whole file has a digest.
            if whole or (self.store.connection.plain and not footer):
                yield pa.BufferReader(self._read_sidecar(shard))
                return
            with self.store.open(shard.sidecar) as file:
                self._check_sidecar(file, shard)
                yield file

    def _read_sidecar(self, shard: ShardInfo) -> bytearray:
        data = self.store.read(shard.sidecar, shard.sidecar_sha256)
        found = hashlib.sha256(data).hexdigest()
        if found != shard.sidecar_sha256:
            raise damaged(self.store.locate(shard.sidecar), found, shard.sidecar_sha256)
        return data

    def _check_sidecar(self, file: RemoteFile, shard: ShardInfo) -> None:
        if file.entry.bytes != shard.sidecar_bytes:
            raise ChangedError(
                f"{self.store.locate(shard.sidecar)} has {file.entry.bytes} bytes where the "
                f"manifest states {shard.sidecar_bytes}."
            )
        if file.entry.sha256 not in (None, shard.sidecar_sha256):
            raise ChangedError(
                f"{self.store.locate(shard.sidecar)} is not the one that the manifest names."
            )

    def read_sidecars(
        self, shards: Sequence[ShardInfo], columns: Sequence[str] | None
    ) -> Iterator[pa.Table]:
        """Sidecar rows of some shards, read ahead; see `Dataset.read_sidecars`."""
        with ThreadPoolExecutor(_SIDECARS_AT_ONCE) as threads:
            try:
                yield from threads.map(
                    lambda shard: self.read_shard_sidecar(shard, columns), shards
                )
            except KeyboardInterrupt:
                with self.store.connection.giving_up():
                    threads.shutdown(cancel_futures=True)
                raise


@contextmanager
def _shard_errors(where: str) -> Iterator[None]:
    """Report what is missing or was replaced as the shard's fault, not the network's."""
    try:
        yield
    except (NotFoundError, ChangedError) as error:
        raise ShardError(
            f"{str(error).rstrip('.')}{where}. Upload or convert the dataset again, or run "
            "`lensprep verify`."
        ) from error


def _piece(shard: ShardInfo, row: int, records: NDArray[np.uint8]) -> Piece:
    """Range of a shard with the records from ``row`` on; size and digest must be the shard's."""
    view = records.reshape(-1).data
    return Piece(shard.name, row * records.shape[1], view, shard.bytes, shard.sha256)


def _batches(
    rows: NDArray[np.int64], which: NDArray[np.int64], geometry: Geometry
) -> Iterator[list[Any]]:
    """Stretches of sorted rows to be read together, each from one index to before another.

    A stretch ends with its shard, at a gap that is worth another request, and where it grows long.
    """
    if not len(rows):
        return
    most = geometry.scaled_rows(_ROWS_AT_ONCE)
    gap = (np.diff(rows) > geometry.scaled_rows(_GAP_ROWS)) | (np.diff(rows // most) != 0)
    cuts = np.flatnonzero(gap | (np.diff(which) != 0)) + 1
    stretches = list(pairwise([0, *cuts.tolist(), len(rows)]))
    sizes = [int(rows[high - 1] - rows[low]) + 1 for low, high in stretches]
    group = (np.cumsum(sizes) // most).tolist()
    for _, found in groupby(zip(group, stretches, strict=True), key=lambda pair: pair[0]):
        yield [stretch for _, stretch in found]

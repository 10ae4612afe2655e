"""A dataset in an object store, read by ranges: only what is asked for crosses the network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset.kinds import no_manifest, part_of
from lensprep.dataset.layout import MANIFEST_NAME, RECORD_STRIDE, STAMP_DTYPE, STAMP_SHAPE
from lensprep.dataset.local import Dataset
from lensprep.dataset.manifest import MANIFEST_BYTES, Manifest, ShardInfo
from lensprep.dataset.record import payload_view
from lensprep.dataset.sidecar import join_tables, open_sidecar, read_table
from lensprep.errors import ChangedError, DatasetError, NotFoundError, ShardError
from lensprep.store import Piece, RemoteStore, S3Options, damaged, open_remote
from lensprep.store.remotefile import RemoteFile

_GAP_ROWS: Final = 16
"""Rows that are read though nobody asked, to save a request: 0.4 MB."""
_SIDECARS_AT_ONCE: Final = 8


class RemoteDataset(Dataset):
    """A committed dataset in an object store; made by `Dataset.open`.

    Parameters
    ----------
    store : RemoteStore
    manifest : Manifest
    """

    store: RemoteStore

    def __init__(self, store: RemoteStore, manifest: Manifest) -> None:
        super().__init__(store, manifest)

    @classmethod
    def open_at(cls, uri: str, options: S3Options | None) -> RemoteDataset:
        """Read the manifest; see `Dataset.open`."""
        store = open_remote(uri, options)
        try:
            with store.open(MANIFEST_NAME) as file:
                text = file.read(MANIFEST_BYTES + 1)
        except NotFoundError:
            raise DatasetError(_no_dataset(store, options)) from None
        return cls(store, Manifest.from_json(text, f"{store.uri}/{MANIFEST_NAME}"))

    def read_records(
        self, shard: ShardInfo, start: int = 0, stop: int | None = None
    ) -> NDArray[np.uint8]:
        """Neighbouring records of a shard; see `Dataset.read_records`."""
        low, high, _ = slice(start, stop).indices(shard.rows)
        records = np.empty((max(0, high - low), RECORD_STRIDE), np.uint8)
        with self._shard_errors(shard.name, low * RECORD_STRIDE):
            self.store.fetch([_piece(shard, low, records)])
        return records

    def read_shard_pixels(
        self, shard: ShardInfo, rows: NDArray[Any] | Sequence[int]
    ) -> NDArray[np.float16]:
        """Pixels of chosen rows of one shard; see `Dataset.read_shard_pixels`."""
        return self._pixels((shard,), np.asarray(rows, np.int64), shard.name)

    def read_tar(self, shard: ShardInfo) -> NDArray[np.uint8]:
        """Every byte of a shard, whatever its size; see `Dataset.read_tar`."""
        with self._shard_errors(shard.name, 0):
            return np.frombuffer(self.store.read(shard.name, shard.sha256), np.uint8)

    def read_shard_sidecar(
        self, shard: ShardInfo, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Sidecar rows of one shard; see `Dataset.read_shard_sidecar`."""
        where = self.store.locate(shard.sidecar)
        if columns is None or self.store.connection.plain:
            # All of it in one request; and over plain HTTP only all of it has a digest.
            with self._shard_errors(shard.sidecar, 0):
                data = self.store.read(shard.sidecar, shard.sidecar_sha256)
                found = hashlib.sha256(data).hexdigest()
                if found != shard.sidecar_sha256:
                    raise damaged(where, found, shard.sidecar_sha256)
            return read_table(pa.BufferReader(data), shard.rows, columns, where)
        with self._open_sidecar(shard) as file:
            return read_table(file, shard.rows, columns, where, pre_buffer=True)

    def sidecar_footer(self, shard: ShardInfo) -> pq.FileMetaData:
        """Schema and row groups of a sidecar; see `Dataset.sidecar_footer`."""
        with self._open_sidecar(shard) as file:
            return open_sidecar(file, shard.rows, self.store.locate(shard.sidecar)).metadata

    @contextmanager
    def _open_sidecar(self, shard: ShardInfo) -> Iterator[RemoteFile]:
        with self._shard_errors(shard.sidecar, 0), RemoteFile(self.store, shard.sidecar) as file:
            self._check_sidecar(file, shard)
            yield file

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

    def read_sidecar(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Sidecar rows of a split, several sidecars at once; see `Dataset.read_sidecar`."""
        shards = self.split(split).shards
        if not shards:
            raise DatasetError(f"{self.uri}: split {split!r} is empty.")
        with ThreadPoolExecutor(_SIDECARS_AT_ONCE) as threads:
            tables = threads.map(lambda shard: self.read_shard_sidecar(shard, columns), shards)
            try:
                return join_tables(tables, f"{self.uri}: the sidecars of {split}")
            except KeyboardInterrupt:
                with self.store.connection.giving_up():
                    threads.shutdown(cancel_futures=True)
                raise

    def read_pixels(self, split: str, index: NDArray[Any] | Sequence[int]) -> NDArray[np.float16]:
        """Pixels of chosen rows of a split; see `Dataset.read_pixels`."""
        return self._pixels(self.split(split).shards, np.asarray(index, np.int64), split)

    def _pixels(
        self, shards: Sequence[ShardInfo], positions: NDArray[np.int64], where: str
    ) -> NDArray[np.float16]:
        """Pixels at positions in a row of shards, all ranges in parallel."""
        starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])])
        if positions.size and (positions.min() < 0 or positions.max() >= starts[-1]):
            raise IndexError(f"positions must lie in [0, {starts[-1]}) for {where!r}")
        wanted = np.unique(positions)
        which = np.searchsorted(starts, wanted, side="right") - 1
        stretches, pieces = [], []
        for low, high in _stretches(wanted, which):
            rows, number = wanted[low:high], which[low]
            records = np.empty((rows[-1] - rows[0] + 1, RECORD_STRIDE), np.uint8)
            stretches.append((rows, records))
            pieces.append(_piece(shards[number], int(rows[0] - starts[number]), records))
        with self._shard_errors(where, None):
            self.store.fetch(pieces)
        pixels = np.empty((len(wanted), *STAMP_SHAPE), STAMP_DTYPE)
        done = 0
        for rows, records in stretches:
            pixels[done : done + len(rows)] = payload_view(records)[rows - rows[0]]
            done += len(rows)
        return pixels[np.searchsorted(wanted, positions)]

    @contextmanager
    def _shard_errors(self, name: str, offset: int | None) -> Iterator[None]:
        """What is missing or was replaced is the shard's fault, not that of the network."""
        place = "" if offset is None else f" ({name}, offset {offset})"
        try:
            yield
        except (NotFoundError, ChangedError) as error:
            raise ShardError(
                f"{str(error).rstrip('.')}{place}. Upload or convert the dataset again, or run "
                "`lensprep verify`."
            ) from error


def _no_dataset(store: RemoteStore, options: S3Options | None) -> str:
    """What to say of a location without a manifest."""
    names = [entry.name for entry in store.entries()]
    scheme, _, path = store.uri.partition("://")
    place = PurePosixPath(path)
    for above in place.parents[:-1][:2]:
        holder = open_remote(f"{scheme}://{above}", options)
        is_there = names or holder.has(place.relative_to(above).as_posix())
        if is_there and holder.has(MANIFEST_NAME):
            return part_of(store.uri, holder.uri)
    return no_manifest(store.uri, names) if names else f"{store.uri}: nothing is there."


def _piece(shard: ShardInfo, row: int, records: NDArray[np.uint8]) -> Piece:
    """Range of a shard that holds records from ``row`` on; size and digest must be the shard's."""
    view = records.reshape(-1).data
    return Piece(shard.name, row * RECORD_STRIDE, view, shard.bytes, shard.sha256)


def _stretches(rows: NDArray[np.int64], shard: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Where sorted rows are to be cut: at shards, and at gaps worth a request of their own."""
    if not len(rows):
        return
    cuts = np.flatnonzero((np.diff(rows) > _GAP_ROWS) | (np.diff(shard) != 0)) + 1
    yield from pairwise([0, *cuts.tolist(), len(rows)])

"""A committed dataset: its manifest, its shards as arrays, its sidecars as tables.

`open_dataset` returns the class for where the dataset lies: one that maps the shards on a local
disk (`lensprep.dataset.local`), or one that reads ranges of an object store
(`lensprep.dataset.remote`).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset.absence import no_dataset
from lensprep.dataset.layout import MANIFEST_NAME, STAMP_DTYPE
from lensprep.dataset.manifest import MANIFEST_BYTES, Manifest, ShardInfo, SplitInfo
from lensprep.dataset.rows import Reader, Rows, Split, counts_text
from lensprep.dataset.sidecar import join_tables, open_sidecar, read_table
from lensprep.errors import DatasetError, NotFoundError, StorageError, plain_text
from lensprep.store import LocalStore, S3Options, Store, is_remote, member_path, open_store


class Dataset(Rows, ABC):
    """A committed dataset; make it with `open_dataset`.

    ``dataset["test"]`` is one split, a `Split`; what both offer for a look (`table`, `stamp`,
    `stamps`, `near`, `plot`) is of all splits here. Iterating gives the names of the splits.

    Parameters
    ----------
    store : Store
        Folder of the dataset.
    manifest : Manifest
    """

    _leaves: ClassVar[dict[bool, type[Dataset]]] = {}

    def __init_subclass__(cls, *, remote: bool) -> None:
        """Have a class read the datasets that are in an object store, or those that are not."""
        Dataset._leaves[remote] = cls

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.uri = store.uri
        self.manifest = manifest
        self.geometry = manifest.geometry
        self.dataset_id = manifest.dataset_id

    @staticmethod
    def open(uri: str | os.PathLike[str], options: S3Options | None = None) -> Dataset:
        """Open a dataset.

        Parameters
        ----------
        uri : str or path
            A local folder, or ``s3://bucket/folder``.
        options : S3Options, optional
            How to reach an object store.

        Raises
        ------
        DatasetError
            If there is no such folder, no manifest (not converted, or not finished), or an invalid
            one.
        StorageError
            If the disk or the object store does not let us, or does not answer.

        Examples
        --------
        >>> dataset = open_dataset("demo/dataset")  # or "s3://bucket/dataset"
        >>> dataset["test"].table(["key", "ra", "dec"], where="label == 1").to_pandas()
        >>> dataset.near(4.749144, -27.060934, radius_arcsec=5).plot()
        """
        leaf, store = Dataset._leaves[is_remote(uri)], open_store(uri, options)
        try:
            with store.open(MANIFEST_NAME) as file:
                text = file.read(MANIFEST_BYTES + 1)
        except NotFoundError:
            raise DatasetError(no_dataset(store)) from None
        return leaf(store, Manifest.from_json(text, f"{store.uri}/{MANIFEST_NAME}"))

    @property
    def _reader(self) -> Reader:
        return self

    @property
    def _splits(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    def __getitem__(self, split: str) -> Split:
        return Split(self, split)

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __repr__(self) -> str:
        spec = self.manifest.normalization
        stored = f"{plain_text(spec.mode, 40)} clipped at {spec.clip:g}"
        return (
            f"Dataset of {self.geometry}, {stored}\n{self.uri}, id {self.dataset_id[:12]}\n"
            f"{counts_text(self.manifest.splits)}"
        )

    @property
    def root(self) -> Path:
        """Folder of a local dataset.

        Raises
        ------
        StorageError
            If it lies in an object store.
        """
        if not isinstance(self.store, LocalStore):
            raise StorageError(
                f"{self.uri} is not on a local disk, as this needs. Copy it with `lensprep "
                "download` first."
            )
        return self.store.root

    def path(self, name: str) -> Path:
        """Path of a file that the manifest names, of a local dataset."""
        return member_path(self.root, name)

    def split(self, name: str) -> SplitInfo:
        """Counts and shards of a split.

        Raises
        ------
        DatasetError
            If the dataset has no such split.
        """
        try:
            return self.manifest.splits[name]
        except KeyError:
            known = ", ".join(self.manifest.splits) or "none"
            raise DatasetError(f"{self.uri} has no split {name!r}; it has: {known}.") from None

    @abstractmethod
    def read_records(
        self, shard: ShardInfo, start: int = 0, stop: int | None = None
    ) -> NDArray[np.uint8]:
        """Neighbouring records of a shard, mapped or read: uint8, shape (n, geometry.stride).

        Parameters
        ----------
        shard : ShardInfo
        start, stop : int
            Rows, as in a slice.

        Raises
        ------
        ShardError
            If the tar is missing or does not have the size in the manifest.
        """

    @abstractmethod
    def read_tar(self, shard: ShardInfo) -> NDArray[np.uint8]:
        """Every byte of a shard, mapped or read: uint8, whatever its size; for verification.

        Raises
        ------
        ShardError
            If the tar is missing or cannot be read.
        """

    def read_shard_pixels(
        self, shard: ShardInfo, rows: NDArray[Any] | Sequence[int]
    ) -> NDArray[np.float16]:
        """Pixels of chosen rows of one shard, in the order asked for: (n, *geometry.shape), a copy.

        Raises
        ------
        ShardError
            As `read_records`.
        IndexError
            If a row lies outside the shard.
        """
        return self._pixels((shard,), rows, shard.name)

    def read_pixels(self, split: str, index: NDArray[Any] | Sequence[int]) -> NDArray[np.float16]:
        """Pixels of chosen rows of a split, in the order asked for.

        Parameters
        ----------
        split : str
        index : array_like of int, shape (n,)
            Positions in the split.

        Returns
        -------
        ndarray of float16, shape (n, bands, side, side)

        Raises
        ------
        ShardError
            If a shard is missing or cut.
        IndexError
            If a position lies outside the split.
        """
        return self._pixels(self.split(split).shards, index, f"split {split!r}")

    def _pixels(
        self, shards: Sequence[ShardInfo], index: NDArray[Any] | Sequence[int], where: str
    ) -> NDArray[np.float16]:
        """Pixels at positions in consecutive shards; each row is read once, in tar order."""
        starts = np.cumsum([0, *(shard.rows for shard in shards)])
        positions = np.asarray(index, np.int64)
        if positions.size and (positions.min() < 0 or positions.max() >= starts[-1]):
            raise IndexError(f"positions must lie in [0, {starts[-1]}) for {where}")
        wanted, order = np.unique(positions, return_inverse=True)
        which = np.searchsorted(starts, wanted, side="right") - 1
        pixels = np.empty((len(wanted), *self.geometry.shape), STAMP_DTYPE)
        self._read_pixels(shards, which, wanted - starts[which], pixels)
        return pixels if np.array_equal(wanted, positions) else pixels[order]

    @abstractmethod
    def _read_pixels(
        self,
        shards: Sequence[ShardInfo],
        which: NDArray[np.int64],
        rows: NDArray[np.int64],
        out: NDArray[np.float16],
    ) -> None:
        """Read rows ``rows`` of ``shards[which]`` into `out`; they ascend, without duplicates."""

    def read_shard_sidecar(
        self, shard: ShardInfo, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Sidecar rows of one shard, in tar order.

        Raises
        ------
        ShardError
            If the sidecar is missing, does not have the size and rows in the manifest, or is not
            valid (`lensprep.dataset.sidecar`).
        DatasetError
            If a requested column is not there.
        """
        with self._open_sidecar(shard, whole=columns is None) as source:
            where = f"{self.uri}/{shard.sidecar}"
            # Over a network the pages of chosen columns are best read together.
            pre_buffer = not isinstance(self.store, LocalStore)
            return read_table(
                source, shard.rows, columns, where, self.geometry, pre_buffer=pre_buffer
            )

    def sidecar_footer(self, shard: ShardInfo) -> pq.FileMetaData:
        """Schema and row groups of a sidecar; no row is read.

        Raises
        ------
        ShardError
            As `read_shard_sidecar`.
        """
        with (
            self._open_sidecar(shard, footer=True) as source,
            open_sidecar(source, shard.rows, f"{self.uri}/{shard.sidecar}", self.geometry) as file,
        ):
            return file.metadata

    @abstractmethod
    def _open_sidecar(
        self, shard: ShardInfo, *, whole: bool = False, footer: bool = False
    ) -> AbstractContextManager[Any]:
        """A sidecar of the size in the manifest, as `pyarrow.parquet.ParquetFile` takes it.

        The caller says whether it will read all of it, or the footer alone.
        """

    def read_sidecar(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Sidecar rows of a split in split order (shards in manifest order, rows in tar order).

        Parameters
        ----------
        split : str
        columns : sequence of str, optional
            Columns to read; if not given, all that are not nested.

        Raises
        ------
        ShardError, DatasetError
            As `read_shard_sidecar`.
        """
        tables = self.read_sidecars(self._some_shards(split), columns)
        return join_tables(tables, f"{self.uri}: the sidecars of {split}")

    def columns(self, split: str) -> list[str]:
        """Columns of the first sidecar of a split.

        Raises
        ------
        ShardError, DatasetError
            As `read_sidecar`.
        """
        footer = self.sidecar_footer(self._some_shards(split)[0])
        return list(footer.schema.to_arrow_schema().names)

    def _some_shards(self, split: str) -> tuple[ShardInfo, ...]:
        shards = self.split(split).shards
        if not shards:
            raise DatasetError(f"{self.uri}: split {split!r} is empty.")
        return shards

    def read_sidecars(
        self, shards: Sequence[ShardInfo], columns: Sequence[str] | None
    ) -> Iterable[pa.Table]:
        """Sidecar rows of some shards, one table each, read as they are asked for."""
        return (self.read_shard_sidecar(shard, columns) for shard in shards)


open_dataset: Final = Dataset.open
"""See `Dataset.open`."""

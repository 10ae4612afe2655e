"""One split as the loader needs it, whether converted by us or a stock WebDataset tar."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset import MANIFEST_NAME, Dataset, Geometry
from lensprep.dataset.layout import (
    COUNTERFACTUAL,
    DONOR_TASK,
    HOST_TASK,
    LENSED,
    ORIGIN,
    SIMULATED,
)
from lensprep.dataset.sidecar import is_counterfactual, read_origins
from lensprep.dataset.where import check_columns, compile_where
from lensprep.errors import ConfigError, DatasetError, StorageError
from lensprep.store import S3Options, is_remote
from lenstrain.data.cache.filling import open_copies
from lenstrain.data.sidecar import Column, SidecarColumn, SidecarColumns
from lenstrain.data.sources.base import Reading, ShardSource
from lenstrain.data.sources.local import LocalSource
from lenstrain.data.sources.remote import RemoteSource
from lenstrain.data.sources.tars import TarSource, index_tar, names_tars, tar_paths, tars_digest


@dataclass(frozen=True, slots=True, eq=False)
class Families:
    """The counterfactuals of a split; all arrays of shape (counterfactuals,)."""

    rows: NDArray[np.int64]
    """Positions in the split, ascending."""
    family: NDArray[np.int64]
    """Number of its host and donor."""
    lensed: NDArray[np.bool_]
    """Whether it is the lens of its family."""

    def fitting(self, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Positions of those among some rows (None for all) whose family's lens is there too.

        The same light without a lens has no Einstein radius: a filter cannot tell it from light of
        other lenses. Without its lens it would teach that this light never is one.
        """
        if rows is None:
            return self.rows
        there = np.isin(self.rows, rows, assume_unique=True)
        return self.rows[there & ~np.isin(self.family, self.family[self.lensed & ~there])]


NO_FAMILIES: Final = Families(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))


class SplitData(Protocol):
    """Identity, rows and columns of a split, and where its bytes come from."""

    title: str
    """Its name in messages."""
    identity: str
    """Dataset id: with another one the order differs, and a saved state is refused."""
    geometry: Geometry | None
    """What its stamps have in common; None if it is not known."""
    shard_rows: list[int]
    source: ShardSource

    @property
    def labels(self) -> Column:
        """Label of each row, by position."""

    def all_labels(self) -> NDArray[np.int8]:
        """Labels of all rows."""

    def matching(self, where: str) -> NDArray[np.int64]:
        """Positions of the rows for which an expression is true, ascending."""

    @property
    def counterfactuals(self) -> Families:
        """Its counterfactuals."""

    @property
    def origins(self) -> tuple[list[str], NDArray[np.int64]]:
        """Origins in alphabetical order, and the number of each row's, shape (rows,)."""


class ConvertedSplit:
    """A split of a dataset that `lensprep convert` made."""

    def __init__(self, dataset: Dataset, split: str, reading: Reading) -> None:
        self.dataset, self.split = dataset, split
        self._shards = dataset.split(split).shards
        self.title = f"split {split!r} of {dataset.uri}"
        self.identity = dataset.dataset_id
        self.geometry: Geometry | None = dataset.geometry
        self.shard_rows = [shard.rows for shard in self._shards]
        try:
            self.source, self.labels = self._open(reading)
        except MemoryError as error:
            raise DatasetError(
                f"{self.title}: no memory for an array of its {sum(self.shard_rows):,} rows. Check "
                "its manifest with `lensprep verify`."
            ) from error

    def _open(self, reading: Reading) -> tuple[ShardSource, SidecarColumn]:
        dataset, split = self.dataset, self.split
        # Both from one look at each sidecar: a request costs more than a column.
        both = {"label": np.int8, "payload_crc32": np.uint32}
        if is_remote(dataset.uri):
            columns = SidecarColumns(dataset, split, both)
            crc = SidecarColumn(columns, "payload_crc32")
            copies = open_copies(dataset, split, reading)
            try:
                source: ShardSource = RemoteSource(dataset, split, crc, reading, copies)
            except BaseException:
                copies.close()
                raise
        else:
            # The source first: it compares the rows with the files, before they get memory.
            source = local = LocalSource(dataset, self._shards, reading)
            compared = reading.verify == "crc"
            columns = SidecarColumns(dataset, split, both if compared else {"label": np.int8})
            if compared:
                local.compare_with(SidecarColumn(columns, "payload_crc32"))
        return source, SidecarColumn(columns, "label")

    def all_labels(self) -> NDArray[np.int8]:
        """Labels of all rows, from the sidecars."""
        return self.labels.all()

    def matching(self, where: str) -> NDArray[np.int64]:
        """Positions of the rows for which an expression on sidecar columns is true, ascending."""
        kept, start, compiled = [np.empty(0, np.int64)], 0, compile_where(where)
        for shard in self._shards:
            if not start:  # all columns of one, for a message that names the nearest
                footer = self.dataset.sidecar_footer(shard)
                check_columns(compiled, footer.schema.to_arrow_schema().names)
            # An expression of constants reads no column; it still needs a table of some length.
            table = self.dataset.read_shard_sidecar(shard, compiled.columns or ("label",))
            kept.append(start + np.flatnonzero(compiled.mask(table)))
            start += shard.rows
        return np.concatenate(kept)

    @cached_property
    def counterfactuals(self) -> Families:
        """Its counterfactuals, from the sidecars."""
        if not self.dataset.split(self.split).counterfactuals:
            return NO_FAMILIES
        names = [COUNTERFACTUAL, HOST_TASK, DONOR_TASK]
        table = self.dataset.read_sidecar(self.split, names)
        rows = np.flatnonzero(is_counterfactual(table))
        kind, *tasks = (table[name].cast(pa.string()).take(pa.array(rows)) for name in names)
        family = pc.binary_join_element_wise(*tasks, "/").combine_chunks().dictionary_encode()
        lensed = pc.equal(kind, LENSED).to_numpy()
        return Families(rows, family.indices.to_numpy().astype(np.int64), lensed)

    @cached_property
    def origins(self) -> tuple[list[str], NDArray[np.int64]]:
        """Origins of its rows, from the sidecars."""
        if ORIGIN not in self.dataset.columns(self.split):
            return [SIMULATED], np.zeros(sum(self.shard_rows), np.int64)
        column = read_origins(self.dataset.read_sidecar(self.split, [ORIGIN]))
        encoded = column.combine_chunks().dictionary_encode()
        names, place = np.unique(encoded.dictionary.to_pylist(), return_inverse=True)
        return names.tolist(), place[encoded.indices.to_numpy()]


class TarSplit:
    """Stock WebDataset tars as a split; `uri` as for `lenstrain.data.sources.tars.tar_paths`."""

    geometry: Geometry | None = None

    def __init__(self, uri: str, reading: Reading) -> None:
        if reading.verify == "crc":
            raise ConfigError(f"{uri} has no checksums to verify: tars alone hold none.")
        paths = tar_paths(uri)
        shards = [index_tar(path) for path in paths]
        self.title, self.identity = uri, tars_digest(shards)
        self.shard_rows = [len(shard) for shard in shards]
        self.source: ShardSource = TarSource(paths, shards, reading)
        self.labels = np.array([member.label for shard in shards for member in shard], np.int8)

    def all_labels(self) -> NDArray[np.int8]:
        """Labels of all rows, as indexed."""
        return self.labels

    def matching(self, where: str) -> NDArray[np.int64]:
        """Refuse: there are no sidecar columns."""
        raise ConfigError(
            f"where {where!r}: {self.title} has no sidecar tables, which a converted dataset has."
        )

    @property
    def counterfactuals(self) -> Families:
        """None that would be known: there are no sidecar columns."""
        return NO_FAMILIES

    @property
    def origins(self) -> tuple[list[str], NDArray[np.int64]]:
        """One, as far as is known: there are no sidecar columns."""
        return [SIMULATED], np.zeros(sum(self.shard_rows), np.int64)


def open_split(
    uri: str | os.PathLike[str],
    split: str,
    reading: Reading,
    options: S3Options | None = None,
) -> SplitData:
    """Open a split of a converted dataset, or stock tars where the location names tars.

    A folder without a manifest is refused, even if there are tars in it: it may be a conversion
    that has not finished.

    Raises
    ------
    DatasetError, ShardError
        If there is nothing to read, or it is damaged.
    StorageError
        If the object store refuses or does not answer; for tars in an object store.
    BudgetError
        If the memory budget is too small.
    """
    text = os.fspath(uri)
    if not names_tars(text):
        return ConvertedSplit(Dataset.open(uri, options), split, reading)
    if is_remote(text):
        raise StorageError(
            f"{text}: tars without a manifest are read from a local disk only. Give the folder of "
            "a converted dataset, or read them with stock stages: lenstrain.data.register_s3() and "
            'wds.WebDataset("s3://...").'
        )
    found, home = TarSplit(text, reading), Path(text).parent.parent
    what = "is not a converted dataset"
    if (home / MANIFEST_NAME).is_file():
        what = f"is a shard of the dataset {home}; reading is fast if the dataset is named"
    warnings.warn(
        f"{text} {what}: its samples are read and decoded one by one by the stock WebDataset "
        "stages, many times slower.",
        stacklevel=3,
    )
    return found

"""Stamps to compare a finder on: what is stored of them, and the flux that it was made from.

    restored(data, split, rows)                 flux from the stored pixels
    decoded(data, split, rows, sources)         flux from the trees that the dataset was made from

No label is read and nothing is chosen by what is seen: that an exported file repeats the logits of
its checkpoint says nothing of how good they are. So this opens no test split in the sense of the
ledger (`lenstrain.scoring.ledger`), and is not written there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset import Dataset
from lensprep.dataset.manifest import ShardInfo
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.sidecar import read_statistics
from lensprep.store import Uri

_ROWS: Final = 512
"""Stamps in memory at a time, `Geometry.scaled_rows`."""
_KINDS: Final = (pa.dictionary(pa.int32(), pa.string()), pa.int32(), pa.int64())
"""Of file, row group and row, as they are kept in memory."""


class Stamps(NamedTuple):
    """Some rows of a split."""

    stored: NDArray[np.float16]
    """Shape (n, bands, side, side)."""
    flux: NDArray[np.float32]
    """Same shape, in the unit of the survey."""


def restored(data: Dataset, split: str, rows: NDArray[np.int64]) -> Iterator[Stamps]:
    """Rows of a split (ascending), their flux restored from what is stored.

    Raises
    ------
    DatasetError, ShardError
        If a shard cannot be read, or its sidecar lacks the statistics that this takes.
    ConfigError
        If this version does not know the normalisation.
    """
    spec, geometry = data.manifest.normalization, data.geometry
    few = geometry.scaled_rows(_ROWS)
    for shard, own in _by_shard(data, split, rows):
        median = scale = np.ones((shard.rows, len(geometry.bands)), np.float32)
        if spec.by_stamp:
            columns = geometry.band_columns("median", "scale")
            median, scale = read_statistics(data.read_shard_sidecar(shard, columns), geometry)
        for start in range(0, len(own), few):
            some = own[start : start + few]
            stored = data.read_shard_pixels(shard, some)
            yield Stamps(stored, denormalize(stored, spec, median[some], scale[some]))


def decoded(
    data: Dataset, split: str, rows: NDArray[np.int64], sources: Sequence[Uri]
) -> Iterator[Stamps]:
    """Rows of a split (ascending), their flux decoded from the source, in the order of the source.

    Raises
    ------
    InputError
        If a row is not there, or no longer.
    DatasetError, ShardError
        As `restored`, or if the sidecars do not say where rows come from.
    """
    from lensprep.decode.parts import ORIGIN_COLUMNS, iter_tree_stamps  # numba is slow to import

    # Of millions of rows numbers are kept alone: a file is named once.
    kinds = pa.schema(zip(ORIGIN_COLUMNS, _KINDS, strict=True))
    places = pa.concat_tables(
        data.read_shard_sidecar(shard, ORIGIN_COLUMNS).take(pa.array(own)).cast(kinds)
        for shard, own in _by_shard(data, split, rows)
    ).unify_dictionaries()
    for numbers, flux in iter_tree_stamps(sources, places, data.manifest.source):
        yield Stamps(data.read_pixels(split, rows[numbers]), flux)


def _by_shard(
    data: Dataset, split: str, rows: NDArray[np.int64]
) -> Iterator[tuple[ShardInfo, NDArray[np.int64]]]:
    """Shards that have some of the rows, with the positions of these in the shard."""
    first = 0
    for shard in data.split(split).shards:
        low, high = np.searchsorted(rows, [first, first + shard.rows])
        if low < high:
            yield shard, rows[low:high] - first
        first += shard.rows
